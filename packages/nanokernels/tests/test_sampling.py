import math

import pytest
import torch

from nanorlhf.nanokernels import Sampled, sample
from nanorlhf.nanokernels.dispatch import jit, launch, tl
from nanorlhf.nanokernels.gumbel import gumbel_noise, noise, random_bits, row_keys
from nanorlhf.nanokernels.sampling_kernels import launch_sampling
from nanorlhf.nanokernels.testing import check_operator


@jit
def _noise_kernel(seeds_ptr, steps_ptr, out_ptr, COUNT: tl.constexpr):
    row = tl.program_id(0)
    first, second = row_keys(tl.load(seeds_ptr + row), tl.load(steps_ptr + row))
    column = tl.arange(0, COUNT)
    tl.store(out_ptr + row * COUNT + column, noise(first, second, column))


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


SLOW = pytest.mark.slow
SMALL = {"chunk": 64, "scan_warps": 1, "block": 64, "num_warps": 1, "few": 32}
WIDE = SMALL | {"few": 1024}


def kernel_draws(logits, arguments, config=SMALL):
    """What the kernels make of a call of :func:`sample`."""
    names = ("temperature_B", "top_k_B", "top_p_B", "min_p_B", "seeds_B", "steps_B")
    return Sampled(*launch_sampling(logits, *(arguments[name] for name in names), config))


def rows_of_every_kind(dtype, device):
    """Spread, peaked, tied, uniform, half forbidden, with an outlier, with zeros of two signs."""
    logits = torch.randn(7, 203, device=device)
    logits[1] *= 5
    logits[2] = (logits[2] * 2).round() / 2
    logits[3] = 0.25
    logits[4, ::2] = -math.inf
    logits[5, 9] = -1e9
    logits[6] = torch.where(logits[6] > 0, 0.0, -0.0)
    return logits.to(dtype)


@pytest.mark.parametrize(
    ("dtype", "config"),
    [
        (torch.bfloat16, SMALL),
        (torch.float16, WIDE),
        pytest.param(torch.float32, SMALL, marks=SLOW),
    ],
)
@pytest.mark.parametrize("limits", LIMITS)
def test_kernels_draw_what_the_reference_draws(kernel_device, dtype, config, limits):
    logits = rows_of_every_kind(dtype, kernel_device)
    arguments = {k: v.to(kernel_device) for k, v in rows(7, **limits).items()}
    expected = sample(logits, **arguments, impl="reference")
    found = kernel_draws(logits, arguments, config)
    assert torch.equal(found.tokens, expected.tokens)
    for a, b in zip(found[1:], expected[1:], strict=True):
        torch.testing.assert_close(a, b, rtol=2e-6, atol=2e-6)


