import numpy as np
import pytest

from nanorlhf.nanosets import Dataset, load_from_disk


@pytest.fixture
def ds():
    return Dataset.from_dict({"i": range(10), "t": [[i] * (i % 3) for i in range(10)]})


def numbers(ds):
    return ds["i"][:]


def test_skip_take_and_repeat_are_slices_and_products(ds):
    rows = list(range(10))
    for n in (0, 1, 9, 10, 11):
        assert numbers(ds.skip(n)) == rows[n:]
        assert numbers(ds.take(n)) == rows[:n]
        assert numbers(ds.take(3).repeat(n)) == rows[:3] * n
    assert ds.take(10)["i"].rows is None, "all rows need no numbers"
    assert ds.take(9)["i"].rows is not None
    with pytest.raises(ValueError, match="n=-1 is negative; use 0 or more"):
        ds.skip(-1)
    with pytest.raises(ValueError, match="n=-1 is negative; use 0 or more"):
        ds.take(-1)
    with pytest.raises(ValueError, match="num_times=-2 is negative"):
        ds.repeat(-2)


def test_a_shuffle_may_be_drawn_by_a_generator(ds):
    found = numbers(ds.shuffle(generator=np.random.default_rng(8)))
    assert found == np.random.default_rng(8).permutation(10).tolist()
    with pytest.raises(ValueError, match="seed=1 and a generator are both given; leave one out"):
        ds.shuffle(seed=1, generator=np.random.default_rng(8))


@pytest.mark.parametrize("num_shards", [1, 3, 4, 10, 12])
def test_shards_are_a_partition_in_order(num_shards, ds):
    contiguous = [numbers(ds.shard(num_shards, k)) for k in range(num_shards)]
    assert [i for shard in contiguous for i in shard] == list(range(10))
    assert max(map(len, contiguous)) - min(map(len, contiguous)) <= 1
    strided = [numbers(ds.shard(num_shards, k, contiguous=False)) for k in range(num_shards)]
    assert strided == [list(range(10))[k::num_shards] for k in range(num_shards)]
    with pytest.raises(ValueError, match=f"index={num_shards} is not one of num_shards="):
        ds.shard(num_shards, num_shards)


def test_batch_makes_lists_of_rows(ds, plain):
    found = ds.shuffle(seed=0).batch(4)
    want = numbers(ds.shuffle(seed=0))
    assert plain(found["i"][:]) == [want[:4], want[4:8], want[8:]]
    assert plain(found["t"][0]) == [[i] * (i % 3) for i in want[:4]]
    assert {n: str(t) for n, t in found.schema.items()} == {
        "i": "list<int64>",
        "t": "list<list<int64>>",
    }
    whole = ds.shuffle(seed=0).batch(4, drop_last_batch=True)
    assert plain(whole["i"][:]) == [want[:4], want[4:8]]
    assert whole["i"].lengths().tolist() == [4, 4]
    assert len(ds.batch(11, drop_last_batch=True)) == 0
    assert len(ds.take(0).batch(4)) == 0
    with pytest.raises(ValueError, match="batch_size=0 is not positive"):
        ds.batch(0)


def test_verbs_on_rows_of_a_file_share_its_parts(small_file, rows, plain):
    ds = load_from_disk(small_file)
    found = ds.skip(1).shard(2, 0).repeat(2).take(7).shuffle(seed=0)
    assert found.columns["tokens"].parts == ds.columns["tokens"].parts
    order = np.random.default_rng(0).permutation(7)
    picked = [[1, 2, 3, 4, 1, 2, 3][k] for k in order]
    assert plain(found.to_list()) == plain([rows[i] for i in picked])
