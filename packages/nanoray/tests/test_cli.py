import json
import os
import re
import shlex
import subprocess
import sys
import time

import pytest

import nanorlhf.nanoray as nanoray
from nanorlhf.nanoray.attach import attach
from nanorlhf.nanoray.cli import main, table
from nanorlhf.nanoray.session import set_current

WAIT_S = 30


class Machine:
    """The command line on one machine, with files of its own."""

    def __init__(self, folder):
        self.folder = folder

    def run(self, *words, **environ):
        command = [sys.executable, "-m", "nanorlhf.nanoray", "--root", self.folder / "run", *words]
        done = subprocess.run(
            [str(word) for word in command],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env={**os.environ, **environ},
        )
        return done.returncode, done.stdout, done.stderr

    def start_head(self, *words, **environ):
        token = self.folder / "token"
        words = ["--head", "--port=0", f"--token-path={token}", "--num-cpus=2", *words]
        status, out, error = self.run("start", *words, **environ)
        assert status == 0, error
        return re.search(r"listens on (\S+)", out)[1]

    def attach(self):
        root = self.folder / "run"
        set_current(attach("auto", root=root, runtime_env=None, log_to_driver=False))


@pytest.fixture
def machine(no_engine, tmp_path):
    machine = Machine(tmp_path)
    yield machine
    nanoray.shutdown()
    machine.run("stop")


def test_a_cluster_is_started_looked_at_and_stopped(machine, until):
    address = machine.start_head()
    machine.attach()

    @nanoray.remote
    class Speaker:
        def say(self, text):
            os.write(1, text.encode() + b"\n")
            return os.getpid()

        def dream_on(self):
            time.sleep(600)

    actor = Speaker.options(name="anna").remote()
    pid = nanoray.get(actor.say.remote("good evening"), timeout=WAIT_S)

    status, out, _ = machine.run("status")
    assert status == 0
    assert address in out
    assert "CPU=2" in out

    status, out, _ = machine.run("list", "actors", "--json")
    (row,) = map(json.loads, out.splitlines())
    assert (row["name"], row["state"], row["pid"]) == ("anna", "ALIVE", pid)
    assert "Speaker" in machine.run("list", "actors", f"--address=nano://{address}")[1]

    name = f"worker-{row['worker_id']}.log"
    assert until(lambda: name in machine.run("logs")[1])
    assert machine.run("logs", name)[1] == "good evening\n"
    assert machine.run("logs", "worker-99.log")[2].startswith(
        "nanoray logs: no log is called 'worker-99.log'; there are daemon.log, worker-"
    )

    trace = machine.folder / "trace.json"
    assert machine.run("timeline", trace)[1].startswith("wrote ")
    assert any(event["name"] == "Speaker.say()" for event in json.loads(trace.read_text()))

    actor.dream_on.remote()
    assert until(lambda: "dream_on" in machine.run("stack", pid)[1])

    nanoray.shutdown()
    status, out, _ = machine.run("stop")
    assert status == 0
    assert out.startswith("stopped head ")
    assert machine.run("stop")[1] == "no daemon of yours runs on this machine\n"


def test_what_start_says_to_do_finds_a_daemon_with_files_elsewhere(no_engine, tmp_path):
    machine = Machine(tmp_path / "two words")
    machine.folder.mkdir()
    token = machine.folder / "token"
    try:
        status, out, error = machine.run("start", "--head", "--port=0", f"--token-path={token}")
        assert status == 0, error
        said = dict(re.findall(r"^  (\w[\w ]+): +(.+)$", out, re.MULTILINE))
        call = re.fullmatch(r"nanoray\.init\((.+)\)", said["programs here"])
        nanoray.init(json.loads(call[1]))
        assert nanoray.get(nanoray.remote(lambda: 7).remote(), timeout=WAIT_S) == 7
        nanoray.shutdown()
        _, *words = shlex.split(said["end"])
        command = [sys.executable, "-m", "nanorlhf.nanoray", *words]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        assert done.stdout.startswith("stopped head ")
        with pytest.raises(nanoray.NanoRayError, match="no daemon of this user has its files in"):
            nanoray.init(json.loads(call[1]))
    finally:
        machine.run("stop")


