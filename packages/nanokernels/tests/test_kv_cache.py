import torch

from nanorlhf.nanokernels import store_kv
from nanorlhf.nanokernels.testing import check_operator

SLOTS = [35, 2, -1, 16, 47]


def inputs(device):
    fused = torch.randn(5, 9, 24, device=device)
    pages = torch.full((2, 3, 3, 16, 24), 7.0, device=device)
    return fused[:, 3:6], fused[:, 6:], pages, torch.tensor(SLOTS, device=device)


def test_slices_of_a_projection_go_into_their_slots_and_nowhere_else(kernel_device):
    k, v, pages, slots = inputs(kernel_device)
    expected = pages.clone()
    for token, slot in enumerate(SLOTS):
        if slot >= 0:
            expected[0, slot // 16, :, slot % 16] = k[token]
            expected[1, slot // 16, :, slot % 16] = v[token]
    for impl in ("triton", "reference"):
        found = pages.clone()
        store_kv(k, v, *found, slots, impl=impl)
        assert torch.equal(found, expected)


def test_the_operator_keeps_its_word(kernel_device):
    k, v, pages, slots = inputs(kernel_device)
    check_operator(torch.ops.nanokernels.store_kv.default, k, v, *pages.unbind(), slots)


def test_it_compiles_into_one_graph_that_writes_in_place(kernel_device):
    k, v, pages, slots = inputs(kernel_device)
    expected = pages.clone()
    store_kv(2 * k, v, *expected, slots, impl="reference")

    def run(k_pages, v_pages):
        store_kv(2 * k, v, k_pages, v_pages, slots, impl="triton")
        return k_pages.sum() + v_pages.sum()

    total = torch.compile(run, fullgraph=True, backend="aot_eager")(*pages)
    assert torch.equal(pages, expected)
    torch.testing.assert_close(total, expected.sum())
