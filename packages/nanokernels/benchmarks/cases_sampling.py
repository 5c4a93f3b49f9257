"""Drawing a token per row of 256 x 151,936 logits, by what the rows ask for.

GB/s of the logits read once. PyTorch's row is the sort alone that truncation by sorting begins
with; what follows it (softmax, running sums, scatter) is not counted.
"""

import torch
from harness import randn

from nanorlhf.nanokernels import sample

ROWS, VOCAB = 256, 151_936
LIMITS = {
    "greedy": {"temperature": 0.0},
    "no limits": {},
    "top-k 50, top-p 0.9": {"top_k": 50, "top_p": 0.9},
    "top-p 0.9": {"top_p": 0.9},
    "min-p 0.05": {"min_p": 0.05},
}


def run(bench):
    for name, limits in LIMITS.items():
        ours(bench, f"sample {ROWS} x {VOCAB}, {name}", ROWS, limits)
    ours(bench, f"sample 1 x {VOCAB}, top-k 50, top-p 0.9", 1, LIMITS["top-k 50, top-p 0.9"])
    case = f"sample {ROWS} x {VOCAB}, top-k 50, top-p 0.9"
    size = ROWS * VOCAB * 2

    def make():
        logits = randn(ROWS, VOCAB)
        return lambda: logits.float().sort(dim=1, descending=True, stable=True)

    bench.time(case, "torch", make, work=size, unit="GB/s", set_bytes=12 * size)
    bench.goal(case, 4.0, against="torch")


def ours(bench, case, rows, limits):
    def make():
        # Logits of a language model: a few likely tokens, many unlikely ones.
        logits = randn(rows, VOCAB) * 3
        index = torch.arange(rows, device="cuda")

        def row(name, dtype, default=None):
            value = limits.get(name, default)
            return None if value is None else torch.full_like(index, value, dtype=dtype)

        given = {
            "temperature_B": row("temperature", torch.float32, 0.7),
            "top_k_B": row("top_k", torch.int32),
            "top_p_B": row("top_p", torch.float32),
            "min_p_B": row("min_p", torch.float32),
            "seeds_B": index,
            "steps_B": index,
        }
        return lambda: sample(logits, **given)

    size = rows * VOCAB * 2
    bench.time(case, "nanokernels", make, work=size, unit="GB/s", set_bytes=size)
