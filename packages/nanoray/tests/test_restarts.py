import os
import signal
import time

import pytest

import nanorlhf.nanoray as nanoray

WAIT_S = 30


@pytest.fixture
def phoenix(ray):
    @ray.remote
    class Phoenix:
        def __init__(self, value, log=None):
            self.value = value
            self.log = log
            if log is not None:
                note(log, "init")

        def pid(self):
            return os.getpid()

        def get(self):
            return len(self.value)

        def grow(self):
            self.value = [*self.value, 0]
            return len(self.value)

        def note(self, text):
            note(self.log, text)
            return text

        def die(self):
            os.kill(os.getpid(), signal.SIGKILL)

        def die_once(self):
            note(self.log, "die")
            if lines(self.log).count("die") == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            return "survived"

        def wait(self, path):
            while not os.path.exists(path):
                time.sleep(0.01)

    return Phoenix


def note(path, text):
    with open(path, "a") as file:
        file.write(f"{text}\n")


def lines(path):
    with open(path) as file:
        return file.read().split()


def test_an_actor_restarts_as_often_as_it_may_with_its_first_arguments(ray, phoenix):
    actor = phoenix.options(max_restarts=2).remote(ray.put([1, 2, 3]))
    pids = set()
    for _ in range(3):
        assert ray.get(actor.grow.remote(), timeout=WAIT_S) == 4
        pids.add(ray.get(actor.pid.remote(), timeout=WAIT_S))
        with pytest.raises(ray.ActorDiedError, match="SIGKILL"):
            ray.get(actor.die.remote(), timeout=WAIT_S)
    assert len(pids) == 3
    with pytest.raises(ray.ActorDiedError, match="actor Phoenix died: its process was killed"):
        ray.get(actor.get.remote(), timeout=WAIT_S)


def test_a_call_lost_in_a_restart_says_that_the_actor_restarts(ray, phoenix):
    actor = phoenix.options(max_restarts=-1).remote([])
    with pytest.raises(ray.ActorDiedError, match="the actor restarts, but this call was under way"):
        ray.get(actor.die.remote(), timeout=WAIT_S)
    assert ray.get(actor.get.remote(), timeout=WAIT_S) == 0


def test_calls_under_way_are_run_again_in_order(ray, phoenix, tmp_path):
    log = str(tmp_path / "log")
    actor = phoenix.options(max_restarts=1, max_task_retries=1).remote([], log)
    refs = [actor.note.remote("a"), actor.die_once.remote()]
    refs += [actor.note.remote(str(i)) for i in range(20)]
    assert ray.get(refs, timeout=WAIT_S) == ["a", "survived", *map(str, range(20))]
    assert lines(log) == ["init", "a", "die", "init", "die", *map(str, range(20))]


def test_a_call_that_kills_every_process_fails_in_the_end(ray, phoenix):
    actor = phoenix.options(max_restarts=-1, max_task_retries=2).remote([])
    with pytest.raises(ray.ActorDiedError, match="has no retry left"):
        ray.get(actor.die.remote(), timeout=WAIT_S)
    assert ray.get(actor.get.remote(), timeout=WAIT_S) == 0


def test_a_method_may_say_how_often_it_is_run_again(ray, phoenix, tmp_path):
    log = str(tmp_path / "log")
    actor = phoenix.options(max_restarts=1).remote([], log)
    once = actor.die_once.options(max_task_retries=1)
    assert ray.get(once.remote(), timeout=WAIT_S) == "survived"


def test_the_constructors_arguments_live_as_long_as_it_may_run_again(ray, phoenix, until):
    value = ray.put([0] * 100_000)
    actor = phoenix.options(max_restarts=1).remote(value)
    objects = nanoray.session.current()._link.node.objects
    number = value.id
    assert ray.get(actor.get.remote(), timeout=WAIT_S) == 100_000
    del value
    with pytest.raises(ray.ActorDiedError):
        ray.get(actor.die.remote(), timeout=WAIT_S)
    assert ray.get(actor.get.remote(), timeout=WAIT_S) == 100_000
    assert until(lambda: objects.get(number) is None), "no restart is left"


def test_a_constructor_that_dies_is_tried_again_and_one_that_raises_is_not(ray, tmp_path):
    @ray.remote(max_restarts=2)
    class Late:
        def __init__(self, path, error):
            note(path, "init")
            if len(lines(path)) < 3:
                raise error if error else os._exit(1)

        def ok(self):
            return True

    died, raised = str(tmp_path / "died"), str(tmp_path / "raised")
    assert ray.get(Late.remote(died, None).ok.remote(), timeout=WAIT_S)
    actor = Late.remote(raised, ValueError("no"))
    with pytest.raises(ray.ActorDiedError, match="its constructor raised"):
        ray.get(actor.ok.remote(), timeout=WAIT_S)
    assert lines(raised) == ["init"]


