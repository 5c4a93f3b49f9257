"""Times every kernel against PyTorch on one CUDA device; prints a table and writes JSON.

    python packages/nanokernels/benchmarks/bench_kernels.py [--only attention] [--out FILE]

Medians of CUDA-event times after a warm-up, bfloat16, random data. Memory-bound kernels are given
in GB/s of the bytes they must move, attention in TFLOP/s of the pairs a causal mask leaves (its
backward counted as 2.5 forwards); the device's own copy and cuBLAS are rows of the same run.
"""

import argparse
import functools
import json
import re
import subprocess
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

WARMUP_MS, REPEAT_MS = 50, 200
HEADS, KV_HEADS, DIM = 16, 8, 128
REPOSITORY = Path(__file__).resolve().parents[3]


class Bench:
    """Rows of results, in the order they were measured."""

    def __init__(self):
        self.rows = []

    def time(self, case, impl, fn, *, work, unit, check=None):
        """Time ``fn`` and record ``work`` per second; ``check`` is the result it should have."""
        from triton.testing import do_bench

        if check is not None:
            error = ((fn().float() - check.float()).norm() / check.float().norm()).item()
            assert error < 2e-2, f"{case} {impl}: relative error {error:.1e}"
        ms = do_bench(fn, warmup=WARMUP_MS, rep=REPEAT_MS, quantiles=[0.5, 0.2, 0.8])
        scale = {"GB/s": 1e6, "TFLOP/s": 1e9}[unit]
        median, fast, slow = (work / scale / t for t in ms)
        row = {"case": case, "impl": impl, "metric": "throughput", "unit": unit}
        self.rows.append(row | {"median": median, "p20": slow, "p80": fast, "ms": ms[0]})
        print(f"| {case} | {impl} | {ms[0] * 1e3:.1f} | {median:.0f} {unit} |", flush=True)


def randn(*shape, grad=False):
    return torch.randn(*shape, device="cuda", dtype=torch.bfloat16, requires_grad=grad)


def ceilings(bench):
    x, n = torch.empty(1 << 30, device="cuda", dtype=torch.uint8), 8192
    y = torch.empty_like(x)
    bench.time("copy 1 GiB", "torch", lambda: y.copy_(x), work=2 * x.nbytes, unit="GB/s")
    a, b = randn(n, n), randn(n, n)
    bench.time(f"matmul {n}", "cuBLAS", lambda: a @ b, work=2 * n**3, unit="TFLOP/s")


def backward_of(fn, inputs, grad):
    """A closure that runs the backward alone, on a graph made once."""
    y = fn(*inputs)
    return lambda: torch.autograd.grad(y, inputs, grad, retain_graph=True)


def elementwise(bench):
    from nanorlhf.nanokernels import rms_norm, rope, rope_table, swiglu

    for rows, width in ((16384, 1024), (16384, 4096), (16384 * HEADS, DIM)):
        x, w, grad = randn(rows, width, grad=True), randn(width, grad=True), randn(rows, width)
        for impl, fn in {
            "nanokernels": lambda x, w: rms_norm(x, w),
            "torch F.rms_norm": lambda x, w: F.rms_norm(x, w.shape, w, 1e-6),
        }.items():
            case, size = f"{rows} x {width}", 2 * rows * width
            with torch.no_grad():
                bench.time(
                    f"rms_norm fwd {case}",
                    impl,
                    lambda fn=fn, x=x, w=w: fn(x, w),
                    work=2 * size,
                    unit="GB/s",
                )
            run = backward_of(fn, (x, w), grad)
            bench.time(f"rms_norm bwd {case}", impl, run, work=3 * size, unit="GB/s")
    rows, width = 16384, 3072
    x, grad = randn(rows, 2 * width, grad=True), randn(rows, width)

    def eager_swiglu(x):
        gate, up = x.chunk(2, dim=-1)
        return F.silu(gate) * up

    for impl, fn in {"nanokernels": swiglu, "torch eager": eager_swiglu}.items():
        case, size = f"{rows} x {width}", 2 * rows * width
        with torch.no_grad():
            bench.time(
                f"swiglu fwd {case}", impl, lambda fn=fn, x=x: fn(x), work=3 * size, unit="GB/s"
            )
        bench.time(
            f"swiglu bwd {case}", impl, backward_of(fn, (x,), grad), work=5 * size, unit="GB/s"
        )
    x, grad = randn(16384, HEADS, DIM, grad=True), randn(16384, HEADS, DIM)
    cos, sin = rope_table(torch.arange(16384, device="cuda"), head_dim=DIM, theta=1e6)
    for impl in ("triton", "reference"):
        fn = functools.partial(rope, cos=cos, sin=sin, impl=impl)
        name = {"triton": "nanokernels", "reference": "torch eager"}[impl]
        with torch.no_grad():
            bench.time(
                "rope fwd 16384", name, lambda fn=fn, x=x: fn(x), work=2 * x.nbytes, unit="GB/s"
            )
        bench.time(
            "rope bwd 16384", name, backward_of(fn, (x,), grad), work=2 * x.nbytes, unit="GB/s"
        )


