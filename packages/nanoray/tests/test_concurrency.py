"""Actors that run several calls at a time: in threads, or in an event loop."""

import asyncio
import gc
import os
import threading
import time
import weakref

import pytest

import nanorlhf.nanoray as nanoray

WAIT_S = 30


@pytest.fixture
def gate(ray):
    """A class of actors whose calls wait for each other."""

    @ray.remote(max_concurrency=4)
    class Gate:
        def __init__(self):
            self.opened = threading.Event()
            self.barrier = threading.Barrier(4)
            self.order = []
            self.lock = threading.Lock()

        def meet(self):
            return self.barrier.wait(WAIT_S) >= 0

        def wait(self, path=None):
            if path is not None:
                path.touch()
            return self.opened.wait(WAIT_S)

        def open(self):
            self.opened.set()

        def begin(self, number):
            with self.lock:
                self.order.append(number)

        def begun(self):
            return self.order

        def fail(self):
            raise LookupError("lost")

        def ask(self, value):
            return nanoray.get(nanoray.remote(lambda x: x + 1).options(num_cpus=0).remote(value))

        def await_all(self, refs):
            async def main():
                return await asyncio.gather(*refs)

            return asyncio.run(main())

        def pid(self):
            return os.getpid()

        def thread(self):
            return threading.current_thread() is threading.main_thread()

    return Gate


def test_calls_of_an_actor_with_threads_run_at_the_same_time(ray, gate):
    actor = gate.remote()
    assert ray.get([actor.meet.remote() for _ in range(4)], timeout=WAIT_S) == [True] * 4
    waiting = actor.wait.remote()
    assert ray.wait([waiting], timeout=0.05) == ([], [waiting])
    ray.get(actor.open.remote(), timeout=WAIT_S)
    assert ray.get(waiting, timeout=WAIT_S)


def test_no_more_calls_run_than_max_concurrency(ray, gate):
    actor = gate.options(max_concurrency=2).remote()
    waiting = [actor.wait.remote() for _ in range(2)]
    opens = actor.open.remote()
    assert ray.wait([opens], timeout=0.2) == ([], [opens])
    ray.kill(actor)
    for ref in (*waiting, opens):
        with pytest.raises(ray.ActorDiedError):
            ray.get(ref, timeout=WAIT_S)


def test_threads_take_the_calls_in_order(ray, gate):
    actor = gate.options(max_concurrency=2).remote()
    waiting = actor.wait.remote()  # leaves one thread for the others
    ray.get([actor.begin.remote(number) for number in range(200)], timeout=WAIT_S)
    assert ray.get(actor.begun.remote(), timeout=WAIT_S) == list(range(200))
    ray.get([actor.open.remote(), waiting], timeout=WAIT_S)


def test_a_call_that_waits_for_a_thread_may_be_cancelled_and_one_that_has_one_not(
    ray, gate, tmp_path, until
):
    actor = gate.options(max_concurrency=2).remote()
    paths = [tmp_path / str(number) for number in range(2)]
    running = [actor.wait.remote(path) for path in paths]
    assert until(lambda: all(path.exists() for path in paths))
    queued, after = actor.begin.remote(1), actor.open.remote()
    for ref in (*running, queued, after):
        ray.cancel(ref)
    for ref in (queued, after):
        with pytest.raises(ray.TaskCancelledError, match="was cancelled"):
            ray.get(ref, timeout=WAIT_S)
    assert ray.wait(running, timeout=0.1)[0] == []
    ray.kill(actor)


def test_threads_of_an_actor_may_call_and_fail(ray, gate):
    actor = gate.remote()
    refs = [actor.ask.remote(number) for number in range(20)]
    assert ray.get(refs, timeout=WAIT_S) == list(range(1, 21))
    with pytest.raises(LookupError, match="lost") as caught:
        ray.get(actor.fail.remote(), timeout=WAIT_S)
    assert isinstance(caught.value, ray.TaskError)
    assert "performer.py" not in str(caught.value)
    assert not ray.get(actor.thread.remote(), timeout=WAIT_S)


