"""Several sequences at once: a pass reads the weights once, and gives each of them a token.

    batch = Batch(model, slots=8)
    streams = [batch.generate(ids, 99, GREEDY)[1] for ids in prompts]
    for place, token in batch.drive(streams): ...

Each sequence gets the ids that it gets alone: a pass over several may sum in another order, so
choices within rounding are made again by a step of the sequence alone, as in speculation. As in
`edge.generate.decode` the next pass is submitted before the ids of the last one are read, unless
a sequence joins or has proposals.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import mlx.core as mx

from edge.errors import EdgeError
from edge.generate.decode import (
    PREFILL_TOKENS,
    Continued,
    OnPrefill,
    TokensOrNone,
    check_finite,
    check_prompt,
    common_length,
    prefill_parts,
    reusable,
    tokens_to_make,
)
from edge.generate.sampling import OnPick, Picker, Sampling, pick_rows
from edge.generate.speculate import TOKENS_BETWEEN_CLEARS, DraftLength, PromptLookup, accepted_ids
from edge.model.slot_cache import SlotCache
from edge.model.stablelm import Model

MOST_UNTAKEN = 8  # ids that may wait for their reader; at this number a sequence pauses
# A held prefix is worth more than the slot's age from this share of a prompt on; llama-server's.
LEAST_REUSED_SHARE = 0.1
T = TypeVar("T")


@dataclass(eq=False)
class _Sequence:
    """A generation in its slot; `ids` are the prompt and what was chosen."""

    slot: int
    ids: list[int]
    parts: deque[range]  # of the prompt, still to be computed
    pick: Picker
    count: int  # ids to choose
    on_prefill: OnPrefill
    on_pick: OnPick | None
    draft: PromptLookup | None
    begun: int = 0  # ids that are chosen or that a pass under way chooses
    ready: deque[int] = field(default_factory=deque)  # chosen, not yet taken
    error: Exception | None = None

    def __post_init__(self) -> None:
        self.fresh = range(self.parts[0].start, len(self.ids))  # what is not reused
        if self.draft is not None:
            self.draft.begin(self.ids)

    @property
    def is_done(self) -> bool:
        return not self.parts and len(self.ids) == self.fresh.stop + self.count

    @property
    def can_run(self) -> bool:
        is_wanted = self.begun < self.count and len(self.ready) < MOST_UNTAKEN
        return not self.parts and self.error is None and is_wanted

    def propose(self, most: int) -> list[int]:
        most = min(most, self.count - self.begun - 1)
        return self.draft.propose(most) if self.draft is not None and most else []

    def take(self, found: list[int], logits: mx.array, proposed: Sequence[int] = ()) -> None:
        """Appends the ids chosen by logits (n, vocab)."""
        if self.draft is not None and proposed:
            self.draft.count_checked(self.draft.kind(), proposed, found)
            self.draft.extend(found)
        elif self.draft is not None:
            self.draft.observe(found[0])
        self.ids += found
        self.ready.extend(found)
        if self.on_pick is not None:
            for place, token in enumerate(found):
                self.on_pick(logits[place : place + 1], mx.array([token]))


@dataclass
class _Pass:
    """A submitted pass: what each sequence proposed, and the ids chosen at each position."""

    proposed: dict[_Sequence, list[int]]
    rows: range  # their slots, and those between them
    logits: mx.array  # (rows, 1 + proposals, vocab)
    chosen: mx.array  # (rows, 1 + proposals)
    clear: mx.array | None  # None where the pass is a step of one sequence alone
    states: dict[int, list[Any]]  # as of `pick_rows`

    @property
    def proposals(self) -> int:
        return self.chosen.shape[1] - 1


class Batch:
    """A source of tokens for up to `slots` prompts at once.

    A slot keeps what it holds for the next prompt that begins alike. With `draft` proposals are
    checked where they pay. A model whose rotary frequencies follow the length of its context has
    one slot, as sequences of different lengths cannot share a pass.

    What a wide pass rounds otherwise stays in the cache, and a later step of the sequence alone
    reads it: a choice within that rounding may differ from the one alone. docs/method.md says how
    often that was seen.
    """

    def __init__(
        self,
        model: Model,
        slots: int,
        kv_bits: int | None = None,
        context_tokens: int | None = None,
        draft: DraftLength | None = None,
    ):
        scaling, most = model.config.rope_scaling, model.config.max_position_embeddings
        self.slots = 1 if scaling is not None and scaling.rope_type == "dynamic" else slots
        self.context_tokens = most if context_tokens is None else min(most, context_tokens)
        self._model, self._kv_bits, self._length = model, kv_bits, draft
        self._sequences: list[_Sequence | None] = [None] * self.slots
        self.reset()

    def reset(self) -> None:
        """Forgets all ids; sequences under way end with an error."""
        for sequence in filter(None, self._sequences):
            sequence.error = sequence.error or RuntimeError("the batch was reset")
        self._sequences = [None] * self.slots
        self._prompts: deque[_Sequence] = deque()
        self._cache = SlotCache(self._model, self.slots, self._kv_bits)
        self.held: list[list[int]] = [[] for _ in range(self.slots)]
        self._ages = list(range(self.slots))  # slots, the least recently used first
        self._last: _Pass | None = None
        self._passes, self._since_s = 0, 0.0

    def generate(
        self,
        ids: Sequence[int],
        max_tokens: int | None,
        sampling: Sampling,
        on_prefill: OnPrefill = lambda done, total: None,
        prefill_tokens: int = PREFILL_TOKENS,
        on_pick: OnPick | None = None,
        waits: bool = False,
    ) -> Continued:
        """The number of reused ids, and the ids that follow, those of `MlxSource.generate`.

        The iterator yields None where it has no id yet, and the caller makes a `step`; with `waits`
        it makes the steps itself. It holds a slot until it is used up or closed. Errors of
        `on_prefill` and of the computation come from the iterator, those of the arguments from
        this call, as does an EdgeError when all slots are taken.
        """
        check_prompt(ids, self._model.config.vocab_size)
        limit = self._model.config.max_position_embeddings
        count = tokens_to_make(limit, 0, len(ids), max_tokens)
        slot, reused = self._choose_slot(ids, sampling)
        parts = prefill_parts(len(ids) - reused, prefill_tokens, len(self._model.layers))
        sequence = _Sequence(
            slot=slot,
            ids=list(ids),
            parts=deque(range(part.start + reused, part.stop + reused) for part in parts),
            pick=Picker(sampling, ids[reused:], None, self._kv_bits),
            count=count,
            on_prefill=on_prefill,
            on_pick=on_pick,
            draft=None if self._length is None else PromptLookup(self._length),
        )
        self._sequences[slot], self._cache.lengths[slot] = sequence, reused
        self._prompts.append(sequence)
        tokens = self._tokens(sequence, waits)
        next(tokens)  # begun, so that closing it frees the slot
        return reused, tokens

    def step(self) -> None:
        """Computes a part of one prompt, the first that came, and makes a pass over all others."""
        if self._prompts:
            self._compute_part(self._prompts[0])
        if not self._submit_ahead():
            self._read_last()
            self._last = self._submit(self._running())

    def drive(
        self,
        streams: Iterable[Generator[T, None, None]],
        is_nothing: Callable[[T], bool] = lambda item: item is None,
    ) -> Generator[tuple[int, T], None, None]:
        """Items of iterators over this batch's tokens, with the iterator's number, as they come.

        At most `slots` are begun at once; items that are "nothing yet" are left out.
        """
        waiting, running = enumerate(streams), dict[int, Generator[T, None, None]]()
        with contextlib.ExitStack() as open_streams:
            while True:
                while len(running) < self.slots and (begun := next(waiting, None)):
                    running |= [begun]
                    open_streams.callback(begun[1].close)
                if not running:
                    return
                for place, stream in list(running.items()):
                    for item in stream:
                        if is_nothing(item):
                            break
                        yield place, item
                    else:
                        del running[place]
                self.step()

    def _choose_slot(self, ids: Sequence[int], sampling: Sampling) -> tuple[int, int]:
        """The free slot that holds most of the prompt, or the least recently used."""
        free = [slot for slot in self._ages if self._sequences[slot] is None]
        if not free:
            raise EdgeError(f"all {self.slots} sequences of the batch are in use; end one of them.")
        common = {slot: common_length(self.held[slot], ids) for slot in free}
        slot = max(free, key=common.__getitem__)
        if common[slot] < LEAST_REUSED_SHARE * len(ids):
            slot = free[0]
        self._ages.remove(slot)
        self._ages.append(slot)
        return slot, reusable(self.held[slot], ids, sampling)

    def _tokens(self, sequence: _Sequence, waits: bool) -> TokensOrNone:
        try:
            yield None  # to `generate`
            while not (sequence.is_done and not sequence.ready):
                if sequence.ready:
                    yield sequence.ready.popleft()
                elif sequence.error is not None:
                    raise sequence.error
                elif waits:
                    self.step()
                else:
                    yield None
        finally:
            self._leave(sequence)

    def _leave(self, sequence: _Sequence) -> None:
        slot = sequence.slot
        if self._sequences[slot] is not sequence:  # after a reset
            return
        self._sequences[slot] = None
        if sequence in self._prompts:
            self._prompts.remove(sequence)
        if self._last is not None:
            self._last.proposed.pop(sequence, None)
        self.held[slot] = sequence.ids[: self._cache.lengths[slot]]
        self._cache.lengths[slot] = len(self.held[slot])

    def _compute_part(self, sequence: _Sequence) -> None:
        """Computes a part of a prompt, and after the last one chooses the first id."""
        try:
            hidden = self._extend(sequence)
            if len(sequence.parts) == 1 == len(sequence.parts[0]):  # see `prefill_parts`
                hidden = self._extend(sequence)
            if not sequence.parts and sequence.count:
                logits = self._model.head(hidden)
                check_finite(logits)
                self._choose(sequence, logits)
        except Exception as error:
            sequence.error = error
            if isinstance(error, EdgeError):
                self._cache.clear(sequence.slot)
        if sequence.error or not sequence.parts:
            self._prompts.popleft()

    def _extend(self, sequence: _Sequence) -> mx.array:
        """Computes the next part; returns the hidden state of its last position."""
        part = sequence.parts[0]
        cache = self._cache.view([sequence.slot], len(part))
        ids = mx.array([sequence.ids[part.start : part.stop]])
        hidden = self._model.model(ids, cache)[:, -1:]
        is_last = len(sequence.parts) == 1
        mx.eval(hidden if is_last else self._cache.arrays)
        sequence.parts.popleft()
        self._cache.lengths[sequence.slot] += len(part)
        sequence.on_prefill(part.stop - sequence.fresh.start, len(sequence.fresh))
        mx.clear_cache()
        return hidden

    def _running(self) -> list[_Sequence]:
        return [each for each in self._sequences if each is not None and each.can_run]

    def _submit_ahead(self) -> bool:
        """Submits the next pass and then reads the last one, if the next needs no id of it."""
        last, running = self._last, self._running()
        if last is None or last.proposals or not running or self._proposals(running):
            return False
        if _rows(running) != last.rows or any(each not in last.proposed for each in running):
            return False
        ahead = self._submit_pass({each: [] for each in running}, last.chosen)
        self._read_last(ahead)
        self._last = ahead
        return True

    def _submit(self, running: list[_Sequence]) -> _Pass | None:
        """Submits a pass after ids that are known."""
        if not running:
            return None
        self._since_s = time.monotonic()
        proposals = self._proposals(running)
        proposed = {each: each.propose(proposals) for each in running}
        longest, rows = 1 + max(map(len, proposed.values())), _rows(running)
        table = [[0] * longest for _ in rows]
        for each, ids in proposed.items():
            table[each.slot - rows.start][: 1 + len(ids)] = [each.ids[-1], *ids]
        return self._submit_pass(proposed, mx.array(table))

    def _submit_pass(self, proposed: dict[_Sequence, list[int]], ids: mx.array) -> _Pass:
        """Submits a pass over ids (rows, n)."""
        rows, length = _rows(list(proposed)), ids.shape[1]
        logits = self._model(ids, self._cache.view([each.slot for each in proposed], length))
        pickers = {each.slot - rows.start: each.pick for each in proposed}
        if ids.size == 1:  # computed as alone
            made = _Pass(proposed, rows, logits, pickers[0](logits[:, -1])[None], None, {})
        else:
            made = _Pass(proposed, rows, logits, *pick_rows(pickers, logits, self._kv_bits))
            mx.async_eval(made.chosen, made.clear)  # type: ignore[no-untyped-call]
        for each, its in proposed.items():
            self._cache.lengths[each.slot] += 1 + len(its)
            each.begun += 1 + len(its)
        self._passes += 1
        if self._passes % TOKENS_BETWEEN_CLEARS == 0:
            mx.clear_cache()
        return made

    def _read_last(self, ahead: _Pass | None = None) -> None:
        """Waits for the last pass and hands out its ids; `ahead` was submitted after it."""
        if (last := self._last) is None:
            return
        chosen: Any = last.chosen.tolist()
        clear: Any = None if last.clear is None else last.clear.tolist()
        self._measure(last.proposals)
        for each, proposed in list(last.proposed.items()):
            row, count, later = each.slot - last.rows.start, 1 + len(proposed), each.pick.state
            are_clear = [True] * count if clear is None else clear[row][:count]
            found = accepted_ids(chosen[row][:count], are_clear, proposed)
            self._cache.lengths[each.slot] -= count - len(found)
            each.begun -= count - len(found)
            if last.proposals or not found:
                each.pick.state = last.states[row][len(found)]
            if found:
                each.take(found, last.logits[row], proposed)
                continue
            is_ahead = ahead is not None and each in ahead.proposed
            self._cache.lengths[each.slot] -= is_ahead
            self._step_alone(each)
            if ahead is None or not is_ahead:
                continue
            if each.ids[-1] == chosen[row][0]:  # the pass ahead was given the right id
                self._cache.lengths[each.slot] += 1
                each.pick.state = later
            else:
                each.begun -= 1
                del ahead.proposed[each]

    def _step_alone(self, sequence: _Sequence) -> None:
        """Chooses the next id by a step of the sequence alone."""
        slot = sequence.slot
        logits = self._model(mx.array([sequence.ids[-1:]]), self._cache.view([slot], 1))
        self._cache.lengths[slot] += 1
        self._choose(sequence, logits)

    def _choose(self, sequence: _Sequence, logits: mx.array) -> None:
        """Chooses an id by logits (1, 1, vocab)."""
        token = sequence.pick(logits[:, -1])
        sequence.begun += 1
        sequence.take([int(token.item())], logits[0])  # type: ignore[arg-type]

    def _proposals(self, running: Sequence[_Sequence]) -> int:
        """Number of proposals of a sequence that pay in the next pass."""
        if self._length is None:
            return 0
        room = [(each.draft and each.draft.kind(), each.count - each.begun - 1) for each in running]
        return self._length.best(*((kind or 0, most) for kind, most in room))

    def _measure(self, proposals: int) -> None:
        """Counts the time of a pass, which is that since the one before was read."""
        begin_s, self._since_s = self._since_s, time.monotonic()
        if self._length is None:
            return
        if proposals:
            self._length.add_pass(proposals, self._since_s - begin_s)
        else:
            self._length.add_step(self._since_s - begin_s)


def _rows(sequences: Sequence[_Sequence]) -> range:
    """The slots from the first to the last of the sequences."""
    return range(sequences[0].slot, sequences[-1].slot + 1)