def test_kernels_mix_greedy_limited_and_free_rows(kernel_device):
    logits = rows_of_every_kind(torch.bfloat16, kernel_device)
    arguments = rows(7)
    arguments["temperature_B"] = torch.tensor([0.0, 0.7, 1.3, 1.0, 1.0, 0.0, 2.0])
    arguments["top_k_B"] = torch.tensor([5, 0, 30, 150, 120, 0, 1])
    arguments["top_p_B"] = torch.tensor([0.5, 1.0, 0.95, 0.5, 0.9, 1.0, 0.5])
    arguments["min_p_B"] = torch.tensor([0.0, 0.0, 0.01, 0.0, 0.0, 0.0, 0.0])
    arguments = {k: v.to(kernel_device) for k, v in arguments.items()}
    expected = sample(logits, **arguments, impl="reference")
    found = kernel_draws(logits, arguments)
    assert torch.equal(found.tokens, expected.tokens)
    for a, b in zip(found[1:], expected[1:], strict=True):
        torch.testing.assert_close(a, b, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("top_k", [1, 7, 40, 202])
def test_of_equal_logits_the_kernels_keep_the_first(kernel_device, top_k):
    logits = torch.full((4, 203), 0.75, device=kernel_device, dtype=torch.bfloat16)
    logits[:, 100] = 1.0
    arguments = {k: v.to(kernel_device) for k, v in rows(4, top_k=top_k).items()}
    found = kernel_draws(logits, arguments, WIDE)
    kept = [100, *(i for i in range(203) if i != 100)][:top_k]
    assert set(found.tokens.tolist()) <= set(kept)
    assert torch.equal(found.tokens, sample(logits, **arguments, impl="reference").tokens)


def test_a_row_draws_the_same_from_the_kernels_alone_and_in_a_batch(kernel_device):
    logits = rows_of_every_kind(torch.bfloat16, kernel_device)
    arguments = rows(7, top_k=50, top_p=0.8, temperature=0.9)
    arguments = {k: v.to(kernel_device) for k, v in arguments.items()}
    together = kernel_draws(logits, arguments)
    for row in range(7):
        one = {k: v[row : row + 1] for k, v in arguments.items()}
        alone = kernel_draws(logits[row : row + 1], one)
        assert all(torch.equal(a[row : row + 1], b) for a, b in zip(together, alone, strict=True))


def test_the_kernels_take_strided_rows_and_leave_limits_out(kernel_device):
    logits = torch.randn(3, 300, device=kernel_device)[:, 50:250]
    arguments = {k: v.to(kernel_device) for k, v in rows(3).items()}
    found = kernel_draws(logits, arguments | {"top_k_B": None, "top_p_B": None, "min_p_B": None})
    expected = sample(logits, **arguments, impl="reference")
    assert torch.equal(found.tokens, expected.tokens)


def test_the_public_function_runs_the_kernels_with_their_table(kernel_device):
    logits = torch.randn(2, 9000, device=kernel_device).to(torch.bfloat16)
    arguments = {k: v.to(kernel_device) for k, v in rows(2, top_k=50, top_p=0.9).items()}
    found = sample(logits, **arguments, impl="triton")
    assert torch.equal(found.tokens, sample(logits, **arguments, impl="reference").tokens)


def test_the_noise_of_the_kernels_is_the_noise(kernel_device):
    seeds = torch.tensor([3, -(1 << 40), 1 << 50], device=kernel_device)
    steps = torch.tensor([0, 1, 1 << 33], device=kernel_device)
    found = torch.empty(3, 256, device=kernel_device)
    launch(_noise_kernel, (3,), seeds, steps, found, COUNT=256, num_warps=1)
    torch.testing.assert_close(found, gumbel_noise(seeds, steps, count=256), rtol=1e-6, atol=1e-6)


@pytest.mark.slow
def test_the_operator_keeps_its_word(kernel_device):
    arguments = {k: v.to(kernel_device) for k, v in rows(2, top_k=3, top_p=0.9).items()}
    names = ("temperature_B", "top_k_B", "top_p_B", "min_p_B", "seeds_B", "steps_B")
    given = (arguments[name] if name != "min_p_B" else None for name in names)
    logits = torch.randn(2, 40, device=kernel_device)
    check_operator(torch.ops.nanokernels.sample.default, logits, *given)


def test_sampling_compiles_into_one_graph(kernel_device):
    arguments = {k: v.to(kernel_device) for k, v in rows(2, top_k=3).items()}
    logits = torch.randn(2, 40, device=kernel_device)

    def run(x):
        return sample(x * 2, **arguments, impl="triton").tokens

    assert torch.equal(torch.compile(run, fullgraph=True, backend="aot_eager")(logits), run(logits))


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


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("vocab", [1001, 151_936])
def test_kernels_draw_what_the_reference_draws_at_real_sizes(dtype, vocab):
    logits = torch.randn(56, vocab, device="cuda")
    logits[1::7] *= 4
    logits[2::7] = (logits[2::7] * 4).round() / 4
    logits[3::7] = 0.25
    logits[4::7, ::3] = -math.inf
    logits[5::7, 9] = -1e9
    logits = logits.to(dtype)
    for limits in (
        LIMITS[0],
        {"top_k": 50, "top_p": 0.9},
        {"top_k": 5000},
        {"top_p": 0.9},
        LIMITS[4],
    ):
        arguments = {k: v.cuda() for k, v in rows(56, **limits).items()}
        found = sample(logits, **arguments)
        expected = sample(logits, **arguments, impl="reference")
        torch.testing.assert_close(found.kept_mass, expected.kept_mass, rtol=1e-5, atol=0)
        same = found.tokens == expected.tokens
        # A near tie of two scores may fall either way.
        assert same.float().mean() > 0.97
        for a, b in zip(found[1:3], expected[1:3], strict=True):
            torch.testing.assert_close(a[same], b[same], rtol=1e-5, atol=1e-5)
        one = {k: v[9:10] for k, v in arguments.items()}
        alone = sample(logits[9:10], **one)
        assert all(torch.equal(a[9:10], b) for a, b in zip(found, alone, strict=True))


@pytest.mark.gpu
def test_rows_past_2_to_the_31_logits_are_reached():
    logits = torch.zeros(15_000, 151_936, device="cuda", dtype=torch.bfloat16)
    logits[-20:].normal_()
    arguments = {k: v.cuda() for k, v in rows(15_000, top_k=50, top_p=0.9).items()}
    found = sample(logits, **arguments)
    alone = sample(logits[-20:].clone(), **{k: v[-20:] for k, v in arguments.items()})
    assert all(torch.equal(a[-20:], b) for a, b in zip(found, alone, strict=True))


@pytest.mark.gpu
def test_sampling_replays_in_a_cuda_graph():
    logits = torch.randn(3, 5000, device="cuda")
    arguments = {k: v.cuda() for k, v in rows(3, top_k=50, top_p=0.9).items()}
    expected = sample(logits, **arguments)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = sample(logits, **arguments)
    for x in found:
        x.zero_()
    graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
