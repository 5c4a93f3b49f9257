"""Responses as they are sampled, and as the trainer sees them: packed, without padding.

**Alignment.** Every per-token field at index t describes *token t*: its log-probability, the value
of the state it was chosen in, its advantage. (A model computes all of these at t - 1.) The first
token of a sequence therefore has none, and is never part of a response.

::

    tokens            q1  q2  a1  a2  a3 | q1  a1  a2      two sequences, T = 8
    response           .   .   x   x   x |  .   x   x      what the policy chose
    rollout_logprobs   0   0  -.1 -.7 -.2|  0  -.3 -.1     of the token above it
    lengths            5                   3

Shape legend: T = packed tokens, N = sequences.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from nanorlhf.nanotron import Microbatch


@dataclass(slots=True, kw_only=True)
class Sample:
    """One response to one prompt, in Python lists, and what became of it.

    Raises:
        ValueError: The prompt or the response is empty, or the lists of the response differ in
            length.
    """

    prompt_tokens: list[int]
    response_tokens: list[int]
    """With the end-of-sequence token, when one was sampled."""
    logprobs: list[float]
    """Of each response token, under the distribution it was drawn from."""
    versions: list[int]
    """Weight version that drew each response token."""
    finish_reason: str
    """stop, length or abort."""
    group: int
    """Which prompt of the batch it answers; responses of one group are compared."""
    text: str = ""
    """The response, decoded."""
    row: dict[str, Any] = field(default_factory=dict)
    """The dataset's row."""
    chosen: list[bool] | None = None
    """False where something else than the policy wrote the token, such as a tool; None: nowhere."""
    reward: float = 0.0
    parts: dict[str, float] = field(default_factory=dict)
    """Named parts of the reward."""
    error: str | None = None
    """Why the reward function gave no reward."""

    def __post_init__(self) -> None:
        wanted = len(self.response_tokens)
        if not self.prompt_tokens or not wanted:
            raise ValueError(
                f"prompt of {len(self.prompt_tokens)} and response of {wanted} tokens: both need "
                f"at least one; drop the sample"
            )
        sizes = {"logprobs": len(self.logprobs), "versions": len(self.versions)}
        if self.chosen is not None:
            sizes["chosen"] = len(self.chosen)
        for name, size in sizes.items():
            if size != wanted:
                raise ValueError(f"{size} {name} for {wanted} response tokens; give one for each")

    def as_row(self) -> dict[str, Any]:
        """Return all fields as JSON-ready values; ``Sample(**row)`` undoes it."""
        row: dict[str, Any] = json.loads(json.dumps(asdict(self), default=_plain))
        return row


