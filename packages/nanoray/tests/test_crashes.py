import contextlib
import ctypes
import os
import random
import signal
import time

import pytest

import nanorlhf.nanoray as nanoray

WAIT_S = 30

DEATHS = {
    "SIGKILL": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "exited with code 7": lambda: os._exit(7),
    "SIGSEGV": lambda: ctypes.string_at(0),
    "SIGTERM": lambda: os.kill(os.getpid(), signal.SIGTERM),
}


@pytest.fixture
def victim(ray):
    @ray.remote
    class Victim:
        def pid(self):
            return os.getpid()

        def run(self, function):
            return function()

        def sleep(self, seconds):
            time.sleep(seconds)

    return Victim


@pytest.mark.parametrize("reason", DEATHS)
def test_a_dead_actor_fails_pending_and_later_calls(ray, victim, reason):
    actor, die = victim.remote(), DEATHS[reason]
    first = actor.pid.remote()
    refs = [actor.run.remote(die), actor.pid.remote(), actor.sleep.remote(60)]
    assert ray.get(first, timeout=WAIT_S) > 0, "what was answered before stays answered"
    for ref in refs:
        with pytest.raises(ray.ActorDiedError, match=reason):
            ray.get(ref, timeout=WAIT_S)
    with pytest.raises(ray.ActorDiedError, match=reason):
        ray.get(actor.pid.remote(), timeout=WAIT_S)


@pytest.mark.parametrize("reason", DEATHS)
def test_a_dead_worker_fails_its_task(ray, reason):
    task = ray.remote(max_retries=0)(DEATHS[reason])
    with pytest.raises(ray.WorkerCrashedError, match=reason):
        ray.get(task.remote(), timeout=WAIT_S)


def test_a_sigkill_from_outside_is_noticed_mid_call(ray, victim):
    actor = victim.remote()
    pid = ray.get(actor.pid.remote(), timeout=WAIT_S)
    ref = actor.sleep.remote(60)
    os.kill(pid, signal.SIGKILL)
    begin = time.monotonic()
    with pytest.raises(ray.ActorDiedError, match="SIGKILL"):
        ray.get(ref, timeout=WAIT_S)
    assert time.monotonic() - begin < 10


def test_a_failing_constructor_fails_every_call_with_its_traceback(ray):
    @ray.remote
    class Broken:
        def __init__(self):
            raise ValueError("no such model")

        def ok(self):
            return True

    actor = Broken.remote()
    for _ in range(2):
        with pytest.raises(ray.ActorDiedError, match="no such model"):
            ray.get(actor.ok.remote(), timeout=WAIT_S)
    time.sleep(0.1)
    with pytest.raises(ray.ActorDiedError, match='raise ValueError\\("no such model"\\)'):
        ray.get(actor.ok.remote(), timeout=WAIT_S)


def test_a_constructor_with_a_failed_argument_fails_every_call(ray, victim):
    fails = ray.remote(lambda: 1 / 0)

    @ray.remote
    class Takes:
        def __init__(self, value):
            self.value = value

        def ok(self):
            return True

    actor = Takes.remote(fails.remote())
    with pytest.raises(ray.ActorDiedError, match="an argument failed"):
        ray.get(actor.ok.remote(), timeout=WAIT_S)


def test_a_crashed_task_is_tried_again_and_a_failed_one_is_not(ray, tmp_path):
    @ray.remote(max_retries=3)
    def crash_twice(path):
        with open(path, "a") as file:
            file.write("x")
        if os.path.getsize(path) < 3:
            os._exit(1)
        return os.path.getsize(path)

    @ray.remote(max_retries=3)
    def fail(path):
        with open(path, "a") as file:
            file.write("x")
        raise ValueError("once")

    assert ray.get(crash_twice.remote(str(tmp_path / "a")), timeout=WAIT_S) == 3
    with pytest.raises(ValueError, match="once"):
        ray.get(fail.remote(str(tmp_path / "b")), timeout=WAIT_S)
    assert (tmp_path / "b").read_text() == "x"


def test_retries_end(ray):
    crash = ray.remote(max_retries=2)(lambda: os._exit(1))
    with pytest.raises(ray.WorkerCrashedError, match=r"exited with code 1 \(3 times\)"):
        ray.get(crash.remote(), timeout=WAIT_S)