def attention(bench):
    from nanorlhf.nanokernels import attention

    tokens = 16384
    for length in (1024, 4096):
        count = tokens // length
        q, k, v = (randn(tokens, h, DIM, grad=True) for h in (HEADS, KV_HEADS, KV_HEADS))
        grad = randn(tokens, HEADS, DIM)
        cu_seqlens = torch.arange(count + 1, device="cuda", dtype=torch.int32) * length

        def packed(q, k, v):
            return attention(q, k, v, cu_seqlens=cu_seqlens, max_seqlen=length)  # noqa: B023

        def dense(q, k, v):
            q, k, v = (x.view(count, length, -1, DIM).transpose(1, 2) for x in (q, k, v))  # noqa: B023
            o = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
            return o.transpose(1, 2).reshape(tokens, HEADS, DIM)

        flops = 2 * count * HEADS * length**2 * DIM
        with torch.no_grad(), sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            expected = dense(q, k, v)
        for impl, fn, backend in (
            ("nanokernels", packed, None),
            ("SDPA flash", dense, SDPBackend.FLASH_ATTENTION),
            ("SDPA cuDNN", dense, SDPBackend.CUDNN_ATTENTION),
        ):
            with sdpa_kernel(backend or SDPBackend.FLASH_ATTENTION):
                with torch.no_grad():
                    bench.time(
                        f"attention fwd {count} x {length}",
                        impl,
                        lambda fn=fn: fn(q, k, v),  # noqa: B023
                        work=flops,
                        unit="TFLOP/s",
                        check=expected,
                    )
                run = backward_of(fn, (q, k, v), grad)
                case = f"attention bwd {count} x {length}"
                bench.time(case, impl, run, work=2.5 * flops, unit="TFLOP/s")
    ragged_attention(bench, attention)


def ragged_attention(bench, attention):
    lengths = torch.randint(64, 2049, (32,), generator=torch.Generator().manual_seed(0))
    cu_seqlens = F.pad(lengths.cumsum(0), (1, 0)).to("cuda", torch.int32)
    total, longest = int(lengths.sum()), int(lengths.max())
    q, k, v = (randn(total, h, DIM, grad=True) for h in (HEADS, KV_HEADS, KV_HEADS))

    def packed(q, k, v):
        return attention(q, k, v, cu_seqlens=cu_seqlens, max_seqlen=longest)

    flops, case = 2 * HEADS * DIM * int((lengths**2).sum()), "32 ragged 64-2048"
    with torch.no_grad():
        run = lambda: packed(q, k, v)  # noqa: E731
        bench.time(f"attention fwd {case}", "nanokernels", run, work=flops, unit="TFLOP/s")
    run = backward_of(packed, (q, k, v), randn(total, HEADS, DIM))
    bench.time(f"attention bwd {case}", "nanokernels", run, work=2.5 * flops, unit="TFLOP/s")


def decode(bench):
    from nanorlhf.nanokernels import paged_attention

    generator = torch.Generator().manual_seed(0)
    for name, lengths in {
        "256 x 640": torch.full((256,), 640),
        "256 ragged 100-2048": torch.randint(100, 2049, (256,), generator=generator),
        "8 x 8192": torch.full((8,), 8192),
        "1 x 640": torch.full((1,), 640),
    }.items():
        seq_lens = lengths.to("cuda", torch.int32)
        q, nbytes = randn(len(lengths), HEADS, DIM), int(lengths.sum()) * KV_HEADS * DIM * 4
        for page in (16, 128):
            width = -(-int(lengths.max()) // page)
            table = torch.randperm(len(lengths) * width, device="cuda").int().view(-1, width)
            cache = randn(2, table.numel(), KV_HEADS, page, DIM)
            run = lambda: paged_attention(q, *cache, table, seq_lens)  # noqa: B023, E731
            bench.time(
                f"decode {name}", f"nanokernels, pages of {page}", run, work=nbytes, unit="GB/s"
            )
        if len(set(lengths.tolist())) == 1:
            k, v = (randn(len(lengths), KV_HEADS, int(lengths[0]), DIM) for _ in range(2))
            run = lambda: F.scaled_dot_product_attention(q[:, :, None], k, v, enable_gqa=True)  # noqa: B023, E731
            with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
                name = f"decode {name}"
                bench.time(name, "SDPA flash, contiguous", run, work=nbytes, unit="GB/s")


def commit():
    done = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=REPOSITORY, capture_output=True, text=True
    )
    return done.stdout.strip() or "unknown"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parts = {
        "ceilings": ceilings,
        "elementwise": elementwise,
        "attention": attention,
        "decode": decode,
    }
    parser.add_argument("--only", choices=parts, action="append", help="run these parts alone")
    parser.add_argument("--out", type=Path, help="where the JSON goes")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print(
            "bench_kernels: no CUDA device here; kernels are only timed on a GPU", file=sys.stderr
        )
        return 2
    import triton

    torch.manual_seed(0)
    hardware = torch.cuda.get_device_name()
    bench = Bench()
    print(f"{hardware}, torch {torch.__version__}, triton {triton.__version__}, bfloat16\n")
    print("| case | implementation | us | throughput |\n| --- | --- | --- | --- |")
    for name in options.only or parts:
        parts[name](bench)
    slug = re.sub(r"[^a-z0-9]+", "-", hardware.lower()).strip("-")
    out = options.out or Path(__file__).parent / "results" / f"kernels-{slug}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    result = {
        "bench": "kernels",
        "command": " ".join(
            ["python", "packages/nanokernels/benchmarks/bench_kernels.py", *sys.argv[1:]]
        ),
        "commit": commit(),
        "hardware": hardware,
        "versions": {
            "torch": torch.__version__,
            "triton": triton.__version__,
            "cuda": torch.version.cuda,
            "driver": driver(),
            "cudnn": torch.backends.cudnn.version(),
        },
        "warmup_ms": WARMUP_MS,
        "repeat_ms": REPEAT_MS,
        "rows": bench.rows,
    }
    out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"\nwritten to {out}", file=sys.stderr)
    return 0


def driver():
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=30)
    except OSError:
        return "unknown"
    return done.stdout.splitlines()[0].strip() if done.returncode == 0 else "unknown"


if __name__ == "__main__":
    sys.exit(main())
