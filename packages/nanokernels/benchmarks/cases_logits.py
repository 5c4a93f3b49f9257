"""Losses from logits that are already there, at the vocabulary of a Qwen3."""

import torch
import torch.nn.functional as F
from harness import randn

from nanorlhf.nanokernels import cross_entropy, token_logprobs

TOKENS, VOCAB = 4096, 151_936
BYTES = 2 * TOKENS * VOCAB
SHAPE = f"{TOKENS} x {VOCAB}"
FORWARD = f"cross-entropy fwd {SHAPE}"
BOTH = f"cross-entropy fwd + bwd {SHAPE}"
LOGPROBS = f"log-probability + entropy from logits fwd {SHAPE}"


def in_place(logits, targets):
    return cross_entropy(logits, targets, in_place=True)


def torch_loss(logits, targets):
    return F.cross_entropy(logits.float(), targets)


def torch_logprobs(logits, targets):
    logp = F.log_softmax(logits, dim=-1, dtype=torch.float32)
    return logp.gather(1, targets[:, None])[:, 0], -(logp.exp() * logp).sum(-1)


def liger_loss(logits, targets):
    from liger_kernel.transformers.functional import liger_cross_entropy

    return liger_cross_entropy(logits, targets)


def forward(fn):
    def make():
        logits, targets = randn(TOKENS, VOCAB), torch.randint(VOCAB, (TOKENS,), device="cuda")

        def call():
            with torch.no_grad():
                return fn(logits, targets)

        return call

    return make


def both(fn, *, fresh=False):
    """Return a maker of the whole pass; ``fresh``: the logits do not outlive it, restore them."""

    def make():
        leaf = randn(TOKENS, VOCAB, grad=True)
        targets = torch.randint(VOCAB, (TOKENS,), device="cuda")

        def call():
            # Written over, they would be gradients the next time; the time of that is the same.
            logits = leaf.detach().requires_grad_() if fresh else leaf
            return torch.autograd.grad(fn(logits, targets), logits)

        return call

    return make


def run(bench):
    def time(case, impl, make, passes, *, graph=True):
        bench.time(case, impl, make, work=passes * BYTES, unit="GB/s", set_bytes=BYTES, graph=graph)

    compiled = torch.compile(torch_loss)
    time(FORWARD, "nanokernels", forward(cross_entropy), 1)
    time(FORWARD, "torch.compile", forward(compiled), 1)
    time(LOGPROBS, "nanokernels", forward(token_logprobs), 1)
    time(LOGPROBS, "torch.compile", forward(torch.compile(torch_logprobs)), 1)
    # One read, and one write of the gradient: what any method must move.
    time(BOTH, "nanokernels", both(cross_entropy), 2)
    time(f"{BOTH}, in place", "nanokernels", both(in_place, fresh=True), 2)
    time(BOTH, "torch", both(torch_loss), 2)
    time(BOTH, "torch.compile", both(compiled), 2)
    time(BOTH, "Liger", both(liger_loss, fresh=True), 2, graph=False)
    for impl, make in {
        "nanokernels": both(cross_entropy),
        "torch.compile": both(compiled),
        "Liger": both(liger_loss, fresh=True),
    }.items():
        bench.memory(BOTH, impl, make)
    bench.memory(f"{BOTH}, in place", "nanokernels", both(in_place, fresh=True))
    bench.goal(BOTH, 1.5, against="torch.compile")
