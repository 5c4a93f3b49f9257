import pytest

from nanorlhf.nanoray.memory import default_store_bytes

GB = 1 << 30


@pytest.fixture
def machine(tmp_path):
    """A machine of 10 GB whose process is in the group ``/a/b``: ``machine("0::/a/b", {...})``."""

    def make(groups, limits):
        (tmp_path / "proc/self").mkdir(parents=True)
        (tmp_path / "proc/meminfo").write_text(f"MemFree: 1 kB\nMemTotal: {10 << 20} kB\n")
        (tmp_path / "proc/self/cgroup").write_text(groups + "\n")
        for name, text in limits.items():
            path = tmp_path / "sys/fs/cgroup" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{text}\n")
        return tmp_path

    return make


@pytest.mark.parametrize(
    ("groups", "limits", "size"),
    [
        ("0::/", {}, 10 * GB),
        ("0::/a/b", {"a/b/memory.max": "max", "a/memory.max": 4 * GB}, 4 * GB),
        ("0::/a/b", {"memory.max": 2 * GB}, 2 * GB),
        ("4:memory,cpu:/a\n2:pids:/", {"memory/a/memory.limit_in_bytes": GB}, GB),
        ("0::/a", {"a/memory.max": 99 * GB}, 10 * GB),
    ],
)
def test_the_tightest_limit_counts(machine, groups, limits, size):
    assert default_store_bytes(machine(groups, limits)) == int(0.3 * size)


def test_this_machine_has_memory():
    assert default_store_bytes() > 1 << 20
