"""Engines for tests, and a limit on how long any test may take."""

import os
import shutil
import signal
import subprocess
import sys
import time

import cloudpickle
import hypothesis
import pytest

import nanorlhf.nanoray as nanoray
from nanorlhf.nanoray.attach import attach
from nanorlhf.nanoray.daemons import stop_daemons
from nanorlhf.nanoray.session import set_current

LIMIT_S = 120

# No example is wrong because the machine was busy.
hypothesis.settings.register_profile("patient", deadline=None)
hypothesis.settings.load_profile("patient")


DAEMON = """
import logging, sys
from pathlib import Path
from nanorlhf.nanoray.agent import run_agent
from nanorlhf.nanoray.address import parse_address
from nanorlhf.nanoray.head import run_head
from nanorlhf.nanoray.station import MachineConfig
from nanorlhf.nanoray.tls import TlsFiles

logging.basicConfig(format="%(message)s")
root, name, host, port, cpus, resources, limit, store = sys.argv[1:9]
certificate, key, authority = map(Path, sys.argv[9:12] or [""] * 3)
tls = TlsFiles(certificate=certificate, key=key, authority=authority) if sys.argv[9:] else None
config = MachineConfig(
    host=host, token_path=Path(root) / "token", root=Path(root) / name,
    tls=tls, num_cpus=float(cpus), object_store_memory=int(store) or None,
    resources={resources: 4} if resources else {}, beat_s=0.1, limit_s=float(limit), rejoin_s=20,
)
ready = lambda daemon: print("ready", daemon.address.port, flush=True)
if port == "head":
    run_head(config, on_ready=ready)
else:
    run_agent(parse_address(port), config, on_ready=ready)
"""


class Cluster:
    """Daemons that share a token, and this process as a driver."""

    def __init__(self, root):
        self.root = root
        self.processes = {}
        self.host = self.port = None

    def command(
        self, name, host, *, cpus=1, resource="", limit=30, store=0, tls=(), port=None, within=()
    ):
        port = port or self.port
        where = f"{self.host}:{port}" if port else "head"
        words = [self.root, name, host, where, cpus, resource, limit, store, *tls]
        return [*within, sys.executable, "-c", DAEMON, *map(str, words)]

    def start(self, name, host, **settings):
        """Start a machine and wait until it has joined.

        ``settings`` are cpus, resource, limit (seconds of silence), store (bytes; 0 for the
        default), tls, port, where the head's is another, and within, a command that runs commands.
        """
        self.host = self.host or host
        words = self.command(name, host, **settings)
        process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        self.processes[name] = process
        self.wait_ready(name)
        return process

    def wait_ready(self, name):
        word, port = self.processes[name].stdout.readline().split()
        assert word == "ready"
        self.port = self.port or int(port)

    def attach(self, name="a"):
        set_current(attach("auto", root=self.root / name, runtime_env=None, log_to_driver=True))
        return nanoray

    def stop(self):
        nanoray.shutdown()
        for name in self.processes:
            stop_daemons(root=self.root / name)
        for process in self.processes.values():
            process.send_signal(signal.SIGCONT)
            process.kill()
            process.wait()
            process.stdout.close()


@pytest.fixture(autouse=True)
def limit():
    """Fail, instead of hanging, a test that waits for something that never comes."""

    def expire(*_):
        raise TimeoutError(f"the test took more than {LIMIT_S} s")

    before = signal.signal(signal.SIGALRM, expire)
    signal.alarm(LIMIT_S)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module", autouse=True)
def _by_value(request):
    """Send what a test file defines by value: pytest alone can import these files."""
    cloudpickle.register_pickle_by_value(request.module)
    yield
    cloudpickle.unregister_pickle_by_value(request.module)


@pytest.fixture(scope="session", autouse=True)
def _at_the_end():
    yield
    nanoray.shutdown()


@pytest.fixture
def ray():
    """An engine of two CPUs that tests share, for it takes a while to start."""
    if not nanoray.is_initialized():
        nanoray.init(num_cpus=2, resources={"license": 1})
    return nanoray


@pytest.fixture
def no_engine():
    """No engine, before and after."""
    nanoray.shutdown()
    yield
    nanoray.shutdown()


@pytest.fixture
def start(no_engine):
    """Start an engine of its own: ``start(num_cpus=1)``."""

    def begin(**options):
        nanoray.init(**options)
        return nanoray

    return begin


@pytest.fixture
def cluster(no_engine, tmp_path):
    """A cluster without machines."""
    cluster = Cluster(tmp_path)
    yield cluster
    cluster.stop()


@pytest.fixture(scope="module")
def shared_cluster(tmp_path_factory):
    """A cluster that the tests of a file share; its driver stays attached."""
    nanoray.shutdown()
    cluster = Cluster(tmp_path_factory.mktemp("cluster"))
    yield cluster
    cluster.stop()


@pytest.fixture
def until():
    """Wait for a condition: ``until(lambda: ...)``; False when it does not come true."""

    def poll(condition, timeout_s=20.0):
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if condition():
                return True
            time.sleep(0.01)
        return False

    return poll


@pytest.fixture
def is_running():
    """Return whether a process id belongs to a process that is not a zombie."""

    def check(pid):
        try:
            with open(f"/proc/{pid}/stat") as file:
                return file.read().rsplit(")", 1)[1].split()[0] != "Z"
        except (FileNotFoundError, ProcessLookupError):  # gone before, or while, it was read
            return False

    assert check(os.getpid())
    return check


@pytest.fixture(scope="session")
def make_certificate(tmp_path_factory):
    """Make ``(certificate, key, authority)``, a new machine of the authority ``name``."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("certificates are made by the openssl program, which is not installed")
    place = tmp_path_factory.mktemp("tls")

    def run(*words):
        subprocess.run([openssl, *map(str, words)], check=True, capture_output=True, cwd=place)

    def make(name):
        authority, authority_key = place / f"{name}.pem", place / f"{name}.key"
        new_key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
        if not authority.exists():
            files = ("-keyout", authority_key, "-out", authority)
            run("req", "-x509", *new_key, *files, "-subj", f"/CN={name}", "-days", "2")
        machine = place / f"{name}-{len(list(place.iterdir()))}"
        certificate, key, request = (machine.with_suffix(end) for end in (".crt", ".k", ".csr"))
        run("req", *new_key, "-keyout", key, "-out", request, "-subj", "/CN=machine")
        signer = ("-CA", authority, "-CAkey", authority_key, "-CAcreateserial", "-days", "2")
        run("x509", "-req", "-in", request, *signer, "-out", certificate)
        return certificate, key, authority

    return make


@pytest.fixture
def two(cluster):
    """A head with resource "a" and an agent with resource "b", and this process as a driver."""
    cluster.start("a", "127.0.0.1", resource="a")
    cluster.start("b", "127.0.0.2", resource="b")
    return cluster.attach()