def test_kill_may_let_an_actor_restart(ray, phoenix):
    actor = phoenix.options(max_restarts=1).remote([1])
    before = ray.get(actor.pid.remote(), timeout=WAIT_S)
    lost = actor.wait.remote("/never")
    ray.kill(actor, no_restart=False)
    after = actor.pid.remote()
    with pytest.raises(ray.ActorDiedError, match=r"was killed by kill\(\); the actor restarts"):
        ray.get(lost, timeout=WAIT_S)
    assert ray.get(after, timeout=WAIT_S) != before
    ray.kill(actor, no_restart=False)
    with pytest.raises(ray.ActorDiedError, match=r"actor Phoenix was killed by kill\(\)$"):
        ray.get(actor.pid.remote(), timeout=WAIT_S)


def test_kill_ends_an_actor_that_may_restart(ray, phoenix):
    actor = phoenix.options(max_restarts=-1).remote([1])
    ray.get(actor.pid.remote(), timeout=WAIT_S)
    ray.kill(actor)
    with pytest.raises(ray.ActorDiedError, match=r"was killed by kill\(\)$"):
        ray.get(actor.pid.remote(), timeout=WAIT_S)


def test_resources_are_whole_after_restarts(start, until):
    ray = start(num_cpus=2)

    @ray.remote(num_cpus=1, max_restarts=-1)
    class Holder:
        def ok(self):
            return True

    actor = Holder.remote()
    for _ in range(5):
        assert ray.get(actor.ok.remote(), timeout=WAIT_S)
        ray.kill(actor, no_restart=False)
    assert ray.get(actor.ok.remote(), timeout=WAIT_S)
    assert ray.available_resources() == {"CPU": 1.0}
    del actor
    assert until(lambda: ray.available_resources() == {"CPU": 2.0})
    node = nanoray.session.current()._link.node
    assert until(lambda: len(node.objects) == 0 and not node.supervisor.calls.live())


def test_an_actor_without_handles_restarts_only_for_calls_to_be_run_again(ray, phoenix, until):
    actor = phoenix.options(max_restarts=-1, max_task_retries=0).remote([1])
    number, ref = actor.id, actor.die.remote()
    del actor
    with pytest.raises(ray.ActorDiedError):
        ray.get(ref, timeout=WAIT_S)
    actors = nanoray.session.current()._link.node.supervisor.actors
    assert until(lambda: number not in actors.ids())


def test_get_if_exists_finds_or_makes_one_actor(ray, phoenix):
    one = phoenix.options(name="one", get_if_exists=True)
    first, second = one.remote([1]), one.remote([1, 2])
    assert first.id == second.id
    assert ray.get(second.get.remote(), timeout=WAIT_S) == 1

    @ray.remote
    def find(options):
        return nanoray.get(options[0].pid.remote())

    pids = ray.get([find.remote([first]) for _ in range(4)], timeout=WAIT_S)
    assert set(pids) == {ray.get(first.pid.remote(), timeout=WAIT_S)}
    ray.kill(first)
    again = one.remote([1, 2])
    assert ray.get(again.get.remote(), timeout=WAIT_S) == 2


def test_a_name_that_is_taken_costs_no_memory(ray, phoenix, until):
    big = [b"x" * 1_000_000]
    first = phoenix.options(name="taken").remote(big)
    ray.get(first.get.remote(), timeout=WAIT_S)
    writer = nanoray.session.current().writer
    assert until(lambda: writer.used_bytes == 0)
    with pytest.raises(ValueError, match=r"use get_actor\('taken'\), or get_if_exists=True"):
        phoenix.options(name="taken").remote(big)
    assert until(lambda: writer.used_bytes == 0)
    ray.kill(first)


def test_a_detached_actor_lives_without_handles_until_it_is_killed(ray, phoenix, until):
    @ray.remote
    def make(cls):
        return cls[0].options(name="alone", lifetime="detached").remote([1, 2]).id

    number = ray.get(make.remote([phoenix]), timeout=WAIT_S)
    actors = nanoray.session.current()._link.node.supervisor.actors
    pids = [ray.get(ray.get_actor("alone").pid.remote(), timeout=WAIT_S) for _ in range(3)]
    assert len(set(pids)) == 1
    ray.kill(ray.get_actor("alone"))
    assert until(lambda: number not in actors.ids())
    with pytest.raises(ValueError, match="no live actor has this name"):
        ray.get_actor("alone")
