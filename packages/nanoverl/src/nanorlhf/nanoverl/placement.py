"""Which device each process gets: pure arithmetic on what the machine has."""

import dataclasses
import os
from typing import Literal, NamedTuple

import torch

from .config import Layout

DeviceName = Literal["auto", "cpu", "cuda"]

MAX_CPU_SLOTS = 4
"""Processes that ``dp="auto"`` plans for on CPUs: small models gain nothing from more."""


class Placement(NamedTuple):
    """Where trainer and engines run, and the threads each of their processes has."""

    layout: Layout
    """With ``dp`` a number."""
    trainer: list[str]
    rollout: list[str]
    threads: int


def place(
    layout: Layout,
    *,
    replicas: int = 0,
    device: Literal["cpu", "cuda"],
    slots: int,
    threads: int = 1,
) -> Placement:
    """Return where the ranks of ``layout`` and ``replicas`` engines run.

    Engines take the devices after the trainer's; where there are too few, processes share them in
    turn. ``dp="auto"`` takes what ``slots`` leaves beside the engines, at least one.

    Args:
        layout: The trainer's.
        replicas: Inference engines.
        device: Kind.
        slots: CUDA devices, or CPU cores.
        threads: CPU threads to share out.

    Raises:
        ValueError: More ranks than GPUs.
    """
    model = layout.pp * layout.tp
    free = min(slots, MAX_CPU_SLOTS) if device == "cpu" else slots
    dp = max(1, (free - replicas) // model) if layout.dp == "auto" else layout.dp
    if device == "cuda" and 1 < dp * model > slots:
        raise ValueError(
            f"dp*pp*tp={dp * model} ranks on {slots} GPUs: two ranks cannot share one; use a "
            f"layout of at most {slots}"
        )
    resolved = dataclasses.replace(layout, dp=dp)
    processes = dp * model + replicas
    names = [f"cuda:{i % slots}" if device == "cuda" else "cpu" for i in range(processes)]
    share = max(1, threads // processes)
    return Placement(resolved, names[: dp * model], names[dp * model :], share)


def place_here(
    layout: Layout, *, replicas: int = 0, device: DeviceName = "auto", processes: bool = True
) -> Placement:
    """Return `place` for this machine; ``device="auto"`` is CUDA where there is any.

    Args:
        layout: The trainer's.
        replicas: Inference engines.
        device: Kind.
        processes: Ranks can have processes of their own; without them ``dp="auto"`` is 1.

    Raises:
        ValueError: CUDA is asked for and absent.
    """
    if not processes and layout.dp == "auto":
        layout = dataclasses.replace(layout, dp=1)
    devices = torch.cuda.device_count()
    threads = torch.get_num_threads()  # the user's OMP_NUM_THREADS, if set
    if device == "cuda" and devices == 0:
        raise ValueError("device='cuda' but this machine shows no CUDA device; use device='cpu'")
    if device == "cuda" or (device == "auto" and devices > 0):
        return place(layout, replicas=replicas, device="cuda", slots=devices, threads=threads)
    return place(
        layout, replicas=replicas, device="cpu", slots=os.cpu_count() or 1, threads=threads
    )
