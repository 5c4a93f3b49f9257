"""Which tokens the next step computes.

One rule: every running sequence has ``length - computed`` tokens to compute, and a step computes as
many of them as its budget allows. A sequence that decodes has one; one that was just admitted has
its prompt, in chunks when the budget is smaller; one that resumes after a preemption has its prompt
and its response so far. So steps are *mixed*: decoding rows go first and cannot be starved, the
rest of the budget goes to prompts, those begun before those that wait.

```
 waiting --admit--> running --finish--> gone          admit: first come, first served
    ^                  |                              preempt: the youngest, when pages run out;
    +-----preempt------+                                       it recomputes and goes on exactly
```

Responses of one request (``n`` > 1) are forked off their leader in the step that completes its
prompt: they share its full pages, get a copy of the last one if it is partly filled, and draw their
first token from the same logits.

State in, decision out: no device and no clock.
"""

from collections import deque
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from .pages import PagePool, page_digest
from .sequence import IntArray, Sequence
from .state import BatchState
from .step import Plan, Stats, Step


class Scheduler:
    """Owns the slots, the pages and the queue.

    Args:
        state: The slots.
        pool: The pages; must hold one sequence of the state's longest length.
        max_num_batched_tokens: Most tokens a step computes, at least one per slot.
        max_context: Most tokens whose keys a step gathers for its rows of several tokens; at
            least the longest sequence.
        prefix_caching: Whether prompts look for pages that others computed.
    """

    def __init__(
        self,
        state: BatchState,
        pool: PagePool,
        *,
        max_num_batched_tokens: int,
        max_context: int,
        prefix_caching: bool = True,
    ) -> None:
        self.state = state
        self.pool = pool
        self.stats = Stats()
        self.waiting: deque[Sequence] = deque()
        self.running: dict[int, Sequence] = {}
        """By slot, oldest first."""
        self._max_tokens = max_num_batched_tokens
        self._max_context = max_context
        self._prefix_caching = prefix_caching
        self._free_slots = list(range(len(state.length) - 1, -1, -1))

    @property
    def num_unfinished(self) -> int:
        """Sequences that wait or run, those not forked off yet included."""
        known = [*self.waiting, *self.running.values()]
        return len(known) + sum(len(sequence.siblings) for sequence in known)

    def add(self, sequence: Sequence) -> None:
        """Put a sequence, with the siblings to be forked off it, at the end of the queue."""
        self.waiting.append(sequence)

    def schedule(self) -> Step | None:
        """Return the next step, or None when there is no work.

        The state changes as if the step will be computed: the caller computes it and then calls
        :meth:`commit`.
        """
        state = self.state
        self._grow()
        slots = np.fromiter(self.running, np.int64, len(self.running))
        left = state.length[slots] - state.computed[slots]
        decoding = slots[left == 1]
        plan = Plan(self._max_tokens - len(decoding), self._max_context)
        for slot in slots[left > 1].tolist():
            start, length = int(state.computed[slot]), int(state.length[slot])
            if not plan.add(slot, start=start, length=length):
                break
        self._admit(plan)
        if not len(decoding) and not plan.rows:
            return None
        return self._step(decoding, plan.rows)

    def commit(self, step: Step) -> None:
        """Record that the step's keys and values are in their pages."""
        state, slots = self.state, step.slots_R
        state.computed[slots] += step.counts_R
        self.stats.steps += 1
        self.stats.computed_tokens += int(step.counts_R.sum())
        if self._prefix_caching:
            full = state.computed[slots] // state.page_size
            for slot in slots[full > state.num_registered[slots]].tolist():
                self._register(slot)

    def finish(self, slots: Iterable[int]) -> list[Sequence]:
        """Take sequences out of their slots for good and return them."""
        return [self._leave(slot) for slot in slots]

    def abort(self) -> list[Sequence]:
        """Take out everything that is unfinished and return it."""
        known = [*self.finish(list(self.running)), *self.waiting]
        self.waiting.clear()
        siblings = [sibling for sequence in known for sibling in sequence.siblings]
        for sequence in known:
            sequence.siblings = []
        return known + siblings

    def _grow(self) -> None:
        """Give each sequence room for the token it computes next; the youngest make it."""
        state = self.state
        slots = np.fromiter(self.running, np.int64, len(self.running))
        short = state.length[slots] > state.num_pages[slots] * state.page_size
        for slot in slots[short].tolist():
            while slot in self.running and self.pool.num_free == 0:
                self._preempt(next(reversed(self.running)))
            if slot in self.running:
                state.add_pages(slot, self.pool.allocate(1))

    def _admit(self, plan: Plan) -> None:
        while self.waiting and self._free_slots and plan.tokens_left:
            sequence = self.waiting[0]
            length = len(sequence.tokens)
            cached = self._find_prefix(sequence)
            missing = -(-length // self.state.page_size) - len(cached)
            fits = self._has_room(missing + self.pool.num_cached(cached))
            if not fits or not self._has_slots(1 + len(sequence.siblings)):
                break  # first come, first served: nothing behind it may jump the queue
            start = len(cached) * self.state.page_size
            if not plan.add(self._free_slots[-1], start=start, length=length):
                break
            self.waiting.popleft()
            self.pool.share(cached)
            self._enter(sequence, [*cached, *self.pool.allocate(missing)], computed=start)

    def _has_slots(self, count: int) -> bool:
        """Leave slots to the siblings yet to be forked: each without one costs its prompt again."""
        pending = sum(len(sequence.siblings) for sequence in self.running.values())
        return min(count, len(self.state.length)) + pending <= len(self._free_slots)

    def _has_room(self, pages: int) -> bool:
        """Leave a page to each running sequence, so that it is not preempted right away."""
        return pages + len(self.running) <= self.pool.num_free

    def _enter(self, sequence: Sequence, pages: list[int], *, computed: int) -> int:
        """Put a sequence into a free slot with pages of which the first tokens are computed."""
        slot = self._free_slots.pop()
        self.running[slot] = sequence
        self.state.enter(slot, sequence)
        self.state.add_pages(slot, pages)
        self.state.computed[slot] = computed
        self.state.num_registered[slot] = computed // self.state.page_size
        self.stats.cached_tokens += computed
        return slot

    def _leave(self, slot: int) -> Sequence:
        sequence = self.running.pop(slot)
        self.pool.release(self.state.pages(slot))
        self.state.leave(slot, sequence)
        self._free_slots.append(slot)
        return sequence

    def _preempt(self, slot: int) -> None:
        self.waiting.appendleft(self._leave(slot))
        self.stats.preemptions += 1

    def _step(self, decoding: IntArray, rows: list[tuple[int, int]]) -> Step:
        """Order the rows, find those that sample, and fork what is to be forked."""
        state = self.state
        rows = sorted(rows, key=lambda row: row[1] > 1)
        slots = np.concatenate([decoding, np.array([slot for slot, _ in rows], np.int64)])
        counts = np.ones(len(slots), np.int64)
        counts[len(decoding) :] = [count for _, count in rows]
        samples = np.flatnonzero(state.computed[slots] + counts == state.length[slots])
        sample_slots, sample_rows, copies = [slots[samples]], [samples], []
        for row in samples.tolist():
            if self.running[int(slots[row])].siblings:
                forked, copied = self._fork(int(slots[row]))
                sample_slots.append(np.array(forked, np.int64))
                sample_rows.append(np.full(len(forked), row, np.int64))
                copies += copied
        return Step(
            slots_R=slots,
            counts_R=counts,
            num_single=int((counts == 1).sum()),
            sample_slots_B=np.concatenate(sample_slots),
            sample_rows_B=np.concatenate(sample_rows),
            copies=copies,
        )

    def _fork(self, leader_slot: int) -> tuple[list[int], list[tuple[int, int]]]:
        """Start the siblings of a sequence whose prompt this step completes.

        Those that find no slot or page wait in front of the queue, and will find the prompt's full
        pages in the prefix index.
        """
        leader, length = self.running[leader_slot], int(self.state.length[leader_slot])
        full, partial = divmod(length, self.state.page_size)
        pages = self.state.pages(leader_slot)
        slots: list[int] = []
        copies: list[tuple[int, int]] = []
        while leader.siblings and self._free_slots and self._has_room(bool(partial)):
            own = self.pool.allocate(bool(partial))
            copies += [(pages[full], page) for page in own]
            self.pool.share(pages[:full])
            sibling = leader.siblings.pop(0)
            slots.append(self._enter(sibling, [*pages[:full], *own], computed=length))
        self.waiting.extendleft(reversed(leader.siblings))
        leader.siblings = []
        return slots, copies

    def _find_prefix(self, sequence: Sequence) -> list[int]:
        """Return the pages that hold the beginning of a sequence, never its last token.

        The last token is always computed: its logits are what the sequence is here for.
        """
        if not self._prefix_caching:
            return []
        full = (len(sequence.tokens) - 1) // self.state.page_size
        self._digest(sequence, sequence.tokens, full)
        return self.pool.match(sequence.digests[:full])

    def _register(self, slot: int) -> None:
        state, sequence = self.state, self.running[slot]
        full = int(state.computed[slot]) // state.page_size
        self._digest(sequence, state.tokens[slot], full)
        for i in range(int(state.num_registered[slot]), full):
            self.pool.register(int(state.page_table[slot, i]), sequence.digests[i])
        state.num_registered[slot] = full

    def _digest(self, sequence: Sequence, tokens: NDArray[np.int32], full: int) -> None:
        """Extend a sequence's chain of digests to its first ``full`` pages."""
        size, digests = self.state.page_size, sequence.digests
        for i in range(len(digests), full):
            before = digests[-1] if digests else self.pool.root
            digests.append(page_digest(before, tokens[i * size : (i + 1) * size]))
