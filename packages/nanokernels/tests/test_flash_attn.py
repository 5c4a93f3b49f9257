import math

import pytest
import torch

from nanorlhf.nanokernels import flash_attn_func, flash_attn_varlen_func


def attention_by_definition(q, k, v, *, causal, window=None):
    """One query at a time; [S, H, D], causal aligned at the bottom right."""
    out = torch.zeros_like(q)
    group = q.shape[1] // k.shape[1]
    for i in range(q.shape[0]):
        last = i + k.shape[0] - q.shape[0] if causal else k.shape[0] - 1
        first = 0 if window is None else max(0, last - window + 1)
        for h in range(q.shape[1]):
            keys, values = (x[first : last + 1, h // group] for x in (k, v))
            if len(keys):
                weights = (keys @ q[i, h] / math.sqrt(q.shape[2])).softmax(dim=0)
                out[i, h] = weights @ values
    return out


def draw(*lengths, heads=(4, 2), dim=16):
    return (torch.randn(length, h, dim) for length, h in zip(lengths, heads, strict=False))


@pytest.mark.parametrize("causal", [False, True])
def test_a_dense_batch_is_attention_of_each_row(causal):
    q = torch.randn(2, 5, 4, 16)
    k, v = torch.randn(2, 7, 2, 16), torch.randn(2, 7, 2, 16)
    found = flash_attn_func(q, k, v, causal=causal)
    for b in range(2):
        expected = attention_by_definition(q[b], k[b], v[b], causal=causal)
        torch.testing.assert_close(found[b], expected)


@pytest.mark.parametrize("causal", [False, True])
def test_packed_sequences_have_their_own_queries_and_keys(causal):
    lengths = [(3, 3), (1, 6), (0, 2), (4, 5)]
    parts = [
        (torch.randn(n, 4, 16), torch.randn(m, 2, 16), torch.randn(m, 2, 16)) for n, m in lengths
    ]
    q, k, v = (torch.cat(x) for x in zip(*parts, strict=True))
    cu_q = torch.tensor([0, 3, 4, 4, 8], dtype=torch.int32)
    cu_k = torch.tensor([0, 3, 9, 11, 16], dtype=torch.int32)
    found = flash_attn_varlen_func(q, k, v, cu_q, cu_k, 4, 6, causal=causal)
    expected = torch.cat([attention_by_definition(*part, causal=causal) for part in parts])
    torch.testing.assert_close(found, expected)


def test_a_window_hides_the_keys_before_it():
    q, k, v = torch.randn(1, 9, 4, 16), torch.randn(1, 9, 2, 16), torch.randn(1, 9, 2, 16)
    found = flash_attn_func(q, k, v, causal=True, window_size=(2, 0))
    expected = attention_by_definition(q[0], k[0], v[0], causal=True, window=3)
    torch.testing.assert_close(found[0], expected)


def test_the_log_sum_exp_has_the_layout_of_flash_attn():
    q = torch.randn(2, 5, 4, 16)
    o, lse, _ = flash_attn_func(q, q, q, return_attn_probs=True)
    scores = torch.einsum("bihd,bjhd->bhij", q, q) / 4
    torch.testing.assert_close(lse, scores.logsumexp(dim=-1))
    assert o.shape == q.shape
    cu = torch.tensor([0, 5], dtype=torch.int32)
    _, packed, _ = flash_attn_varlen_func(q[0], q[0], q[0], cu, cu, 5, 5, return_attn_probs=True)
    torch.testing.assert_close(packed, lse[0])


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"dropout_p": 0.1}, "dropout_p=0.1"),
        ({"softcap": 30.0}, "softcap=30.0"),
        ({"alibi_slopes": torch.ones(4)}, "alibi_slopes="),
        ({"window_size": (4, 4)}, r"window_size=\(4, 4\)"),
    ],
)
def test_what_is_not_there_is_an_error(options, named):
    x = torch.ones(1, 2, 4, 16)
    with pytest.raises(ValueError, match=named):
        flash_attn_func(x, x, x, **options)
