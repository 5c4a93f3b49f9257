"""The batch-invariant product against cuBLAS, on the layers of a Qwen3-0.6B: ``x @ w.t()``."""

from harness import randn

from nanorlhf.nanokernels import matmul

LAYERS = {(4096, 1024): "qkv", (1024, 3072): "down", (6144, 1024): "gate_up"}
ROWS = (1, 64, 256, 1024, 8192)
HEAD, HEAD_ROWS = (151_936, 1024), (1, 64, 1024)
LARGE = 1024


def run(bench):
    for (n, k), name in LAYERS.items():
        for m in ROWS:
            product(bench, name, m, n, k)
    for m in HEAD_ROWS:
        product(bench, "head", m, *HEAD)


def product(bench, name, m, n, k):
    case = f"matmul {name} {m} x {n} x {k}"

    def make(call):
        a, w = randn(m, k), randn(n, k)
        return lambda: call(a, w.t())

    size = 2 * (m * k + n * k + m * n)
    timing = {"work": 2 * m * n * k, "unit": "TFLOP/s", "set_bytes": size}
    bench.time(case, "nanokernels", lambda: make(matmul), **timing)
    bench.time(case, "cuBLAS", lambda: make(lambda a, b: a @ b), **timing)
    bench.goal(case, 0.75 if m >= LARGE else 1 / 1.5, against="cuBLAS")
