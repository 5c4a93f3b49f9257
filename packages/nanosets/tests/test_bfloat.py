"""bfloat16 against the definition: the nearest of all 65536 values."""

import numpy as np
import pytest

from nanorlhf.nanosets import Dataset, SchemaError
from nanorlhf.nanosets.bfloat import narrowed, widened
from nanorlhf.nanosets.build import build
from nanorlhf.nanosets.convert import convert
from nanorlhf.nanosets.types import parse

with np.errstate(invalid="ignore"):  # a signalling NaN among them
    EVERY = widened(np.arange(2**16, dtype=np.uint16)).astype(np.float64)


def nearest_by_definition(value):
    """Bits of the nearest finite bfloat16, ties to even bits, by looking at all of them."""
    finite = np.flatnonzero(np.isfinite(EVERY))
    gaps = np.abs(EVERY[finite] - value)
    best = finite[gaps == gaps.min()]
    even = best[best % 2 == 0]
    return int(even[0] if len(even) else best[0])


def test_rounding_is_to_nearest_even_from_either_width():
    rng = np.random.default_rng(0)
    values = rng.standard_normal(300) * 10.0 ** rng.integers(-38, 38, 300)
    ties = EVERY[16000:16100] / 2 + EVERY[16001:16101] / 2
    near_ties = np.concatenate([ties * (1 + 1e-15), ties * (1 - 1e-15)])
    for value in [*values, *ties, *near_ties, 0.0, 1e-45, 3e38]:
        want = EVERY[nearest_by_definition(value)]
        assert widened(narrowed(np.array([value])))[0] == want
        single = np.float32(value)
        want = EVERY[nearest_by_definition(float(single))]
        assert widened(narrowed(np.array([single])))[0] == want


def test_every_bit_pattern_survives_and_nan_stays_nan():
    bits = np.arange(2**16, dtype=np.uint16)
    back = narrowed(widened(bits))
    is_nan = np.isnan(EVERY)
    assert np.array_equal(back[~is_nan], bits[~is_nan])
    assert np.isnan(widened(back[is_nan])).all()
    low_nan = np.array([0x7F800001, 0xFF800001], np.uint32).view(np.float32)
    assert np.isnan(widened(narrowed(low_nan))).all()
    assert np.isposinf(widened(narrowed(np.array([np.inf]))))[0]


def test_rows_are_floats_and_arrays_are_float32():
    ds = Dataset.from_dict(
        {"x": [1.5, None], "l": [[1.5, 2.0], [0.1]]},
        features={"x": "bfloat16", "l": "list<bfloat16>"},
    )
    assert ds["x"][:] == [1.5, None]
    assert ds["l"][0].dtype == np.float32
    assert ds["l"][0].tolist() == [1.5, 2.0]
    assert ds["l"][1].tolist() == [float(widened(narrowed(np.array([0.1])))[0])]
    assert ds.gather("l").values.dtype == np.float32
    assert ds.select([0])["x"].numpy().tolist() == [1.5]
    assert ds["l"].block(0, 2).child.values.dtype == np.uint16


@pytest.mark.parametrize(
    ("values", "dtype", "want"),
    [
        ([1, 256], "bfloat16", [1.0, 256.0]),
        ([float("inf")], "bfloat16", [float("inf")]),
        ([3.0e38], "bfloat16", [float(np.float32(EVERY[nearest_by_definition(3.0e38)]))]),
    ],
)
def test_numbers_that_fit_become_bfloat16_and_come_back(values, dtype, want):
    array = convert(build(values), parse(dtype))
    assert array.pylist() == want
    assert convert(array, parse("float64")).pylist() == want


@pytest.mark.parametrize(
    ("values", "source", "target", "message"),
    [
        ([257], "int64", "bfloat16", "257 does not fit bfloat16"),
        ([1e39], "float64", "bfloat16", "does not fit bfloat16"),
        ([3.4e38], "float64", "bfloat16", "does not fit bfloat16"),
        ([1e5], "bfloat16", "float16", "does not fit float16"),
        ([1.0], "bfloat16", "int8", "round the values first"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(values, source, target, message):
    array = convert(build(values), parse(source))
    with pytest.raises(SchemaError, match=message):
        convert(array, parse(target))


def test_torch_tensors_of_bfloat16_keep_their_bits():
    torch = pytest.importorskip("torch")
    values = torch.tensor([[1.5, -0.0], [2.0, 3.0]], dtype=torch.bfloat16)
    array = build(values)
    assert str(array.dtype) == "list<bfloat16>"
    assert (
        array.child.values.tolist() == values.view(torch.int16).numpy().view("u2").ravel().tolist()
    )
    assert str(build([values[0], None]).dtype) == "list<bfloat16>"