def seen(megabytes):
    """Return the machine, the GPUs seen, and what is said of a value that is too large."""
    try:
        nanoray.put(bytes(megabytes << 20))
        refusal = ""
    except nanoray.StoreFullError as error:
        refusal = str(error)
    node_id = nanoray.get_runtime_context().node_id
    return node_id, os.environ["CUDA_VISIBLE_DEVICES"], refusal


def test_settings_of_the_cluster_and_of_each_machine_hold(machine, tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    policy = ["--scheduling-policy=round_robin", "--isolate-gpus"]
    store = ["--object-store-memory=8388608", f"--object-spilling-directory={here}"]
    address = machine.start_head(*policy, *store, CUDA_VISIBLE_DEVICES="3")
    other = Machine(tmp_path / "other")
    other.folder.mkdir()
    words = [f"--address={address}", f"--token-path={machine.folder / 'token'}", "--num-cpus=2"]
    store = ["--object-store-memory=16777216", f"--object-spilling-directory={there}"]
    try:
        status, _, error = other.run("start", *words, *store, CUDA_VISIBLE_DEVICES="5")
        assert status == 0, error
        machine.attach()
        task = nanoray.remote(num_cpus=0)(seen)
        rows = [nanoray.get(task.remote(20), timeout=WAIT_S) for _ in range(4)]
        nodes = [row["NodeID"] for row in nanoray.nodes()]
        assert [row[0] for row in rows] == nodes * 2, "in turn; the default would pack them"
        assert [row[1] for row in rows] == [""] * 4, "these tasks ask for no GPU"
        for row, size, folder in zip(rows, [8 << 20, 16 << 20], [here, there], strict=False):
            assert f"object_store_memory={size}" in row[2]
            assert f"spilled to {folder}" in row[2]
        gpu = task.options(num_gpus=1)
        assert sorted(nanoray.get([gpu.remote(1) for _ in range(2)], timeout=WAIT_S)) == sorted(
            [(nodes[0], "3", ""), (nodes[1], "5", "")]
        )
    finally:
        nanoray.shutdown()
        other.run("stop")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["status"], "nanoray status: no daemon of this user has its files in "),
        (["start", "--address=nowhere"], "nanoray start: "),
        (["start", "--head", "--host=0.0.0.0", "--port=0", "--num-cpus=-1"], "nanoray start: "),
        (["start", "--head", "--port=0", "--tls-key=k"], "nanoray start: TLS needs all of"),
        (["start", "--head", "--object-store-memory=1"], "nanoray start: object_store_memory=1 "),
        (
            ["start", "--head", "--object-spilling-directory=/dev/null"],
            "nanoray start: object_spilling_directory='/dev/null' is no directory",
        ),
        (
            ["start", "--address=127.0.0.1:1", "--isolate-gpus"],
            "nanoray start: --scheduling-policy and --isolate-gpus hold for the whole cluster",
        ),
    ],
)
def test_what_goes_wrong_is_said_in_one_line(machine, words, said):
    words = [*words, f"--token-path={machine.folder / 'token'}"] if words[0] == "start" else words
    status, out, error = machine.run(*words)
    assert status == 2
    assert out == ""
    assert error.startswith(said)
    assert len(error.splitlines()) == 1


def test_a_port_that_is_taken_is_said_by_start_itself(machine):
    address = machine.start_head()
    port = address.rpartition(":")[2]
    token = machine.folder / "token"
    status, _, error = machine.run("start", "--head", f"--port={port}", f"--token-path={token}")
    assert status == 2
    assert "in use" in error


def test_the_command_line_explains_itself(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    text = capsys.readouterr().out
    for command in ("start", "stop", "status", "list", "logs", "stack", "timeline"):
        assert command in text


def test_an_empty_table_says_so():
    assert table([]) == "(none)"
