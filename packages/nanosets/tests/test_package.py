import doctest
import subprocess
import sys
from pathlib import Path

import nanorlhf.nanosets


def test_all_names_are_sorted_and_there():
    names = nanorlhf.nanosets.__all__
    assert names == sorted(names)
    assert all(hasattr(nanorlhf.nanosets, name) for name in names)


def test_importing_and_reading_needs_numpy_only(tmp_path):
    path = tmp_path / "a.nano"
    nanorlhf.nanosets.Dataset.from_dict({"t": [[1, 2]]}).save_to_disk(path)
    code = """
import sys
from nanorlhf.nanosets import load_dataset
assert load_dataset(sys.argv[1]).gather("t").values.tolist() == [1, 2]
heavy = {"torch", "pyarrow", "pandas", "tqdm", "importlib.metadata"} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code, path], check=True, timeout=60)


def test_the_example_of_the_readme_is_true(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    readme = Path(__file__).parent.parent / "README.md"
    result = doctest.testfile(str(readme), module_relative=False)
    assert result.attempted > 5
    assert result.failed == 0


def test_the_example_runs():
    example = Path(__file__).parent.parent / "examples" / "tokens.py"
    done = subprocess.run(
        [sys.executable, "-W", "error", example], check=True, timeout=60, capture_output=True
    )
    assert b"256 rows" in done.stdout
