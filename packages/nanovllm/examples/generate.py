"""Sample from a checkpoint: several responses a prompt, their log-probabilities, and new weights.

The checkpoint here is a tiny one with random weights; any Qwen3 directory does.
"""

import tempfile

from nanorlhf.nanovllm import LLM, SamplingParams
from nanorlhf.nanovllm.testing import (
    TINY_QWEN3,
    random_weights,
    write_checkpoint,
    write_tokenizer,
)


def main() -> None:
    with tempfile.TemporaryDirectory() as path:
        write_checkpoint(path, TINY_QWEN3, seed=0, scale=0.2)
        write_tokenizer(path)
        llm = LLM(path, max_model_len=128)

        params = SamplingParams(n=2, temperature=0.8, top_p=0.95, max_tokens=12, seed=0)
        for request in llm.generate(["To be,", "Or not to be:"], params):
            for response in request.outputs:
                mean = sum(response.logprobs) / len(response.logprobs)
                print(
                    f"{request.prompt!r} -> {response.token_ids} "
                    f"({response.finish_reason}, {mean:.2f} nats a token)"
                )

        # A trainer hands over its weights as (name, tensor) pairs, and nothing is reloaded.
        llm.update_weights(random_weights(TINY_QWEN3, seed=1, scale=0.2).items(), version=1)
        [request] = llm.generate("To be,", params)
        print(
            f"weights of version {request.outputs[0].versions[0]}: {request.outputs[0].token_ids}"
        )
        print(llm.stats)


if __name__ == "__main__":
    main()
