import pytest

from nanorlhf.nanoray.resources import (
    UNIT,
    Pool,
    bundle_demand,
    demand,
    inherited_gpus,
    readable,
    shortage,
)


def test_ten_tenths_make_one():
    pool = Pool({"CPU": UNIT})
    shares = [pool.take(demand(num_cpus=0.1)) for _ in range(11)]
    assert sum(share is not None for share in shares) == 10


def test_a_share_given_back_can_be_taken_again():
    pool = Pool({"CPU": 2 * UNIT, "disk": UNIT}, ["4", "7"])
    share = pool.take(demand(num_cpus=2, num_gpus=2, resources={"disk": 1}))
    assert share.gpu_ids == ("4", "7")
    assert pool.available() == {"CPU": 0, "disk": 0, "GPU": 0}
    pool.give(share)
    assert pool.available() == pool.totals


def test_fractions_share_the_fullest_gpu_and_keep_others_whole():
    pool = Pool({}, ["0", "1"])
    ids = [pool.take(demand(num_gpus=0.5)).gpu_ids for _ in range(2)]
    assert ids == [("0",), ("0",)]
    assert pool.take(demand(num_gpus=1)).gpu_ids == ("1",)
    assert pool.take(demand(num_gpus=0.5)) is None


def test_a_whole_gpu_is_not_made_of_two_halves():
    pool = Pool({}, ["0", "1"])
    first, second = pool.take(demand(num_gpus=0.6)), pool.take(demand(num_gpus=0.6))
    assert first.gpu_ids != second.gpu_ids
    assert pool.take(demand(num_gpus=0.8)) is None


def test_a_lent_cpu_may_be_overdrawn_and_settles():
    pool = Pool({"CPU": UNIT})
    waiting = pool.take(demand(num_cpus=1))
    pool.lend(waiting)
    other = pool.take(demand(num_cpus=1))
    pool.reclaim(waiting)
    assert pool.take(demand(num_cpus=1)) is None
    pool.give(waiting)
    assert pool.take(demand(num_cpus=1)) is None
    pool.give(other)
    assert pool.take(demand(num_cpus=1)) is not None


@pytest.mark.parametrize(
    ("amounts", "match"),
    [
        ({"num_cpus": -1}, "num_cpus|CPU=-1"),
        ({"num_gpus": 1.5}, "num_gpus=1.5 is neither whole nor below 1"),
        ({"resources": {"x": 0.00001}}, "x=1e-05"),
        ({"resources": {"GPU": 1}}, "not custom"),
    ],
)
def test_amounts_that_mean_nothing_are_refused(amounts, match):
    with pytest.raises(ValueError, match=match):
        demand(**amounts)


def test_a_bundle_reads_as_it_is_written():
    assert readable(bundle_demand({"GPU": 1, "CPU": 2, "disk": 0.5})) == {
        "CPU": 2,
        "GPU": 1,
        "disk": 0.5,
    }


def test_shortage_names_what_is_missing():
    assert shortage(demand(num_cpus=4), {"CPU": 2 * UNIT}) == "CPU=4 is asked for and 2 exist"
    assert shortage(demand(num_cpus=2), {"CPU": 2 * UNIT}) is None


def test_the_inherited_gpu_list_is_the_whole_truth():
    assert inherited_gpus({"CUDA_VISIBLE_DEVICES": " 3, GPU-abc"}) == ["3", "GPU-abc"]
    assert inherited_gpus({"CUDA_VISIBLE_DEVICES": "-1"}) == []
