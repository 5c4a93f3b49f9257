"""One suite, two engines: every test here runs on ours and on Ray.

``engine`` is the package, initialised. The two tables below are the only places that treat the
engines differently. On Ray, tests share one Ray of two CPUs, started once.
"""

import importlib.util
import tempfile

import pytest

import nanorlhf.nanoray as nanoray

DIFFERS = {
    "test_completed_is_the_error_of_a_generator_that_failed": "completed() is ready with None",
    "test_a_stream_that_is_dropped_closes_its_generator": "a generator runs on to its end",
    "test_a_ref_cannot_be_pickled_by_hand": "a ref may be, and its object then lives for ever",
    "test_a_killed_actor_is_gone_for_the_next_call": "a call made at once may still run",
    "test_tasks_are_listed": "the list of tasks is in the dashboard, which may not run",
}
"""Tests that hold on ours alone, and what Ray does by nature."""

SLOW_ON_RAY = {
    "test_a_coroutine_that_runs_can_be_cancelled",
    "test_a_detached_actor_outlives_its_handles",
    "test_a_group_can_be_passed_to_a_task",
    "test_a_group_of_ranks_is_called_as_one",
    "test_a_group_waits_for_its_resources_and_so_do_its_calls",
    "test_a_handle_works_wherever_it_is_passed",
    "test_a_removed_group_takes_what_runs_in_it_along",
    "test_a_task_is_cancelled_with_what_it_started",
    "test_actors_are_listed",
    "test_actors_take_no_cpu_unless_they_ask",
    "test_an_actor_ends_with_its_last_handle",
    "test_an_actor_restarts_as_often_as_it_may",
    "test_calls_sent_to_an_actor_that_dies_are_run_again_when_they_may",
    "test_calls_sent_to_an_actor_that_dies_raise_and_later_ones_reach_the_next",
    "test_environment_variables_are_set_in_the_task",
    "test_items_come_before_the_generator_has_ended",
    "test_tasks_may_wait_for_tasks_beyond_the_number_of_cpus",
    "test_the_context_of_an_actor_has_its_id",
    "test_threads_of_an_actor_run_side_by_side",
    "test_what_a_task_raises_is_retried_only_when_asked",
}
"""Tests left out of the short form on Ray: they start several processes, a second each."""

CPUS, RESOURCES = 2, {"license": 1}


def pytest_generate_tests(metafunc):
    """Run a test once on each engine."""
    if "engine" in metafunc.fixturenames:
        name = metafunc.function.__name__
        marks = []
        if name in DIFFERS:
            marks.append(pytest.mark.skip(reason=f"Ray differs: {DIFFERS[name]}"))
        elif name in SLOW_ON_RAY:
            marks.append(pytest.mark.slow)
        engines = ["local", pytest.param("ray", marks=marks)]
        metafunc.parametrize("engine", engines, indirect=True, scope="module")


@pytest.fixture(scope="module")
def engine(request):
    """The package, connected to the engine that the test runs on."""
    nanoray.shutdown()
    if request.param == "ray":
        request.getfixturevalue("one_ray")
        nanoray.init(engine="ray")
    else:
        nanoray.init(num_cpus=CPUS, resources=RESOURCES)
    yield nanoray
    nanoray.shutdown()


@pytest.fixture(scope="session")
def ray_environment():
    """Ray's variables, and a folder for its files, which goes at the end."""
    # Not pytest's folder: the names of Ray's sockets leave 40 characters of 107 for the folder's.
    with tempfile.TemporaryDirectory(prefix="nanoray") as folder, pytest.MonkeyPatch.context() as p:
        p.setenv("RAY_TMPDIR", folder)
        p.setenv("RAY_AUTH_MODE", "disabled")  # or it writes a token into the user's home
        p.setenv("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")  # or "uv run pytest" copies the workspace
        p.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # or it warns that this will change
        p.setenv("RAY_IGNORE_UNHANDLED_ERRORS", "1")  # or it prints errors that nobody fetched
        p.setenv("RAY_USAGE_STATS_ENABLED", "0")
        yield


@pytest.fixture(scope="session")
def one_ray(ray_environment):
    """A Ray for all tests."""
    if importlib.util.find_spec("ray") is None:
        pytest.skip("Ray is not installed here; it is in the workspace's group 'peers'")
    import ray

    ray.init(
        "local",
        num_cpus=CPUS,
        resources=RESOURCES,
        namespace="nanoray",
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
    )
    yield ray
    nanoray.shutdown()
    ray.shutdown()
