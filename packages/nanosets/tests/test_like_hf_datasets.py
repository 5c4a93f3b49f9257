"""One program over our dataset and over Hugging Face's gives the same rows, verb by verb."""

import inspect
import math

import numpy as np
import pytest

from nanorlhf import nanosets

with pytest.MonkeyPatch.context() as patch:
    patch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets", reason="Hugging Face datasets is not installed")


# Theirs calls pyarrow in a way that pyarrow warns about.
pytestmark = pytest.mark.filterwarnings("ignore:Specifying null_placement:FutureWarning")

COLUMNS = {
    "i": [3, 1, None, 2, 3, 0, None, 1, 7, -2, 5],
    "x": [0.5, math.nan, 2.0, None, -1.0, 0.5, math.nan, None, 9.0, -0.5, 0.0],
    "s": ["b", "a", None, "", "\u00e9", "z", "b", "\U0001f600", "a", "Z", "aa"],
    "flag": [True, None, False, True, False, None, True, False, True, True, False],
    "tokens": [[1, 2], [], None, [3], [4, 5, 6], [7], [], [8], [9, 9], [1], [0]],
    "inner": [{"a": i, "b": {"c": str(i)}} if i % 4 else None for i in range(11)],
}


@pytest.fixture(autouse=True)
def caches(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path))
    datasets.disable_progress_bars()


@pytest.fixture
def pair():
    return nanosets, datasets


def same(program, plain):
    """Run a program with each library and compare what comes out."""
    ours, theirs = (program(library) for library in (nanosets, datasets))
    assert plain(ours) == plain(theirs)
    assert plain(ours) not in ([], {}, None)


def make(library, columns=COLUMNS):
    return library.Dataset.from_dict(columns)


ROW_VERBS = {
    "select": lambda ds: ds.select([4, 0, 0, 10]),
    "select a range": lambda ds: ds.select(range(2, 9, 3)),
    "skip": lambda ds: ds.skip(4),
    "take": lambda ds: ds.take(3),
    "take too many": lambda ds: ds.take(300),
    "repeat": lambda ds: ds.take(3).repeat(3),
    "shuffle": lambda ds: ds.shuffle(seed=3),
    "shuffle by a generator": lambda ds: ds.shuffle(generator=np.random.default_rng(5)),
    "shuffle twice": lambda ds: ds.shuffle(seed=3).shuffle(seed=4).select([1, 2, 3]),
    "shard": lambda ds: ds.shard(4, 1),
    "shard with a stride": lambda ds: ds.shard(num_shards=4, index=2, contiguous=False),
    "filter": lambda ds: ds.filter(lambda row: (row["i"] or 0) > 0),
    "filter a batch": lambda ds: ds.filter(
        lambda batch: [i is None for i in batch["i"]], batched=True, batch_size=4
    ),
    "filter columns": lambda ds: ds.filter(
        lambda i, s: i == 1 and s is not None, input_columns=["i", "s"]
    ),
    "filter with indices": lambda ds: ds.filter(lambda row, i: i % 3 == 0, with_indices=True),
    "filter with keywords": lambda ds: ds.filter(
        lambda row, low: (row["i"] or 0) > low, fn_kwargs={"low": 2}
    ),
    "filter a shuffle": lambda ds: ds.shuffle(seed=1).filter(lambda row: row["flag"]),
}


@pytest.mark.parametrize("verb", ROW_VERBS)
def test_a_verb_on_rows_picks_the_same_rows(verb, plain):
    same(lambda library: ROW_VERBS[verb](make(library)).to_list(), plain)


@pytest.mark.parametrize("column", ["i", "x", "s", "flag"])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("null_placement", ["at_end", "at_start"])
def test_sort_gives_the_same_order_and_keeps_ties(column, reverse, null_placement, plain):
    def program(library):
        ds = make(library).select_columns([column, "inner"])
        return ds.sort(column, reverse=reverse, null_placement=null_placement).to_list()

    same(program, plain)


@pytest.mark.parametrize(
    ("columns", "reverse"),
    [
        (["flag", "i"], False),
        (["flag", "i"], [True, False]),
        (["s", "x"], [False, True]),
        (["x", "s", "i"], True),
    ],
)
def test_sort_by_several_columns_gives_the_same_order(columns, reverse, plain):
    same(lambda library: make(library).sort(columns, reverse=reverse).to_list(), plain)


@pytest.mark.parametrize("column", ["i", "x", "s", "flag"])
def test_unique_values_are_the_same(column, plain):
    same(lambda library: make(library).unique(column), plain)
    same(lambda library: make(library).select([9, 1, 1, 4]).unique(column), plain)