def _plain(value: object) -> object:
    """Return a NumPy array or scalar as Python values."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    raise TypeError(f"row holds a {type(value).__name__}, which JSON has not; remove it")


def save_samples(samples: Iterable[Sample], path: Path) -> None:
    """Write one JSON line a sample; floats survive exactly."""
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(sample.as_row()) + "\n" for sample in samples)


def load_samples(path: Path) -> list[Sample]:
    """Return the samples of `save_samples`."""
    with path.open(encoding="utf-8") as file:
        return [Sample(**json.loads(line)) for line in file]


@dataclass(slots=True, kw_only=True)
class Experience:
    """N sequences packed into T tokens, CPU tensors; the optional fields are filled step by step.

    Raises:
        ValueError: Sizes disagree, or a response begins with a sequence.
    """

    tokens: Tensor
    """int64 [T]: prompt, then response, of each sequence."""
    lengths: Tensor
    """int64 [N]."""
    response: Tensor
    """bool [T]: tokens the policy chose; tool output stays False."""
    group: Tensor
    """int64 [N]: prompt a sequence answers."""
    reward: Tensor
    """float32 [N]."""
    version: Tensor
    """int64 [N]: oldest weight version among its tokens'."""
    truncated: Tensor
    """bool [N]: cut off by a length limit."""
    rollout_logprobs: Tensor
    """float32 [T]: by the engine, of the distribution the token was drawn from."""
    old_logprobs: Tensor | None = None
    """float32 [T]: by the trainer, before this step's first update."""
    ref_logprobs: Tensor | None = None
    """float32 [T]: by the frozen reference policy."""
    values: Tensor | None = None
    """float32 [T]: by the critic, before this step's first update."""
    advantages: Tensor | None = None
    """float32 [T]."""
    returns: Tensor | None = None
    """float32 [T]: targets of the critic."""
    corrections: Tensor | None = None
    """float32 [T]: importance weights, see `nanoverl.corrections`."""
    shares: Tensor | None = None
    """float32 [T]: share of a token in the loss's denominator, see `nanoverl.losses.aggregation`;
    1 on each response token when None."""
    loss_weights: Tensor | None = None
    """float32 [T]: factor of a token in the policy loss; `shares` when None."""

    def __post_init__(self) -> None:
        total, count = int(self.lengths.sum()), len(self.lengths)
        for name, value in self.tensors().items():
            wanted = count if name in SEQUENCE_FIELDS else total
            if value.shape != (wanted,):
                raise ValueError(
                    f"{name} has shape {list(value.shape)} beside {count} sequences of {total} "
                    f"tokens in all; make it [{wanted}]"
                )
        starts = (self.lengths.cumsum(0) - self.lengths)[self.lengths > 0]
        if bool(self.response[starts].any()):
            raise ValueError(
                "response is True on the first token of a sequence, which no policy chose; clear it"
            )

    @classmethod
    def from_samples(cls, samples: Sequence[Sample]) -> Self:
        """Return the samples packed in their order.

        Raises:
            ValueError: There is none.
        """
        if not samples:
            raise ValueError("0 samples make no experience; give at least one")
        rows = [s.prompt_tokens + s.response_tokens for s in samples]
        chosen = [s.chosen or [True] * len(s.response_tokens) for s in samples]
        prompts = [len(s.prompt_tokens) for s in samples]
        mask = [[False] * p + c for p, c in zip(prompts, chosen, strict=True)]
        logprobs = [[0.0] * p + s.logprobs for p, s in zip(prompts, samples, strict=True)]
        response = torch.from_numpy(np.concatenate(mask).astype(bool))
        rollout = torch.from_numpy(np.concatenate(logprobs).astype(np.float32))
        return cls(
            tokens=torch.from_numpy(np.concatenate(rows).astype(np.int64)),
            lengths=torch.tensor([len(row) for row in rows]),
            response=response,
            group=torch.tensor([s.group for s in samples]),
            reward=torch.tensor([s.reward for s in samples], dtype=torch.float32),
            version=torch.tensor([min(s.versions) for s in samples]),
            truncated=torch.tensor([s.finish_reason == "length" for s in samples]),
            rollout_logprobs=rollout * response,
        )

    def tensors(self) -> dict[str, Tensor]:
        """Return the fields that are filled."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: value for name, value in values.items() if value is not None}

    @property
    def cu_seqlens(self) -> Tensor:
        """int64 [N + 1]: sequence n is ``tokens[cu_seqlens[n]:cu_seqlens[n + 1]]``."""
        return torch.cat([torch.zeros(1, dtype=torch.int64), self.lengths.cumsum(0)])

    @property
    def sequence(self) -> Tensor:
        """int64 [T]: which sequence a token belongs to."""
        return torch.arange(len(self.lengths)).repeat_interleave(self.lengths)

    @property
    def response_lengths(self) -> Tensor:
        """int64 [N]: tokens of each sequence that the policy chose."""
        return torch.bincount(self.sequence[self.response], minlength=len(self.lengths))

    def token_index(self, indices: Sequence[int]) -> Tensor:
        """Return int64: where the tokens of sequences ``indices`` lie, one sequence after another.

        >>> short = Sample(prompt_tokens=[7], response_tokens=[8], logprobs=[-0.5], versions=[0],
        ...                finish_reason="stop", group=0)
        >>> Experience.from_samples([short, short]).token_index([1, 0])
        tensor([2, 3, 0, 1])
        """
        chosen = torch.as_tensor(indices, dtype=torch.int64)
        lengths = self.lengths[chosen]
        starts = self.cu_seqlens[chosen]
        shift = starts - (lengths.cumsum(0) - lengths)
        return torch.arange(int(lengths.sum())) + shift.repeat_interleave(lengths)

    def select(self, indices: Sequence[int]) -> Self:
        """Return a copy of sequences ``indices``, in that order."""
        tokens = self.token_index(indices)
        rows = torch.as_tensor(indices, dtype=torch.int64)
        picked = {
            name: value[rows if name in SEQUENCE_FIELDS else tokens]
            for name, value in self.tensors().items()
        }
        return replace(self, **picked)

    def split(self, parts: int, *, seed: int | Sequence[int]) -> list[Self]:
        """Return the sequences shuffled into ``parts`` minibatches; none is dropped."""
        indices = shuffled_parts(len(self.lengths), parts, seed=seed)
        return [self.select(part) for part in indices]

    def microbatch(self, indices: Sequence[int]) -> Microbatch:
        """Return sequences ``indices`` for the trainer, with every per-token field filled so far.

        The microbatch weighs the sum of its `shares`, so that the trainer's one denominator is that
        of the chosen aggregation however the sequences are dealt out.
        """
        part = self.select(indices)
        named = {name: getattr(part, name) for name in LOSS_FIELDS}
        inputs = {name: value for name, value in named.items() if value is not None}
        shares = part.response if part.shares is None else part.shares
        return Microbatch(
            tokens=part.tokens,
            cu_seqlens=part.cu_seqlens.int(),
            max_seqlen=int(part.lengths.max()) if len(part.lengths) else 0,
            mask=part.response,
            fields=inputs,
            weight=float(shares.double().sum()),
        )

    def save(self, path: Path) -> None:
        """Write all fields to a safetensors file."""
        save_file({name: value.contiguous() for name, value in self.tensors().items()}, path)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Return the experience of `save`."""
        return cls(**load_file(path))