def test_threads_of_an_actor_may_have_loops_of_their_own(ray, gate):
    actor = gate.remote()
    late = ray.remote(num_cpus=0)(lambda x: (time.sleep(0.05), x)[1])
    calls = [actor.await_all.remote([late.remote(i), late.remote(-i)]) for i in range(4)]
    assert ray.get(calls, timeout=WAIT_S) == [[i, -i] for i in range(4)]


def test_an_actor_with_threads_ends_after_its_last_call(ray, gate, until, is_running):
    actor = gate.remote()
    pid = ray.get(actor.pid.remote(), timeout=WAIT_S)
    waiting, opens = actor.wait.remote(), actor.open.remote()
    del actor
    assert ray.get([waiting, opens], timeout=WAIT_S) == [True, None]
    assert until(lambda: not is_running(pid))


@pytest.mark.parametrize("options", [{"max_restarts": 1}, {"max_concurrency": 2}])
def test_options_of_actors_are_refused_by_functions(ray, options):
    with pytest.raises(ValueError, match="is an option of an actor class"):
        ray.remote(**options)(lambda: 1)


def test_options_of_functions_are_refused_by_actor_classes(ray, gate):
    with pytest.raises(ValueError, match="num_returns=2 is an option of a remote function"):
        gate.options(num_returns=2)


@pytest.fixture
def looped(ray):
    """A class of actors with an event loop."""

    @ray.remote
    class Looped:
        def __init__(self):
            self.opened = None
            self.order = []
            self.seen = None

        async def wait(self):
            self.opened = self.opened or asyncio.Event()
            await self.opened.wait()
            return "through"

        async def open(self):
            self.opened = self.opened or asyncio.Event()
            self.opened.set()

        def plain(self):
            return asyncio.get_running_loop().is_running()

        async def note(self, number):
            self.order.append(number)
            await asyncio.sleep(0)
            return list(self.order)

        async def fail(self):
            await asyncio.sleep(0)
            raise LookupError("lost")

        async def add(self, refs):
            return sum(await asyncio.gather(*refs))

        async def blocking(self, refs):
            return nanoray.get(refs[0])

        async def in_thread(self, refs):
            return await asyncio.to_thread(nanoray.get, refs[0])

        async def wait_for_future(self, refs):
            try:
                return refs[0].future().result(WAIT_S)
            except RuntimeError as error:
                return str(error), await asyncio.wrap_future(refs[0].future())

        async def future_in_thread(self, refs):
            return await asyncio.to_thread(lambda: refs[0].future().result(WAIT_S))

        async def task_ids(self):
            before = nanoray.get_runtime_context().task_id
            await asyncio.sleep(0.01)
            return before, nanoray.get_runtime_context().task_id

        async def keep(self, array):
            self.seen = weakref.ref(array)

        async def is_free(self):
            gc.collect()
            return self.seen() is None

        async def held(self, path):
            try:
                await asyncio.sleep(WAIT_S)
            except asyncio.CancelledError:
                path.touch()
                raise

        async def defy(self):
            try:
                await asyncio.sleep(WAIT_S)
            except asyncio.CancelledError:
                return "defied"

        async def ref(self):
            return nanoray.put(5)

        def plain_ref(self):
            return nanoray.put(6)

        async def pid(self):
            return os.getpid()

        async def exit(self):
            raise SystemExit(3)

    return Looped


def test_coroutines_of_an_actor_take_turns(ray, looped):
    actor = looped.remote()
    waiting = [actor.wait.remote() for _ in range(50)]
    ready, _ = ray.wait(waiting, timeout=0.05)
    assert ready == []
    ray.get(actor.open.remote(), timeout=WAIT_S)
    assert ray.get(waiting, timeout=WAIT_S) == ["through"] * 50


def test_a_plain_method_of_an_actor_with_coroutines_runs_in_the_loop(ray, looped):
    assert ray.get(looped.remote().plain.remote(), timeout=WAIT_S)


