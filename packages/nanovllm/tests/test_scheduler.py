import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from nanorlhf.nanovllm.pages import PagePool
from nanorlhf.nanovllm.sampling import SamplingParams
from nanorlhf.nanovllm.scheduler import Scheduler
from nanorlhf.nanovllm.sequence import Sequence
from nanorlhf.nanovllm.state import BatchState


def make(*, slots=4, length=16, page_size=2, pages=16, tokens=8, caching=True):
    state = BatchState(max_num_seqs=slots, max_model_len=length, page_size=page_size)
    return Scheduler(
        state,
        PagePool(pages),
        max_num_batched_tokens=tokens,
        max_context=max(length, tokens),
        prefix_caching=caching,
    )


def add(scheduler, prompt, *, limit, n=1, request_id=0):
    leader, *siblings = (
        Sequence(
            np.array(prompt, np.int32),
            SamplingParams(n=n),
            request_id=request_id,
            index=i,
            stream="",
            limit=limit,
        )
        for i in range(n)
    )
    leader.siblings = siblings
    scheduler.add(leader)


class Device:
    """A model that writes each token itself into the KV slot of its keys.

    So a page table is right exactly when the pages read back as the sequence's tokens.
    """

    def __init__(self, scheduler):
        self.scheduler, self.state = scheduler, scheduler.state
        self.pages = np.full((scheduler.pool.num_pages, self.state.page_size), -1)

    def run(self, step):
        state, size = self.state, self.state.page_size
        for slot, count in zip(step.slots_R, step.counts_R, strict=True):
            start = state.computed[slot]
            for t in range(start, start + count):
                self.pages[state.page_table[slot, t // size], t % size] = state.tokens[slot, t]
        for slot, count in zip(step.slots_R, step.counts_R, strict=True):
            end = state.computed[slot] + count
            assert self.read(slot, end) == state.tokens[slot, :end].tolist()
        for source, target in step.copies:
            self.pages[target] = self.pages[source]

    def read(self, slot, end):
        table = self.state.page_table[slot, : -(-end // self.state.page_size)]
        return self.pages[table].flatten()[:end].tolist()


def check_step(scheduler, step, *, budget):
    """A step is within its budget and computes each slot once, without gaps."""
    state = scheduler.state
    assert 0 < step.counts_R.sum() <= budget
    assert step.counts_R.min() >= 1
    assert len(set(step.slots_R.tolist())) == len(step.slots_R)
    assert (step.counts_R[: step.num_single] == 1).all()
    assert (step.counts_R[step.num_single :] > 1).all()
    ends = state.computed[step.slots_R] + step.counts_R
    assert (ends <= state.length[step.slots_R]).all()
    assert (ends <= state.num_pages[step.slots_R] * state.page_size).all()
    assert len(set(step.sample_slots_B.tolist())) == len(step.sample_slots_B)
    for slot, row in zip(step.sample_slots_B, step.sample_rows_B, strict=True):
        assert ends[row] == state.length[slot]


def check_pages(scheduler):
    """References equal the running sequences that hold a page."""
    held = [page for slot in scheduler.running for page in scheduler.state.pages(slot)]
    for page in range(scheduler.pool.num_pages):
        assert scheduler.pool.refs(page) == held.count(page)


def run_all(scheduler, *, budget, device=None, max_steps=2000):
    """Run until idle with tokens that depend on position alone; return the finished sequences."""
    device, state, finished = device or Device(scheduler), scheduler.state, []
    for _ in range(max_steps):
        step = scheduler.schedule()
        if step is None:
            break
        check_step(scheduler, step, budget=budget)
        device.run(step)
        scheduler.commit(step)
        slots = step.sample_slots_B
        for slot in slots:
            assert (
                device.read(slot, state.length[slot])
                == state.tokens[slot, : state.length[slot]].tolist()
            )
        zeros = np.zeros(len(slots), np.float32)
        tokens = (state.length[slots] % 3).astype(np.int32)
        state.append(slots, tokens, logprobs_B=zeros, raw_logprobs_B=zeros, version=0)
        finished += scheduler.finish(slots[state.is_full(slots)].tolist())
        check_pages(scheduler)
    assert scheduler.num_unfinished == 0
    assert scheduler.pool.num_free == scheduler.pool.num_pages
    return finished


prompts = st.lists(
    st.tuples(st.lists(st.integers(0, 1), min_size=1, max_size=12), st.integers(1, 6)),
    min_size=1,
    max_size=8,
)


@settings(max_examples=150, deadline=None)
@given(
    requests=prompts,
    n=st.integers(1, 3),
    slots=st.integers(1, 5),
    page_size=st.sampled_from([1, 2, 4]),
    extra_pages=st.integers(0, 12),
    budget=st.integers(5, 20),
    caching=st.booleans(),
)
def test_every_sequence_is_computed_once_and_exactly_and_no_page_leaks(
    requests, n, slots, page_size, extra_pages, budget, caching
):
    scheduler = make(
        slots=slots,
        page_size=page_size,
        length=20,
        pages=-(-20 // page_size) + extra_pages,
        tokens=budget,
        caching=caching,
    )
    for i, (prompt, more) in enumerate(requests):
        add(scheduler, prompt, limit=len(prompt) + more, n=n, request_id=i)
    finished = run_all(scheduler, budget=budget)
    assert sorted((s.request_id, s.index) for s in finished) == [
        (i, j) for i in range(len(requests)) for j in range(n)
    ]
    for sequence in finished:
        prompt, more = requests[sequence.request_id]
        response = [t % 3 for t in range(len(prompt), len(prompt) + more)]
        assert sequence.tokens.tolist() == prompt + response


def test_a_prompt_longer_than_the_budget_is_computed_in_chunks_beside_decoding_rows():
    scheduler = make(tokens=5, pages=32)
    add(scheduler, [1], limit=12)
    device = Device(scheduler)
    for _ in range(2):
        step = scheduler.schedule()
        device.run(step)
        scheduler.commit(step)
        zero = np.zeros(1, np.float32)
        scheduler.state.append(
            step.sample_slots_B,
            zero.astype(np.int32),
            logprobs_B=zero,
            raw_logprobs_B=zero,
            version=0,
        )
        add(scheduler, range(10), limit=12) if not scheduler.waiting else None
    step = scheduler.schedule()
    assert step.counts_R.tolist() == [1, 4]
    assert len(step.sample_slots_B) == 1


def test_running_out_of_pages_preempts_the_youngest_and_it_still_finishes():
    scheduler = make(length=16, pages=8, tokens=16, caching=False)
    for i in range(3):
        add(scheduler, [i, i], limit=12, request_id=i)
    finished = run_all(scheduler, budget=16)
    assert scheduler.stats.preemptions > 0
    assert finished[0].request_id == 0
    assert scheduler.stats.computed_tokens > sum(len(s.tokens) - 1 for s in finished)


def test_a_prompt_computed_before_costs_only_its_last_tokens():
    scheduler = make()
    device = Device(scheduler)
    add(scheduler, range(8), limit=9)
    run_all(scheduler, budget=8, device=device)
    before = scheduler.stats.computed_tokens
    add(scheduler, range(8), limit=9)
    run_all(scheduler, budget=8, device=device)
    assert before == 8
    # The last page holds the last token, which is always computed, so the page is too.
    assert scheduler.stats.computed_tokens - before == 2
    assert scheduler.stats.cached_tokens == 6


def test_a_prefix_is_not_found_while_it_is_being_computed():
    scheduler = make(tokens=16)
    add(scheduler, range(8), limit=9)
    add(scheduler, range(8), limit=9)
    step = scheduler.schedule()
    assert step.counts_R.tolist() == [8, 8]


def test_the_responses_of_a_request_share_one_computation_of_its_prompt():
    scheduler = make(slots=4, tokens=8, caching=False)
    add(scheduler, range(5), limit=7, n=3)
    step = scheduler.schedule()
    assert step.slots_R.tolist() == [0]
    assert step.sample_rows_B.tolist() == [0, 0, 0]
    assert len(step.copies) == 2
    state = scheduler.state
    full = [state.pages(slot)[:2] for slot in step.sample_slots_B]
    assert full[0] == full[1] == full[2]
    assert len({state.pages(slot)[2] for slot in step.sample_slots_B}) == 3


def test_responses_that_find_no_slot_follow_before_anyone_else():
    scheduler = make(slots=2, tokens=16)
    add(scheduler, range(4), limit=6, n=3, request_id=0)
    add(scheduler, range(4), limit=6, request_id=1)
    assert [s.request_id for s in run_all(scheduler, budget=16)] == [0, 0, 0, 1]


def test_gathered_keys_stay_within_their_bound():
    scheduler = make(slots=4, length=16, pages=64, tokens=16)
    add(scheduler, range(12), limit=13)
    run_all(scheduler, budget=16)
    for last in range(4):
        add(scheduler, [*range(10), 20, last], limit=13)
    step = scheduler.schedule()
    assert step.counts_R.tolist() == [2]  # its keys are 12 of 16; a second row would need 12 more


def test_a_prompt_waits_while_it_would_take_the_next_page_of_a_running_sequence():
    scheduler = make(pages=9, page_size=2, tokens=16, caching=False)
    for i in range(2):
        add(scheduler, range(6), limit=9, request_id=i)
    scheduler.commit(scheduler.schedule())
    add(scheduler, range(4), limit=5, request_id=2)
    assert scheduler.pool.num_free == 3  # 2 for the prompt, 1 for the two that run
    scheduler.schedule()
    assert len(scheduler.running) == 2
    scheduler.finish([0])
    scheduler.schedule()
    assert len(scheduler.running) == 2
    assert not scheduler.waiting


def test_aborting_frees_everything_also_what_waits_to_be_forked():
    scheduler = make(slots=1)
    add(scheduler, range(3), limit=9, n=2)
    add(scheduler, range(3), limit=9)
    assert scheduler.num_unfinished == 3
    scheduler.schedule()
    assert len(scheduler.abort()) == 3
    assert scheduler.num_unfinished == 0
    assert scheduler.pool.num_free == scheduler.pool.num_pages
    assert scheduler.schedule() is None
