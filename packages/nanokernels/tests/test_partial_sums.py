import pytest
import torch

from nanorlhf.nanokernels.partial_sums import sum_parts


@pytest.mark.parametrize("shape", [(1, 1), (64, 32), (131, 75)])
def test_every_part_of_every_column_counts_once(kernel_device, shape):
    parts = torch.randn(shape, device=kernel_device)
    torch.testing.assert_close(sum_parts(parts, torch.float32), parts.sum(dim=0))


@pytest.mark.parametrize("split", [1, 70, 131])
def test_a_split_gives_the_sums_before_and_after_it(kernel_device, split):
    parts = torch.randn(131, 40, device=kernel_device)
    expected = torch.stack((parts[:split].sum(dim=0), parts[split:].sum(dim=0)))
    torch.testing.assert_close(sum_parts(parts, torch.float32, split=split), expected)


def test_the_order_is_the_same_every_time(kernel_device):
    parts = torch.randn(200, 40, device=kernel_device) * 1e4
    assert torch.equal(sum_parts(parts, torch.bfloat16), sum_parts(parts, torch.bfloat16))
