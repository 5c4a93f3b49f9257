"""Questions of ``get``, without an engine."""

from nanorlhf.nanoray.gets import Gets
from nanorlhf.nanoray.objects import Objects
from nanorlhf.nanoray.value import error_value, inline, pickled

ONE, TWO = inline(pickled(1)), inline(pickled(2))
ASKER = (5, 1)


class World:
    def __init__(self):
        self.objects, self.answers, self.blocked = Objects(), [], []
        self.gets = Gets(
            self.objects,
            lambda asker, values: self.answers.append(("values", asker, values)),
            lambda asker, payload: self.answers.append((payload[0], asker, payload[1])),
            on_block=self.blocked.append,
            on_unblock=self.blocked.remove,
        )
        for number in (1, 2):
            self.objects.create(number, process=5)


def test_values_come_in_the_order_asked_however_often():
    world = World()
    world.gets.ask(ASKER, [2, 1, 2])
    assert world.blocked == [5]
    world.objects.complete(1, ONE)
    assert world.answers == []
    world.objects.complete(2, TWO)
    assert world.answers == [("values", ASKER, [(2, TWO), (1, ONE), (2, TWO)])]
    assert world.blocked == []


def test_the_first_error_ends_it_once():
    world = World()
    world.gets.ask(ASKER, [1, 2])
    error = error_value(KeyError("k"))
    world.objects.complete(2, error, is_error=True)
    world.objects.complete(1, ONE)
    assert world.answers == [("error", ASKER, error)]
    assert world.blocked == []


def test_what_is_not_there_any_more_is_said_at_once():
    world = World()
    world.gets.ask(ASKER, [1, 7])
    ((kind, asker, _),) = world.answers
    assert (kind, asker, world.blocked) == ("error", ASKER, [])


def test_a_question_taken_back_leaves_no_watcher():
    world = World()
    world.gets.ask(ASKER, [1, 2])
    world.gets.cancel(ASKER)
    assert (world.objects.get(1).watchers, world.blocked) == ([], [])
    world.objects.complete(1, ONE)
    world.objects.complete(2, TWO)
    assert world.answers == []


def test_a_value_taken_back_meanwhile_is_waited_for_again():
    world = World()
    world.gets.ask(ASKER, [1, 2])
    world.objects.complete(1, ONE)
    world.objects.reopen(1)
    world.objects.complete(2, TWO)
    assert world.answers == []
    world.objects.complete(1, ONE)
    assert world.answers == [("values", ASKER, [(1, ONE), (2, TWO)])]
