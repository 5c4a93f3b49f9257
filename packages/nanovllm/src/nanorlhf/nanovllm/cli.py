"""``python -m nanorlhf.nanovllm generate MODEL PROMPT``: sample from a checkpoint in a terminal."""

import argparse
import sys
from collections.abc import Sequence

from .errors import NanovllmError
from .llm import LLM
from .sampling import SamplingParams


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit status; what the user got wrong is one line."""
    arguments = _parser().parse_args(argv)
    try:
        _generate(arguments)
    except (ValueError, NanovllmError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _generate(arguments: argparse.Namespace) -> None:
    llm = LLM(
        arguments.model,
        device=arguments.device,
        dtype=arguments.dtype,
        max_model_len=arguments.max_model_len,
    )
    params = SamplingParams(
        n=arguments.n,
        temperature=arguments.temperature,
        top_p=arguments.top_p,
        top_k=arguments.top_k,
        seed=arguments.seed,
        max_tokens=arguments.max_tokens,
        stop=arguments.stop,
    )
    for request in llm.generate(arguments.prompt, params):
        for response in request.outputs:
            print(response.text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m nanorlhf.nanovllm", description=__doc__)
    generate = parser.add_subparsers(required=True).add_parser(
        "generate", help="print the responses to prompts, one after another"
    )
    generate.add_argument("model", help="directory of a Hugging Face checkpoint")
    generate.add_argument("prompt", nargs="+", help="texts to continue")
    generate.add_argument("-n", type=int, default=1, help="responses per prompt")
    generate.add_argument("--temperature", type=float, default=1.0, help="0 is greedy")
    generate.add_argument("--top-p", type=float, default=1.0)
    generate.add_argument("--top-k", type=int, default=0)
    generate.add_argument("--seed", type=int)
    generate.add_argument("--max-tokens", type=int, default=256)
    generate.add_argument("--stop", action="append", help="end before this text; may be repeated")
    generate.add_argument("--device", default="auto")
    generate.add_argument(
        "--dtype", default="auto", choices=("auto", "float32", "bfloat16", "float16")
    )
    generate.add_argument("--max-model-len", type=int)
    return parser
