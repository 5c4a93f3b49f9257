"""Answers wait for their values to come to the asker's machine, and for nobody who is gone."""

import pickle

import pytest

from nanorlhf.nanoray.answers import Answers
from nanorlhf.nanoray.arenas import Arenas
from nanorlhf.nanoray.hub import describe_machine
from nanorlhf.nanoray.machines import Machines
from nanorlhf.nanoray.objects import Objects
from nanorlhf.nanoray.resources import UNIT, Pool
from nanorlhf.nanoray.transfers import Transfers
from nanorlhf.nanoray.value import Block, Value, error_value

MAKER, ASKER, DAEMON = 1, 2, 3
HERE, THERE = Block(100, 0, 4096), Block(200, 0, 4096)


class World:
    """Object 1 was made on machine 0, and process ``ASKER`` of machine 1 asks for it."""

    def __init__(self):
        pool = Pool({"CPU": UNIT})
        self.sent, self.fetches = [], []
        self.objects = Objects()
        self.arenas = Arenas(lambda *message: self.sent.append(message), lambda *closed: None)
        self.machines = Machines(describe_machine(pool), pool.totals)
        self.machines.add(DAEMON, describe_machine(pool), pool.totals)
        self.machines.place(ASKER, 1)
        self.transfers = Transfers(
            self.objects,
            machine_of=self.arenas.machine_of,
            machines=self.machines,
            fetch=lambda *fields: self.fetches.append(fields),
            keep=lambda block: self.arenas.retain(self.value(block)),
            free=lambda block: self.arenas.release(self.value(block)),
        )
        self.answers = Answers(self.objects, self.arenas, self.transfers, self.machines, self)
        self.arenas.add(HERE.arena, owner=MAKER, size=1 << 20, machine=0)
        self.arenas.add(THERE.arena, owner=DAEMON, size=1 << 20, machine=1)
        self.arenas.retain(self.value(HERE))
        self.objects.create(1, ASKER)
        self.objects.complete(1, self.value(HERE))

    @staticmethod
    def value(block):
        return Value(None, ((0, 4096),), (), (block.arena, block.offset, block.size))

    def send(self, process, message):
        self.sent.append((process, message))

    def ask(self, req):
        self.answers.give_values((ASKER, req), [(1, self.objects.get(1).value)])


@pytest.fixture
def world():
    return World()


def test_a_value_is_told_where_it_lies_on_the_askers_machine(world):
    world.ask(7)
    assert world.sent == []
    world.transfers.fetched(1, THERE)
    copy = tuple(world.value(THERE))
    assert world.sent == [
        (ASKER, ("arena", THERE.arena, 1 << 20)),
        (ASKER, ("reply", 7, ("values", [(1, copy)]))),
    ]
    world.ask(8)
    assert world.sent[-1] == (ASKER, ("reply", 8, ("values", [(1, copy)])))
    assert len(world.fetches) == 1


def test_a_value_that_cannot_come_is_an_error(world):
    world.ask(7)
    world.transfers.failed(1, "no route")
    process, (_, req, (kind, raw)) = world.sent[-1]
    assert (process, req, kind) == (ASKER, 7, "error")
    assert "no route" in str(pickle.loads(Value(*raw).stream))


def test_a_value_lost_on_its_way_is_an_error(world):
    world.ask(7)
    world.objects.get(1).value, world.objects.get(1).is_error = error_value(OSError("x")), True
    world.transfers.fetched(1, THERE)
    assert world.sent[-1][1][2][0] == "error"


@pytest.mark.parametrize("end", ["cancel", "drop_process"])
def test_who_no_longer_waits_gets_nothing_and_holds_nothing(world, end):
    world.ask(7)
    if end == "cancel":
        world.answers.cancel((ASKER, 7))
    else:
        world.answers.drop_process(ASKER)
    world.transfers.fetched(1, THERE)
    assert world.sent == []
    world.objects.hold(ASKER, 1, -1)
    assert [freed.id for freed in world.objects.take_freed()] == [1]
