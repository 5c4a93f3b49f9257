"""Times every kernel against its peers on one CUDA device; prints tables and writes JSON.

    python packages/nanokernels/benchmarks/bench_kernels.py [--only attention] [--out FILE]

bfloat16, random data; :mod:`harness` says how times are taken. Memory-bound kernels are given in
GB/s of the bytes they must move, attention in TFLOP/s of the pairs a causal mask leaves (its
backward counted as 2.5 forwards); the device's copy and cuBLAS are rows of the same run. Each group
of kernels is a module beside this one with a function ``run(bench)``.
"""

import argparse
import importlib
import sys
from pathlib import Path

import torch
from harness import Bench, randn, report, write

GROUPS = (
    "ceilings",
    "attention",
    "decode",
    "linear",
    "logits",
    "memory",
    "optimizer",
    "matmul",
    "sampling",
)


def ceilings(bench):
    """The device's own copy and matrix product."""
    size = 1 << 30

    def copy():
        x, y = (torch.randint(0, 255, (size,), device="cuda", dtype=torch.uint8) for _ in range(2))
        return lambda: y.copy_(x)

    def product():
        a, b = randn(8192, 8192), randn(8192, 8192)
        return lambda: a @ b

    # A graph hands the copy to an engine that reaches two thirds of what a kernel does.
    bench.time(
        "copy 1 GiB", "torch", copy, work=2 * size, unit="GB/s", set_bytes=2 * size, graph=False
    )
    bench.time(
        "matmul 8192", "cuBLAS", product, work=2 * 8192**3, unit="TFLOP/s", set_bytes=3 << 27
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=GROUPS, action="append", help="run these groups alone")
    parser.add_argument("--out", type=Path, help="where the JSON goes")
    parser.add_argument("--commit", help="revision to record, where git cannot tell")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        message = "bench_kernels: no CUDA device here; kernels are only timed on a GPU"
        print(message, file=sys.stderr)
        return 2
    torch.manual_seed(0)
    bench = Bench()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, bfloat16\n")
    print("| case | implementation | us | throughput |\n| --- | --- | --- | --- |")
    for name in ("ceilings", *(options.only or GROUPS[1:])):
        run = ceilings if name == "ceilings" else importlib.import_module(f"cases_{name}").run
        run(bench)
        write(bench, out=options.out, commit=options.commit)
    report(bench)
    return 0


if __name__ == "__main__":
    sys.exit(main())
