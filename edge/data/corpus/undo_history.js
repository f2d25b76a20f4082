// Undo and redo for the floor plan editor.
//
// A command knows how to do and undo itself. Commands that belong together (a drag is a hundred
// small moves) are merged while they arrive quickly, and a transaction groups commands that the
// user thinks of as one.

'use strict';

const MERGE_WINDOW_MS = 400;

class HistoryError extends Error {
  constructor(message) {
    super(message);
    this.name = 'HistoryError';
  }
}

class Transaction {
  constructor(label) {
    this.label = label;
    this.commands = [];
  }

  redo(plan) {
    for (const command of this.commands) command.redo(plan);
  }

  undo(plan) {
    for (let i = this.commands.length - 1; i >= 0; i--) this.commands[i].undo(plan);
  }
}

class History {
  #done = [];
  #undone = [];
  #open = [];
  #savedAt = 0;
  #lastTime = -Infinity;
  #listeners = new Set();

  constructor(plan, { limit = 200, now = () => Date.now() } = {}) {
    this.plan = plan;
    this.limit = limit;
    this.now = now;
  }

  get canUndo() {
    return this.#done.length > 0 && this.#open.length === 0;
  }

  get canRedo() {
    return this.#undone.length > 0 && this.#open.length === 0;
  }

  get isDirty() {
    return this.#savedAt !== this.#done.length;
  }

  get undoLabel() {
    return this.canUndo ? this.#done.at(-1).label : null;
  }

  onChange(listener) {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  execute(command) {
    command.redo(this.plan);
    if (this.#open.length > 0) {
      this.#open.at(-1).commands.push(command);
      return;
    }
    this.#record(command);
  }

  // Runs `body`; everything it executes becomes one step. If it throws, none of it has happened.
  transaction(label, body) {
    const transaction = new Transaction(label);
    this.#open.push(transaction);
    try {
      const result = body();
      this.#open.pop();
      if (transaction.commands.length > 0) this.#close(transaction);
      return result;
    } catch (error) {
      this.#open.pop();
      transaction.undo(this.plan);
      throw error;
    }
  }

  undo() {
    if (!this.canUndo) throw new HistoryError('there is nothing to undo');
    const command = this.#done.pop();
    command.undo(this.plan);
    this.#undone.push(command);
    this.#lastTime = -Infinity;
    this.#notify('undo', command);
  }

  redo() {
    if (!this.canRedo) throw new HistoryError('there is nothing to redo');
    const command = this.#undone.pop();
    command.redo(this.plan);
    this.#done.push(command);
    this.#notify('redo', command);
  }

  markSaved() {
    this.#savedAt = this.#done.length;
    this.#lastTime = -Infinity;
    this.#notify('save', null);
  }

  #close(transaction) {
    if (this.#open.length > 0) this.#open.at(-1).commands.push(transaction);
    else this.#record(transaction);
  }

  #record(command) {
    // The saved state can no longer be reached once what came after it is thrown away.
    if (this.#savedAt > this.#done.length) this.#savedAt = -1;
    this.#undone.length = 0;

    const time = this.now();
    const previous = this.#done.at(-1);
    const isRecent = time - this.#lastTime <= MERGE_WINDOW_MS;
    this.#lastTime = time;
    if (previous && isRecent && previous.mergeWith && previous.mergeWith(command)) {
      this.#notify('merge', previous);
      return;
    }
    this.#done.push(command);
    if (this.#done.length > this.limit) {
      this.#done.shift();
      this.#savedAt -= 1;
    }
    this.#notify('do', command);
  }

  #notify(kind, command) {
    for (const listener of [...this.#listeners]) {
      try {
        listener({ kind, command, history: this });
      } catch (error) {
        console.error('a history listener failed', error);
      }
    }
  }
}

class MoveCommand {
  constructor(id, dx, dy) {
    Object.assign(this, { id, dx, dy });
    this.label = `Move ${id}`;
  }

  redo(plan) {
    const item = plan.items.get(this.id);
    plan.items.set(this.id, { ...item, x: item.x + this.dx, y: item.y + this.dy });
  }

  undo(plan) {
    const item = plan.items.get(this.id);
    plan.items.set(this.id, { ...item, x: item.x - this.dx, y: item.y - this.dy });
  }

  mergeWith(other) {
    if (!(other instanceof MoveCommand) || other.id !== this.id) return false;
    this.dx += other.dx;
    this.dy += other.dy;
    return true;
  }
}

class RemoveCommand {
  constructor(id) {
    this.id = id;
    this.label = `Remove ${id}`;
  }

  redo(plan) {
    if (!plan.items.has(this.id)) throw new HistoryError(`there is no ${this.id}`);
    this.removed = plan.items.get(this.id);
    plan.items.delete(this.id);
  }

  undo(plan) {
    plan.items.set(this.id, this.removed);
  }
}

module.exports = { History, HistoryError, MoveCommand, RemoveCommand };

if (require.main === module) {
  const assert = require('node:assert/strict');
  let time = 0;
  const plan = { items: new Map([['sofa', { x: 0, y: 0 }], ['lamp', { x: 5, y: 5 }]]) };
  const history = new History(plan, { now: () => time });
  const kinds = [];
  const stop = history.onChange((event) => kinds.push(event.kind));

  for (let i = 0; i < 10; i++) {
    time += 16;
    history.execute(new MoveCommand('sofa', 2, 1));
  }
  assert.deepEqual(plan.items.get('sofa'), { x: 20, y: 10 });
  history.undo();
  assert.deepEqual(plan.items.get('sofa'), { x: 0, y: 0 });
  history.redo();
  history.markSaved();
  assert.equal(history.isDirty, false);

  assert.throws(() => {
    history.transaction('Clear the room', () => {
      history.execute(new RemoveCommand('lamp'));
      history.execute(new RemoveCommand('piano'));
    });
  }, HistoryError);
  assert.ok(plan.items.has('lamp'));
  assert.equal(history.isDirty, false);

  stop();
  history.execute(new RemoveCommand('lamp'));
  assert.equal(history.undoLabel, 'Remove lamp');
  assert.equal(kinds.filter((kind) => kind === 'merge').length, 9);
  console.log('undo_history: ok');
}
