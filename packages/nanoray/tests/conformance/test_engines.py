"""How an engine begins and ends, on both engines."""

import os
import subprocess
import sys
import threading

import pytest

import nanorlhf.nanoray as nanoray

WAIT_S = 60
PROGRAM = """
    import os, sys
    import nanorlhf.nanoray as nanoray

    @nanoray.remote
    class Actor:
        def pid(self):
            return os.getpid()
        def knows(self):
            return os.environ["COLOUR"], "wave" in sys.modules, __import__("shape").SIDES

    nanoray.init(
        engine=sys.argv[1],
        num_cpus=1,
        object_store_memory=100 << 20,
        preload=("wave",),
        runtime_env={"env_vars": {"COLOUR": "green"}, "py_paths": [sys.argv[2]]},
    )
    assert nanoray.cluster_resources()["CPU"] == 1
    if sys.argv[1] == "ray":
        import ray
        assert ray.cluster_resources()["object_store_memory"] == 100 << 20
    actor = Actor.remote()
    print(nanoray.get(actor.knows.remote()), nanoray.get(actor.pid.remote()))
    if sys.argv[3] == "shutdown":
        nanoray.shutdown()
        assert not nanoray.is_initialized()
"""


def test_an_engine_is_asked_for_once(engine):
    assert engine.is_initialized()
    with pytest.raises(nanoray.NanoRayError, match="call shutdown"):
        engine.init()
    engine.init(ignore_reinit_error=True)


def test_refs_and_handles_are_used_in_every_thread(engine):
    values = []
    ref = engine.put("here")
    thread = threading.Thread(target=lambda: values.append(engine.get(ref, timeout=WAIT_S)))
    thread.start()
    thread.join(WAIT_S)
    assert values == ["here"]


def test_an_unknown_engine_is_named(no_engine):
    with pytest.raises(ValueError, match="engine='spark' is unknown; use 'local' or 'ray'"):
        nanoray.init(engine="spark")


def test_without_ray_the_error_says_how_to_get_it(no_engine, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)  # as Python marks what cannot be imported
    with pytest.raises(nanoray.NanoRayError, match=r'pip install "nanoray\[ray\]"'):
        nanoray.init(engine="ray")
    assert not nanoray.is_initialized()


def test_what_ray_was_started_with_cannot_be_chosen_later(no_engine, one_ray):
    with pytest.raises(ValueError, match=r"connected to Ray, so num_cpus, env_vars cannot"):
        nanoray.init(engine="ray", num_cpus=1, runtime_env={"env_vars": {"A": "1"}})
    with pytest.raises(ValueError, match=r"object_store_memory, object_spilling_directory cannot"):
        nanoray.init(engine="ray", object_store_memory=1 << 20, object_spilling_directory="/tmp")
    nanoray.init(engine="ray")
    nanoray.shutdown()
    assert one_ray.is_initialized()


def test_refs_of_an_engine_that_ended_are_refused(no_engine, one_ray):
    nanoray.init(engine="ray")
    ref = nanoray.put(1)
    nanoray.shutdown()
    with pytest.raises(nanoray.NotInitializedError):
        nanoray.get(ref)
    nanoray.init(engine="ray")
    with pytest.raises(ValueError, match="shut down"):
        nanoray.get(ref)


@pytest.mark.slow
@pytest.mark.parametrize("end", ["shutdown", "exit"])
@pytest.mark.parametrize("name", ["local", "ray"])
def test_a_program_leaves_nothing_behind(name, end, tmp_path, until, ray_environment):
    if name == "ray":
        pytest.importorskip("ray", reason="Ray is not installed here; see the group 'peers'")
    (tmp_path / "wave.py").write_text("")
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "shape.py").write_text("SIDES = 4")
    program = tmp_path / "program.py"
    program.write_text("\n".join(line[4:] for line in PROGRAM.splitlines()))
    done = subprocess.run(
        [sys.executable, program, name, tmp_path / "lib", end],
        capture_output=True,
        text=True,
        timeout=110,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )
    assert done.returncode == 0, done.stderr
    *known, pid = done.stdout.split()
    assert " ".join(known) == "('green', True, 4)"
    assert until(lambda: not os.path.exists(f"/proc/{pid}"))
