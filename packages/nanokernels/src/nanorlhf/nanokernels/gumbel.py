"""Gumbel noise as a function of (seed, step, column): a hash, and no generator's state.

A row's noise is the same on a CPU or a GPU, alone or in a batch, and whatever was drawn before. The
hash is ``lowbias32`` of C. Wellons, keyed by the row's seed and step, twice over the column: with
one round, two rows would be shifts of each other.

Shape legend: B = rows.
"""

import torch
from torch import Tensor

from .dispatch import jit, tl

INT32_WRAP = 1 << 32


def _mix(x: Tensor) -> Tensor:
    """Scramble int32 words in place and return them.

    PyTorch's integer products wrap and its right shifts carry the sign, hence the masks.
    """
    x ^= (x >> 16) & 0xFFFF
    x *= 0x7FEB352D
    x ^= (x >> 15) & 0x1FFFF
    x *= 0x846CA68B - INT32_WRAP
    x ^= (x >> 16) & 0xFFFF
    return x


def _word(x: Tensor, shift: int) -> Tensor:
    """Return 32 bits of int64 words, as int32."""
    bits = (x >> shift) & 0xFFFFFFFF
    return torch.where(bits >= 1 << 31, bits - INT32_WRAP, bits).to(torch.int32)


def random_bits(seeds_B: Tensor, steps_B: Tensor, *, count: int) -> Tensor:
    """Return ``count`` random words for each (seed, step), int32 [B, count].

    Entry i of a row depends on nothing but (seed, step, i).
    """
    seeds, steps = seeds_B.long(), steps_B.long()
    key = _mix(_word(seeds, 0) ^ 0x3C6EF372)
    key = _mix(key ^ _word(seeds, 32))
    key = _mix(key ^ _word(steps, 0))
    key = _mix(key ^ _word(steps, 32))
    second = _mix(key ^ 0x5BD1E995)
    counter = torch.arange(count, device=seeds.device, dtype=torch.int32)
    words = _mix(counter * (0x9E3779B9 - INT32_WRAP) + key[:, None])
    return _mix(words ^ second[:, None])


def gumbel_noise(seeds_B: Tensor, steps_B: Tensor, *, count: int) -> Tensor:
    """Return standard Gumbel noise, float32 [B, count], as a function of (seed, step, column)."""
    bits = random_bits(seeds_B, steps_B, count=count) & 0x7FFFFFFF
    # The winners are the smallest of these exponentials, and float32 is finest next to 0.
    uniform = bits.to(torch.float32).add_(0.5).mul_(2.0**-31).clamp_(max=1 - 2.0**-24)
    return uniform.neg_().log1p_().neg_().log_().neg_()


@jit
def _mix_kernel(x: tl.tensor) -> tl.tensor:
    """Return uint32 words scrambled, as :func:`_mix` does."""
    x = x ^ (x >> 16)
    x = x * 0x7FEB352D
    x = x ^ (x >> 15)
    x = x * 0x846CA68B
    return x ^ (x >> 16)


@jit
def row_keys(seed: tl.tensor, step: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """Return the two keys of a row's noise, uint32, of an int64 seed and step."""
    key = _mix_kernel(seed.to(tl.uint32) ^ 0x3C6EF372)
    key = _mix_kernel(key ^ (seed >> 32).to(tl.uint32))
    key = _mix_kernel(key ^ step.to(tl.uint32))
    key = _mix_kernel(key ^ (step >> 32).to(tl.uint32))
    return key, _mix_kernel(key ^ 0x5BD1E995)


@jit
def noise(first: tl.tensor, second: tl.tensor, column: tl.tensor) -> tl.tensor:
    """Return the noise of int32 columns under a row's keys, as :func:`gumbel_noise` does."""
    words = _mix_kernel(column.to(tl.uint32) * 0x9E3779B9 + first)
    bits = (_mix_kernel(words ^ second) & 0x7FFFFFFF).to(tl.int32)
    uniform = tl.minimum((bits.to(tl.float32) + 0.5) * 4.656612873077393e-10, 0.99999994)
    rest = 1.0 - uniform
    # log(1 - u), exact to the last bits for tiny u: the rounding of 1 - u cancels in the quotient.
    tail = tl.where(rest == 1.0, 1.0, tl.log(rest) / (rest - 1.0 + (rest == 1.0)))
    return -tl.log(uniform * tail)
