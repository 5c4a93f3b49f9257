"""Sampling from the policy: an actor that holds an inference engine, and the group of them.

The group gives no access to a running engine: `submit` starts one batch, `collect` waits for it,
and `publish` swaps weights only while nothing runs, so every response of a batch is sampled from
one version, which its tokens carry.
"""

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from nanorlhf.nanovllm import LLM, SamplingParams

from .config import RolloutConfig
from .runtime import Actor, Runtime, gather
from .weights import Inbox, Shipment


class Prompt(NamedTuple):
    """One question to sample responses for."""

    row: int
    """In the dataset."""
    tokens: list[int]
    seed: int
    """Of its responses; each of them draws from a stream of its own."""


class Response(NamedTuple):
    """One sampled response."""

    prompt: int
    """Position of its prompt in the submitted batch."""
    tokens: list[int]
    """With the end-of-sequence token, when one was sampled."""
    logprobs: list[float]
    """Of each token, under the distribution it was drawn from."""
    versions: list[int]
    """Weight version that drew each token."""
    finish_reason: str


class RolloutWorker:
    """An actor process with one engine on ``model``."""

    def __init__(self, model: str, config: RolloutConfig, *, device: str, threads: int) -> None:
        torch.set_num_threads(threads)
        self.config = config
        self.inbox = Inbox()
        self.llm = LLM(
            model,
            dtype=config.dtype,
            device=device,
            max_model_len=config.max_model_len,
            max_num_seqs=config.max_num_seqs,
            max_num_batched_tokens=config.max_num_batched_tokens,
            gpu_memory_utilization=config.gpu_memory_utilization,
            skip_tokenizer_init=True,
        )

    def version(self) -> int:
        """Return the weight version in force."""
        return self.llm.version

    def update_weights(self, version: int, *shipments: Shipment) -> int:
        """Load the trainer's weights in place; return the version in force."""
        self.llm.update_weights(self.inbox.unpack(*shipments), version)
        return self.llm.version

    def generate(self, prompts: list[list[int]], seeds: list[int]) -> list[list[Response]]:
        """Return ``samples`` responses for each prompt."""
        params = [self._params(seed) for seed in seeds]
        outputs = self.llm.generate(prompts, params)
        return [
            [
                Response(i, c.token_ids, c.logprobs, c.versions, c.finish_reason)
                for c in output.outputs
            ]
            for i, output in enumerate(outputs)
        ]

    def _params(self, seed: int) -> SamplingParams:
        config = self.config
        return SamplingParams(
            n=config.samples,
            temperature=config.temperature,
            top_p=config.top_p,
            top_k=config.top_k,
            min_p=config.min_p,
            max_tokens=config.max_new_tokens,
            seed=seed,
        )


class RolloutGroup:
    """The engines of a run, as the controller drives them."""

    def __init__(
        self,
        runtime: Runtime,
        model: str,
        config: RolloutConfig,
        *,
        devices: Sequence[str],
        threads: int,
        timeout_s: float,
    ) -> None:
        self.runtime = runtime
        self.timeout_s = timeout_s
        self.actors: list[Actor] = []
        for device in devices:
            actor = runtime.spawn(RolloutWorker, model, config, device=device, threads=threads)
            self.actors.append(actor)
            # An engine sizes its cache by the memory that is free when it starts: one at a time,
            # and before the trainer, or the size would depend on who came first.
            gather(runtime, [actor.call("version")], timeout_s=timeout_s, what="starting an engine")
        self.pending: list[Any] = []
        self.version = -1

    @property
    def idle(self) -> bool:
        """Whether no batch is running or waiting to be collected."""
        return not self.pending

    def publish(self, version: int, shipments: Sequence[Any]) -> None:
        """Put ``version`` in force on every engine; ``shipments`` are refs to its weights."""
        assert self.idle, "weights may not change under a running batch"
        refs = [actor.call("update_weights", version, *shipments) for actor in self.actors]
        versions = gather(self.runtime, refs, timeout_s=self.timeout_s, what="a weight update")
        assert set(versions) == {version}, f"engines are at {versions}, not at {version}"
        self.version = version

    def submit(self, prompts: Sequence[Prompt]) -> None:
        """Start sampling ``prompts``, dealt out to the engines in turn."""
        assert self.idle, "collect the batch before this one first"
        count = len(self.actors)
        for k, actor in enumerate(self.actors):
            share = prompts[k::count]
            tokens = [prompt.tokens for prompt in share]
            seeds = [prompt.seed for prompt in share]
            self.pending.append(actor.call("generate", tokens, seeds))

    def collect(self) -> list[list[Response]]:
        """Return the responses of each submitted prompt, in the order of the prompts."""
        what = "sampling a batch"
        shares = gather(self.runtime, self.pending, timeout_s=self.timeout_s, what=what)
        self.pending = []
        total = sum(len(share) for share in shares)
        merged: list[list[Response]] = [[] for _ in range(total)]
        for k, share in enumerate(shares):
            for j, responses in enumerate(share):
                position = k + j * len(shares)
                merged[position] = [r._replace(prompt=position) for r in responses]
        return merged


def prompt_seed(run_seed: int, position: int) -> int:
    """Return the sampling seed of the ``position``-th prompt of a run, stable over restarts."""
    digest = hashlib.blake2b(f"{run_seed}:{position}".encode(), digest_size=6).digest()
    return int.from_bytes(digest, "little")