COLUMN_VERBS = {
    "select_columns": lambda ds: ds.select_columns(["s", "i"]),
    "remove_columns": lambda ds: ds.remove_columns(["s", "i"]),
    "rename_column": lambda ds: ds.rename_column("s", "t"),
    "rename_columns": lambda ds: ds.rename_columns({"s": "t", "i": "j"}),
    "add_column": lambda ds: ds.add_column("n", list(range(11))),
    "flatten": lambda ds: ds.flatten(),
    "flatten once": lambda ds: ds.flatten(max_depth=2),
    "flatten picked rows": lambda ds: ds.select([7, 4, 1]).flatten(),
    "batch": lambda ds: ds.remove_columns("inner").batch(4),
    "batch, whole ones": lambda ds: ds.remove_columns("inner").batch(4, drop_last_batch=True),
}


@pytest.mark.parametrize("verb", COLUMN_VERBS)
def test_a_verb_on_columns_gives_the_same_columns(verb, plain):
    same(lambda library: COLUMN_VERBS[verb](make(library)).to_dict(), plain)
    same(lambda library: COLUMN_VERBS[verb](make(library)).column_names, plain)


def length_into(row):
    row["n"] = len(row["tokens"] or [])
    return row


def joined_into(batch):
    batch["s"] = [f"{s}{i}" for s, i in zip(batch["s"], batch["i"], strict=True)]
    return batch


MAPS = {
    "a row, changed": (length_into, {}),
    "a row, changed and without a column": (length_into, {"remove_columns": ["tokens", "x"]}),
    "a batch, changed": (joined_into, {"batched": True, "batch_size": 4}),
    "lists that are joined": (lambda row: {"n": (row["tokens"] or []) + [7]}, {}),
    "the row and more": (lambda row: {**row, "n": 1}, {}),
    "a row": (lambda row: {"n": len(row["tokens"] or [])}, {}),
    "a row, with its number": (lambda row, i: {"n": i}, {"with_indices": True}),
    "columns of a row": (lambda i, s: {"n": f"{i}{s}"}, {"input_columns": ["i", "s"]}),
    "a replaced column": (lambda row: {"i": (row["i"] or 0) + 1}, {}),
    "a removed column": (lambda row: {"n": row["s"]}, {"remove_columns": ["s", "tokens"]}),
    "a removed column made anew": (
        lambda row: {"s": row["s"] or "none"},
        {"remove_columns": ["s"]},
    ),
    "only new columns": (
        lambda row: {"n": row["i"]},
        {"remove_columns": list(COLUMNS)},
    ),
    "a batch": (lambda batch: {"n": [len(t or []) for t in batch["tokens"]]}, {"batched": True}),
    "batches of four": (
        lambda batch: {"n": [len(batch["i"])] * len(batch["i"])},
        {"batched": True, "batch_size": 4},
    ),
    "whole batches of four": (
        lambda batch: {"n": [len(batch["i"])] * len(batch["i"])},
        {"batched": True, "batch_size": 4, "drop_last_batch": True},
    ),
    "one batch": (
        lambda batch: {"n": [len(batch["i"])] * len(batch["i"])},
        {"batched": True, "batch_size": None},
    ),
    "a batch that grows": (
        lambda batch: {"n": [i for i in batch["i"] for _ in range(2)]},
        {"batched": True, "batch_size": 3, "remove_columns": list(COLUMNS)},
    ),
    "a batch with keywords": (
        lambda batch, indices, k: {"n": [i * k for i in indices]},
        {"batched": True, "with_indices": True, "fn_kwargs": {"k": 3}},
    ),
    "arrays": (lambda batch: {"n": np.arange(len(batch["i"]))}, {"batched": True}),
    "nothing": (lambda row: None, {}),
}


@pytest.mark.parametrize("case", MAPS)
def test_map_gives_the_same_columns(case, plain):
    function, options = MAPS[case]
    same(lambda library: make(library).map(function, **options).to_dict(), plain)
    same(lambda library: make(library).select([5, 1, 4]).map(function, **options).to_list(), plain)


@pytest.mark.parametrize(
    "sizes",
    [{}, {"test_size": 0.3}, {"test_size": 2}, {"train_size": 4, "test_size": 5}],
)
@pytest.mark.parametrize("shuffle", [True, False])
def test_splits_hold_the_same_rows(sizes, shuffle, plain):
    def program(library):
        found = make(library).train_test_split(**sizes, shuffle=shuffle, seed=7)
        return {name: found[name].to_list() for name in ("train", "test")}

    same(program, plain)


def parts(library):
    first = library.Dataset.from_dict({"a": [1, 2, 3], "b": ["x", "y", "z"]})
    second = library.Dataset.from_dict({"a": [10, 20, 30, 40, 50], "b": list("vwxyz")})
    third = library.Dataset.from_dict({"a": [100, 200, 300, 400], "b": list("ghij")})
    return [first, second, third]


