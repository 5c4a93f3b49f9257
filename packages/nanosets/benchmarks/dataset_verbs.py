"""Verbs over all rows of the benchmark of datasets: map, filter, shuffle and save."""

import time

import numpy as np
from dataset_files import LENGTH, MAPPED_MB, removed, settle, written


def ids_of_batch(batch):
    """Return token ids of strings: their bytes as int32, an array made for each string."""
    return {
        "ids": [np.frombuffer(t.encode(), np.uint8).astype(np.int32) for t in batch["question"]]
    }


def ids_of_row(row):
    """Return the same of one row."""
    return {"ids": np.frombuffer(row["question"].encode(), np.uint8).astype(np.int32)}


def list_of_row(row):
    """Return the same of one row, as a list."""
    return {"ids": list(row["question"].encode())}


def called(text, function, *, batched):
    """Read all rows as map does, and call the function on them: what no map can save."""
    for batch in text.iter(1000):
        if batched:
            function(batch)
        else:
            for question in batch["question"]:
                function({"question": question})


def maps(results, ours, hf, folder):
    """Map strings to arrays, by one process and two; the same functions for both libraries.

    HF datasets gets its default format, in which it maps these fastest.
    """
    text, theirs = ours.select_columns(["question"]), hf.select_columns(["question"])
    cache = folder / "mapped.arrow"

    def in_turn(case, runs):
        """Time functions in turn, each so many times, so that all meet the same moods."""
        values = {impl: [] for impl in runs}
        for turn in range(max(repeats for _, repeats in runs.values())):
            for impl, (fn, repeats) in runs.items():
                if turn < repeats:
                    for part in folder.glob("mapped*"):
                        removed(part)
                    settle(folder, MAPPED_MB)
                    start = time.perf_counter()
                    found = fn()
                    values[impl].append(time.perf_counter() - start)
                    del found  # ours takes its temporary file with it, which is no part of the map
        for impl, found in values.items():
            results.add(case, impl, found, "s")

    def compared(case, rows, function, *, batched, repeats, processes):
        mine, other = text.take(rows), theirs.select(range(min(rows, len(theirs))))
        options = {"batched": batched, "remove_columns": ["question"]}
        hfs = {"cache_file_name": str(cache), "load_from_cache_file": False, **options}
        runs = {
            "reading and calling alone": (
                lambda: called(mine, function, batched=batched),
                repeats[0],
            )
        }
        for count in processes:
            spread = {} if count == 1 else {"num_proc": count}
            suffix = "" if count == 1 else f", {count} processes"
            runs |= {
                f"nanosets{suffix}": (
                    lambda spread=spread: mine.map(function, **spread, **options),
                    repeats[0],
                ),
                f"HF datasets{suffix}": (
                    lambda spread=spread: other.map(function, **spread, **hfs),
                    repeats[1],
                ),
            }
        in_turn(case, runs)
        return options

    case, everything = "map, strings to int32 arrays, batched", len(text)
    both = {"repeats": (9, 9), "processes": (1, 2)}
    options = compared(case, everything, ids_of_batch, batched=True, **both)
    out = folder / "mapped.nano"
    run = lambda: text.map(ids_of_batch, output=out, **options)  # noqa: E731
    in_turn(case, {"nanosets, output= and fsync": (run, 1)})
    by_row = "map, strings to int32 arrays, row by row"
    compared(by_row, everything, ids_of_row, batched=False, repeats=(5, 1), processes=(1, 2))
    for name in (case, by_row):
        results.goal(name, 4, against="HF datasets")
        results.goal(name, 1.5, impl="nanosets, 2 processes", against="nanosets")
    case = "map of 100,000 rows, strings to lists of ints, row by row"
    compared(case, 100_000, list_of_row, batched=False, repeats=(5, 3), processes=(1,))
    results.goal(case, 2, against="HF datasets")


def long_verbs(results, ours, arrow, hf, folder, rows):
    """Scan, map, filter, and shuffle and save."""
    import pyarrow.compute as pc

    case = "full scan, sum of all tokens"
    batches = ours.select_columns(["tokens"]).with_format("numpy")
    run = lambda: sum(int(b["tokens"].values.sum()) for b in batches.iter(65_536))  # noqa: E731
    results.time(case, "nanosets", run, repeats=5)
    for name, table in arrow.items():
        run = lambda t=table: sum(int(c.values.to_numpy().sum()) for c in t["tokens"].chunks)  # noqa: E731
        results.time(case, f"pyarrow, {name}", run, repeats=5)

    maps(results, ours, hf, folder)

    case = "filter, more than 200 tokens"
    results.time(
        case, "nanosets", lambda: ours.filter(ours["tokens"].lengths() > LENGTH), repeats=9
    )
    table = arrow["10k-row batches"]

    def arrow_filter():
        return table.filter(pc.greater(pc.list_value_length(table["tokens"]), LENGTH))

    results.time(case, "pyarrow, 10k-row batches", arrow_filter, repeats=3)

    def longer(batch):
        return [len(tokens) > LENGTH for tokens in batch["tokens"]]

    start = time.perf_counter()
    hf.with_format("numpy").filter(
        longer, batched=True, input_columns=None, load_from_cache_file=False,
        cache_file_name=str(folder / "kept.arrow"),
    )  # fmt: skip
    results.add(case, "HF datasets, numpy", [(time.perf_counter() - start) * 1e3], "ms")
    results.goal(case, 100, against="HF datasets, numpy")

    case, target = "shuffle and save", {"nano": folder / "shuffled.nano", "hf": folder / "shuffled"}
    savers = {
        "nanosets": ("nano", lambda: ours.shuffle(seed=2).save_to_disk(target["nano"], sync=False)),
        "HF datasets": ("hf", lambda: hf.shuffle(seed=2).save_to_disk(target["hf"])),
    }
    written(results, case, savers, target, repeats=3)
    written(
        results,
        "shuffle, save and fsync",
        {"nanosets": ("nano", lambda: ours.shuffle(seed=2).save_to_disk(target["nano"]))},
        target,
        repeats=1,
    )
    results.goal(case, 2, against="HF datasets")
