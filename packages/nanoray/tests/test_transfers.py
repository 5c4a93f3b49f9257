"""Copies between machines: made once, counted, freed with the object, used when one is lost."""

import pickle

import pytest

from nanorlhf.nanoray.errors import ObjectLostError
from nanorlhf.nanoray.hub import describe_machine
from nanorlhf.nanoray.machines import Machines
from nanorlhf.nanoray.objects import Objects
from nanorlhf.nanoray.resources import UNIT, Pool
from nanorlhf.nanoray.transfers import Transfers
from nanorlhf.nanoray.value import Block, Value

ASKER = 5


class World:
    """Transfers over machines 0..9, where arena 10 * m + k is of machine m."""

    def __init__(self):
        self.objects = Objects()
        self.fetches, self.kept, self.freed, self.told = [], [], [], []
        pool = Pool({"CPU": UNIT})
        machines = Machines(describe_machine(pool), pool.totals)
        for daemon in range(1, 10):
            machines.add(daemon, describe_machine(pool), pool.totals)
        self.transfers = Transfers(
            self.objects,
            machine_of=lambda arena: arena // 10,
            machines=machines,
            fetch=lambda *fields: self.fetches.append(fields),
            keep=self.kept.append,
            free=self.freed.append,
        )

    def put(self, object_id, machine):
        block = Block(10 * machine, 4096 * object_id, 100)
        self.objects.create(object_id, ASKER)
        self.objects.complete(object_id, Value(None, ((0, 100),), (), tuple(block)))
        return block

    def bring(self, machine, *object_ids):
        self.transfers.localize(machine, object_ids, self.told.append)

    def value(self, object_id):
        return self.objects.get(object_id).value

    def on(self, machine, object_id):
        value = self.transfers.on(machine, object_id, self.value(object_id))
        return None if value is None else value.block

    def let_go(self, object_id):
        """Drop the last ref, and settle as the node does."""
        self.objects.hold(ASKER, object_id, -1)
        gone = [freed.id for freed in self.objects.take_freed()]
        for freed in gone:
            self.transfers.release(freed)
        return gone


@pytest.fixture
def world():
    return World()


def test_what_is_there_or_inline_is_not_fetched(world):
    world.put(1, machine=2)
    world.objects.create(2, ASKER)
    world.objects.complete(2, Value(b"x", (), (), None))
    world.bring(2, 1, 2)
    world.bring(3, 2)
    world.bring(3)
    assert world.told == [None, None, None]
    assert not world.fetches


def test_a_value_of_another_machine_is_fetched_once_for_all_who_want_it(world):
    block = world.put(1, machine=2)
    world.bring(3, 1)
    world.bring(3, 1, 1)
    assert world.fetches == [(1, 2, 3, block)]
    assert world.told == []
    assert world.on(3, 1) is None
    copy = Block(30, 0, 100)
    world.transfers.fetched(1, copy)
    assert world.told == [None, None]
    assert world.kept == [copy]
    assert world.on(3, 1) == copy
    assert world.on(2, 1) == block
    world.bring(3, 1)
    assert len(world.fetches) == 1


def test_several_values_are_told_of_when_the_last_has_come(world):
    world.put(1, machine=2)
    world.put(2, machine=4)
    world.bring(3, 1, 2)
    world.transfers.fetched(2, Block(30, 0, 100))
    assert world.told == []
    world.transfers.fetched(1, Block(30, 4096, 100))
    assert world.told == [None]


def test_copies_are_freed_with_their_object(world):
    world.put(1, machine=2)
    world.bring(3, 1)
    world.bring(4, 1)
    copies = [Block(30, 0, 100), Block(40, 0, 100)]
    for number, copy in enumerate(copies, 1):
        world.transfers.fetched(number, copy)
    assert world.let_go(1) == [1]
    assert world.freed == copies


def test_an_object_lives_until_its_fetch_has_ended(world):
    world.put(1, machine=2)
    world.bring(3, 1)
    assert world.let_go(1) == []
    world.transfers.fetched(1, Block(30, 0, 100))
    assert [freed.id for freed in world.objects.take_freed()] == [1]


def test_a_fetch_that_fails_is_told_once_and_tried_anew_next_time(world):
    world.put(1, machine=2)
    world.put(2, machine=2)
    world.put(4, machine=2)
    world.bring(3, 1, 2, 4)
    world.transfers.failed(1, "no route to host")
    world.transfers.fetched(2, Block(30, 0, 100))
    world.transfers.failed(3, "no route to host")
    assert len(world.told) == 1
    error = pickle.loads(world.told[0].stream)
    assert isinstance(error, ObjectLostError)
    assert "from machine 2 to machine 3: no route to host" in str(error)
    world.bring(3, 1)
    assert len(world.fetches) == 4


def test_what_only_a_lost_machine_had_becomes_an_error_that_names_it(world):
    world.put(1, machine=2)
    world.put(2, machine=3)
    world.transfers.machine_lost(2, "machine 2 (host b), which was lost")
    assert world.objects.get(1).is_error
    assert "only on machine 2 (host b)" in str(pickle.loads(world.value(1).stream))
    assert not world.objects.get(2).is_error


def test_a_copy_takes_the_place_of_what_was_lost_and_is_freed_as_the_object(world):
    world.put(1, machine=2)
    world.bring(3, 1)
    world.bring(4, 1)
    copies = [Block(30, 0, 100), Block(40, 0, 100)]
    for number, copy in enumerate(copies, 1):
        world.transfers.fetched(number, copy)
    world.transfers.machine_lost(2, "machine 2")
    assert world.value(1).block in copies
    assert world.on(3, 1) == copies[0]
    assert world.on(4, 1) == copies[1]
    main = world.value(1).block
    world.let_go(1)  # the node frees the main block itself
    assert world.freed == [copy for copy in copies if copy != main]


def test_a_fetch_from_a_lost_machine_goes_on_from_a_copy(world):
    world.put(1, machine=2)
    world.bring(3, 1)
    copy = Block(30, 0, 100)
    world.transfers.fetched(1, copy)
    world.bring(4, 1)
    world.transfers.machine_lost(2, "machine 2")
    assert world.fetches[-1] == (3, 3, 4, copy)
    late = Block(40, 0, 100)
    world.transfers.fetched(2, late)  # the first try had succeeded after all
    assert world.freed == [late]
    world.transfers.fetched(3, Block(40, 4096, 100))
    assert world.told == [None, None]


def test_a_fetch_from_a_lost_machine_without_a_copy_fails(world):
    world.put(1, machine=2)
    world.bring(3, 1)
    world.transfers.machine_lost(2, "machine 2")
    assert "only on machine 2" in str(pickle.loads(world.told[0].stream))
    assert world.let_go(1) == [1]


def test_a_fetch_to_a_lost_machine_ends_once(world):
    world.put(1, machine=2)
    world.bring(3, 1)
    world.transfers.machine_lost(3, "machine 3")
    assert "on its way to machine 3" in str(pickle.loads(world.told[0].stream))
    world.transfers.failed(1, "late")
    assert len(world.told) == 1
    assert world.let_go(1) == [1]
