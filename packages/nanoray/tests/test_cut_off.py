"""A machine that no message reaches any more, though it runs: given up, and back as a new one."""

import contextlib
import os
import signal
import socket
import threading
import time

import pytest

import nanorlhf.nanoray as nanoray

WAIT_S = 60


class Cable:
    """A way to a port that can be cut: nothing passes any more, and neither end is told."""

    def __init__(self, port):
        self._target = ("127.0.0.1", port)
        self._is_whole = threading.Event()
        self._is_whole.set()
        self._sockets = [socket.create_server(("127.0.0.1", 0))]
        self.port = self._sockets[0].getsockname()[1]
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def cut(self):
        self._is_whole.clear()

    def mend(self):
        self._is_whole.set()

    def close(self):
        self.mend()
        for sock in self._sockets:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for sock in self._sockets:
            sock.close()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._sockets[0].accept()
                far = socket.create_connection(self._target)
                self._sockets += [near, far]
                for pair in ((near, far), (far, near)):
                    thread = threading.Thread(target=self._carry, args=pair)
                    self._threads.append(thread)
                    thread.start()

    def _carry(self, source, target):
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                self._is_whole.wait()
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)


@pytest.fixture
def cable(cluster):
    """A cable between a head that gives machines up after a second and those that use it."""
    cluster.start("a", "127.0.0.1", cpus=0, limit=1)
    cable = Cable(cluster.port)
    yield cable
    cluster.stop()
    cable.close()


@nanoray.remote(num_cpus=0)
def node():
    return nanoray.get_runtime_context().node_id


@nanoray.remote
def second_time(folder):
    """Return the node, but the first time wait for ever, or until there is a file "go"."""
    is_first = not os.path.exists(folder / "first")
    if is_first:
        (folder / "new").write_text(str(os.getpid()))
        os.rename(folder / "new", folder / "first")
    while is_first and not os.path.exists(folder / "go"):
        time.sleep(0.01)
    (folder / "done").touch()
    return nanoray.get_runtime_context().node_id


def test_a_machine_that_is_cut_off_is_given_up_and_comes_back_as_a_new_one(
    cluster, cable, tmp_path, until, is_running
):
    cluster.start("b", "127.0.0.2", resource="b", limit=1, port=cable.port)
    ray = cluster.attach()
    retried = second_time.options(max_retries=1).remote(tmp_path)
    reported = ray.remote(num_cpus=0, resources={"b": 1}, max_retries=0)(signal.pause).remote()
    on_b = node.options(resources={"b": 1})
    old = ray.get(on_b.remote(), timeout=WAIT_S)
    assert until((tmp_path / "first").exists)
    cluster.start("c", "127.0.0.3", limit=1)
    c = ray.nodes()[-1]["NodeID"]

    cable.cut()
    with pytest.raises(ray.WorkerCrashedError, match="no sign of life for 1 s"):
        ray.get(reported, timeout=WAIT_S)
    assert ray.get(retried, timeout=WAIT_S) == c
    assert [row["Alive"] for row in ray.nodes()] == [True, False, True]
    # What ran there runs elsewhere by now: cut off itself, the machine has to end it.
    pid = int((tmp_path / "first").read_text())
    assert until(lambda: not is_running(pid))
    assert cluster.processes["b"].poll() is None

    cable.mend()
    cluster.wait_ready("b")
    assert [row["Alive"] for row in ray.nodes()] == [True, False, True, True]
    new = ray.nodes()[-1]["NodeID"]
    assert ray.get(on_b.remote(), timeout=WAIT_S) == new != old
    at_old = node.options(scheduling_strategy=ray.NodeAffinitySchedulingStrategy(old))
    with pytest.raises(ray.InfeasibleError, match=f"there is no node {old}"):
        at_old.remote()


@pytest.mark.slow
def test_what_a_machine_did_after_it_was_given_up_counts_for_nothing(cluster, tmp_path, until):
    cluster.start("a", "127.0.0.1", cpus=0, limit=1)
    b = cluster.start("b", "127.0.0.2", limit=1)
    ray = cluster.attach()
    ref = second_time.options(max_retries=1).remote(tmp_path)
    assert until((tmp_path / "first").exists)
    cluster.start("c", "127.0.0.3", limit=1)
    c = ray.nodes()[-1]["NodeID"]
    b.send_signal(signal.SIGSTOP)  # the daemon alone: its worker goes on
    assert ray.get(ref, timeout=WAIT_S) == c
    (tmp_path / "done").unlink()
    (tmp_path / "go").touch()
    assert until((tmp_path / "done").exists)
    b.send_signal(signal.SIGCONT)
    cluster.wait_ready("b")
    assert ray.get(ref, timeout=WAIT_S) == c
    assert [row["state"] for row in ray.list_tasks() if row["name"] == "second_time()"] == [
        "FINISHED"
    ]
