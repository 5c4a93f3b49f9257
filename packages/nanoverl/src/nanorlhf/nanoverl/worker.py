"""One rank of the trainer: an actor process that holds models and steps them.

A worker holds up to three engines over one mesh: ``actor`` (the policy), ``critic`` (a value head
on the same body) and ``ref`` (the frozen policy of the KL penalty). It is told what to do in
sequence indices: the experience lies once in shared memory, and each rank reads its own part.
"""

import os
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from nanorlhf.nanosets import Dataset
from nanorlhf.nanotron import (
    AdamWConfig,
    Engine,
    Loss,
    Mesh,
    Microbatch,
    Qwen3,
    TokenOutputs,
    next_token_loss,
)

from .config import AlgoConfig, Layout, OptimConfig
from .experience import Experience
from .losses import policy_loss, value_loss
from .weights import Outbox, Shipment

Role = Literal["actor", "critic", "ref"]
Plan = Sequence[Sequence[int]]
"""Sequence indices of each microbatch of one rank."""


class RankOutputs(NamedTuple):
    """What one rank computed: one value a token, sequences in the order of its plan."""

    logprobs: Tensor | None
    entropy: Tensor | None
    values: Tensor | None


class LossSum(NamedTuple):
    """A validation loss before the division."""

    loss: float
    tokens: int


class TrainWorker:
    """One process of the trainer's dp x pp x tp layout.

    Args:
        rank: Its rank in the layout.
        layout: Sizes of the three axes.
        device: ``"cpu"`` or ``"cuda:3"``.
        threads: CPU threads torch may use here.
    """

    def __init__(self, rank: int, layout: Layout, *, device: str, threads: int) -> None:
        torch.set_num_threads(threads)
        self.rank = rank
        self.layout = layout
        self.device = torch.device(device)
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        self.engines: dict[str, Engine] = {}
        self.losses: dict[str, Callable[[TokenOutputs, Microbatch], Loss]] = {}
        self.train_data: Dataset | None = None
        self.valid_data: Dataset | None = None
        self.mesh: Mesh | None = None
        self.outbox: Outbox | None = None

    def address(self) -> str:
        """Return ``host:port`` on which this rank can serve the rendezvous of all ranks."""
        with socket.socket() as probe:
            probe.bind(("", 0))
            port = int(probe.getsockname()[1])
        return f"{host_address()}:{port}"

    def connect(self, address: str) -> None:
        """Join the process group at ``address``; every rank of the layout must call it."""
        layout = self.layout
        world = layout.world
        if world > 1:
            if address.startswith("127."):
                # Gloo looks for an interface by the host's name, which need not resolve to one.
                os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
            backend = "nccl" if self.device.type == "cuda" else "gloo"
            dist.init_process_group(
                backend, init_method=f"tcp://{address}", rank=self.rank, world_size=world
            )
        self.mesh = Mesh(dp=int(layout.dp), pp=layout.pp, tp=layout.tp)

    def load(
        self,
        role: Role,
        path: str,
        optim: OptimConfig | None,
        *,
        dtype: str,
        resume: bool = False,
    ) -> None:
        """Build the engine of ``role`` from the checkpoint at ``path``; every rank must call it.

        Args:
            role: A critic gets a value head, others the language model's.
            path: A Hugging Face directory.
            optim: None for a model that is never updated.
            dtype: Name of the parameters' dtype; optimizer states are float32.
            resume: Also load the optimizer's state from ``path``.
        """
        assert self.mesh is not None, "connect before load"
        head: Literal["lm", "value"] = "value" if role == "critic" else "lm"
        model = Qwen3.from_pretrained(
            path, self.mesh, head=head, dtype=getattr(torch, dtype), device=self.device
        )
        self.engines[role] = Engine(
            model,
            optimizer=adamw(optim) if optim else None,
            clip_norm=optim.clip_norm if optim else None,
            zero=self.layout.zero,
        )
        if resume and optim:
            self.engines[role].load(path)

    def open_datasets(self, train: Dataset, valid: Dataset | None) -> None:
        """Map the SFT datasets (columns ``tokens`` and ``loss_mask``)."""
        self.train_data, self.valid_data = train, valid
        self.losses["actor"] = next_token_loss

    def set_losses(self, algo: AlgoConfig) -> None:
        """Fix the losses of actor and critic."""
        self.losses["actor"] = policy_loss(algo)
        self.losses["critic"] = value_loss(algo)

    def sft_step(self, plan: Plan, *, lr: float) -> dict[str, float]:
        """Take one optimizer step on the rows of ``plan``; return metrics, equal on every rank."""
        microbatches = sft_microbatches(self.train_data, plan, self.device)
        return self.engines["actor"].train_step(microbatches, self.losses["actor"], lr=lr)

    def sft_evaluate(self, plan: Plan) -> LossSum:
        """Return the loss of this rank's rows, zeros on ranks that hold no head."""
        microbatches = sft_microbatches(self.valid_data, plan, self.device)
        outputs = self.engines["actor"].forward(microbatches) or []
        loss = sum(float(-out.logprobs.sum()) for out in outputs if out.logprobs is not None)
        return LossSum(loss, sum(len(microbatch.targets) for microbatch in microbatches))

    def forward(
        self, role: Role, experience: Experience, plan: Plan, temperature: float
    ) -> RankOutputs | None:
        """Return per-token outputs of ``plan``'s sequences, None on ranks that hold no head."""
        microbatches = [self._microbatch(experience, indices) for indices in plan]
        outputs = self.engines[role].forward(microbatches, temperature=temperature)
        assert self.mesh is not None, "connect before forward"
        if outputs is None or self.mesh.tp_rank != 0:
            return None
        return RankOutputs(*(join([getattr(out, name) for out in outputs]) for name in FIELDS))

    def update(
        self,
        role: Role,
        experience: Experience,
        minibatches: Sequence[Plan],
        *,
        temperature: float,
        lr: float,
    ) -> list[dict[str, float]]:
        """Take one optimizer step a minibatch; return the metrics of each, equal on every rank."""
        engine, loss = self.engines[role], self.losses[role]
        return [
            engine.train_step(
                [self._microbatch(experience, indices) for indices in plan],
                loss,
                temperature=temperature,
                lr=lr,
            )
            for plan in minibatches
        ]

    def export(self, role: Role, *, processes: bool) -> Shipment | None:
        """Return this stage's weights for rollouts, None on all but one tp rank; all must call it.

        Args:
            role: Whose weights.
            processes: The rollouts are other processes.
        """
        assert self.mesh is not None, "connect before export"
        weights = self.engines[role].weights()
        if self.mesh.tp_rank != 0:
            for _ in weights:  # gathering a tensor takes all ranks, keeping it takes one
                pass
            return None
        if self.outbox is None:
            self.outbox = Outbox(processes=processes)
        return self.outbox.pack(weights)

    def save(self, role: Role, path: str) -> None:
        """Write weights and optimizer state of ``role`` to ``path``; every rank must call it."""
        self.engines[role].save(Path(path))

    def _microbatch(self, experience: Experience, indices: Sequence[int]) -> Microbatch:
        return experience.microbatch(indices).to(self.device)


