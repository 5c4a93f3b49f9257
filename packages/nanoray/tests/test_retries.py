import os

import pytest

WAIT_S = 30


@pytest.fixture
def flaky(ray, tmp_path):
    """A task that raises ``error`` until it has run ``times`` times."""
    path = str(tmp_path / "runs")

    @ray.remote
    def run(error, times):
        with open(path, "a") as file:
            file.write("x")
        if os.path.getsize(path) < times:
            raise error
        return os.path.getsize(path)

    return run


@pytest.fixture
def num_runs(tmp_path):
    return lambda: os.path.getsize(tmp_path / "runs")


@pytest.mark.parametrize("kinds", [True, [LookupError, OSError], (KeyError,)])
def test_what_it_may_raise_is_tried_again(ray, flaky, kinds):
    task = flaky.options(retry_exceptions=kinds, max_retries=2)
    assert ray.get(task.remote(KeyError("k"), 3), timeout=WAIT_S) == 3


def test_other_errors_are_not_tried_again(ray, flaky, num_runs):
    task = flaky.options(retry_exceptions=[KeyError, OSError])
    with pytest.raises(ValueError, match="bad"):
        ray.get(task.remote(ValueError("bad"), 3), timeout=WAIT_S)
    assert num_runs() == 1


def test_without_retry_exceptions_nothing_raised_is_tried_again(ray, flaky, num_runs):
    with pytest.raises(KeyError):
        ray.get(flaky.remote(KeyError("k"), 3), timeout=WAIT_S)
    assert num_runs() == 1


def test_exceptions_use_up_max_retries(ray, flaky, num_runs):
    task = flaky.options(retry_exceptions=True, max_retries=2)
    with pytest.raises(KeyError, match="k"):
        ray.get(task.remote(KeyError("k"), 9), timeout=WAIT_S)
    assert num_runs() == 3


def test_retries_may_be_without_end(ray, flaky):
    task = flaky.options(retry_exceptions=True, max_retries=-1)
    assert ray.get(task.remote(KeyError("k"), 12), timeout=WAIT_S) == 12


def test_crashes_may_be_retried_without_end(ray, tmp_path):
    path = str(tmp_path / "runs")

    @ray.remote(max_retries=-1)
    def crash():
        with open(path, "a") as file:
            file.write("x")
        if os.path.getsize(path) < 6:
            os._exit(1)
        return True

    assert ray.get(crash.remote(), timeout=WAIT_S)


def test_exit_is_no_exception_to_retry(ray, flaky, num_runs):
    task = flaky.options(retry_exceptions=True)
    with pytest.raises(ray.TaskError, match="SystemExit"):
        ray.get(task.remote(SystemExit(2), 3), timeout=WAIT_S)
    assert num_runs() == 1


def test_classes_of_the_drivers_own_code_are_known_in_the_worker(ray, flaky):
    class Own(Exception):
        pass

    task = flaky.options(retry_exceptions=[Own])
    assert ray.get(task.remote(Own(), 2), timeout=WAIT_S) == 2


def test_a_method_may_be_retried_for_what_it_raises(ray):
    @ray.remote(max_task_retries=1)
    class Flaky:
        def __init__(self):
            self.runs = 0

        def run(self, times):
            self.runs += 1
            if self.runs < times:
                raise KeyError("again")
            return self.runs

    actor = Flaky.remote()
    run = actor.run.options(retry_exceptions=[KeyError])
    assert ray.get(run.remote(2), timeout=WAIT_S) == 2
    with pytest.raises(KeyError):
        ray.get(run.remote(9), timeout=WAIT_S)
    many = actor.run.options(retry_exceptions=True, max_task_retries=-1)
    assert ray.get(many.remote(9), timeout=WAIT_S) == 9
