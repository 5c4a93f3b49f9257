"""Resource arithmetic: amounts, pools and GPU ids, without I/O.

Amounts are integers in units of 1/10000, as in Ray, so that ten tenths make one. CPUs and custom
resources are plain numbers. GPUs are things: a request for whole GPUs gets that many untouched
ids, a request for a fraction shares one id.
"""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

UNIT = 10_000
CPU, GPU, SLOT = "CPU", "GPU", "slot"
"""SLOT counts task processes, so that tasks without CPUs cannot fork without bound."""

Demand = tuple[tuple[str, int], ...]
"""Sorted (name, amount) pairs without zeros: hashable, and equal when the needs are equal."""


class Share(NamedTuple):
    """What a pool has given to one request."""

    amounts: Demand
    gpus: tuple[tuple[str, int], ...]

    @property
    def gpu_ids(self) -> tuple[str, ...]:
        """The devices, as they belong into CUDA_VISIBLE_DEVICES."""
        return tuple(gpu for gpu, _ in self.gpus)


def demand(
    *,
    num_cpus: float = 0,
    num_gpus: float = 0,
    resources: Mapping[str, float] | None = None,
) -> Demand:
    """Return the canonical form of a request.

    Raises:
        ValueError: An amount is negative or finer than 1/10000, or GPUs are neither a fraction of
            one nor a whole number.

    >>> demand(num_cpus=2, resources={"disk": 0.5})
    (('CPU', 20000), ('disk', 5000))
    """
    for name in (CPU, GPU, SLOT):
        if name in (resources or {}):
            raise ValueError(f"resources has {name!r}, which is not custom; use num_cpus, num_gpus")
    amounts = {CPU: num_cpus, GPU: num_gpus, **(resources or {})}
    if num_gpus > 1 and num_gpus != int(num_gpus):
        raise ValueError(
            f"num_gpus={num_gpus} is neither whole nor below 1; a fraction shares one device, so "
            f"ask for {int(num_gpus)} or {int(num_gpus) + 1}"
        )
    return canonical({name: _units(name, amount) for name, amount in amounts.items()})


def bundle_demand(bundle: Mapping[str, float]) -> Demand:
    """Return the canonical form of a placement group's bundle, ``{"CPU": 1, "GPU": 1}``."""
    rest = {name: amount for name, amount in bundle.items() if name not in (CPU, GPU)}
    return demand(num_cpus=bundle.get(CPU, 0), num_gpus=bundle.get(GPU, 0), resources=rest)


def canonical(amounts: Mapping[str, int]) -> Demand:
    """Return sorted pairs without zeros."""
    return tuple(sorted((name, amount) for name, amount in amounts.items() if amount))


def readable(amounts: Iterable[tuple[str, int]]) -> dict[str, float]:
    """Return amounts as the user wrote them.

    >>> readable((("CPU", 20000), ("disk", 5000)))
    {'CPU': 2.0, 'disk': 0.5}
    """
    return {name: amount / UNIT for name, amount in amounts if name != SLOT}


def shortage(needs: Demand, totals: Mapping[str, int]) -> str | None:
    """Return why ``totals`` can never hold ``needs``, or None when they can."""
    for name, amount in needs:
        if amount > totals.get(name, 0):
            return f"{name}={amount / UNIT:g} is asked for and {totals.get(name, 0) / UNIT:g} exist"
    return None


