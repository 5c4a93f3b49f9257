import os
import random
import time

import pytest

import nanorlhf.nanoray as nanoray

WAIT_S = 30


@pytest.fixture
def counter(ray):
    @ray.remote
    class Counter:
        def __init__(self, start=0):
            self.value = start

        def add(self, amount=1):
            self.value += amount
            return self.value

        def pid(self):
            return os.getpid()

        def fail(self):
            raise LookupError("lost")

        def sleep(self, seconds):
            time.sleep(seconds)

        def both(self):
            return self.value, -self.value

    return Counter


def test_an_actor_keeps_its_state(ray, counter):
    actor = counter.remote(start=10)
    assert [ray.get(actor.add.remote(i), timeout=WAIT_S) for i in (1, 2, 3)] == [11, 13, 16]
    a, b = actor.both.options(num_returns=2).remote()
    assert ray.get([a, b], timeout=WAIT_S) == [16, -16]


def test_an_error_leaves_the_actor_alive(ray, counter):
    actor = counter.remote()
    with pytest.raises(LookupError, match="lost"):
        ray.get(actor.fail.remote(), timeout=WAIT_S)
    assert ray.get(actor.add.remote(), timeout=WAIT_S) == 1


def test_calls_of_one_caller_run_in_order_even_when_arguments_are_late(ray):
    @ray.remote
    class Log:
        def __init__(self):
            self.seen = []

        def note(self, value):
            self.seen.append(value)
            return list(self.seen)

    late = ray.remote(lambda x: (time.sleep(0.2), x)[1])
    log = Log.remote()
    refs = [log.note.remote(late.remote(0)), log.note.remote(1), log.note.remote(late.remote(2))]
    refs += [log.note.remote(i) for i in range(3, 100)]
    assert ray.get(refs[-1], timeout=WAIT_S) == list(range(100))


def test_a_failed_argument_fails_its_call_and_no_other(ray, counter):
    actor = counter.remote()
    fails = ray.remote(lambda: 1 / 0)
    bad, good = actor.add.remote(fails.remote()), actor.add.remote(5)
    with pytest.raises(ZeroDivisionError):
        ray.get(bad, timeout=WAIT_S)
    assert ray.get(good, timeout=WAIT_S) == 5


def test_handles_may_be_passed_to_tasks_and_actors(ray, counter):
    @ray.remote
    class Boss:
        def __init__(self, worker):
            self.worker = worker

        def work(self, times):
            return nanoray.get([self.worker.add.remote() for _ in range(times)])

    actor = counter.remote()
    bump = ray.remote(lambda a: nanoray.get(a[0].add.remote()))
    assert ray.get(bump.remote([actor]), timeout=WAIT_S) == 1
    assert ray.get(Boss.remote(actor).work.remote(3), timeout=WAIT_S) == [2, 3, 4]


def test_actors_may_call_back_and_forth(ray):
    @ray.remote
    class Player:
        def play(self, other, rallies):
            if rallies == 0:
                return 0
            me = nanoray.get_actor("me")
            del me
            return 1 + nanoray.get(other.serve.remote(rallies))

        def serve(self, rallies):
            return rallies

    me, other = Player.options(name="me").remote(), Player.remote()
    assert ray.get(me.play.remote(other, 4), timeout=WAIT_S) == 5


def test_an_actor_with_a_cpu_lends_it_while_it_waits(start):
    ray = start(num_cpus=1)

    @ray.remote(num_cpus=1)
    class Asker:
        def ask(self):
            return nanoray.get(nanoray.remote(lambda: 7).remote())

    assert ray.get(Asker.remote().ask.remote(), timeout=WAIT_S) == 7


def test_actors_need_no_cpu_unless_they_ask(start):
    ray = start(num_cpus=1)

    @ray.remote
    class Idle:
        def ok(self):
            return True

    idle = [Idle.remote() for _ in range(3)]
    assert ray.get([actor.ok.remote() for actor in idle], timeout=WAIT_S) == [True] * 3
    holder = Idle.options(num_cpus=1).remote()
    ray.get(holder.ok.remote(), timeout=WAIT_S)
    assert ray.available_resources() == {"CPU": 0.0}
    second = Idle.options(num_cpus=1).remote()
    ref = second.ok.remote()
    assert ray.wait([ref], timeout=0.3) == ([], [ref])
    ray.kill(holder)
    assert ray.get(ref, timeout=WAIT_S)


