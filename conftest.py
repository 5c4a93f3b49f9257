"""Options and skips shared by every suite."""

import importlib.util
import os
import signal
from collections.abc import Iterator

import pytest

if importlib.util.find_spec("torch") is not None:
    import torch

    if not torch.cuda.is_available():
        # Read when a kernel is decorated: set it before any module with kernels is imported.
        os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--slow`` and ``--one-case``."""
    parser.addoption("--slow", action="store_true", help="also run tests that take more than 5 s")
    parser.addoption("--one-case", action="store_true", help="run one case of every test")


def device_count() -> int:
    """Return how many CUDA devices this machine has; 0 without torch."""
    if importlib.util.find_spec("torch") is None:
        return 0
    return torch.cuda.device_count()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip what this machine or this run has no room for, and say why."""
    devices = device_count()
    for item in items:
        if item.get_closest_marker("slow") and not config.getoption("--slow"):
            item.add_marker(pytest.mark.skip(reason="slow; run with --slow"))
        if item.get_closest_marker("gpu") and devices < 1:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device; this machine has none"))
        marker = item.get_closest_marker("multi_gpu")
        if marker and devices < marker.args[0]:
            reason = f"needs {marker.args[0]} CUDA devices; this machine has {devices}"
            item.add_marker(pytest.mark.skip(reason=reason))
    if config.getoption("--one-case"):
        chosen = one_case_of_each(items)
        config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
        items[:] = chosen


def one_case_of_each(items: list[pytest.Item]) -> list[pytest.Item]:
    """Return of every test the first case that is not skipped, or the last if all are."""
    chosen: dict[str, pytest.Item] = {}
    for item in items:
        test = item.nodeid.partition("[")[0]
        if test not in chosen or chosen[test].get_closest_marker("skip"):
            chosen[test] = item
    return list(chosen.values())


@pytest.fixture(scope="session", autouse=True)
def _ctrl_c() -> Iterator[None]:
    """Raise on Ctrl-C, which a shell makes what it starts in the background ignore."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
