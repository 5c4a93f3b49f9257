"""What code knows of the call it runs in, and what a call leaves behind."""

import threading
import weakref

import pytest

import nanorlhf.nanoray as nanoray

WAIT_S = 30


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
