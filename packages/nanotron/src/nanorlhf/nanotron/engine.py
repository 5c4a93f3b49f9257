"""The trainer: one model, its optimizer, and steps over microbatches in any layout."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from . import checkpoint
from .collectives import gather_dim
from .errors import NonFiniteGradient
from .loss import LossFunction, TokenOutputs
from .optimizer import AdamWConfig
from .packing import Microbatch
from .pipeline import Forward, Wire, run_stage
from .qwen3 import Qwen3
from .schedule import SCHEDULES, Op, forward_only
from .zero import ShardedOptimizer


class Engine:
    """Trains a model over data, pipeline and tensor parallel ranks.

    Every method is collective: all ranks of the mesh call it, and all ranks of a replica (same dp
    rank) with the same microbatches. Microbatches may be on the CPU; the engine moves them.

    Args:
        model: This rank's part of the model.
        optimizer: AdamW settings; None for a model that is only evaluated (no gradients are
            allocated).
        clip_norm: Largest norm of the global gradient; None does not clip.
        zero: 1 cuts gradients of the step, master weights and optimizer state over dp; 0 does not.
        schedule: "1f1b" holds activations of at most pp microbatches, "gpipe" of all.
        recompute: Keep only each layer's input and run layers again in the backward.

    Raises:
        ValueError: An unknown schedule or ZeRO stage.
    """

    def __init__(
        self,
        model: Qwen3,
        *,
        optimizer: AdamWConfig | None,
        clip_norm: float | None = 1.0,
        zero: Literal[0, 1] = 1,
        schedule: Literal["1f1b", "gpipe"] = "1f1b",
        recompute: bool = False,
    ) -> None:
        if zero not in (0, 1):
            raise ValueError(f"zero={zero!r}: choose 0 (all-reduce) or 1 (cut over dp)")
        if schedule not in SCHEDULES:
            raise ValueError(f"schedule={schedule!r}: choose one of {sorted(SCHEDULES)}")
        if clip_norm is not None and clip_norm <= 0:
            raise ValueError(f"clip_norm={clip_norm}: must be positive, or None for no clipping")
        self.model, self.mesh = model, model.mesh
        self.clip_norm = clip_norm
        self._plan = SCHEDULES[schedule]
        model.recompute = recompute
        self.optimizer = (
            None if optimizer is None else ShardedOptimizer(model.flat, optimizer, zero=zero)
        )
        self._wire = Wire(
            self.mesh,
            hidden_size=model.config.hidden_size,
            dtype=model.dtype,
            device=model.device,
        )

    @property
    def steps(self) -> int:
        """Optimizer steps taken."""
        return self._trainable().adam.steps

    def train_step(
        self,
        microbatches: Sequence[Microbatch],
        loss_fn: LossFunction,
        *,
        temperature: float = 1.0,
        lr: float | None = None,
    ) -> dict[str, float]:
        """Take one optimizer step and return what happened, equal on every rank.

        Args:
            microbatches: This replica's part of the batch; may be empty on some replicas.
            loss_fn: Called once a microbatch on the last stage; see `loss.Loss`.
            temperature: Divides the logits before log-probabilities and entropy.
            lr: Learning rate of this step; the optimizer's own when None.

        Returns:
            "loss" and each metric divided by "weight" (the global denominator), "grad_norm" before
            clipping, and "tokens" (all packed tokens).

        Raises:
            ValueError: No token is in any mask.
            NonFiniteGradient: The gradient is inf or nan; the weights stay as they are.
        """
        report = self.backward(microbatches, loss_fn, temperature=temperature)
        norm = float(self._trainable().norm())
        if not abs(norm) < float("inf"):
            raise NonFiniteGradient(norm, report["loss"])
        scale = 1.0 if self.clip_norm is None else min(1.0, self.clip_norm / (norm + 1e-6))
        self._trainable().step(scale=scale, lr=lr)
        return {**report, "grad_norm": norm}

    def backward(
        self,
        microbatches: Sequence[Microbatch],
        loss_fn: LossFunction,
        *,
        temperature: float = 1.0,
    ) -> dict[str, float]:
        """Compute and reduce the gradients of a batch without a step; see `train_step`."""
        optimizer = self._trainable()
        batches = [self._prepare(mb) for mb in microbatches if mb.num_tokens]
        weight = self._global_weight(batches)
        optimizer.zero_grad()
        sums: dict[str, Tensor] = {}

        def forward(i: int, x: Tensor | None) -> Tensor:
            hidden = self.model(x, batches[i])
            if not self.mesh.is_last_stage:
                return hidden  # type: ignore[no-any-return]
            loss = loss_fn(self.model.head(hidden, batches[i], temperature=temperature), batches[i])
            for name, value in {"loss": loss.sum, **loss.metrics}.items():
                value = torch.as_tensor(value).detach()
                sums[name] = sums[name] + value if name in sums else value
            return loss.sum / weight

        self._run(self._plan(self.mesh.pp, len(batches)), forward, batches, training=True)
        optimizer.reduce()
        return self._report(sums, batches, weight)

    @torch.no_grad()
    def forward(
        self, microbatches: Sequence[Microbatch], *, temperature: float = 1.0
    ) -> list[TokenOutputs] | None:
        """Return the outputs of each microbatch, without gradients.

        Returns:
            One entry a microbatch on every rank of the last stage, None on other stages.
        """
        batches = [self._prepare(mb) for mb in microbatches]
        outputs: dict[int, TokenOutputs] = {}

        def forward(i: int, x: Tensor | None) -> Tensor:
            hidden: Tensor = self.model(x, batches[i])
            if self.mesh.is_last_stage:
                outputs[i] = self.model.head(hidden, batches[i], temperature=temperature)
            return hidden

        filled = [i for i, mb in enumerate(batches) if mb.num_tokens]
        plan = forward_only(self.mesh.pp, len(batches))
        ops = [[op for op in stage if op.microbatch in filled] for stage in plan]
        self._run(ops, forward, batches, training=False)
        if not self.mesh.is_last_stage:
            return None
        nothing = torch.zeros(0, self.model.config.hidden_size, device=self.model.device)
        return [
            outputs[i] if i in outputs else self.model.head(nothing, mb)
            for i, mb in enumerate(batches)
        ]

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Yield (Hugging Face name, full tensor) of this pipeline stage; collective over tp.

        A tied LM head is not repeated. Without tensor parallelism the tensors are views of the live
        weights: copy what must outlive the next step.
        """
        return self._gathered(self.model.flat.data)

    def gradients(self) -> Iterator[tuple[str, Tensor]]:
        """Yield (Hugging Face name, full gradient) as reduced by the last `backward`.

        After `train_step` they are scaled by the clip. For tests and diagnostics; collective.
        """
        return self._gathered(self._trainable().full_grad())

    def _gathered(self, buffer: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Yield the full tensors that a flat buffer holds slices of."""
        for slot in self.model.flat.owned():
            local = self.model.flat.view(buffer, slot.spec.name)
            if slot.spec.shard_dim is None:
                yield slot.spec.name, local
            else:
                yield slot.spec.name, gather_dim(local, slot.spec.shard_dim, self.mesh.tp_group)

    def save(self, path: str | Path, *, state: dict[str, Any] | None = None) -> None:
        """Write a checkpoint: a Hugging Face directory, optimizer and trainer state beside it.

        Atomic: the directory appears under its name when it is complete. ``state`` is any JSON
        value the trainer wants back from `load`.
        """
        checkpoint.save(path, self.model, self.optimizer, state=state)

    def load(self, path: str | Path) -> dict[str, Any]:
        """Restore weights and optimizer from a checkpoint of any layout; return its state."""
        return checkpoint.load(path, self.model, self.optimizer)

    def _trainable(self) -> ShardedOptimizer:
        """Return the optimizer."""
        if self.optimizer is None:
            raise ValueError(
                "optimizer=None: this engine only evaluates; give Engine an AdamWConfig to train"
            )
        return self.optimizer

    def _prepare(self, batch: Microbatch) -> Microbatch:
        """Return the microbatch on the model's device, its tokens checked while on the CPU."""
        vocab = self.model.config.vocab_size
        if batch.tokens.device.type == "cpu" and batch.num_tokens:
            low, high = torch.aminmax(batch.tokens)
            if int(low) < 0 or int(high) >= vocab:
                bad = int(low) if int(low) < 0 else int(high)
                raise ValueError(f"token id {bad} is outside the vocabulary of {vocab}")
        return batch.to(self.model.device)

    def _run(
        self,
        plan: list[list[Op]],
        forward: Forward,
        batches: list[Microbatch],
        *,
        training: bool,
    ) -> None:
        """Run this stage's part of a schedule."""
        sizes = [batch.num_tokens for batch in batches]
        ops = plan[self.mesh.pp_rank]
        run_stage(ops, forward, self._wire, sizes=sizes, training=training)

    def _global_weight(self, batches: list[Microbatch]) -> float:
        """Return the denominator of the loss: the weights of all microbatches of all replicas."""
        weight = sum(batch.weight or 0.0 for batch in batches)
        if self.mesh.dp_group is not None:
            total = torch.tensor(weight, dtype=torch.float64, device=self.model.device)
            dist.all_reduce(total, group=self.mesh.dp_group)
            weight = float(total)
        if weight <= 0:
            raise ValueError(
                f"the batch weighs {weight}: no token of any microbatch is in its mask, so there "
                f"is nothing to learn; drop such batches"
            )
        return weight

    def _report(
        self, sums: dict[str, Tensor], batches: list[Microbatch], weight: float
    ) -> dict[str, float]:
        """Return the sums of all replicas over the weight, equal on every rank."""
        stacked = [value.to(torch.float64) for value in sums.values()]
        values = torch.stack(stacked).tolist() if stacked else []
        mine = dict(zip(sums, values, strict=True))
        mine["tokens"] = float(sum(batch.num_tokens for batch in batches))
        total: dict[str, float] = {"loss": 0.0}
        for part in self._last_stages(mine):
            for name, value in part.items():
                total[name] = total.get(name, 0.0) + value
        tokens = total.pop("tokens")
        return {**{k: v / weight for k, v in total.items()}, "tokens": tokens, "weight": weight}

    def _last_stages(self, mine: dict[str, float]) -> list[dict[str, float]]:
        """Return what one last-stage rank of each replica reports.

        Whole dictionaries travel: a replica without microbatches knows no metric names.
        """
        if self.mesh.world_size == 1:
            return [mine]
        reports: list[Any] = [None] * self.mesh.world_size
        speaks = self.mesh.is_last_stage and self.mesh.tp_rank == 0
        dist.all_gather_object(reports, mine if speaks else None)
        return [report for report in reports if report is not None]
