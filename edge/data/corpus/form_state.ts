/**
 * Typed form state: values, validation and what the user has touched, without any framework.
 *
 * A form is described once by its fields; the types of the values follow from that description.
 */

export type Verdict = string | null;
export type Rule<T> = (value: T, all: Readonly<Record<string, unknown>>) => Verdict;
export type AsyncRule<T> = (value: T, signal: AbortSignal) => Promise<Verdict>;

export interface Field<T> {
  readonly initial: T;
  readonly label: string;
  readonly rules?: readonly Rule<T>[];
  /** Asked only when all `rules` are content, for instance whether a user name is taken. */
  readonly remote?: AsyncRule<T>;
}

// eslint-disable-next-line @typescript-eslint/no-explicit-any
export type Fields = Record<string, Field<any>>;
export type Values<F extends Fields> = {
  [K in keyof F]: F[K] extends Field<infer T> ? T : never;
};

type Status = "pristine" | "checking" | "valid" | "invalid";

interface FieldState {
  touched: boolean;
  status: Status;
  error: Verdict;
  request?: AbortController;
}

export interface Snapshot<F extends Fields> {
  readonly values: Values<F>;
  readonly errors: Partial<Record<keyof F, string>>;
  readonly dirty: boolean;
  readonly busy: boolean;
}

type Listener<F extends Fields> = (snapshot: Snapshot<F>) => void;

export class FormState<F extends Fields> {
  private values: Values<F>;
  private readonly states = new Map<keyof F, FieldState>();
  private readonly listeners = new Set<Listener<F>>();
  private submitting = false;

  constructor(private readonly fields: F) {
    this.values = this.initialValues();
    this.resetStates();
  }

  subscribe(listener: Listener<F>): () => void {
    this.listeners.add(listener);
    listener(this.snapshot());
    return () => {
      this.listeners.delete(listener);
    };
  }

  get<K extends keyof F>(name: K): Values<F>[K] {
    return this.values[name];
  }

  async set<K extends keyof F>(name: K, value: Values<F>[K]): Promise<void> {
    if (Object.is(this.values[name], value)) {
      return;
    }
    this.values = { ...this.values, [name]: value };
    await this.check(name);
  }

  /** The user has left a field: from now on its error may be shown. */
  touch(name: keyof F): void {
    const state = this.state(name);
    if (!state.touched) {
      state.touched = true;
      if (state.status === "pristine") {
        void this.check(name);
      } else {
        this.notify();
      }
    }
  }

  reset(): void {
    for (const state of this.states.values()) {
      state.request?.abort();
    }
    this.values = this.initialValues();
    this.resetStates();
    this.notify();
  }

  /** Checks everything and calls `send` if all is well. Resolves to whether it was called. */
  async submit(send: (values: Values<F>) => Promise<void>): Promise<boolean> {
    if (this.submitting) {
      return false;
    }
    this.submitting = true;
    try {
      const names = this.names();
      for (const name of names) {
        this.state(name).touched = true;
      }
      await Promise.all(names.map((name) => this.check(name)));
      if (names.some((name) => this.state(name).status !== "valid")) {
        return false;
      }
      await send(this.values);
      return true;
    } finally {
      this.submitting = false;
      this.notify();
    }
  }

  snapshot(): Snapshot<F> {
    const errors: Partial<Record<keyof F, string>> = {};
    let busy = this.submitting;
    for (const [name, state] of this.states) {
      if (state.touched && state.error !== null) {
        errors[name] = state.error;
      }
      busy ||= state.status === "checking";
    }
    const dirty = this.names().some((name) => !Object.is(this.values[name], this.fields[name].initial));
    return { values: this.values, errors, dirty, busy };
  }

  private async check(name: keyof F): Promise<void> {
    const field = this.fields[name];
    const state = this.state(name);
    const value = this.values[name];
    state.request?.abort();
    state.request = undefined;

    const problem = firstProblem(field.rules ?? [], value, this.values);
    if (problem !== null || field.remote === undefined) {
      state.error = problem;
      state.status = problem === null ? "valid" : "invalid";
      this.notify();
      return;
    }

    const request = new AbortController();
    state.request = request;
    state.status = "checking";
    state.error = null;
    this.notify();
    let answer: Verdict;
    try {
      answer = await field.remote(value, request.signal);
    } catch {
      answer = `${field.label} could not be checked; try again.`;
    }
    if (request.signal.aborted) {
      return; // a newer value is being checked
    }
    state.request = undefined;
    state.error = answer;
    state.status = answer === null ? "valid" : "invalid";
    this.notify();
  }

  private names(): (keyof F)[] {
    return Object.keys(this.fields);
  }

  private state(name: keyof F): FieldState {
    const state = this.states.get(name);
    if (state === undefined) {
      throw new RangeError(`the form has no field "${String(name)}"`);
    }
    return state;
  }

  private initialValues(): Values<F> {
    const pairs = Object.entries(this.fields).map(([name, field]) => [name, field.initial]);
    return Object.fromEntries(pairs) as Values<F>;
  }

  private resetStates(): void {
    for (const name of this.names()) {
      this.states.set(name, { touched: false, status: "pristine", error: null });
    }
  }

  private notify(): void {
    const snapshot = this.snapshot();
    this.listeners.forEach((listener) => listener(snapshot));
  }
}

function firstProblem<T>(
  rules: readonly Rule<T>[],
  value: T,
  all: Readonly<Record<string, unknown>>,
): Verdict {
  for (const rule of rules) {
    const problem = rule(value, all);
    if (problem !== null) {
      return problem;
    }
  }
  return null;
}

export const required =
  (label: string): Rule<string> =>
  (value) =>
    value.trim() === "" ? `${label} is required.` : null;

export const between =
  (low: number, high: number): Rule<number> =>
  (value) => {
    if (Number.isNaN(value)) {
      return "This is not a number.";
    }
    return value < low || value > high ? `Enter a number from ${low} to ${high}.` : null;
  };

export const sameAs =
  (other: string, message: string): Rule<unknown> =>
  (value, all) =>
    value === all[other] ? null : message;

export function createForm<F extends Fields>(fields: F): FormState<F> {
  return new FormState(fields);
}
