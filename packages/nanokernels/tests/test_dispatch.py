import subprocess
import sys

import pytest
import torch

from nanorlhf.nanokernels import dispatch, rms_norm, swiglu
from nanorlhf.nanokernels.dispatch import use_triton

WITHOUT_TRITON = """
import sys
sys.modules["triton"] = None  # as where it is not installed
import torch
from nanorlhf.nanokernels import swiglu
assert "torch._dynamo" not in sys.modules, "it takes as long to import as all the rest"
assert swiglu(torch.ones(1, 4)).shape == (1, 2)
try:
    swiglu(torch.ones(1, 4), impl="triton")
except RuntimeError as error:
    assert "needs Triton, which is not installed" in str(error), error
else:
    raise AssertionError("no error")
"""


def test_cpu_tensors_take_the_reference():
    assert not use_triton("auto", torch.ones(1))


def test_an_unknown_implementation_is_an_error():
    with pytest.raises(ValueError, match="impl='cuda' is unknown"):
        swiglu(torch.ones(1, 2), impl="cuda")


def test_a_dtype_without_a_kernel_is_an_error_not_a_fallback(kernel_device):
    x = torch.ones(1, 2, dtype=torch.float64, device=kernel_device)
    with pytest.raises(ValueError, match=r"dtype=torch\.float64 has no Triton kernel"):
        rms_norm(x, x[0], impl="triton")


def test_a_cpu_tensor_without_the_interpreter_is_an_error(monkeypatch):
    if dispatch.triton is None:
        pytest.skip("Triton is not installed")
    monkeypatch.setattr(dispatch, "_INTERPRETING", False)
    with pytest.raises(ValueError, match="kernels run on CUDA"):
        use_triton("triton", torch.ones(1))


def test_everything_imports_and_the_references_run_without_triton():
    subprocess.run(
        [sys.executable, "-c", WITHOUT_TRITON], check=True, timeout=120, capture_output=True
    )
