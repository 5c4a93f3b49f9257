import random

import pytest

from nanorlhf.nanoray.objects import Objects
from nanorlhf.nanoray.value import inline, pickled

VALUE = inline(pickled(0))


def freed(objects):
    return [dead.id for dead in objects.take_freed()]


def test_an_object_lives_as_long_as_any_process_holds_it():
    objects = Objects()
    objects.create(1, process=0)
    objects.complete(1, VALUE)
    objects.hold(5, 1, 2)
    objects.hold(0, 1, -1)
    assert freed(objects) == []
    objects.hold(5, 1, -1)
    assert freed(objects) == []
    objects.hold(5, 1, -1)
    assert freed(objects) == [1]


def test_a_value_taken_back_is_waited_for_again():
    objects = Objects()
    objects.create(1, process=0)
    objects.complete(1, VALUE)
    objects.reopen(1)
    assert objects.get(1).value is None
    seen = []
    objects.get(1).watchers.append(lambda object_id, entry: seen.append(object_id))
    objects.complete(1, VALUE)
    assert seen == [1]


def test_a_dead_process_holds_nothing():
    objects = Objects()
    objects.create(1, process=5)
    objects.hold(5, 1, 3)
    objects.drop_process(5)
    assert freed(objects) == [1]


def test_a_result_nobody_waits_for_is_freed_on_arrival():
    objects = Objects()
    objects.create(1, process=0)
    objects.hold(0, 1, -1)
    assert [dead.value for dead in objects.take_freed()] == [None]
    objects.complete(1, VALUE)
    assert [dead.value for dead in objects.take_freed()] == [VALUE]


def test_a_long_chain_of_refs_dies_with_its_head():
    objects = Objects()
    for number in range(5000):
        objects.create(number, process=0)
    for number in range(4999):
        objects.complete(number, VALUE, contains=[number + 1])
    for number in range(1, 5000):
        objects.hold(0, number, -1)
    assert freed(objects) == []
    objects.hold(0, 0, -1)
    assert sorted(freed(objects)) == list(range(5000))


def test_watchers_hear_of_the_value_once():
    objects = Objects()
    heard = []
    objects.create(1, process=0).watchers.append(lambda number, entry: heard.append(entry.value))
    objects.complete(1, VALUE)
    assert heard == [VALUE]


@pytest.mark.parametrize("seed", range(5))
def test_random_holds_match_a_plain_count(seed):
    draw = random.Random(seed)
    objects, counts = Objects(), {}
    objects.create(1, process=0)
    counts[0] = 1
    while sum(counts.values()):
        process = draw.randrange(4)
        delta = draw.choice([1, -1, -1])
        if counts.get(process, 0) + delta < 0:
            continue
        counts[process] = counts.get(process, 0) + delta
        objects.hold(process, 1, delta)
        assert (objects.get(1) is None) == (sum(counts.values()) == 0)
    assert freed(objects) == [1]
