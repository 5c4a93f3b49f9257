"""One response in the making."""

from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from .outputs import FinishReason
from .sampling import SamplingParams

IntArray = NDArray[np.int64]


def sequence_seed(stream: str, index: int) -> int:
    """Return the seed of response ``index`` of a request, in [0, 2**63).

    Hashed, so that neither neighbouring requests nor their responses draw from related streams.

    >>> sequence_seed("request 7", 0) == sequence_seed("request 7", 1)
    False
    """
    digest = blake2b(f"{stream} {index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


class Sequence:
    """A prompt and what has been sampled after it, as it is while outside a slot.

    While the sequence runs, its tokens grow in the :class:`~.state.BatchState`; they are copied in
    when it enters a slot and out when it leaves, finished or preempted.

    Attributes:
        tokens: int32 [T], prompt and sampled tokens.
        logprobs: float32 [T], of the distribution drawn from; 0 on the prompt.
        raw_logprobs: float32 [T], at temperature 1; 0 on the prompt.
        versions: int32 [T], of the weights that drew each token; 0 on the prompt.
        limit: Length at which the sequence ends.
        seed: What its draws are a function of, with how many came before.
        digests: The prefix chain of the full pages seen so far; grows with the sequence.
        siblings: Sequences that wait to be forked off when this one's prompt is computed.
        finish_reason: None until it ended.
    """

    __slots__ = (
        "digests",
        "finish_reason",
        "index",
        "limit",
        "logprobs",
        "params",
        "prompt_len",
        "raw_logprobs",
        "request_id",
        "seed",
        "siblings",
        "tokens",
        "versions",
    )

    def __init__(
        self,
        prompt: NDArray[np.int32],
        params: SamplingParams,
        *,
        request_id: int,
        index: int,
        stream: str,
        limit: int,
    ) -> None:
        self.tokens = prompt
        self.logprobs = np.zeros(len(prompt), np.float32)
        self.raw_logprobs = np.zeros(len(prompt), np.float32)
        self.versions = np.zeros(len(prompt), np.int32)
        self.params = params
        self.request_id = request_id
        self.index = index
        self.seed = sequence_seed(stream, index)
        self.prompt_len = len(prompt)
        self.limit = limit
        self.digests: list[bytes] = []
        self.siblings: list[Sequence] = []
        self.finish_reason: FinishReason | None = None
