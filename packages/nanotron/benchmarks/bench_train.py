"""Training speed of a Qwen3-0.6B shape on one CUDA device, random weights.

    python packages/nanotron/benchmarks/bench_train.py

MFU counts causal attention and the LM head on every token, against 989 TFLOP/s (H100/H200 bf16).
Prints a Markdown table and writes ``results/train-<device>.json`` beside this file (or ``--out``).
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

from nanorlhf.nanotron import (
    AdamWConfig,
    Engine,
    Mesh,
    Microbatch,
    ModelConfig,
    Qwen3,
    next_token_loss,
)

PEAK = 989e12
QWEN3_06B = {
    "vocab_size": 151_936,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "tie_word_embeddings": True,
    "rope_theta": 1_000_000.0,
}


def flops_per_token(config, length):
    """Forward and backward of one token in a sequence of ``length``, no recomputation counted."""
    heads = 2 * config.num_attention_heads + 2 * config.num_key_value_heads
    matrices = (
        config.num_hidden_layers
        * config.hidden_size
        * (heads * config.head_dim + 3 * config.intermediate_size)
    )
    matrices += config.vocab_size * config.hidden_size
    attention = (
        config.num_hidden_layers * 2 * config.num_attention_heads * config.head_dim * length / 2
    )
    return 6 * (matrices + attention)


def measure(length, tokens, *, recompute, repeats):
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    config = ModelConfig.from_dict(QWEN3_06B)
    model = Qwen3(config, Mesh(), dtype=torch.bfloat16, device="cuda")
    engine = Engine(model, optimizer=AdamWConfig(lr=1e-5), recompute=recompute)
    generator = torch.Generator().manual_seed(0)
    rows = [
        torch.randint(0, config.vocab_size, (length,), generator=generator).numpy()
        for _ in range(tokens // length)
    ]
    batch = [Microbatch.from_sequences(rows)]
    times = []
    for _ in range(3 + repeats):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        engine.train_step(batch, next_token_loss)
        torch.cuda.synchronize()
        times.append(time.perf_counter() - begin)
    rates = sorted(tokens / t for t in times[3:])
    return {
        "case": f"S={length} x {tokens // length}" + (", recompute" if recompute else ""),
        "impl": "nanotron",
        "metric": "train",
        "unit": "tokens/s",
        "median": statistics.median(rates),
        "p20": rates[len(rates) // 5],
        "p80": rates[-1 - len(rates) // 5],
        "mfu": statistics.median(rates) * flops_per_token(config, length) / PEAK,
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30,
    }


def commit():
    command = ["git", "rev-parse", "--short", "HEAD"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return found.stdout.strip() or "unknown"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokens", type=int, default=16_384)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("bench_train needs a CUDA device; this machine has none")
    rows = []
    print("| case | tokens/s | p20-p80 | MFU | peak memory |\n|---|---|---|---|---|")
    for length, recompute in ((1024, False), (4096, False), (4096, True)):
        row = measure(length, arguments.tokens, recompute=recompute, repeats=arguments.repeats)
        rows.append(row)
        print(
            f"| {row['case']} | {row['median']:,.0f} | {row['p20']:,.0f}-{row['p80']:,.0f} "
            f"| {row['mfu']:.1%} | {row['peak_gib']:.1f} GiB |",
            flush=True,
        )
    device = torch.cuda.get_device_name().replace(" ", "-").lower()
    result = {
        "bench": "train",
        "command": " ".join(sys.argv),
        "commit": commit(),
        "hardware": torch.cuda.get_device_name(),
        "versions": {"torch": torch.__version__, "python": sys.version.split()[0]},
        "rows": rows,
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / f"train-{device}.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
