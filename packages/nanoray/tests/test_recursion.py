import threading

import pytest

import nanorlhf.nanoray as nanoray

WAIT_S = 90


@pytest.fixture
def peak():
    """Count processes while something runs: ``peak()`` is the most there were so far."""
    supervisor = None
    most, is_over = [0], threading.Event()

    def watch():
        while not is_over.wait(0.002):
            if supervisor is not None:
                most[0] = max(most[0], len(supervisor._workers))

    thread = threading.Thread(target=watch)
    thread.start()

    def get():
        nonlocal supervisor
        supervisor = nanoray.session.current()._link.node.supervisor
        return most[0]

    yield get
    is_over.set()
    thread.join()


def test_a_recursion_is_walked_depth_first_with_few_processes(start, peak):
    ray = start(num_cpus=2)

    @ray.remote
    def fib(n):
        return n if n < 2 else sum(nanoray.get([fib.remote(n - 1), fib.remote(n - 2)]))

    peak()
    assert ray.get(fib.remote(9), timeout=WAIT_S) == 34
    assert peak() <= 2 * 9 + 4, "109 calls, nine deep, two at a time"


def test_calls_without_cpus_are_bounded_too(start, peak):
    ray = start(num_cpus=2)

    @ray.remote(num_cpus=0)
    def leaf():
        return 1

    @ray.remote(num_cpus=0)
    def spread():
        return sum(nanoray.get([leaf.remote() for _ in range(100)]))

    peak()
    assert ray.get([spread.remote() for _ in range(3)], timeout=WAIT_S) == [100] * 3
    assert peak() <= 32 + 3 + 1


def test_a_recursion_without_end_fails_and_says_so(start, until, monkeypatch):
    monkeypatch.setattr("nanorlhf.nanoray.supervisor.MAX_DEPTH", 30)
    ray = start(num_cpus=2)

    @ray.remote(max_retries=0)
    def bomb():
        return nanoray.get(bomb.remote())

    with pytest.raises(ray.InfeasibleError, match="nested 30 calls deep"):
        ray.get(bomb.remote(), timeout=WAIT_S)
    supervisor = nanoray.session.current()._link.node.supervisor
    assert until(lambda: len(supervisor._workers) <= 2), "idle processes end"
    assert ray.available_resources() == {"CPU": 2.0}


def test_actors_that_make_actors_without_end_fail_too(start, monkeypatch):
    monkeypatch.setattr("nanorlhf.nanoray.supervisor.MAX_DEPTH", 20)
    ray = start(num_cpus=2)

    @ray.remote
    class Doll:
        def __init__(self):
            self.inner = Doll.remote()
            nanoray.get(self.inner.ok.remote())

        def ok(self):
            return True

    doll = Doll.remote()
    with pytest.raises(ray.ActorDiedError, match="nested too deep"):
        ray.get(doll.ok.remote(), timeout=WAIT_S)


def test_a_chain_of_calls_that_do_not_wait_for_each_other_has_no_end(start):
    ray = start(num_cpus=1)

    @ray.remote
    class Box:
        def __init__(self):
            self.value = None

        def fill(self, value):
            self.value = value

        def look(self):
            return self.value

    @ray.remote
    def step(n, box):
        if n == 0:
            box[0].fill.remote("end")
        else:
            step.remote(n - 1, box)

    box = Box.remote()
    ray.get(step.remote(200, [box]), timeout=WAIT_S)
    for _ in range(10_000):
        if ray.get(box.look.remote(), timeout=WAIT_S) == "end":
            return
    raise AssertionError("the chain broke")
