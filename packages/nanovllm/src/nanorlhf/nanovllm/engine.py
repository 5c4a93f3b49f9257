"""The loop: schedule a step, run it, record its tokens, see who is done."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from .errors import RequestsRunning, WeightsError
from .outputs import FinishReason
from .runner import Drawn, Runner
from .sampling import SamplingParams
from .scheduler import Scheduler
from .sequence import IntArray, Sequence
from .step import Step
from .text import Tokenizer, has_stop, stop_window
from .weights import write_weights


class Engine:
    """Runs sequences to their end, many at a time; knows tokens, and text only for stop strings.

    Args:
        runner: Computes steps.
        scheduler: Decides them, over the same state.
        seed: Of the requests that bring none.
    """

    def __init__(self, runner: Runner, scheduler: Scheduler, *, seed: int = 0) -> None:
        self.runner = runner
        self.scheduler = scheduler
        self.tokenizer: Tokenizer | None = None
        """Needed from the first request with stop strings on."""
        self.version = 0
        self._seed = seed
        self._num_requests = 0
        self._num_updates = 0
        self._torn = False
        config = runner.model.config
        self._is_eos_V = np.zeros(config.vocab_size, np.bool_)
        self._is_eos_V[list(config.eos_token_ids)] = True

    @property
    def max_model_len(self) -> int:
        """Most tokens of a prompt and its response together."""
        return self.scheduler.state.tokens.shape[1]

    def check(self, prompt: list[int]) -> None:
        """Raise ``ValueError`` for a prompt that cannot run."""
        vocab = self.runner.model.config.vocab_size
        if not prompt:
            raise ValueError("prompt has no tokens; give at least one, such as the bos token")
        if len(prompt) >= self.max_model_len:
            raise ValueError(
                f"prompt has {len(prompt)} tokens and max_model_len={self.max_model_len} must "
                "leave room for one more; shorten the prompt or raise max_model_len"
            )
        for token in (min(prompt), max(prompt)):
            if not 0 <= token < vocab:
                raise ValueError(
                    f"prompt holds token {token}, outside the vocabulary [0, {vocab}); use this "
                    "model's tokenizer"
                )

    def add(self, prompt: list[int], params: SamplingParams) -> int:
        """Queue a prompt and return the id of its request.

        Raises:
            ValueError: The prompt cannot run.
            WeightsError: The last update of the weights failed half-way.
        """
        self.check(prompt)
        if self._torn:
            raise WeightsError(
                "the last update_weights failed half-way, so the weights are of two versions; "
                "repeat it in full"
            )
        request_id = self._num_requests
        self._num_requests += 1
        longest = self.max_model_len
        room = longest if params.max_tokens is None else params.max_tokens
        tokens = np.array(prompt, np.int32)
        stream = f"engine {self._seed} {request_id}"
        if params.seed is not None:
            stream = f"request {params.seed}"
        leader, *siblings = (
            Sequence(
                tokens,
                params,
                request_id=request_id,
                index=index,
                stream=stream,
                limit=min(len(prompt) + room, longest),
            )
            for index in range(params.n)
        )
        leader.siblings = siblings
        self.scheduler.add(leader)
        return request_id

    def step(self) -> list[Sequence]:
        """Compute one step and return the sequences it ended; nothing without work."""
        step = self.scheduler.schedule()
        if step is None:
            return []
        drawn = self.runner.run(step)
        self.scheduler.commit(step)
        return self._record(step, drawn)

    def abort(self) -> list[Sequence]:
        """End everything unfinished and return it, with what was sampled so far."""
        aborted = self.scheduler.abort()
        for sequence in aborted:
            sequence.finish_reason = "abort"
        return aborted

    def update_weights(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Overwrite the weights in place; see :meth:`LLM.update_weights`."""
        running = self.scheduler.num_unfinished
        if running:
            raise RequestsRunning("update_weights", running)
        model = self.runner.model
        # Before the first write: an update that fails half-way must leave no old page to be found.
        self._torn = True
        self._num_updates += 1
        self.scheduler.pool.forget(salt=f"update {self._num_updates}")
        write_weights(model.parameters(), weights, tied=model.config.tie_word_embeddings)
        self.version = version
        self._torn = False

    def _record(self, step: Step, drawn: Drawn) -> list[Sequence]:
        state, slots = self.scheduler.state, step.sample_slots_B
        if not len(slots):
            return []
        state.append(
            slots,
            drawn.tokens_B,
            logprobs_B=drawn.logprobs_B,
            raw_logprobs_B=drawn.raw_logprobs_B,
            version=self.version,
        )
        self.scheduler.stats.sampled_tokens += len(slots)
        stopped = state.is_stopped(slots, self._is_eos_V) | self._has_stop_string(slots)
        full = state.is_full(slots)
        ended = self._end(slots[stopped], "stop")
        return ended + self._end(slots[full & ~stopped], "length")

    def _end(self, slots: IntArray, reason: FinishReason) -> list[Sequence]:
        ended = self.scheduler.finish(slots.tolist())
        for sequence in ended:
            sequence.finish_reason = reason
        return ended

    def _has_stop_string(self, slots: IntArray) -> NDArray[np.bool_]:
        """Return which slots' text now holds one of their stop strings; looks at those only."""
        found = self.scheduler.state.has_stop_strings[slots]
        for i in np.flatnonzero(found).tolist():
            found[i] = self._ends_in_stop(int(slots[i]))
        return found

    def _ends_in_stop(self, slot: int) -> bool:
        state = self.scheduler.state
        assert self.tokenizer is not None, "stop strings without a tokenizer were let in"
        stops = self.scheduler.running[slot].params.stop_strings
        end = int(state.length[slot])
        begin = max(int(state.prompt_len[slot]), end - stop_window(stops))
        return has_stop(self.tokenizer, state.tokens[slot, begin:end].tolist(), stops)
