"""A trainer and a rollout in processes of their own, one step apart.

While the rollout samples with the weights of step n, the trainer makes those of step n + 1.

    python packages/nanoray/examples/trainer_and_rollout.py
    python packages/nanoray/examples/trainer_and_rollout.py --engine ray    # the same on Ray

``--address auto`` joins a cluster that runs, ours or Ray's, instead of starting one.
"""

import argparse
import time

import numpy as np

import nanorlhf.nanoray as nanoray


@nanoray.remote
class Trainer:
    """Holds the weights and moves them towards what was sampled."""

    def __init__(self, size):
        self.weights = {"w": np.zeros(size, np.float32)}

    def step(self, samples):
        target = np.float32(samples.mean() + 1)
        self.weights["w"] += 0.5 * (target - self.weights["w"])
        return self.weights  # copied once, into shared memory


@nanoray.remote
class Rollout:
    """Samples around the weights it was given last."""

    def update(self, weights):
        self.weights = weights["w"]  # no copy: these are the trainer's bytes, read-only

    def sample(self, count):
        time.sleep(0.05)
        return np.random.default_rng(0).normal(self.weights[:count])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--engine", choices=["local", "ray"], default="local")
    parser.add_argument("--address")
    asked = parser.parse_args()
    cpus = 2 if asked.address is None else None  # a cluster that runs has its own
    nanoray.init(asked.address, engine=asked.engine, num_cpus=cpus)
    trainer, rollout = Trainer.remote(1_000_000), Rollout.remote()
    rollout.update.remote({"w": np.zeros(1_000_000, np.float32)})
    samples = rollout.sample.remote(64)
    for step in range(5):
        weights = trainer.step.remote(samples)  # a ref: the samples go from actor to actor
        samples = rollout.sample.remote(64)  # runs at the same time, with the weights before
        rollout.update.remote(weights)
        mean = float(nanoray.get(weights, timeout=30)["w"].mean())
        print(f"step {step}: mean weight {mean:.3f}")
    nanoray.kill(rollout)
    try:
        nanoray.get(rollout.sample.remote(1), timeout=30)
    except nanoray.ActorDiedError as error:
        print(f"as it should be: {error}")
    nanoray.shutdown()


if __name__ == "__main__":
    main()
