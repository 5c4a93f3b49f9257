"""Which machine a call goes to: pure functions that put machines in order.

=============  ==================================================================================
default        the fullest machine that the call leaves at most half full, else the emptiest: few
               machines are woken, none is crowded. Machines with GPUs come last for calls without
SPREAD         the machine that runs the fewest calls; in turn, where those are alike
fifo           as default, but calls start strictly in the order they came: none overtakes
round_robin    the machines in turn
=============  ==================================================================================

``default`` is the idea of Ray's hybrid policy (src/ray/raylet/scheduling/policy/
hybrid_scheduling_policy.cc), ``fifo`` and ``round_robin`` are those of the reference.
"""

from collections.abc import Mapping
from typing import Literal, get_args

from .resources import GPU, Demand, Pool

Policy = Literal["default", "fifo", "round_robin"]

_FULL_ENOUGH = 0.5


def check_policy(policy: str) -> None:
    """Raise ValueError unless ``policy`` is one of the three."""
    if policy not in get_args(Policy):
        raise ValueError(f"scheduling_policy={policy!r} is unknown; use one of {get_args(Policy)}")


def packed(machines: Mapping[int, Pool], needs: Demand) -> list[int]:
    """Return the machines, the best for the default policy first.

    >>> busy = Pool({"CPU": 40000}); share = busy.take((("CPU", 10000),))
    >>> machines = {0: Pool({"CPU": 40000}), 1: busy}
    >>> packed(machines, (("CPU", 10000),)), packed(machines, (("CPU", 20000),))
    ([1, 0], [0, 1])
    """
    wants_gpu = any(name == GPU for name, _ in needs)

    def rank(machine: int) -> tuple[bool, bool, float, int]:
        pool = machines[machine]
        used = pool.utilisation(needs)
        is_crowded = used > _FULL_ENOUGH
        wastes_gpu = bool(pool.gpus) and not wants_gpu
        return wastes_gpu, is_crowded, used if is_crowded else -used, machine

    return sorted(machines, key=rank)


def spread(
    machines: Mapping[int, Pool], needs: Demand, num_running: Mapping[int, int], last: int
) -> list[int]:
    """Return the machines, the one that runs the fewest calls first; of equals that after ``last``.

    >>> spread({0: Pool({}), 1: Pool({})}, (), {0: 1, 1: 0}, -1)
    [1, 0]
    >>> spread({0: Pool({}), 1: Pool({}), 2: Pool({})}, (), {}, 1)
    [2, 0, 1]
    """

    def rank(machine: int) -> tuple[int, float, bool, int]:
        used = machines[machine].utilisation(needs)
        return num_running.get(machine, 0), used, machine <= last, machine

    return sorted(machines, key=rank)


def in_turn(machines: Mapping[int, Pool], last: int) -> list[int]:
    """Return the machines, the one after ``last`` first.

    >>> in_turn({0: Pool({}), 1: Pool({}), 2: Pool({})}, 1)
    [2, 0, 1]
    """
    return sorted(machines, key=lambda machine: (machine <= last, machine))
