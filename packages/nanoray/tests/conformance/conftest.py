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
}
"""Tests that hold on ours alone, and why Ray is different by nature."""

SLOW_ON_RAY = set()
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
