"""Pipeline schedules as pure data, and a simulator that proves them.

A schedule is a list of operations for each stage: forward (F) or backward (B) of a microbatch.
`simulate` runs the lists against each other and proves that every operation runs, that nothing
waits forever (also when a sender must wait for its receiver, as NCCL's do), and that both ends of
every edge move microbatches in the same order, which is what a FIFO needs. It also gives the
bubble and the number of microbatches a stage holds activations for.

1F1B on two stages (Narayanan et al., arXiv:2104.04473, fig. 4):

>>> print(draw(one_f_one_b(2, 3)))
0 |F0 F1 .  .  B0 B0 F2 B1 B1 .  B2 B2
1 |.  F0 B0 B0 F1 B1 B1 F2 B2 B2 .  .
"""

from collections.abc import Callable
from typing import Literal, NamedTuple


class Op(NamedTuple):
    """One operation of one stage."""

    kind: Literal["F", "B"]
    microbatch: int


class Span(NamedTuple):
    """When an operation ran in the simulation."""

    op: Op
    start: float
    stop: float


class Simulation(NamedTuple):
    """What a schedule does on ideal stages."""

    spans: list[list[Span]]
    """[stage][operation], in time order."""
    bubble: float
    """Idle share of the time, 0 to 1."""
    in_flight: list[int]
    """[stage] Largest number of microbatches whose activations are held at once."""


Schedule = list[list[Op]]


def gpipe(stages: int, microbatches: int) -> Schedule:
    """Return all forwards, then all backwards (Huang et al., arXiv:1811.06965)."""
    forwards = [Op("F", i) for i in range(microbatches)]
    backwards = [Op("B", i) for i in range(microbatches)]
    return [forwards + backwards for _ in range(stages)]


def one_f_one_b(stages: int, microbatches: int) -> Schedule:
    """Return one forward, one backward after a warm-up of the stages behind.

    Stage s runs ``stages - s - 1`` forwards first and so holds at most ``stages - s`` microbatches,
    however many there are.
    """
    schedule = []
    for stage in range(stages):
        warm = min(microbatches, stages - stage - 1)
        ops = [Op("F", i) for i in range(warm)]
        for i in range(microbatches - warm):
            ops += [Op("F", warm + i), Op("B", i)]
        ops += [Op("B", i) for i in range(microbatches - warm, microbatches)]
        schedule.append(ops)
    return schedule


def forward_only(stages: int, microbatches: int) -> Schedule:
    """Return the schedule of a forward pass without gradients."""
    return [[Op("F", i) for i in range(microbatches)] for _ in range(stages)]


SCHEDULES: dict[str, Callable[[int, int], Schedule]] = {"gpipe": gpipe, "1f1b": one_f_one_b}


def simulate(
    schedule: Schedule,
    microbatches: int,
    *,
    forward_time: float = 1.0,
    backward_time: float = 2.0,
    rendezvous: bool = False,
) -> Simulation:
    """Run a schedule on ideal stages and return its timeline.

    Args:
        schedule: Operations of each stage.
        microbatches: How many there must be.
        forward_time: Time of one forward, in any unit.
        backward_time: Time of one backward, in the same unit.
        rendezvous: A stage receives its next message of a direction only after its previous
            message in that direction was taken, as with one NCCL communicator per direction.

    Raises:
        ValueError: An operation is missing or doubled, the schedule deadlocks, or the two ends of
            an edge disagree about the order of messages.
    """
    kinds = {op.kind for ops in schedule for op in ops} or {"F"}
    _check_complete(schedule, kinds, microbatches)
    times = {"F": forward_time, "B": backward_time}
    spans: list[list[Span]] = [[] for _ in schedule]
    done: dict[tuple[int, Op], Span] = {}
    while any(len(row) < len(ops) for row, ops in zip(spans, schedule, strict=True)):
        if not _advance(schedule, spans, done, times, rendezvous=rendezvous):
            stuck = [
                ops[len(row)]
                for row, ops in zip(spans, schedule, strict=True)
                if len(row) < len(ops)
            ]
            raise ValueError(f"deadlock: the stages wait for each other at {stuck}")
    total = max((row[-1].stop for row in spans if row), default=0.0)
    ideal = microbatches * sum(times[kind] for kind in kinds)
    bubble = 1 - ideal / total if total else 0.0
    return Simulation(spans, bubble, [_peak(ops) for ops in schedule])


