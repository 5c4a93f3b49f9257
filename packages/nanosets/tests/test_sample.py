import numpy as np
import pytest

from nanorlhf.nanosets import Dataset, Sampler


def epoch_of(samplers):
    """One epoch as the global batches that the ranks together see, in rank order."""
    return [np.concatenate(shares).tolist() for shares in zip(*samplers, strict=True)]


def ranks(world, **options):
    return [Sampler(rank=rank, world=world, **options) for rank in range(world)]


@pytest.mark.parametrize("world", [1, 2, 3, 6])
@pytest.mark.parametrize("num_rows", [1, 6, 17, 24])
def test_the_global_order_does_not_depend_on_the_world(world, num_rows):
    alone = [rows.tolist() for rows in Sampler(num_rows, batch_size=6, seed=3)]
    assert epoch_of(ranks(world, num_rows=num_rows, batch_size=6, seed=3)) == alone
    flat = [row for batch in alone for row in batch]
    assert flat == np.random.default_rng([3, 0]).permutation(num_rows).tolist()
    assert [len(batch) for batch in alone[:-1]] == [6] * (len(alone) - 1)


def test_every_epoch_has_an_order_of_its_own_that_the_seed_fixes():
    sampler = Sampler(10, batch_size=5, seed=1)
    epochs = [np.concatenate(list(sampler)).tolist() for _ in range(3)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert sampler.epoch == 3
    sampler.set_epoch(1)
    assert np.concatenate(list(sampler)).tolist() == epochs[1]
    assert np.concatenate(list(Sampler(10, batch_size=5, seed=2))).tolist() != epochs[0]
    plain = Sampler(5, batch_size=5, shuffle=False)
    assert next(iter(plain)).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("stop", range(9))
def test_a_run_goes_on_in_another_world_with_the_next_row(stop):
    options = {"num_rows": 26, "batch_size": 6, "seed": 4}
    whole = Sampler(**options)
    want = [row for _ in range(2) for batch in whole for row in batch.tolist()]
    seen, old = [], ranks(3, **options)
    loops = [iter(sampler) for sampler in old]
    for step in range(stop):
        if step == len(old[0]):
            assert all(next(loop, None) is None for loop in loops)
            loops = [iter(sampler) for sampler in old]
        seen += np.concatenate([next(loop) for loop in loops]).tolist()
    assert old[0].state_dict() == old[2].state_dict()
    new = ranks(2, num_rows=26, batch_size=4, seed=999)
    for sampler in new:
        sampler.load_state_dict(old[0].state_dict())
    while len(seen) < len(want):
        seen += [row for batch in epoch_of(new) for row in batch]
    assert seen == want


def test_a_last_batch_may_be_dropped():
    sampler = Sampler(10, batch_size=4, drop_last=True)
    assert [len(rows) for rows in sampler] == [4, 4]
    assert sampler.epoch == 1
    assert len(sampler) == 2
    assert len(Sampler(10, batch_size=4)) == 3
    assert len(Sampler(8, batch_size=4)) == 2


def test_a_dataloader_takes_its_batches():
    data = pytest.importorskip("torch.utils.data", reason="torch is not installed")
    ds = Dataset.from_dict({"i": range(10)})
    sampler = Sampler(len(ds), batch_size=4, seed=0)
    loader = data.DataLoader(ds, batch_sampler=sampler, collate_fn=list)
    found = [row["i"] for rows in loader for row in rows]
    assert found == sampler.order(0).tolist()
    assert len(loader) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_rows": 0}, "num_rows=0 and batch_size=4 are positive"),
        ({"batch_size": 0}, "num_rows=9 and batch_size=0 are positive"),
        ({"rank": 2, "world": 2}, "rank=2 is not one of world=2 ranks; count from 0"),
        ({"world": 3}, "batch_size=4 leaves 1 rows over on world=3 ranks; use 6"),
        ({"num_rows": 3, "drop_last": True}, "num_rows=3 fill no batch of batch_size=4"),
    ],
)
def test_what_does_not_fit_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Sampler(**{"num_rows": 9, "batch_size": 4, **options})


def test_a_state_of_another_dataset_is_refused():
    state = Sampler(9, batch_size=3).state_dict()
    with pytest.raises(ValueError, match="state is of num_rows=9, this dataset has 10"):
        Sampler(10, batch_size=3).load_state_dict(state)


def test_an_order_cannot_be_changed_by_its_user():
    with pytest.raises(ValueError, match="read-only"):
        Sampler(9, batch_size=3).order(0)[0] = 1
