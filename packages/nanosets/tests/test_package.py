import subprocess
import sys

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
