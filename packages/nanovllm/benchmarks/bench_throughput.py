"""Sampled tokens per second of the engine, on weights of any shape and random values.

    python packages/nanovllm/benchmarks/bench_throughput.py --model tiny --cases rl
    python packages/nanovllm/benchmarks/bench_throughput.py --model qwen3-0.6b --cases ragged b1 b64

Cases (the prefix cache is off, so every repeat does the same work):
    ragged  the nano-vllm benchmark: 256 requests, seed 0, 100-1024 tokens in, 100-1024 out, T = 0.6
    b<N>    N requests of 512 tokens in, 256 out
    rl      256 requests of 8-24 tokens in, 25 out: one step of the tiny pipeline
"""

import argparse
import json
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import triton

from nanorlhf.nanovllm import LLM, SamplingParams
from nanorlhf.nanovllm.testing import TINY_QWEN3, write_checkpoint

MODELS = {
    "tiny": TINY_QWEN3 | {"max_position_embeddings": 4096},
    "qwen3-0.6b": TINY_QWEN3
    | {
        "vocab_size": 151_936,
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 4096,
        "dtype": "bfloat16",
        "eos_token_id": 151_645,
    },
}


def workload(case: str, vocab: int) -> tuple[list[list[int]], list[SamplingParams]]:
    """Return the prompts and how to sample them."""
    random.seed(0)

    def request(low_in: int, high_in: int) -> list[int]:
        count = random.randint(low_in, high_in)
        return [random.randint(0, min(10_000, vocab - 1)) for _ in range(count)]

    def params(tokens: int, temperature: float = 0.6) -> SamplingParams:
        return SamplingParams(temperature=temperature, ignore_eos=True, max_tokens=tokens)

    if case == "ragged":
        prompts = [request(100, 1024) for _ in range(256)]
        return prompts, [params(random.randint(100, 1024)) for _ in range(256)]
    if case == "rl":
        return [request(8, 24) for _ in range(256)], [params(25, 1.0)] * 256
    count = int(case.removeprefix("b"))
    return [request(512, 512) for _ in range(count)], [params(256)] * count


def measure(llm: LLM, case: str, repeats: int) -> list[dict[str, object]]:
    """Return the rows of one case; the first run warms up and is not counted."""
    prompts, params = workload(case, llm.model_config.vocab_size)
    sampled = sum(p.max_tokens or 0 for p in params)
    seconds, steps = [], 0
    for _ in range(repeats + 1):
        steps = llm.stats.steps
        start = time.perf_counter()
        llm.generate(prompts, params)
        seconds.append(time.perf_counter() - start)
        steps = llm.stats.steps - steps
    values = {
        "tokens/s": [sampled / s for s in seconds[1:]],
        "ms/step": [1e3 * s / steps for s in seconds[1:]],
    }
    return [
        {
            "case": f"{case} ({len(prompts)} requests, {sampled} tokens, {steps} steps)",
            "impl": "nanovllm",
            "metric": "throughput" if unit == "tokens/s" else "step",
            "unit": unit,
            "median": statistics.median(value),
            "p20": sorted(value)[len(value) // 5],
            "p80": sorted(value)[4 * len(value) // 5],
        }
        for unit, value in values.items()
    ]


def hardware(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else f"{platform.machine()} CPU"


def commit() -> str:
    command = ["git", "rev-parse", "--short", "HEAD"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", choices=MODELS, default="tiny")
    parser.add_argument("--cases", nargs="+", default=["rl"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of torch")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--max-num-seqs", type=int, default=256)
    parser.add_argument("--max-num-batched-tokens", type=int, default=16_384)
    parser.add_argument("--page-size", type=int, default=16)
    parser.add_argument("--json", type=Path, help="write the rows here too")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as path:
        write_checkpoint(path, MODELS[arguments.model], seed=0)
        llm = LLM(
            path,
            device=arguments.device,
            skip_tokenizer_init=True,
            max_num_seqs=arguments.max_num_seqs,
            max_num_batched_tokens=arguments.max_num_batched_tokens,
            page_size=arguments.page_size,
            enable_prefix_caching=False,
        )
    rows = [row for case in arguments.cases for row in measure(llm, case, arguments.repeats)]
    print("| case | unit | median | p20 | p80 |\n| --- | --- | --- | --- | --- |")
    for row in rows:
        values = " | ".join(f"{row[name]:,.2f}" for name in ("median", "p20", "p80"))
        print(f"| {row['case']} | {row['unit']} | {values} |")
    if arguments.json:
        report = {
            "bench": f"throughput {arguments.model}",
            "command": " ".join(sys.argv),
            "commit": commit(),
            "hardware": hardware(arguments.device),
            "versions": {"torch": torch.__version__, "triton": triton.__version__},
            "rows": rows,
        }
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
