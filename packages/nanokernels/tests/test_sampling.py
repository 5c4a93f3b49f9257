import math

import pytest
import torch

from nanorlhf.nanokernels import sample
from nanorlhf.nanokernels.sampling import gumbel_noise, random_bits


def rows(count, temperature=1.0, **limits):
    """Arguments of ``count`` rows alike but for their seeds."""
    return {
        "temperature_B": torch.full((count,), temperature),
        "top_k_B": torch.full((count,), limits.get("top_k", 0), dtype=torch.int32),
        "top_p_B": torch.full((count,), limits.get("top_p", 1.0)),
        "min_p_B": torch.full((count,), limits.get("min_p", 0.0)),
        "seeds_B": torch.arange(count),
        "steps_B": torch.zeros(count, dtype=torch.int64),
    }


def kept_by_definition(logits, temperature, top_k, top_p, min_p):
    """Probabilities drawn from, one row, by walking from the likeliest token down."""
    p = (logits.double() / temperature).softmax(0)
    order = p.argsort(descending=True, stable=True).tolist()
    order = order[: top_k or None]
    mass, kept = sum(float(p[i]) for i in order), []
    for i in order:
        before = sum(float(p[j]) for j in kept)
        if kept and (before >= top_p * mass or float(p[i]) < min_p * float(p[order[0]])):
            break
        kept.append(i)
    out = torch.zeros_like(p)
    out[kept] = p[kept]
    return out / out.sum(), float(p[kept].sum())


def chi_square(tokens, p):
    """The statistic, and a bound that a right sampler passes but once in about 10,000 seeds."""
    expected = p * len(tokens)
    used = expected > 0
    assert set(tokens.tolist()) <= set(used.nonzero().flatten().tolist())
    counts = torch.bincount(tokens, minlength=len(p)).double()
    degrees = int(used.sum()) - 1
    statistic = float(((counts - expected)[used] ** 2 / expected[used]).sum())
    return statistic, degrees + 3.72 * math.sqrt(2 * degrees) + 6


LIMITS = [
    {},
    {"temperature": 0.5},
    {"top_k": 3},
    {"top_p": 0.8},
    {"min_p": 0.2},
    {"top_k": 3, "top_p": 0.8},  # the mass is that of the three
    {"temperature": 1.5, "top_k": 5, "top_p": 0.9, "min_p": 0.1},
]


@pytest.mark.parametrize("limits", LIMITS)
def test_frequencies_match_the_distribution_drawn_from(limits):
    logits = torch.tensor([1.0, -0.5, 2.0, 0.3, 0.2, -1.0, 1.7, 0.0])
    options = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0} | limits
    p, mass = kept_by_definition(logits, **options)
    drawn = sample(logits.expand(20_000, -1), **rows(20_000, **options))
    statistic, bound = chi_square(drawn.tokens, p)
    assert statistic < bound
    torch.testing.assert_close(drawn.logprobs, p[drawn.tokens].log().float())
    torch.testing.assert_close(
        drawn.raw_logprobs, logits.log_softmax(0)[drawn.tokens], rtol=1e-6, atol=1e-6
    )
    torch.testing.assert_close(drawn.kept_mass, torch.full((20_000,), mass))


def test_greedy_rows_take_the_likeliest_token_with_certainty():
    logits = torch.randn(6, 20)
    drawn = sample(logits, **rows(6, temperature=0.0, top_k=3, top_p=0.5))
    assert torch.equal(drawn.tokens, logits.argmax(1))
    assert drawn.logprobs.tolist() == [0.0] * 6
    assert drawn.kept_mass.tolist() == [1.0] * 6
    torch.testing.assert_close(drawn.raw_logprobs, logits.log_softmax(1).amax(1))


def test_rows_do_not_depend_on_the_batch():
    logits = torch.randn(5, 40_000)
    arguments = rows(5, temperature=0.9)
    arguments["top_k_B"] = torch.tensor([0, 7, 0, 0, 50])
    arguments["top_p_B"] = torch.tensor([1.0, 1.0, 0.7, 1.0, 0.9])
    together = sample(logits, **arguments)
    for row in range(5):
        alone = sample(logits[row : row + 1], **{k: v[row : row + 1] for k, v in arguments.items()})
        for a, b in zip(together, alone, strict=True):
            assert torch.equal(a[row : row + 1], b)