SEQUENCE_FIELDS = frozenset({"lengths", "group", "reward", "version", "truncated"})
"""Fields with one entry a sequence; all others have one a token."""
LOSS_FIELDS = (
    "old_logprobs",
    "ref_logprobs",
    "values",
    "advantages",
    "returns",
    "corrections",
    "shares",
    "loss_weights",
)
"""Per-token fields that losses read."""


def concat(experiences: Sequence[Experience]) -> Experience:
    """Return the sequences of all ``experiences``; groups are taken as they are.

    Raises:
        ValueError: They have different fields filled, or there are none.
    """
    filled: list[Mapping[str, Tensor]] = [experience.tensors() for experience in experiences]
    if not filled:
        raise ValueError("0 experiences have nothing to join; give at least one")
    for other in filled[1:]:
        if other.keys() != filled[0].keys():
            odd = sorted(other.keys() ^ filled[0].keys())
            raise ValueError(f"fields {odd} are filled in some experiences only; fill them in all")
    joined = {name: torch.cat([part[name] for part in filled]) for name in filled[0]}
    return Experience(**joined)


def shuffled_parts(count: int, parts: int, *, seed: int | Sequence[int]) -> list[list[int]]:
    """Return 0 to ``count - 1`` shuffled into ``parts`` lists whose sizes differ by one at most.

    Raises:
        ValueError: A part would be empty.

    >>> sorted(map(len, shuffled_parts(10, 4, seed=0)))
    [2, 2, 3, 3]
    """
    if not 1 <= parts <= count:
        raise ValueError(f"parts={parts} of {count} sequences; use 1 to {count}")
    order = np.random.default_rng(seed).permutation(count)
    return [part.tolist() for part in np.array_split(order, parts)]