@pytest.mark.parametrize(
    "strategy", ["first_exhausted", "all_exhausted", "all_exhausted_without_replacement"]
)
@pytest.mark.parametrize("probabilities", [None, [0.2, 0.5, 0.3], [0.9, 0.05, 0.05]])
def test_interleaved_rows_are_the_same(strategy, probabilities, plain):
    def program(library):
        return library.interleave_datasets(
            parts(library), probabilities=probabilities, seed=5, stopping_strategy=strategy
        ).to_list()

    same(program, plain)


def test_concatenated_rows_are_the_same(plain):
    same(lambda library: library.concatenate_datasets(parts(library)).to_list(), plain)

    def side_by_side(library):
        ds = make(library)
        both = [ds.select_columns(["i"]), ds.select_columns(["s", "x"])]
        return library.concatenate_datasets(both, axis=1).to_list()

    same(side_by_side, plain)


def test_batches_are_the_same(plain):
    same(lambda library: list(make(library).iter(4)), plain)
    same(lambda library: list(make(library).iter(4, drop_last_batch=True)), plain)
    same(lambda library: list(make(library).shuffle(seed=1).iter(3)), plain)


def test_keys_give_the_same_rows(plain):
    for key in (0, -1, slice(2, 5), slice(None, None, -2), [3, 3, 0], range(1, 4)):
        same(lambda library, key=key: make(library)[key], plain)


def test_generated_rows_are_the_same(plain):
    def rows(count):
        for i in range(count):
            yield {"i": i, "t": list(range(i))}

    same(
        lambda library: library.Dataset.from_generator(rows, gen_kwargs={"count": 5}).to_list(),
        plain,
    )


def test_a_transform_gives_the_same_batches(plain):
    def double(batch):
        return {"d": [None if i is None else 2 * i for i in batch["i"]]}

    for key in (0, slice(1, 4), [5, 5]):
        same(lambda library, key=key: make(library).with_transform(double)[key], plain)
    same(
        lambda library: make(library).with_transform(
            double, columns=["i"], output_all_columns=True
        )[:3],
        plain,
    )


def test_formatted_columns_are_the_same(plain):
    same(lambda library: make(library).with_format(None, columns=["s"])[1:3], plain)
    same(
        lambda library: (
            make(library).with_format("numpy", columns=["n"])[1:3]
            if library is None
            else make(library, {"n": [1, 2, 3], "s": list("abc")}).with_format(
                "numpy", columns=["n"], output_all_columns=True
            )[:]
        ),
        plain,
    )


def test_a_whole_program_gives_the_same_rows(plain):
    def program(library):
        ds = library.concatenate_datasets([make(library), make(library)])
        ds = ds.map(lambda row: {"length": len(row["tokens"] or []), "key": row["s"] or ""})
        ds = ds.filter(lambda row: row["length"] > 0).sort(["length", "key"], reverse=[True, False])
        splits = ds.remove_columns("inner").train_test_split(0.4, seed=11)
        splits = splits.map(lambda row: {"last": row["tokens"][-1]}, remove_columns=["tokens"])
        return {name: splits[name].shuffle(seed=2).skip(1).to_list() for name in splits}

    same(program, plain)


OWN = {
    "from_generator": {"output"},
    "from_file": {"verify", "io"},
    "map": {"output", "cache"},
    "save_to_disk": {"options"},
    "to_parquet": {"options"},
    "load_dataset": {"verify", "io"},
    "load_from_disk": {"verify", "io"},
}
"""Keywords that are ours alone."""
VERBS = [
    *("from_list", "from_dict", "from_generator"),
    *("from_json", "from_csv", "from_parquet", "from_file"),
    *("select", "skip", "take", "repeat", "shuffle", "shard", "sort", "filter", "unique"),
    *("map", "batch", "iter", "flatten", "train_test_split"),
    *("rename_column", "rename_columns", "remove_columns"),
    *("add_column", "select_columns", "cast", "cast_column"),
    *("with_format", "with_transform", "save_to_disk"),
    *("to_json", "to_csv", "to_parquet", "to_pandas"),
    *("to_polars", "to_list", "to_dict"),
]
FUNCTIONS = ["load_dataset", "load_from_disk", "concatenate_datasets", "interleave_datasets"]


@pytest.mark.parametrize("name", VERBS + FUNCTIONS)
def test_keywords_and_their_order_are_theirs(name):
    ours, theirs = (
        inspect.signature(getattr(owner if name in FUNCTIONS else owner.Dataset, name)).parameters
        for owner in (nanosets, datasets)
    )
    own = OWN.get(name, set()) | {"self", "ds"}
    assert [p for p in ours if p not in own and p not in theirs] == []
    # Flatten's first argument there is a fingerprint, which is no business of a caller's.
    positional = [n for n, p in ours.items() if p.kind == p.POSITIONAL_OR_KEYWORD and n not in own]
    expected = [n for n in theirs if n in positional and n != "new_fingerprint"]
    assert positional == expected
