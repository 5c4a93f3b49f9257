import functools
import logging
import math
import subprocess
import sys

import numpy as np
import pytest

from nanorlhf.nanosets import Dataset, load_from_disk
from nanorlhf.nanosets.cache import fingerprint


@pytest.fixture
def ds():
    return Dataset.from_dict({"i": range(6), "s": list("abcdef")})


def test_a_result_is_found_again_and_the_function_not_called(ds, tmp_path, caplog):
    calls, folder = tmp_path / "calls", tmp_path / "cache"

    def count(row):
        with open(calls, "a") as handle:
            handle.write(".")
        return {"n": row["i"] + 1}

    with caplog.at_level(logging.INFO, logger="nanorlhf.nanosets"):
        first = ds.map(count, cache=folder)
    (path,) = folder.iterdir()
    assert str(path) in caplog.text
    assert "found=False" in caplog.text
    again = ds.map(count, cache=folder)
    assert again.to_list() == first.to_list() == [{**row, "n": row["i"] + 1} for row in ds]
    assert calls.read_text() == "." * 6


def test_other_rows_functions_and_arguments_have_results_of_their_own(ds, tmp_path):
    def one(row):
        return {"n": 1}

    def two(row):
        return {"n": 2}

    calls = [
        lambda: ds.map(one, cache=tmp_path),
        lambda: ds.map(two, cache=tmp_path),
        lambda: ds.select([0, 1]).map(one, cache=tmp_path),
        lambda: ds.select([1, 0]).map(one, cache=tmp_path),
        lambda: ds.rename_column("s", "t").map(one, cache=tmp_path),
        lambda: ds.cast_column("i", "int32").map(one, cache=tmp_path),
        lambda: ds.map(one, cache=tmp_path, remove_columns="s"),
        lambda: ds.map(one, cache=tmp_path, features={"i": "int64", "s": "utf8", "n": "int8"}),
        lambda: ds.map(one, cache=tmp_path, batch_size=2, num_proc=2),
    ]
    counts = []
    for call in calls:
        call()
        counts.append(len(list(tmp_path.iterdir())))
    # The last differs in what makes no other result.
    assert counts == [1, 2, 3, 4, 5, 6, 7, 8, 8]
    with pytest.raises(ValueError, match="both name the result; leave one out"):
        ds.map(one, cache=tmp_path, output=tmp_path / "a.nano")


def test_a_dataset_is_known_by_its_content_wherever_it_lies(ds, tmp_path):
    ids = set()
    for folder in ("a", "b"):
        ds.save_to_disk(tmp_path / folder / "x.nano", checksum="crc32")
        ids.add(load_from_disk(tmp_path / folder / "x.nano").content_id())
    assert len(ids) == 1
    other = Dataset.from_dict({"i": [0, 1, 2, 3, 4, 9], "s": list("abcdef")})
    other.save_to_disk(tmp_path / "c.nano", checksum="crc32")
    ids.add(load_from_disk(tmp_path / "c.nano").content_id())
    assert len(ids) == 2
    assert ds.content_id() == Dataset.from_list(ds.to_list()).content_id()
    assert ds.content_id() != other.content_id()
    assert ds.shuffle(seed=0).content_id() == ds.shuffle(seed=0).content_id()
    assert len({ds.shuffle(seed=s).content_id() for s in range(5)} | {ds.content_id()}) == 6


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ([{"m": {"a": 1}}], [{"m": {"a": 2}}]),
        ([{"m": {"a": 1}}, {"m": None}], [{"m": {"a": None}}, {"m": {"a": 1}}]),
    ],
)
def test_fields_of_structs_count(one, other):
    assert (
        Dataset.from_list(one).flatten().content_id()
        == Dataset.from_list(one).flatten().content_id()
    )
    assert (
        Dataset.from_list(one).flatten().content_id()
        != Dataset.from_list(other).flatten().content_id()
    )


def test_values_of_dictionaries_count():
    ids = {
        Dataset.from_dict({"d": values}, features={"d": "dictionary<utf8>"}).content_id()
        for values in (["a", "b"], ["a", "c"], ["a", "b"])
    }
    assert len(ids) == 2


FACTOR = 3


def helper(x):
    return x * FACTOR


def make(value):
    def inner(row, k=1, *, m=2):
        return helper(row) + value + k + m

    return inner


def test_a_function_is_known_by_what_it_does(monkeypatch):
    def key(function):
        return fingerprint(function, {})

    assert key(make(1)) == key(make(1))
    assert key(make(1)) != key(make(2))  # the closure
    changed = make(1)
    changed.__defaults__ = (5,)
    assert key(changed) != key(make(1))
    changed = make(1)
    changed.__kwdefaults__ = {"m": 5}
    assert key(changed) != key(make(1))
    before = key(make(1))
    monkeypatch.setitem(globals(), "FACTOR", 4)
    assert key(make(1)) != before  # a global of a function that it calls
    assert key(lambda x: x + 1) == key(lambda x: x + 1)
    assert key(lambda x: x + 1) != key(lambda x: x + 2)
    assert key(lambda x: x.lower()) != key(lambda x: x.upper())
    assert key(functools.partial(make, 1)) != key(functools.partial(make, 2))
    assert key(math.sqrt) != key(math.exp)
    assert fingerprint(helper, {"a": np.array([1])}) != fingerprint(helper, {"a": np.array([2])})
    assert fingerprint(helper, {"a": {1, 2}}) == fingerprint(helper, {"a": {2, 1}})


class Scaled:
    def __init__(self, factor):
        self.factor = factor

    def __call__(self, row):
        return {"n": row["i"] * self.factor}

    def again(self, row):
        return self(row)


def test_objects_and_methods_are_known_by_their_state():
    assert fingerprint(Scaled(2), {}) == fingerprint(Scaled(2), {})
    assert fingerprint(Scaled(2), {}) != fingerprint(Scaled(3), {})
    assert fingerprint(Scaled(2).again, {}) != fingerprint(Scaled(3).again, {})
    assert fingerprint(Scaled(2).again, {}) != fingerprint(Scaled(2).__call__, {})


def factorial(n):
    return 1 if n < 2 else n * factorial(n - 1)


def test_a_function_may_call_itself():
    assert fingerprint(factorial, {}) == fingerprint(factorial, {})


def test_what_has_no_bytes_is_refused(ds, tmp_path):
    lock = __import__("threading").Lock()
    with pytest.raises(TypeError, match=r"its lock has none .* pass output= instead"):
        ds.map(lambda row: {"n": lock.locked()}, cache=tmp_path)


def test_a_dataset_in_a_closure_counts_by_its_content(ds):
    def keyed(table):
        return fingerprint(lambda row: table[0], {})

    assert keyed(ds) == keyed(Dataset.from_list(ds.to_list()))
    assert keyed(ds) != keyed(ds.take(3))


def test_another_process_gives_the_same_name(tmp_path):
    program = """
from nanorlhf.nanosets import Dataset
from nanorlhf.nanosets.cache import fingerprint
words = {"to", "be", "or", "not"}
ds = Dataset.from_dict({"i": range(6)})
print(ds.content_id(), fingerprint(lambda row: row in words or row in {"a", "b"}, {}))
"""
    found = {
        subprocess.run(
            [sys.executable, "-c", program],
            check=True,
            capture_output=True,
            timeout=60,
            env={"PYTHONHASHSEED": seed, "PATH": ""},
        ).stdout
        for seed in ("1", "2")
    }
    assert len(found) == 1
