"""Verbs over all rows of the benchmark of datasets: map, filter, shuffle and save."""

import time

import numpy as np
from dataset_files import LENGTH, MAPPED_MB, WIDENED_MB, removed, settle, written


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

    Of the table as it is, which gains a column, and of its strings alone, in whose place the arrays
    come: what is left to win there is least. HF datasets gets its default format, in which it maps
    these fastest.
    """
    cache = folder / "mapped.arrow"

    def in_turn(case, runs, megabytes):
        """Time functions in turn, each so many times, so that all meet the same moods."""
        values = {impl: [] for impl in runs}
        for turn in range(max(repeats for _, repeats in runs.values())):
            for impl, (fn, repeats) in runs.items():
                if turn < repeats:
                    for part in folder.glob("mapped*"):
                        removed(part)
                    settle(folder, megabytes)
                    start = time.perf_counter()
                    found = fn()
                    values[impl].append(time.perf_counter() - start)
                    del found  # ours takes its temporary file with it, which is no part of the map
        for impl, found in values.items():
            results.add(case, impl, found, "s")

    def compared(case, rows, function, *, alone, batched, repeats, processes):
        mine, other = ours.take(rows), hf.select(range(min(rows, len(hf))))
        text = mine.select_columns(["question"])
        options = {"batched": batched}
        if alone:
            mine, other = text, other.select_columns(["question"])
            options["remove_columns"] = ["question"]
        hfs = {"cache_file_name": str(cache), "load_from_cache_file": False, **options}
        runs = {
            "reading and calling alone": (
                lambda: called(text, function, batched=batched),
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
        in_turn(case, runs, MAPPED_MB if alone else WIDENED_MB)

    added, turned = "map, a column of int32 arrays added", "map, strings alone to int32 arrays"
    for name, alone in ((added, False), (turned, True)):
        for way, batched, repeats in (("batched", True, (5, 5)), ("row by row", False, (3, 1))):
            case = f"{name}, {way}"
            function = ids_of_batch if batched else ids_of_row
            how = {"alone": alone, "batched": batched, "repeats": repeats, "processes": (1, 2)}
            compared(case, len(ours), function, **how)
            results.goal(case, 4, against="HF datasets")
            results.goal(case, 1.5, impl="nanosets, 2 processes", against="nanosets")
    out = folder / "mapped.nano"
    run = lambda: ours.map(ids_of_batch, batched=True, output=out)  # noqa: E731
    in_turn(f"{added}, batched", {"nanosets, output= and fsync": (run, 1)}, WIDENED_MB)
    case = "map of 100,000 rows, strings to lists of ints, row by row"
    how = {"alone": True, "batched": False, "repeats": (3, 3), "processes": (1,)}
    compared(case, 100_000, list_of_row, **how)
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
