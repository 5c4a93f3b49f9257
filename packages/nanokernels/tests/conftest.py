"""Repairs the interpreter before any kernel runs in it."""

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
