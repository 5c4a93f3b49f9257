"""The trainer as the controller sees it: all ranks of one layout behind one object.

The controller hands out sequence indices, never tensors of its own: the experience is stored once,
each data-parallel rank is told which sequences are its, and the ranks of one replica (its pipeline
stages and tensor slices) are told the same.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from nanorlhf.nanotron import Grid, balance

from .config import AlgoConfig, Layout, OptimConfig
from .experience import Experience
from .runtime import Runtime, gather
from .worker import Plan, Role, TrainWorker


class TrainGroup:
    """The actors of a dp x pp x tp layout.

    Args:
        runtime: Where the actors live.
        layout: Sizes; ``dp`` resolved to a number.
        devices: One name a rank.
        threads: CPU threads of each rank.
        max_tokens: Tokens of a microbatch.
        timeout_s: Deadline of any one call.
    """

    def __init__(
        self,
        runtime: Runtime,
        layout: Layout,
        *,
        devices: Sequence[str],
        threads: int,
        max_tokens: int,
        timeout_s: float,
    ) -> None:
        world = layout.world
        if world > 1 and not runtime.has_processes:
            raise ValueError(
                f"dp*pp*tp={world} ranks need a process each and runtime=inprocess has one; "
                "use runtime=nanoray or a layout of 1"
            )
        self.runtime = runtime
        self.layout = layout
        self.max_tokens = max_tokens
        self.timeout_s = timeout_s
        self.actors = [
            runtime.spawn(TrainWorker, rank, layout, device=devices[rank], threads=threads)
            for rank in range(world)
        ]
        grid = Grid(dp=int(layout.dp), pp=layout.pp, tp=layout.tp)
        self.places = [grid.coordinates(rank) for rank in range(world)]
        address = self.wait([self.actors[0].call("address")], "finding a port")[0]
        self.call("connect", address)

    def wait(self, refs: Sequence[Any], what: str) -> list[Any]:
        """Return the values of ``refs`` or raise TimeoutError naming ``what``."""
        return gather(self.runtime, refs, timeout_s=self.timeout_s, what=what)

    def call(self, method: str, *args: Any, **kwargs: Any) -> list[Any]:
        """Run ``method`` with the same arguments on every rank; return the values by rank."""
        return self.wait([actor.call(method, *args, **kwargs) for actor in self.actors], method)

    def start(self, method: str, plans: Sequence[Plan], **kwargs: Any) -> list[Any]:
        """Start ``method(plan)`` on every rank with its replica's plan; return refs."""
        return [
            actor.call(method, plans[at.dp], **kwargs)
            for actor, at in zip(self.actors, self.places, strict=True)
        ]

    def load(
        self, role: Role, path: str, optim: OptimConfig | None, *, dtype: str, resume: bool = False
    ) -> None:
        """Build the engine of ``role`` on every rank."""
        self.call("load", role, path, optim, dtype=dtype, resume=resume)

    def set_losses(self, algo: AlgoConfig) -> None:
        """Fix the losses of actor and critic on every rank."""
        self.call("set_losses", algo)

    def plan(self, lengths: Sequence[int], rows: Sequence[int]) -> list[Plan]:
        """Return, for each data-parallel rank, the microbatches of ``rows`` it shall run.

        Args:
            lengths: Tokens of each of ``rows``.
            rows: Sequence indices.
        """
        shares = balance(lengths, ranks=int(self.layout.dp), max_tokens=self.max_tokens)
        return [[[rows[i] for i in indices] for indices in share] for share in shares]

    def start_forward(
        self, role: Role, experience: Experience, stored: object, *, temperature: float
    ) -> tuple[list[Plan], list[Any]]:
        """Start per-token outputs of every sequence; `finish_forward` collects them."""
        lengths = experience.lengths.tolist()
        plans = self.plan(lengths, range(len(lengths)))
        refs = [
            actor.call("forward", role, stored, plans[at.dp], temperature)
            for actor, at in zip(self.actors, self.places, strict=True)
        ]
        return plans, refs

    def finish_forward(
        self, field: str, experience: Experience, started: tuple[list[Plan], list[Any]]
    ) -> Tensor:
        """Return ``field`` of the model's outputs as one float32 [T] in the experience's order."""
        plans, refs = started
        result = torch.zeros(len(experience.tokens))
        for at, out in zip(self.places, self.wait(refs, "a forward pass"), strict=True):
            if out is not None:
                order = [i for indices in plans[at.dp] for i in indices]
                result[experience.token_index(order)] = getattr(out, field).float()
        return result

    def start_update(
        self,
        role: Role,
        stored: object,
        minibatches: Sequence[Sequence[Plan]],
        *,
        temperature: float,
        lr: float,
    ) -> list[Any]:
        """Start one optimizer step a minibatch on every rank; values are lists of metrics."""
        return [
            actor.call(
                "update",
                role,
                stored,
                [plans[at.dp] for plans in minibatches],
                temperature=temperature,
                lr=lr,
            )
            for actor, at in zip(self.actors, self.places, strict=True)
        ]

    def export(self, role: Role) -> list[Any]:
        """Return refs to the weights of ``role``, one a pipeline stage."""
        refs = [
            (at, actor.call("export", role, processes=self.runtime.has_processes))
            for actor, at in zip(self.actors, self.places, strict=True)
            if at.dp == 0
        ]
        return [ref for at, ref in refs if at.tp == 0]

    def save(self, role: Role, path: str) -> None:
        """Write the checkpoint of ``role`` to ``path``."""
        self.call("save", role, path)
