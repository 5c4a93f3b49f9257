"""Repairs the interpreter before any kernel runs in it."""

import json
import os
import subprocess
import sys

import pytest
import torch

from nanorlhf.nanokernels.dispatch import is_interpreting

if is_interpreting():
    from nanorlhf.nanokernels.interpreter import repair_interpreter

    repair_interpreter()


@pytest.fixture(autouse=True)
def one_thread_and_a_seed():
    """Small tensors are fastest on one thread, and a test draws the same numbers alone or not."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def kernel_device():
    """Where ``impl="triton"`` runs here: a GPU, or the CPU when kernels are interpreted."""
    if torch.cuda.is_available() and not is_interpreting():
        return "cuda"
    if not is_interpreting():
        pytest.skip("needs a CUDA device or TRITON_INTERPRET=1")
    return "cpu"


@pytest.fixture
def compiled():
    """Compiles the cases of a test file, which as a script is ``report(cases(), sys.argv[1:])``.

    Kernels exist only where they are not interpreted, so another process does it. Fails on any
    spill and on more shared memory than a block has; returns what each case uses.
    """
    pytest.importorskip("triton")

    def run(file, *names):
        environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
        command = [sys.executable, file, *names]
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=1800
        )
        assert done.returncode == 0, done.stderr[-2000:]
        found = [json.loads(line) for line in done.stdout.splitlines()]
        assert found if not names else len(found) == len(names), f"{names} gave {len(found)} cases"
        for usage in found:
            assert usage["spills"] == 0, usage
            assert usage["shared_bytes"] <= 227 * 1024, usage
        return found

    return run
