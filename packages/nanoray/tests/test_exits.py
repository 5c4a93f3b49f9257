import signal

import pytest

from nanorlhf.nanoray.exits import OUT_OF_MEMORY, OomKills, describe_exit

V2 = "0::/job\n"
V1 = "9:name=systemd:/\n4:memory:/job\n0::/\n"


@pytest.fixture
def mount(tmp_path):
    """A place like /sys/fs/cgroup; ``mount(path, count)`` writes a counter there."""

    def write(path, count):
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"oom_kill_disable 0\nunder_oom 0\noom_kill {count}\n")
        return tmp_path

    return write


@pytest.mark.parametrize(
    ("cgroups", "path"),
    [
        (V2, "job/memory.events"),
        (V2, "memory.events"),
        (V1, "memory/job/memory.oom_control"),
        (V1, "memory/memory.oom_control"),
    ],
)
def test_the_kernels_kills_are_counted_in_the_processs_own_cgroup(mount, cgroups, path):
    kills = OomKills(cgroups, mount(path, 3))
    assert not kills.have_grown()
    mount(path, 5)
    assert kills.have_grown()
    assert not kills.have_grown()


def test_where_nothing_counts_nothing_grows(tmp_path):
    kills = OomKills(V2, tmp_path)
    assert not kills.have_grown()
    (tmp_path / "memory.events").write_text("oom_kill 9\n")
    assert not kills.have_grown()


def test_a_status_in_words():
    killed = int(signal.SIGKILL)
    assert describe_exit(killed | OUT_OF_MEMORY).startswith(
        "was killed by SIGKILL by the kernel, for want of memory"
    )
    assert describe_exit(killed) == "was killed by SIGKILL (kill -9, or out of memory)"
    assert describe_exit(int(signal.SIGTERM) | OUT_OF_MEMORY) == "was killed by SIGTERM"
    assert describe_exit(3 << 8, tail=["a", "b"]) == (
        "exited with code 3; its last lines were:\n  | a\n  | b"
    )
