"""Who polls while driver threads wait."""

import threading
import time

import pytest

WAIT_S = 60


def test_a_waiting_driver_uses_no_processor(ray):
    sleep = ray.remote(lambda: time.sleep(1))
    ray.get(ray.remote(lambda: None).remote(), timeout=WAIT_S)
    ref, begin = sleep.remote(), time.process_time()
    ray.get(ref, timeout=WAIT_S)
    assert time.process_time() - begin < 0.3


def test_polling_without_patience_gets_there(ray):
    ref = ray.remote(lambda: 5).remote()
    while not ray.wait([ref], timeout=0)[0]:
        pass
    assert ray.get(ref, timeout=0) == 5


def test_tasks_go_on_while_the_driver_waits_for_nothing(ray, tmp_path, until):
    ray.get(ray.remote(lambda: None).remote(), timeout=WAIT_S)
    first = ray.remote(lambda: 1).remote()
    second = ray.remote(lambda _: (tmp_path / "here").touch()).remote(first)
    assert until((tmp_path / "here").exists)
    del second


def test_threads_may_get_at_the_same_time(ray):
    @ray.remote
    class Echo:
        def same(self, value):
            return value

    actor, wrong = Echo.remote(), []

    def ask(thread):
        for number in range(100):
            if ray.get(actor.same.remote((thread, number)), timeout=WAIT_S) != (thread, number):
                wrong.append((thread, number))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
    assert not wrong
    assert not any(thread.is_alive() for thread in threads)


def test_a_thread_that_kills_an_actor_frees_the_one_that_waits(ray):
    @ray.remote
    class Sleeper:
        def sleep(self):
            time.sleep(600)

        def ready(self):
            return True

    actor = Sleeper.remote()
    ray.get(actor.ready.remote(), timeout=WAIT_S)
    ref = actor.sleep.remote()
    killer = threading.Timer(0.2, ray.kill, (actor,))
    killer.start()
    with pytest.raises(ray.ActorDiedError):
        ray.get(ref, timeout=WAIT_S)
    killer.join()


def test_a_thread_that_waits_hears_of_the_shutdown(start, until):
    ray = start(num_cpus=1)
    ref = ray.remote(lambda: time.sleep(600)).remote()
    heard = []

    def wait():
        try:
            ray.get(ref, timeout=WAIT_S)
        except ray.EngineError as error:
            heard.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    assert until(lambda: ray.session.current()._link._questions)
    ray.shutdown()
    thread.join(WAIT_S)
    assert len(heard) == 1