def test_calls_do_not_wait_for_the_controller(ray, counter):
    actor = counter.remote()
    ray.get(actor.pid.remote(), timeout=WAIT_S)
    begin = time.monotonic()
    ref = actor.sleep.remote(1)
    assert time.monotonic() - begin < 0.9
    with pytest.raises(nanoray.GetTimeoutError):
        ray.get(ref, timeout=0.01)
    ray.get(ref, timeout=WAIT_S)


def test_more_calls_than_a_socket_holds_wait_their_turn(ray):
    @ray.remote
    class Sum:
        def __init__(self):
            time.sleep(0.5)
            self.order = []

        def add(self, number, ballast):
            self.order.append(number)
            return len(ballast)

        def seen(self):
            return self.order

    actor, ballast = Sum.remote(), b"x" * 10_000
    refs = [actor.add.remote(number, ballast) for number in range(1000)]
    assert ray.get(refs, timeout=WAIT_S) == [10_000] * 1000
    assert ray.get(actor.seen.remote(), timeout=WAIT_S) == list(range(1000))


def test_an_actor_ends_with_its_last_handle_after_its_last_call(ray, counter, until, is_running):
    actor = counter.remote()
    pid = ray.get(actor.pid.remote(), timeout=WAIT_S)
    ref = actor.sleep.remote(0.3)
    last = actor.add.remote(4)
    del actor
    assert ray.get([ref, last], timeout=WAIT_S) == [None, 4]
    assert until(lambda: not is_running(pid))


def test_a_fire_and_forget_actor_still_answers(ray, counter):
    assert ray.get(counter.remote(3).add.remote(), timeout=WAIT_S) == 4


def test_kill_fails_pending_and_later_calls(ray, counter, until, is_running):
    actor = counter.remote()
    pid = ray.get(actor.pid.remote(), timeout=WAIT_S)
    pending = [actor.sleep.remote(60), actor.add.remote()]
    ray.kill(actor)
    for ref in (*pending, actor.add.remote()):
        with pytest.raises(ray.ActorDiedError, match=r"Counter was killed by kill\(\)"):
            ray.get(ref, timeout=WAIT_S)
    assert until(lambda: not is_running(pid))
    ray.kill(actor)
    with pytest.raises(TypeError, match="needs an actor handle"):
        ray.kill(3)


def test_names_find_live_actors_only(ray, counter):
    actor = counter.options(name="shared").remote(5)
    assert ray.get(ray.get_actor("shared").add.remote(), timeout=WAIT_S) == 6
    with pytest.raises(ValueError, match="name='shared' belongs to a live actor"):
        counter.options(name="shared").remote()
    ray.kill(actor)
    with pytest.raises(ValueError, match="no live actor has this name"):
        ray.get_actor("shared")
    again = counter.options(name="shared").remote(1)
    assert ray.get(again.add.remote(), timeout=WAIT_S) == 2


def test_unknown_methods_are_refused_at_the_handle(ray, counter):
    actor = counter.remote()
    with pytest.raises(AttributeError, match="no public method 'ad'; it has: add, both"):
        actor.ad.remote()
    with pytest.raises(TypeError, match=r"use add.remote\(\)"):
        actor.add()


def test_an_actor_knows_itself(ray):
    @ray.remote
    class Self:
        def who(self):
            context = nanoray.get_runtime_context()
            return context.actor_id, context.name

    actor = Self.remote()
    assert ray.get(actor.who.remote(), timeout=WAIT_S) == (actor.id, "Self")


def test_forked_actors_draw_different_random_numbers(ray):
    @ray.remote
    class Dice:
        def roll(self):
            import numpy

            return random.random(), numpy.random.random()

    dice = [Dice.remote() for _ in range(3)]
    rolls = ray.get([die.roll.remote() for die in dice], timeout=WAIT_S)
    assert len({a for a, _ in rolls}) == len({b for _, b in rolls}) == 3