class Pool:
    """Free amounts of a node or of one bundle.

    >>> pool = Pool({"CPU": UNIT}, ["0", "1"])
    >>> share = pool.take(demand(num_cpus=1, num_gpus=1))
    >>> share.gpu_ids, pool.take(demand(num_cpus=1))
    (('0',), None)
    """

    def __init__(self, amounts: Mapping[str, int], gpus: Iterable[str] = ()) -> None:
        self.free = {name: amount for name, amount in amounts.items() if name != GPU}
        self.gpus = dict.fromkeys(gpus, UNIT)
        self.totals = dict(self.free)
        if self.gpus:
            self.totals[GPU] = UNIT * len(self.gpus)

    def take(self, needs: Demand) -> Share | None:
        """Return what satisfies ``needs`` now, or None."""
        gpus: tuple[tuple[str, int], ...] = ()
        for name, amount in needs:
            if name == GPU:
                found = _pick_gpus(self.gpus, amount)
                if found is None:
                    return None
                gpus = found
            elif self.free.get(name, 0) < amount:
                return None
        share = Share(needs, gpus)
        self._change(share, -1)
        return share

    def give(self, share: Share) -> None:
        """Take a share back."""
        self._change(share, 1)

    def lend(self, share: Share) -> None:
        """Take back what a blocked call does not use: its CPUs and its process slot."""
        self._change(_idle_part(share), 1)

    def reclaim(self, share: Share) -> None:
        """Undo ``lend``; the pool may be overdrawn until someone else finishes."""
        self._change(_idle_part(share), -1)

    def copy(self) -> "Pool":
        """Return a pool that is as full, to try things out on."""
        twin = Pool({})
        twin.free, twin.gpus, twin.totals = dict(self.free), dict(self.gpus), self.totals
        return twin

    def utilisation(self, needs: Demand) -> float:
        """Return how full CPU or one of ``needs`` would be with ``needs`` taken; 1 is full."""
        wanted = {CPU: 0, **dict(needs)}
        free = self.available()
        shares = [
            (total - free[name] + wanted[name]) / total
            for name, total in self.totals.items()
            if name in wanted and total
        ]
        return max(shares, default=0.0)

    def available(self) -> dict[str, int]:
        """Return what is free, GPUs summed."""
        gpus = {GPU: sum(self.gpus.values())} if self.gpus else {}
        return {**{name: max(0, amount) for name, amount in self.free.items()}, **gpus}

    def _change(self, share: Share, sign: int) -> None:
        for name, amount in share.amounts:
            if name != GPU:
                self.free[name] += sign * amount
        for gpu, amount in share.gpus:
            self.gpus[gpu] += sign * amount


def empty_pool(totals: Mapping[str, int]) -> Pool:
    """Return a pool with all of ``totals`` free, its GPUs numbered from 0.

    >>> empty_pool({"GPU": 2 * UNIT}).gpus
    {'0': 10000, '1': 10000}
    """
    return Pool(totals, [str(index) for index in range(totals.get(GPU, 0) // UNIT)])


def inherited_gpus(environ: Mapping[str, str]) -> list[str]:
    """Return the ids of the GPUs this process may use, without touching CUDA.

    A CUDA_VISIBLE_DEVICES set by whoever started us (Slurm, a user) is the whole truth: its ids
    are handed out as they stand.

    >>> inherited_gpus({"CUDA_VISIBLE_DEVICES": "2,3"})
    ['2', '3']
    """
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [gpu.strip() for gpu in visible.split(",") if gpu.strip() not in ("", "-1")]
    listed = Path("/proc/driver/nvidia/gpus")
    return [str(index) for index in range(len(os.listdir(listed)))] if listed.is_dir() else []


def _units(name: str, amount: float) -> int:
    units = round(amount * UNIT)
    if units < 0 or abs(units - amount * UNIT) > 1e-6 * UNIT:
        raise ValueError(f"{name}={amount} is not a multiple of 1/{UNIT} from 0 up; round it")
    return units


def _pick_gpus(gpus: Mapping[str, int], amount: int) -> tuple[tuple[str, int], ...] | None:
    if amount < UNIT:  # the fullest device that still fits keeps whole ones whole
        fitting = [(left, gpu) for gpu, left in gpus.items() if left >= amount]
        return ((min(fitting, key=lambda pair: pair[0])[1], amount),) if fitting else None
    whole = [gpu for gpu, left in gpus.items() if left == UNIT][: amount // UNIT]
    return tuple((gpu, UNIT) for gpu in whole) if len(whole) == amount // UNIT else None


def _idle_part(share: Share) -> Share:
    return Share(tuple(pair for pair in share.amounts if pair[0] in (CPU, SLOT)), ())
