"""The walk over the dataset."""

import pytest

from nanorlhf.nanoverl.order import Order


def test_every_epoch_visits_every_row_once_in_its_own_order():
    order = Order(10, seed=3)
    first, second = order.take(0, 10), order.take(10, 10)
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second


def test_a_walk_resumed_anywhere_goes_on_as_if_never_stopped():
    whole = Order(7, seed=1).take(0, 50)
    assert Order(7, seed=1).take(12, 30) == whole[12:42]


def test_the_seed_decides_the_order():
    assert Order(50, seed=0).take(0, 50) != Order(50, seed=1).take(0, 50)


def test_an_empty_dataset_is_refused():
    with pytest.raises(ValueError, match=r"rows=0.*at least one row"):
        Order(0, seed=0)
