"""Daemons are found while they live, and only then."""

import os
import socket
import subprocess
import sys

import pytest

from nanorlhf.nanoray.address import Address
from nanorlhf.nanoray.daemons import (
    Registration,
    daemons,
    find_daemon,
    peer_uid,
    private_directory,
    stop_daemons,
)
from nanorlhf.nanoray.errors import AuthenticationError, NanoRayError

HEAD = Address("127.0.0.1", 6380)

# A daemon that does nothing, and, with "stubborn", not even end.
DAEMON = """
import signal, sys
from pathlib import Path
from nanorlhf.nanoray.daemons import Registration
from nanorlhf.nanoray.address import Address
if sys.argv[2] == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
address = Address("127.0.0.1", 6380)
registration = Registration("agent", head=address, address=address, root=Path(sys.argv[1]))
print("ready", flush=True)
signal.pause()
"""


@pytest.fixture
def root(tmp_path):
    return tmp_path / "root"


@pytest.fixture
def run_daemon(root):
    processes = []

    def run(manner="polite"):
        command = [sys.executable, "-c", DAEMON, str(root), manner]
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
        processes.append(process)
        assert process.stdout.readline() == b"ready\n"
        return process

    yield run
    for process in processes:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_daemon_is_found_by_its_cluster_until_it_leaves(root):
    registration = Registration("head", head=HEAD, address=HEAD, root=root)
    assert daemons(root) == [registration.daemon]
    assert find_daemon(HEAD, root=root) == find_daemon(None, root=root) == registration.daemon
    assert registration.daemon.logs.is_dir()
    registration.close()
    assert daemons(root) == []
    assert os.listdir(root) == []


def test_no_daemon_is_an_error_that_says_how_to_start_one(root):
    with pytest.raises(NanoRayError, match=f"has its files in {root}; run: nanoray --root"):
        find_daemon(None, root=root)
    registration = Registration("head", head=HEAD, address=HEAD, root=root)
    with pytest.raises(
        NanoRayError, match=r"clusters here: 127\.0\.0\.1:6380.*--address=10\.0\.0\.1"
    ):
        find_daemon(Address("10.0.0.1", 6380), root=root)
    registration.close()


def test_a_killed_daemon_is_not_found_though_its_files_are_there(root, run_daemon):
    process = run_daemon()
    assert [daemon.pid for daemon in daemons(root)] == [process.pid]
    process.kill()
    process.wait()
    assert daemons(root) == []
    assert os.listdir(root) == [f"agent-{process.pid}"]


@pytest.mark.parametrize(("manner", "code"), [("polite", -15), ("stubborn", -9)])
def test_stop_ends_every_daemon_and_removes_its_files(root, run_daemon, manner, code):
    process = run_daemon(manner)
    assert [daemon.pid for daemon in stop_daemons(root=root, timeout_s=0.5)] == [process.pid]
    assert process.wait() == code
    assert os.listdir(root) == []
    assert stop_daemons(root=root) == []


def test_a_directory_that_others_can_enter_is_refused(tmp_path):
    open_to_all = tmp_path / "open"
    open_to_all.mkdir(0o755)
    (tmp_path / "link").symlink_to(private_directory(tmp_path / "ours"))
    for path in (open_to_all, tmp_path / "link"):
        with pytest.raises(AuthenticationError, match="mode 0700"):
            Registration("head", head=HEAD, address=HEAD, root=path)


def test_the_kernel_says_who_attaches(root):
    registration = Registration("head", head=HEAD, address=HEAD, root=root)
    listener = registration.listen()
    with socket.socket(socket.AF_UNIX) as near:
        near.connect(str(registration.daemon.socket_path))
        far, _ = listener.accept()
        assert peer_uid(far) == peer_uid(near) == os.geteuid()
        far.close()
    listener.close()
    registration.close()


def test_a_path_too_long_for_a_socket_says_what_to_do(tmp_path):
    root = tmp_path / ("x" * 120)
    registration = Registration("head", head=HEAD, address=HEAD, root=root)
    with pytest.raises(NanoRayError, match="choose a shorter directory"):
        registration.listen()
    registration.close()
