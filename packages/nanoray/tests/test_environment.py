import os
import sys

import pytest

from nanorlhf.nanoray.environment import Environment, environment


def test_the_canonical_form_is_sorted_and_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = {"env_vars": {"B": "2", "A": "1"}, "working_dir": "run", "py_paths": ["lib"]}
    expected = Environment(
        (("A", "1"), ("B", "2")), str(tmp_path / "run"), (str(tmp_path / "lib"),)
    )
    assert environment(given) == expected
    assert not environment(None)
    assert not environment({"env_vars": {}})


@pytest.mark.parametrize(
    ("given", "error", "match"),
    [
        ({"pip": ["x"]}, ValueError, "has 'pip'; known: env_vars, py_paths, working_dir"),
        ({"env_vars": {"N": 1}}, TypeError, "both must be str"),
        ({"py_paths": "lib"}, TypeError, "pass a list of folders"),
        ({"py_paths": [3]}, TypeError, "py_paths has 3, which is no path"),
        ({"working_dir": 3}, TypeError, "working_dir has 3, which is no path"),
    ],
)
def test_what_is_no_environment_is_refused(given, error, match):
    with pytest.raises(error, match=match):
        environment(given)


def test_a_folder_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"working_dir='.*gone', which is no folder here"):
        environment({"working_dir": tmp_path / "gone"}).check_folders()
    with pytest.raises(ValueError, match="py_paths="):
        environment({"py_paths": [tmp_path, tmp_path / "gone"]}).check_folders()


def test_entering_changes_variables_folder_and_paths(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", ["first"])
    monkeypatch.setenv("PYTHONPATH", "inherited")
    monkeypatch.setenv("NANORAY_A", "0")
    monkeypatch.chdir("/")
    lib = tmp_path / "lib"
    lib.mkdir()
    given = {"env_vars": {"NANORAY_A": "1"}, "working_dir": tmp_path, "py_paths": [lib]}
    environment(given).enter()
    assert os.environ["NANORAY_A"] == "1"
    assert os.getcwd() == str(tmp_path)
    assert sys.path == [str(tmp_path), str(lib), "first"]
    assert os.environ["PYTHONPATH"] == f"{lib}{os.pathsep}inherited"


def test_what_is_named_wins_over_what_is_inherited():
    base = environment({"env_vars": {"A": "1", "B": "1"}, "working_dir": "/run"})
    own = environment({"env_vars": {"B": "2"}, "py_paths": ["/lib"]})
    assert own.over(base) == environment(
        {"env_vars": {"A": "1", "B": "2"}, "working_dir": "/run", "py_paths": ["/lib"]}
    )
    assert Environment().over(base) == base


@pytest.fixture
def where():
    def where():
        variables = [os.environ.get(name) for name in ("NANORAY_A", "NANORAY_B")]
        return os.getcwd(), *variables, sys.path[:2]

    return where


def test_a_call_finds_its_environment_and_hands_it_on(start, where, tmp_path):
    lib = tmp_path / "lib"
    lib.mkdir()
    (lib / "nanoray_test_module.py").write_text("ANSWER = 42\n")
    ray = start(num_cpus=2, runtime_env={"env_vars": {"NANORAY_A": "1", "NANORAY_B": "1"}})
    here = ray.remote(where)

    @ray.remote
    def child():
        import nanoray_test_module

        seen = ray.get(here.options(runtime_env={"env_vars": {"NANORAY_B": "3"}}).remote())
        return nanoray_test_module.ANSWER, where(), seen

    env = {"env_vars": {"NANORAY_B": "2"}, "working_dir": tmp_path, "py_paths": [lib]}
    answer, own, inherited = ray.get(child.options(runtime_env=env).remote(), timeout=30)
    paths = [str(tmp_path), str(lib)]
    assert answer == 42
    assert own == (str(tmp_path), "1", "2", paths)
    assert inherited == (str(tmp_path), "1", "3", paths)
    assert ray.get(here.remote(), timeout=30)[:3] == (os.getcwd(), "1", "1")


def test_a_missing_folder_is_refused_where_the_call_is_made(ray, where, tmp_path):
    call = ray.remote(where).options(runtime_env={"working_dir": tmp_path / "gone"})
    with pytest.raises(ValueError, match="no folder here"):
        call.remote()
