"""Engines for tests, and a limit on how long any test may take."""

import os
import shutil
import signal
import subprocess
import time

import cloudpickle
import hypothesis
import pytest

import nanorlhf.nanoray as nanoray

LIMIT_S = 120

# No example is wrong because the machine was busy.
hypothesis.settings.register_profile("patient", deadline=None)
hypothesis.settings.load_profile("patient")


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
