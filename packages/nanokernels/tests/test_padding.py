import pytest
import torch

from nanorlhf.nanokernels import pad_input, unpad_input


def unpad_by_definition(x, mask):
    """One token at a time."""
    places = [(b, s) for b, row in enumerate(mask.tolist()) for s, kept in enumerate(row) if kept]
    return torch.stack([x[b, s] for b, s in places]), [b * mask.shape[1] + s for b, s in places]


MASK = torch.tensor([[1, 1, 0, 0], [0, 0, 0, 0], [0, 1, 1, 1], [1, 0, 1, 0]])


def test_unpadding_keeps_the_tokens_of_the_mask_in_order():
    x = torch.randn(4, 4, 2, 3)
    found = unpad_input(x, MASK)
    expected, places = unpad_by_definition(x, MASK)
    torch.testing.assert_close(found.hidden_states, expected)
    assert found.indices.tolist() == places
    assert (found.cu_seqlens.tolist(), found.cu_seqlens.dtype) == ([0, 2, 2, 5, 7], torch.int32)
    assert (found.max_seqlen, found.seqused.tolist()) == (3, [2, 0, 3, 2])


def test_padding_puts_every_token_back_and_zeros_elsewhere():
    x = torch.randn(4, 4, 5)
    found = unpad_input(x, MASK.bool())
    back = pad_input(found.hidden_states, found.indices, 4, 4)
    torch.testing.assert_close(back, x * MASK[..., None])


def test_gradients_pass_both_ways():
    x = torch.randn(4, 4, 2, dtype=torch.float64, requires_grad=True)

    def there_and_back(x):
        found = unpad_input(x, MASK)
        return pad_input(found.hidden_states.square(), found.indices, 4, 4)

    assert torch.autograd.gradcheck(there_and_back, (x,))


def test_a_mask_of_another_shape_is_an_error():
    with pytest.raises(ValueError, match=r"attention_mask=\(4, 3\) does not match"):
        unpad_input(torch.ones(4, 4), MASK[:, :3])
