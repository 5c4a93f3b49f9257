"""Train a tiny Qwen3 on two pipeline stages (two processes, gloo), then reload it anywhere.

python packages/nanotron/examples/train_two_stages.py
"""

import tempfile
from pathlib import Path

import torch

from nanorlhf.nanotron import (
    AdamWConfig,
    Engine,
    LRSchedule,
    Mesh,
    Microbatch,
    Qwen3,
    init_checkpoint,
    next_token_loss,
)
from nanorlhf.nanotron.testing import run_ranks

CONFIG = {
    "model_type": "qwen3",
    "vocab_size": 32,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "tie_word_embeddings": True,
}


def counting(start, length):
    """A sequence that the model can learn to continue."""
    return [(start + i) % 32 for i in range(length)]


def train(rank, model_dir, out, steps):
    """Run on every rank: the same program, whatever the layout."""
    mesh = Mesh(pp=2)
    engine = Engine(Qwen3.from_pretrained(model_dir, mesh), optimizer=AdamWConfig())
    rate = LRSchedule(1e-2, warmup_steps=3, total_steps=steps, min_ratio=0.1)
    batches = [Microbatch.from_sequences([counting(s, 6 + s % 5)]) for s in range(8)]
    losses = [engine.train_step(batches, next_token_loss, lr=rate(i))["loss"] for i in range(steps)]
    engine.save(out, state={"step": steps})
    return losses


def main():
    with tempfile.TemporaryDirectory() as folder:
        start, out = Path(folder) / "start", Path(folder) / "trained"
        init_checkpoint(CONFIG, start, seed=0)
        losses = run_ranks(train, 2, start, out, 20)[0]
        print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f} in {len(losses)} steps on 2 stages")
        torch.set_num_threads(1)
        model = Qwen3.from_pretrained(out, Mesh())
        check = Microbatch.from_sequences([counting(3, 10)])
        logprobs = Engine(model, optimizer=None).forward([check])[0].logprobs
        print(f"one process reads it back: mean log-probability {float(logprobs[1:].mean()):.3f}")


if __name__ == "__main__":
    main()