def test_one_dead_rank_frees_the_controller_from_the_others(ray, victim):
    ranks = [victim.remote() for _ in range(3)]
    ray.get([rank.pid.remote() for rank in ranks], timeout=WAIT_S)
    refs = [rank.sleep.remote(60) for rank in ranks[:2]]
    refs.append(ranks[2].run.remote(DEATHS["SIGKILL"]))
    begin = time.monotonic()
    with pytest.raises(ray.ActorDiedError):
        ray.get(refs, timeout=WAIT_S)
    assert time.monotonic() - begin < 20


def test_resources_come_back_after_a_crash(ray, victim, until):
    actor = victim.options(num_cpus=2).remote()
    ref = actor.run.remote(DEATHS["SIGKILL"])
    with pytest.raises(ray.ActorDiedError):
        ray.get(ref, timeout=WAIT_S)
    assert until(lambda: ray.available_resources()["CPU"] == 2)


def test_workers_ignore_ctrl_c(ray, victim):
    actor = victim.remote()
    pid = ray.get(actor.pid.remote(), timeout=WAIT_S)
    os.kill(pid, signal.SIGINT)
    assert ray.get(actor.pid.remote(), timeout=WAIT_S) == pid


def test_ctrl_c_leaves_the_driver_with_a_working_engine(ray, victim):
    actor = victim.remote()
    pid = ray.get(actor.pid.remote(), timeout=WAIT_S)

    def interrupt(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGUSR1, interrupt)
    ray.remote(lambda me: (time.sleep(0.3), os.kill(me, signal.SIGUSR1))).remote(os.getpid())
    with pytest.raises(KeyboardInterrupt):
        ray.get(actor.sleep.remote(2), timeout=WAIT_S)
    signal.signal(signal.SIGUSR1, before)
    assert ray.get(actor.pid.remote(), timeout=WAIT_S) == pid


def test_a_dead_zygote_breaks_the_engine_loudly(start):
    ray = start(num_cpus=1)
    sleep = ray.remote(lambda: time.sleep(60))
    ref = sleep.remote()
    zygote = nanoray.session.current()._link._hub.zygote_pid
    os.kill(zygote, signal.SIGKILL)
    with pytest.raises(ray.EngineError, match=r"process server was killed by SIGKILL"):
        ray.get(ref, timeout=WAIT_S)
    with pytest.raises(ray.EngineError):
        ray.get(sleep.remote(), timeout=WAIT_S)
    ray.shutdown()
    ray.init(num_cpus=1)
    assert ray.get(ray.remote(lambda: 1).remote(), timeout=WAIT_S) == 1


def test_shutdown_fails_threads_that_wait_and_kills_workers(start, is_running, victim_pid):
    ray = start(num_cpus=1)
    pid = victim_pid(ray)
    assert is_running(pid)
    ray.shutdown()
    assert not is_running(pid)
    assert not ray.is_initialized()


@pytest.fixture
def victim_pid():
    def get(ray):
        return ray.get(ray.remote(os.getpid).remote(), timeout=WAIT_S)

    return get


@pytest.mark.slow
def test_two_hundred_random_kills_never_hang(start, until):
    ray = start(num_cpus=2)
    draw = random.Random(0)

    @ray.remote
    class Victim:
        def pid(self):
            return os.getpid()

        def work(self, value):
            time.sleep(value / 1000)
            return value

    for round_number in range(200):
        actor = Victim.remote()
        pid = ray.get(actor.pid.remote(), timeout=WAIT_S)
        refs = [actor.work.remote(draw.randrange(5)) for _ in range(draw.randrange(1, 20))]
        time.sleep(draw.random() / 100)
        if round_number % 3 == 0:
            ray.kill(actor)
        else:
            os.kill(pid, signal.SIGKILL)
        for ref in refs:
            with contextlib.suppress(ray.ActorDiedError):
                assert ray.get(ref, timeout=WAIT_S) < 5
        with pytest.raises(ray.ActorDiedError):
            ray.get(actor.pid.remote(), timeout=WAIT_S)
    del actor, refs, ref
    node = nanoray.session.current()._link.node
    assert until(lambda: len(node.objects) == 0)
    assert ray.available_resources() == {"CPU": 2.0}


def test_a_long_get_says_what_it_waits_for(start, monkeypatch, caplog):
    ray = start(num_cpus=1)
    monkeypatch.setattr("nanorlhf.nanoray.engine._PATIENCE_S", 0.3)
    sleep = ray.remote(lambda: time.sleep(1.5))
    refs = [sleep.options(name="nap").remote() for _ in range(2)]
    ray.get(refs, timeout=WAIT_S)
    assert "nap() runs; nap() waits for resources {'CPU': 1.0} of free {'CPU': 0.0}" in caplog.text