def draw(schedule: Schedule) -> str:
    """Return the simulated timeline as text: one row a stage, a forward 1 wide, a backward 2."""
    microbatches = len({op.microbatch for op in schedule[0]})
    spans = simulate(schedule, microbatches).spans
    ticks = int(max(row[-1].stop for row in spans))
    lines = []
    for stage, row in enumerate(spans):
        cells = ["."] * ticks
        for span in row:
            for tick in range(int(span.start), int(span.stop)):
                cells[tick] = f"{span.op.kind}{span.op.microbatch}"
        width = max(len(cell) for cell in cells)
        lines.append(f"{stage} |" + " ".join(cell.ljust(width) for cell in cells).rstrip())
    return "\n".join(lines)


def _check_complete(schedule: Schedule, kinds: set[Literal["F", "B"]], microbatches: int) -> None:
    """Raise ValueError unless every stage runs every microbatch once, all in the same order."""
    wanted = sorted(Op(kind, i) for kind in kinds for i in range(microbatches))
    for stage, ops in enumerate(schedule):
        if sorted(ops) != wanted:
            raise ValueError(f"stage {stage} does not run each microbatch once: {ops}")
        if any(_order(ops, kind) != _order(schedule[0], kind) for kind in kinds):
            raise ValueError(f"stage {stage} moves microbatches in another order than stage 0")


def _advance(
    schedule: Schedule,
    spans: list[list[Span]],
    done: dict[tuple[int, Op], Span],
    times: dict[str, float],
    *,
    rendezvous: bool,
) -> bool:
    """Run every operation whose inputs are there; False when none could."""
    moved = False
    for stage, ops in enumerate(schedule):
        while len(spans[stage]) < len(ops):
            op = ops[len(spans[stage])]
            source = _source(schedule, stage, op)
            if source and source not in done:
                break
            if rendezvous and not _sent_before(schedule, stage, op, done):
                break
            ready = done[source].stop if source else 0.0
            start = max(ready, spans[stage][-1].stop if spans[stage] else 0.0)
            span = done[stage, op] = Span(op, start, start + times[op.kind])
            spans[stage].append(span)
            moved = True
    return moved


def _source(schedule: Schedule, stage: int, op: Op) -> tuple[int, Op] | None:
    """Return the stage and operation that make the input of ``op``; None for the first forward."""
    before = stage - 1 if op.kind == "F" else stage + 1
    if 0 <= before < len(schedule):
        return before, op
    return (stage, Op("F", op.microbatch)) if op.kind == "B" else None


def _sent_before(schedule: Schedule, stage: int, op: Op, done: dict[tuple[int, Op], Span]) -> bool:
    """Return whether the message sent before ``op``'s, in the same direction, was taken."""
    after = stage + 1 if op.kind == "F" else stage - 1
    order = _order(schedule[stage], op.kind)
    position = order.index(op.microbatch)
    if not position or not 0 <= after < len(schedule):
        return True
    return (after, Op(op.kind, order[position - 1])) in done


def _order(ops: list[Op], kind: str) -> list[int]:
    """Return the microbatches in the order in which ``kind`` visits them."""
    return [op.microbatch for op in ops if op.kind == kind]


def _peak(ops: list[Op]) -> int:
    """Return the largest number of forwards not yet followed by their backward."""
    live = peak = 0
    for op in ops:
        live += 1 if op.kind == "F" else -1
        peak = max(peak, live)
    return peak
