import time

import pytest

import nanorlhf.nanoray as nanoray
from nanorlhf.nanoray import ActorPool

WAIT_S = 30


@nanoray.remote
class Doubler:
    def double(self, number):
        if number < 0:
            raise ValueError("negative")
        return 2 * number

    def hold(self, gate):
        return nanoray.get(gate)


def double(actor, number):
    return actor.double.remote(number)


@pytest.fixture
def pool(ray):
    return ActorPool([Doubler.remote() for _ in range(2)])


def test_map_keeps_the_order_and_map_unordered_the_results(pool):
    assert list(pool.map(double, range(6))) == [0, 2, 4, 6, 8, 10]
    assert sorted(pool.map_unordered(double, range(6))) == [0, 2, 4, 6, 8, 10]


def test_results_come_in_the_order_submitted(pool):
    for number in (3, 1, 2):
        pool.submit(double, number)
    assert not pool.has_free()
    assert [pool.get_next(WAIT_S) for _ in range(3)] == [6, 2, 4]
    assert not pool.has_next()
    with pytest.raises(StopIteration):
        pool.get_next()


def test_the_first_result_comes_first_when_the_order_does_not_matter(pool, ray):
    gate = ray.remote(time.sleep).remote(60)
    pool.submit(lambda actor, refs: actor.hold.remote(refs), [gate])
    pool.submit(double, 4)
    with pytest.raises(ray.GetTimeoutError, match=r"within timeout=0\.1 s"):
        pool.get_next(timeout=0.1)
    assert pool.get_next_unordered(WAIT_S) == 8
    ray.cancel(gate, force=True)


def test_a_call_that_raises_frees_its_actor(pool):
    pool.submit(double, -1)
    with pytest.raises(ValueError, match="negative"):
        pool.get_next(WAIT_S)
    assert pool.has_free()
    assert list(pool.map(double, [1, 2, 3])) == [2, 4, 6]


def test_actors_come_and_go(pool):
    first = pool.pop_idle()
    second = pool.pop_idle()
    assert pool.pop_idle() is None
    pool.submit(double, 5)
    assert not pool.has_next()
    pool.push(first)
    assert pool.get_next(WAIT_S) == 10
    with pytest.raises(ValueError, match="in the pool already"):
        pool.push(first)
    pool.push(second)
    assert pool.has_free()