def test_coroutines_begin_in_the_order_of_the_calls(ray, looped):
    actor = looped.remote()
    refs = [actor.note.remote(number) for number in range(300)]
    assert ray.get(refs[-1], timeout=WAIT_S)[:300] == list(range(300))


def test_max_concurrency_bounds_coroutines(ray, looped):
    actor = looped.options(max_concurrency=1).remote()
    waiting, opens = actor.wait.remote(), actor.open.remote()
    assert ray.wait([waiting, opens], timeout=0.2)[0] == []
    ray.kill(actor)
    with pytest.raises(ValueError, match="max_concurrency=0"):
        looped.options(max_concurrency=0)


def test_errors_of_coroutines_are_task_errors(ray, looped):
    actor = looped.remote()
    with pytest.raises(LookupError, match="lost") as caught:
        ray.get(actor.fail.remote(), timeout=WAIT_S)
    assert isinstance(caught.value, ray.TaskError)
    assert "performer.py" not in str(caught.value)
    with pytest.raises(ray.TaskError, match="SystemExit: 3"):
        ray.get(actor.exit.remote(), timeout=WAIT_S)
    assert ray.get(actor.plain.remote(), timeout=WAIT_S)


def test_coroutines_may_await_refs(ray, looped):
    actor = looped.remote()
    slow = ray.remote(lambda x: (time.sleep(0.1), x)[1])
    assert ray.get(actor.add.remote([slow.remote(1), slow.remote(2)]), timeout=WAIT_S) == 3
    fails = ray.remote(lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        ray.get(actor.add.remote([slow.remote(1), fails.remote()]), timeout=WAIT_S)


def test_two_actors_with_loops_await_each_other(ray):
    @ray.remote
    class Player:
        async def play(self, me, other, rallies):
            return 0 if not rallies else 1 + await other.play.remote(other, me, rallies - 1)

    me, other = Player.remote(), Player.remote()
    assert ray.get(me.play.remote(me, other, 20), timeout=WAIT_S) == 20


def test_a_blocking_get_in_a_loop_works_and_warns_once(capfd, looped, start):
    ray = start(num_cpus=1)  # its processes write to what capfd reads
    actor = looped.remote()
    late = ray.remote(lambda: (time.sleep(0.1), 7)[1])
    refs = [actor.blocking.remote([late.remote()]) for _ in range(3)]
    after = actor.note.remote(1)
    assert ray.get(refs, timeout=WAIT_S) == [7, 7, 7]
    assert ray.get(after, timeout=WAIT_S) == [1]
    assert capfd.readouterr().err.count("a blocking get() in an async actor") == 1


def test_threads_beside_a_loop_may_call_too(ray, looped):
    actor = looped.remote()
    late = ray.remote(lambda: (time.sleep(0.1), 7)[1])
    refs = [actor.in_thread.remote([late.options(num_cpus=0).remote()]) for _ in range(5)]
    assert ray.get(refs, timeout=WAIT_S) == [7] * 5


def test_a_loop_does_not_wait_for_a_future_that_it_brings_itself(ray, looped):
    actor = looped.remote()
    late = ray.remote(num_cpus=0)(lambda: (time.sleep(0.1), 7)[1])
    text, value = ray.get(actor.wait_for_future.remote([late.remote()]), timeout=WAIT_S)
    assert "would stop the loop" in text
    assert value == 7
    assert ray.get(actor.future_in_thread.remote([late.remote()]), timeout=WAIT_S) == 7


def test_every_coroutine_knows_its_own_call(ray, looped):
    actor = looped.remote()
    pairs = ray.get([actor.task_ids.remote() for _ in range(5)], timeout=WAIT_S)
    assert all(before == after for before, after in pairs)
    assert len({before for before, _ in pairs}) == 5


def test_a_finished_coroutine_keeps_no_argument(ray, looped):
    import numpy as np

    actor = looped.remote()
    ray.get(actor.keep.remote(ray.put(np.ones(100_000))), timeout=WAIT_S)
    assert ray.get(actor.is_free.remote(), timeout=WAIT_S)


def test_an_actor_with_a_loop_ends_after_its_last_call(ray, looped, until, is_running):
    actor = looped.remote()
    pid = ray.get(actor.pid.remote(), timeout=WAIT_S)
    waiting, opens = actor.wait.remote(), actor.open.remote()
    del actor
    assert ray.get([waiting, opens], timeout=WAIT_S) == ["through", None]
    assert until(lambda: not is_running(pid))


def test_a_coroutine_is_cancelled_where_it_waits(ray, looped, tmp_path, until):
    actor = looped.remote()
    path = tmp_path / "cancelled"
    refs = [actor.held.remote(path), actor.wait.remote()]
    ray.get(actor.plain.remote(), timeout=WAIT_S)
    ray.cancel(refs[0])
    with pytest.raises(ray.TaskCancelledError, match="held"):
        ray.get(refs[0], timeout=WAIT_S)
    assert path.exists()
    ray.get(actor.open.remote(), timeout=WAIT_S)
    assert ray.get(refs[1], timeout=WAIT_S) == "through"
    defiant = actor.defy.remote()
    ray.get(actor.plain.remote(), timeout=WAIT_S)
    ray.cancel(defiant)
    assert ray.get(defiant, timeout=WAIT_S) == "defied"
    with pytest.raises(ValueError, match="force=True would kill the actor"):
        ray.cancel(actor.held.remote(path), force=True)


def test_a_call_that_waits_for_its_turn_may_be_cancelled(ray, looped):
    actor = looped.options(max_concurrency=2).remote()
    running = [actor.wait.remote() for _ in range(2)]
    queued = actor.note.remote(1)
    ray.cancel(queued)
    with pytest.raises(ray.TaskCancelledError):
        ray.get(queued, timeout=WAIT_S)
    ray.cancel(running[0])
    assert ray.get(actor.note.remote(2), timeout=WAIT_S) == [2]
    ray.get(actor.open.remote(), timeout=WAIT_S)
    assert ray.get(running[1], timeout=WAIT_S) == "through"


def test_a_ref_that_a_method_returns_stays_a_ref(ray, looped):
    actor = looped.remote()
    refs = ray.get([actor.ref.remote(), actor.plain_ref.remote()], timeout=WAIT_S)
    assert ray.get(refs, timeout=WAIT_S) == [5, 6]


def test_the_constructor_runs_in_the_loop_and_alone(ray):
    @ray.remote
    class Slow:
        def __new__(cls, *args):
            return super().__new__(cls)

        async def __init__(self, value):
            self.ready = False
            await asyncio.sleep(0.1)
            self.value, self.ready = value, True

        async def get(self):
            return self.ready, self.value

    actor = Slow.remote(5)
    refs = [actor.get.remote() for _ in range(3)]
    assert ray.get(refs, timeout=WAIT_S) == [(True, 5)] * 3

    @ray.remote
    class Plain:
        def __init__(self):
            self.loop = asyncio.get_running_loop()
            self.early = nanoray.get(nanoray.remote(lambda: 3).options(num_cpus=0).remote())

        async def same(self):
            return self.loop is asyncio.get_running_loop(), self.early

    assert ray.get(Plain.remote().same.remote(), timeout=WAIT_S) == (True, 3)


def test_a_constructor_that_raises_in_a_loop_fails_every_call(ray):
    @ray.remote
    class Broken:
        async def __init__(self):
            await asyncio.sleep(0)
            raise ValueError("no such model")

        async def ok(self):
            return True

    actor = Broken.remote()
    for _ in range(2):
        with pytest.raises(ray.ActorDiedError, match="no such model"):
            ray.get(actor.ok.remote(), timeout=WAIT_S)


def test_an_actor_with_a_loop_restarts(ray, tmp_path):
    @ray.remote(max_restarts=1, max_task_retries=1)
    class Fragile:
        async def die_once(self, path):
            if not path.exists():
                path.touch()
                os._exit(1)
            return os.getpid()

    actor = Fragile.remote()
    assert ray.get(actor.die_once.remote(tmp_path / "died"), timeout=WAIT_S)


def test_threads_that_a_task_starts_belong_to_its_call(ray):
    @ray.remote
    def ids():
        found = [nanoray.get_runtime_context().task_id]

        def work():
            found.append(nanoray.get_runtime_context().task_id)

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        return found

    one, two = ray.get(ids.remote(), timeout=WAIT_S)
    assert one == two != 0


def test_a_failed_call_keeps_no_argument(ray, until):
    import numpy as np

    @ray.remote
    class Keeps:
        def __init__(self):
            self.seen = None

        def fail(self, array):
            self.seen = weakref.ref(array)
            raise LookupError("lost")

        def is_free(self):
            return self.seen() is None

    for concurrency in (1, 2):
        actor = Keeps.options(max_concurrency=concurrency).remote()
        with pytest.raises(LookupError):
            ray.get(actor.fail.remote(ray.put(np.ones(100_000))), timeout=WAIT_S)
        # With threads the second call may begin while the first one's frames still unwind.
        assert until(lambda actor=actor: ray.get(actor.is_free.remote(), timeout=WAIT_S))


def test_async_functions_are_no_tasks(ray):
    async def coroutine():
        pass

    with pytest.raises(ValueError, match="coroutine is an 'async def' function"):
        ray.remote(coroutine)


def test_method_gives_a_method_options(ray):
    @ray.remote
    class Pairs:
        @nanoray.method(num_returns=2)
        def pair(self, *, a=1, b=2):
            return a, b

    actor = Pairs.remote()
    a, b = actor.pair.remote(b=5)
    assert ray.get([a, b], timeout=WAIT_S) == [1, 5]
    assert ray.get(actor.pair.options(num_returns=1).remote(), timeout=WAIT_S) == (1, 2)
    carried = ray.remote(lambda handles: nanoray.get(handles[0].pair.remote()))
    assert ray.get(carried.remote([actor]), timeout=WAIT_S) == [1, 2]
    with pytest.raises(ValueError, match="unknown option 'num_return'"):
        nanoray.method(num_return=2)
    with pytest.raises(TypeError, match="unexpected keyword argument 'c'"):
        ray.get(actor.pair.options(num_returns=1).remote(c=1), timeout=WAIT_S)


def test_attributes_of_an_actor_are_out_of_reach(ray):
    @ray.remote
    class Holder:
        size = 3

        @property
        def value(self):
            return 1

        def ok(self):
            return True

    actor = Holder.remote()
    for name in ("value", "size", "__call__", "_private"):
        with pytest.raises(AttributeError, match="add a method that returns them"):
            getattr(actor, name)


def test_the_context_has_ids_in_both_forms(ray):
    @ray.remote
    class Self:
        def ids(self):
            context = nanoray.get_runtime_context()
            numbers = context.task_id, context.actor_id
            return numbers, (context.get_task_id(), context.get_actor_id()), nanoray.get_gpu_ids()

    numbers, texts, gpu_ids = ray.get(Self.remote().ids.remote(), timeout=WAIT_S)
    assert texts == tuple(f"{number:x}" for number in numbers)
    assert gpu_ids == []
    context = ray.get_runtime_context()
    assert (context.get_task_id(), context.get_actor_id()) == (None, None)
    assert context.get_accelerator_ids() == {"GPU": []}


def test_the_context_names_the_machine(ray):
    (node,) = ray.nodes()
    inside = ray.remote(lambda: nanoray.get_runtime_context().get_node_id())
    assert ray.get_runtime_context().get_node_id() == node["NodeID"]
    assert ray.get(inside.remote(), timeout=WAIT_S) == node["NodeID"]


def test_gpu_ids_are_numbers(start):
    ray = start(num_cpus=1, num_gpus=2)
    ids = ray.remote(num_gpus=2)(lambda: nanoray.get_gpu_ids())
    assert ray.get(ids.remote(), timeout=WAIT_S) == [0, 1]
