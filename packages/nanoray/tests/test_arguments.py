"""Refs in any place among the arguments, and arguments of any size."""

import numpy as np
import pytest

WAIT_S = 60


@pytest.fixture
def echo(ray):
    return ray.remote(lambda *args, **kwargs: (args, list(kwargs.items())))


def test_refs_and_values_arrive_in_their_places_by_position_and_by_keyword(ray, echo):
    one, two = ray.put(1), ray.put("two")
    cases = [
        ((), {}),
        ((one,), {}),
        ((one, two, one), {}),
        ((0, one, None, two), {}),
        ((), {"a": one}),
        ((two,), {"a": one, "b": two}),
        ((0, two), {"a": 3, "b": one, "c": None}),
    ]
    values = {one: 1, two: "two"}

    def value(given):
        return values[given] if isinstance(given, ray.ObjectRef) else given

    for args, kwargs in cases:
        wanted = (tuple(map(value, args)), [(key, value(item)) for key, item in kwargs.items()])
        assert ray.get(echo.remote(*args, **kwargs), timeout=WAIT_S) == wanted


def test_a_ref_beside_large_arguments_arrives_as_its_value(ray, echo):
    large = np.arange(100_000)
    (first, second, third), _ = ray.get(echo.remote(large, ray.put(7), large), timeout=WAIT_S)
    assert second == 7
    assert np.array_equal(first, large)
    assert np.array_equal(third, large)
