import pytest
import torch

from nanorlhf.nanokernels.dispatch import is_interpreting, jit, launch, tl

if not is_interpreting():
    pytest.skip("kernels are compiled here, not interpreted", allow_module_level=True)

from nanorlhf.nanokernels.interpreter import bits_to_float, float_to_bits

EVERY_BIT_PATTERN = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)


@jit
def _arithmetic_kernel(a_ptr, b_ptr, sum_ptr, product_ptr, N: tl.constexpr):
    index = tl.arange(0, N)
    a, b = tl.load(a_ptr + index), tl.load(b_ptr + index)
    tl.store(sum_ptr + index, a + b)
    tl.store(product_ptr + index, a * b)


@jit
def _dot_kernel(a_ptr, b_ptr, out_ptr, N: tl.constexpr):
    cell = tl.arange(0, N)[:, None] * N + tl.arange(0, N)[None, :]
    product = tl.dot(tl.load(a_ptr + cell), tl.load(b_ptr + cell))
    tl.store(out_ptr + cell, product.to(out_ptr.dtype.element_ty))


def test_every_bfloat16_survives_the_way_through_float32():
    values = EVERY_BIT_PATTERN.view(torch.bfloat16)
    finite = ~values.isnan()
    back = torch.from_numpy(float_to_bits(values.float().numpy()).view("int16"))
    assert torch.equal(back[finite], EVERY_BIT_PATTERN[finite])
    there = torch.from_numpy(bits_to_float(EVERY_BIT_PATTERN.numpy().view("uint16")))
    assert torch.equal(there[finite], values.float()[finite])


def test_rounding_to_bfloat16_is_to_nearest_even():
    x = torch.randn(4096)
    x = torch.cat([x, (x.view(torch.int32) & ~0xFFFF | 0x8000).view(torch.float32)])  # ties
    rounded = torch.from_numpy(float_to_bits(x.numpy()).view("int16")).view(torch.bfloat16)
    assert torch.equal(rounded, x.to(torch.bfloat16))


def test_bfloat16_sums_and_products_equal_torch_to_the_last_bit():
    a, b = torch.randn(2, 1024).to(torch.bfloat16).unbind()
    total, product = torch.empty_like(a), torch.empty_like(a)
    launch(_arithmetic_kernel, (1,), a, b, total, product, N=1024)
    assert torch.equal(total, a + b)
    assert torch.equal(product, a * b)


def test_a_bfloat16_dot_accumulates_in_float32():
    a, b = torch.randn(2, 32, 32).to(torch.bfloat16).unbind()
    out = torch.empty(32, 32)
    launch(_dot_kernel, (1,), a, b, out, N=32)
    torch.testing.assert_close(out, a.float() @ b.float())
