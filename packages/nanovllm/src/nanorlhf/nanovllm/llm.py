"""The engine as one object: prompts in, responses out."""

from collections.abc import Iterable
from collections.abc import Sequence as Many
from functools import cached_property
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from nanorlhf.nanokernels import Impl

from . import memory
from .config import DTypeName, EngineConfig, ModelConfig
from .engine import Engine
from .model import Qwen3
from .outputs import CompletionOutput, RequestOutput
from .pages import PagePool
from .runner import Runner
from .sampling import SamplingParams
from .scheduler import Scheduler
from .sequence import Sequence
from .state import BatchState
from .step import Stats
from .text import Tokenizer, load_tokenizer, response_text
from .weights import read_weights, write_weights

Prompt = str | list[int]

CONTEXT_PER_TOKEN = 4
"""How many keys a step gathers for each token of its budget, at most."""


class LLM:
    """A Qwen3 checkpoint and everything that is needed to sample from it fast.

    Args:
        model: A Hugging Face directory.
        skip_tokenizer_init: Take and give token ids only; texts are "".
        dtype, device, max_model_len, max_num_seqs, max_num_batched_tokens, page_size, num_pages,
            gpu_memory_utilization, kv_cache_bytes, enable_prefix_caching, seed, impl: As in
            :class:`~.config.EngineConfig`, which says what they mean.

    Raises:
        ValueError: A value is out of range, the model is none this engine runs, or the pages do
            not hold one sequence of ``max_model_len``.
        WeightsError: The checkpoint's tensors are not the model's.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        dtype: DTypeName = "auto",
        device: str = "auto",
        max_model_len: int | None = None,
        max_num_seqs: int = 256,
        max_num_batched_tokens: int = 8192,
        page_size: int = 16,
        num_pages: int | None = None,
        gpu_memory_utilization: float = 0.9,
        kv_cache_bytes: int = 1 << 30,
        enable_prefix_caching: bool = True,
        seed: int = 0,
        impl: Impl = "auto",
        skip_tokenizer_init: bool = False,
    ) -> None:
        self._path = str(model)
        self._skip_tokenizer = skip_tokenizer_init
        self.config = EngineConfig(
            dtype=dtype,
            device=device,
            max_model_len=max_model_len,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            page_size=page_size,
            num_pages=num_pages,
            gpu_memory_utilization=gpu_memory_utilization,
            kv_cache_bytes=kv_cache_bytes,
            enable_prefix_caching=enable_prefix_caching,
            seed=seed,
            impl=impl,
        )
        self.model_config = ModelConfig.from_pretrained(model)
        self._engine = _build(self._path, self.config, self.model_config)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The checkpoint's tokenizer, loaded when it is first needed.

        Raises:
            ValueError: ``skip_tokenizer_init`` was set, or the directory holds none.
        """
        if self._skip_tokenizer:
            raise ValueError(
                "skip_tokenizer_init=True leaves this engine without a tokenizer; pass prompts as "
                "token ids and no stop strings, or leave it False"
            )
        return load_tokenizer(self._path)

    @property
    def version(self) -> int:
        """Of the weights: 0 as loaded, then what :meth:`update_weights` was last given."""
        return self._engine.version

    @property
    def max_model_len(self) -> int:
        """Most tokens of a prompt and its response together."""
        return self._engine.max_model_len

    @property
    def stats(self) -> Stats:
        """Counts of steps, tokens and preemptions since the engine was made."""
        return self._engine.scheduler.stats

    def generate(
        self,
        prompts: str | Many[Prompt],
        sampling_params: SamplingParams | Many[SamplingParams] | None = None,
    ) -> list[RequestOutput]:
        """Return the responses to the prompts, in their order.

        Everything is checked before anything runs, so a bad prompt costs no other its response.

        Args:
            prompts: Texts or lists of token ids; one text alone is a prompt too.
            sampling_params: For all prompts, or one for each; None is ``SamplingParams()``.

        Raises:
            ValueError: A prompt is empty, too long or outside the vocabulary, or there are not as
                many parameters as prompts.
            WeightsError: The last :meth:`update_weights` failed half-way.
        """
        asked: list[Prompt] = [prompts] if isinstance(prompts, str) else list(prompts)
        params = _one_each(sampling_params, len(asked))
        token_ids = [self._checked(i, prompt) for i, prompt in enumerate(asked)]
        if not self._skip_tokenizer or any(p.stop_strings for p in params):
            # Loaded now, so that a missing one does not cost the responses at the end.
            self._engine.tokenizer = self.tokenizer
        sequences = self._run(token_ids, params)
        return [
            self._output(prompt, ids, sorted(group, key=lambda s: s.index))
            for prompt, ids, group in zip(asked, token_ids, sequences, strict=True)
        ]

    def update_weights(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Overwrite the model's weights in place with those of another version.

        Tokens sampled from here on carry ``version``, and no prefix computed before is found.
        If it fails, the weights are torn and :meth:`generate` refuses until an update succeeds.

        Args:
            weights: ``(Hugging Face name, whole tensor)`` for every weight, in any order, float
                dtype and device; what :meth:`nanotron.Engine.weights` yields.
            version: Any number; it is only recorded.

        Raises:
            RequestsRunning: Sequences are unfinished.
            WeightsError: A name is unknown, a shape differs or a weight is missing.
        """
        self._engine.update_weights(weights, version)

    def _checked(self, index: int, prompt: Prompt) -> list[int]:
        try:
            if isinstance(prompt, str):
                ids = self.tokenizer.encode(prompt)
            else:
                ids = [int(token) for token in prompt]
            self._engine.check(ids)
        except ValueError as error:
            raise ValueError(f"prompts[{index}]: {error}") from None
        except TypeError:
            raise TypeError(
                f"prompts[{index}]={prompt!r} is neither a text nor a list of token ids; "
                "pass a list of prompts"
            ) from None
        return ids

    def _run(self, prompts: list[list[int]], params: Many[SamplingParams]) -> list[list[Sequence]]:
        """Run the engine until all prompts are answered; leave it idle whatever happens."""
        groups: dict[int, list[Sequence]] = {}
        try:
            for prompt, p in zip(prompts, params, strict=True):
                groups[self._engine.add(prompt, p)] = []
            left = sum(p.n for p in params)
            while left:
                for sequence in self._engine.step():
                    groups[sequence.request_id].append(sequence)
                    left -= 1
        finally:
            self._engine.abort()
        return list(groups.values())

    def _output(self, prompt: Prompt, ids: list[int], group: list[Sequence]) -> RequestOutput:
        return RequestOutput(
            request_id=group[0].request_id,
            prompt=prompt if isinstance(prompt, str) else None,
            prompt_token_ids=ids,
            outputs=[self._completion(sequence) for sequence in group],
        )

    def _completion(self, sequence: Sequence) -> CompletionOutput:
        response = slice(sequence.prompt_len, None)
        tokens: list[int] = sequence.tokens[response].tolist()
        wanted = sequence.params.logprobs
        text = ""
        if not self._skip_tokenizer:
            text = response_text(self.tokenizer, tokens, sequence.params.stop_strings)
        assert sequence.finish_reason is not None, "an unfinished sequence was returned"
        return CompletionOutput(
            index=sequence.index,
            text=text,
            token_ids=tokens,
            logprobs=sequence.logprobs[response].tolist() if wanted else [],
            raw_logprobs=sequence.raw_logprobs[response].tolist() if wanted else [],
            versions=sequence.versions[response].tolist(),
            finish_reason=sequence.finish_reason,
        )


def _one_each(
    params: SamplingParams | Many[SamplingParams] | None, count: int
) -> Many[SamplingParams]:
    if params is None or isinstance(params, SamplingParams):
        return [params or SamplingParams()] * count
    if len(params) != count:
        raise ValueError(
            f"sampling_params has {len(params)} entries for {count} prompts; give one, or one each"
        )
    return params


def _build(path: str, config: EngineConfig, shape: ModelConfig) -> Engine:
    """Load the weights, size the pages by what is left, and put the engine together."""
    device = torch.device(_device_name(config.device))
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # kernels and events go to the current device
    dtype = (
        shape.dtype if config.dtype == "auto" else cast("torch.dtype", getattr(torch, config.dtype))
    )
    wanted = memory.wanted_model_len(config, shape)
    model = Qwen3(shape, max_model_len=wanted, dtype=dtype, device=device, impl=config.impl)
    write_weights(model.parameters(), read_weights(path), tied=shape.tie_word_embeddings)
    max_context = max(wanted, CONTEXT_PER_TOKEN * config.max_num_batched_tokens)
    num_pages = memory.choose_num_pages(
        config, model, wanted=wanted, dtype=dtype, max_context=max_context
    )
    state = BatchState(
        max_num_seqs=config.max_num_seqs,
        max_model_len=memory.fit_model_len(config, num_pages=num_pages, wanted=wanted),
        page_size=config.page_size,
    )
    cache = memory.new_cache(
        shape, num_pages=num_pages, page_size=config.page_size, like=model.embed
    )
    scheduler = Scheduler(
        state,
        PagePool(num_pages),
        max_num_batched_tokens=config.max_num_batched_tokens,
        max_context=max_context,
        prefix_caching=config.enable_prefix_caching,
    )
    return Engine(Runner(model, cache, state), scheduler, seed=config.seed)


def _device_name(name: str) -> str:
    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"
