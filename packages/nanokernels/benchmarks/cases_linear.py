"""Losses straight from hidden states, at the head of a Qwen3-0.6B: against cuBLAS and Liger."""

import torch
import torch.nn.functional as F
from harness import randn

from nanorlhf.nanokernels import linear_cross_entropy, linear_logprob

TOKENS, WIDTH, VOCAB = 8192, 1024, 151_936
FLOPS = 2 * TOKENS * WIDTH * VOCAB
SHAPE = f"{TOKENS} x {WIDTH} x {VOCAB}"
LOGPROB = f"linear log-probability + entropy fwd {SHAPE}"
LOGPROB_BOTH = f"linear log-probability + entropy fwd + bwd {SHAPE}"
LOSS = f"linear cross-entropy fwd + bwd {SHAPE}"


def inputs(*, grad):
    weight = randn(VOCAB, WIDTH).mul_(0.1)
    targets = torch.randint(VOCAB, (TOKENS,), device="cuda")
    return randn(TOKENS, WIDTH, grad=grad), weight.requires_grad_(grad), targets


def torch_logprob(hidden, weight, targets):
    logp = F.log_softmax(hidden @ weight.t(), dim=-1, dtype=torch.float32)
    return logp.gather(1, targets[:, None])[:, 0], -(logp.exp() * logp).sum(-1)


def torch_loss(hidden, weight, targets):
    return F.cross_entropy((hidden @ weight.t()).float(), targets)


def liger_loss(hidden, weight, targets):
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    return liger_fused_linear_cross_entropy(hidden, weight, targets)


def product():
    hidden, weight, _ = inputs(grad=False)
    return lambda: hidden @ weight.t()


def forward(fn):
    def make():
        arguments = inputs(grad=False)

        def call():
            with torch.no_grad():
                return fn(*arguments)

        return call

    return make


def both(fn):
    def make():
        hidden, weight, targets = inputs(grad=True)
        return lambda: torch.autograd.grad(fn(hidden, weight, targets), (hidden, weight))

    return make


def sums(fn):
    def total(*arguments):
        logprobs, entropy = fn(*arguments)
        return logprobs.sum() + 0.01 * entropy.sum()

    return total


def run(bench):
    def time(case, impl, make, work, *, graph=True):
        bytes_read = 2 * (TOKENS + VOCAB) * WIDTH
        bench.time(case, impl, make, work=work, unit="TFLOP/s", set_bytes=bytes_read, graph=graph)

    time(f"matmul {SHAPE}", "cuBLAS", product, FLOPS)
    time(LOGPROB, "nanokernels", forward(linear_logprob), FLOPS)
    time(LOGPROB, "torch.compile", forward(torch.compile(torch_logprob)), FLOPS)
    time(LOGPROB_BOTH, "nanokernels", both(sums(linear_logprob)), 3 * FLOPS)
    rows = {
        "nanokernels": linear_cross_entropy,
        "torch": torch_loss,
        "torch.compile": torch.compile(torch_loss),
        "Liger": liger_loss,
    }
    for impl, fn in rows.items():
        time(LOSS, impl, both(fn), 3 * FLOPS, graph=impl != "Liger")
        bench.memory(LOSS, impl, both(fn))
    bench.memory(LOGPROB, "nanokernels", forward(linear_logprob))
    bench.memory(LOGPROB_BOTH, "nanokernels", both(sums(linear_logprob)))
    bench.goal(LOGPROB, 0.78, against="cuBLAS", of=f"matmul {SHAPE}")
    bench.goal(LOSS, 0.80, against="cuBLAS", of=f"matmul {SHAPE}")
    bench.goal(LOSS, 1.05, against="torch.compile")