def test_a_row_without_limits_is_the_same_beside_rows_with_limits():
    logits = torch.randn(2, 30)
    arguments = rows(2)
    plain = sample(logits, **arguments)
    arguments["top_k_B"] = torch.tensor([0, 2])
    beside = sample(logits, **arguments)
    assert all(torch.equal(a[0], b[0]) for a, b in zip(plain, beside, strict=True))


def test_none_switches_a_limit_off():
    logits, arguments = torch.randn(4, 9), rows(4)
    neutral = sample(logits, **arguments)
    for name in ("top_k_B", "top_p_B", "min_p_B"):
        arguments[name] = None
    assert all(torch.equal(a, b) for a, b in zip(neutral, sample(logits, **arguments), strict=True))


def test_seed_and_step_each_change_the_draw_and_repeat_it():
    logits = torch.zeros(200, 50)
    arguments = rows(200)
    arguments["seeds_B"] = torch.full((200,), 7)
    arguments["steps_B"] = torch.arange(200)
    first = sample(logits, **arguments).tokens
    assert torch.equal(first, sample(logits, **arguments).tokens)
    assert len(first.unique()) > 40
    arguments["seeds_B"] += 1 << 40
    assert (first != sample(logits, **arguments).tokens).float().mean() > 0.9


def test_logprobs_are_never_positive_and_kept_mass_never_above_one():
    for scale in (0.1, 1.0, 100.0):
        logits = torch.randn(64, 33) * scale
        drawn = sample(logits, **rows(64, temperature=0.7, top_k=9, top_p=0.9, min_p=0.01))
        assert (drawn.logprobs <= 0).all()
        assert (drawn.raw_logprobs <= 0).all()
        assert ((drawn.kept_mass > 0) & (drawn.kept_mass <= 1)).all()


def test_tokens_at_minus_infinity_are_never_drawn():
    logits = torch.zeros(2000, 6)
    logits[:, [1, 4]] = -math.inf
    assert set(sample(logits, **rows(2000)).tokens.tolist()) == {0, 2, 3, 5}


def test_random_bits_look_random_across_seeds_steps_and_columns():
    seeds, steps = torch.arange(64).repeat_interleave(8), torch.arange(8).repeat(64)
    bits = random_bits(seeds, steps, count=512)
    ones = sum(((bits >> i) & 1).double().mean() for i in range(32)) / 32
    assert abs(float(ones) - 0.5) < 4 * 0.5 / math.sqrt(bits.numel() * 32)
    assert bits.flatten().unique().numel() > 0.9999 * bits.numel()
    uniform = bits.double() / 2**32
    for a, b in ((uniform[1:], uniform[:-1]), (uniform[:, 1:], uniform[:, :-1])):
        r = torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1]
        assert abs(float(r)) < 4 / math.sqrt(a.numel())


def test_gumbel_noise_has_the_moments_of_its_distribution():
    noise = gumbel_noise(torch.arange(500), torch.zeros(500), count=400).double()
    assert noise.isfinite().all()
    assert float(noise.mean()) == pytest.approx(0.5772, abs=4 * 1.2825 / math.sqrt(200_000))
    assert float(noise.var()) == pytest.approx(math.pi**2 / 6, rel=0.03)


def test_wrong_shapes_are_errors():
    with pytest.raises(ValueError, match=r"seeds_B=\(2,\) does not match B=3"):
        sample(torch.zeros(3, 4), **(rows(3) | {"seeds_B": torch.zeros(2)}))
    with pytest.raises(ValueError, match=r"logits_BV=torch\.float32\(4,\) must be float"):
        sample(torch.zeros(4), **rows(4))


@pytest.mark.gpu
def test_a_gpu_draws_what_a_cpu_draws():
    logits = torch.randn(256, 5000)
    for limits in ({}, {"top_k": 50, "top_p": 0.9}):
        arguments = rows(256, **limits)
        cpu = sample(logits, **arguments)
        gpu = sample(logits.cuda(), **{k: v.cuda() for k, v in arguments.items()})
        # Logarithms differ in the last bit between devices, so a near tie may fall either way.
        assert (cpu.tokens == gpu.tokens.cpu()).float().mean() > 0.99