def host_address() -> str:
    """Return an address of this host that its other processes, and other hosts if any, reach."""
    try:
        return socket.gethostbyname(socket.gethostname())
    except OSError:  # a host without a name in any table: it has no network to speak of
        return "127.0.0.1"


FIELDS = RankOutputs._fields


def join(parts: list[Tensor | None]) -> Tensor | None:
    """Return ``parts`` as one CPU tensor, None when a model without that output made them."""
    if any(part is None for part in parts):
        return None
    return torch.cat([part.cpu() for part in parts if part is not None])


def sft_microbatches(data: Dataset | None, plan: Plan, device: torch.device) -> list[Microbatch]:
    """Return the rows of an SFT dataset packed as ``plan`` says."""
    assert data is not None, "open_datasets before a step"
    return [sft_microbatch(data, rows).to(device) for rows in plan]


def sft_microbatch(data: Dataset, rows: Sequence[int]) -> Microbatch:
    """Return packed rows; nothing predicts a first token, so its mask is cleared.

    Raises:
        ValueError: A row's mask is not as long as its tokens.
    """
    tokens, masks = data.gather("tokens", rows), data.gather("loss_mask", rows)
    lengths = np.diff(tokens.offsets)
    wrong = np.flatnonzero(lengths != np.diff(masks.offsets))
    if len(wrong):
        raise ValueError(
            f"row {rows[wrong[0]]}: loss_mask is not as long as its {lengths[wrong[0]]} tokens; "
            "give one value a token"
        )
    mask = np.array(masks.values, dtype=bool)
    mask[tokens.offsets[:-1][lengths > 0]] = False
    return Microbatch(
        tokens=torch.from_numpy(tokens.values.astype(np.int64)),
        cu_seqlens=torch.from_numpy(tokens.offsets.astype(np.int32)),
        max_seqlen=int(lengths.max(initial=0)),
        mask=torch.from_numpy(mask),
    )


def adamw(optim: OptimConfig) -> AdamWConfig:
    """Return nanotron's settings of the optimizer; the learning rate comes with each step."""
    return AdamWConfig(
        lr=optim.lr, betas=optim.betas, eps=optim.eps, weight_decay=optim.weight_decay
    )
