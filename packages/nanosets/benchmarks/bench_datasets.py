"""Times datasets of token lists against HF datasets, pyarrow and polars; writes tables and JSON.

    python packages/nanosets/benchmarks/bench_datasets.py [--rows 1000000] [--folder DIR]

One table {id: int64, question: about 120 bytes, tokens: list<int32> of about 200} is written in
each library's format, then opened, scanned, sampled, mapped, filtered and shuffled. Everything is
in the page cache. Arrow files come with 1k rows a batch (what HF datasets writes), with 10k, and
as a single batch (Arrow's best case, which takes a copy of the whole table to make).

Reading a .nano file checks its structure in all of these figures: rows, footer and directory when
it is opened, places of buffers and offsets when a column is first touched. Like is timed with
like, in turn where that is quick enough, so that all meet the machine in the same moods: nobody
waits for the disk but in the rows named fsync, and every file is written where there is none.
"""

import argparse
import gc
import json
import os
import platform
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path

import numpy as np

CHECKSUMS = "data checksums: written always (xxh3_64 but where a row says crc32), compared only in "
CHECKSUMS += "the row that says so; checks of structure: always on"
FSYNC = "fsync: off but in rows that say so"
REPOSITORY = Path(__file__).resolve().parents[3]
BATCH, LENGTH, SEED = 256, 200, 0
PEERS = ("datasets", "pyarrow", "polars", "numpy", "xxhash")
ARROW_BATCHES = {"1k-row batches": 1_000, "10k-row batches": 10_000, "a single batch": None}

PROBE = """
import gc, json, resource, sys, time
import numpy as np
kind, path = sys.argv[1:]
def rss():
    with open("/proc/self/statm") as f:
        return int(f.read().split()[1]) * resource.getpagesize()
if kind == "nano":
    from nanorlhf.nanosets import load_dataset
    open_it = lambda: load_dataset(path)
elif kind == "arrow":
    import pyarrow as pa
    open_it = lambda: pa.ipc.open_file(pa.memory_map(path)).read_all()
elif kind == "hf":
    import datasets
    open_it = lambda: datasets.load_from_disk(path)
else:
    import polars as pl
    open_it = lambda: pl.read_ipc(path)
gc.collect()
before = rss()
start = time.perf_counter()
found = open_it()
rows = len(found) if hasattr(found, "__len__") else found.num_rows
first = time.perf_counter() - start
added = rss() - before
times = []
while len(times) < 3 or (sum(times) < 0.5 and len(times) < 200):
    del found
    start = time.perf_counter()
    found = open_it()
    times.append(time.perf_counter() - start)
print(json.dumps({"rows": rows, "added": added, "times": times}))
"""


class Results:
    """Rows of the table, in order."""

    def __init__(self):
        self.rows = []
        self.goals = []
        self.limits = []

    def add(self, case, impl, values, unit):
        """Record repeated measurements of one thing."""
        ordered = sorted(values)
        low, high = (ordered[int(q * (len(ordered) - 1))] for q in (0.2, 0.8))
        median = statistics.median(ordered)
        metric = "memory" if unit == "MB" else "time"
        row = {"case": case, "impl": impl, "metric": metric, "unit": unit}
        self.rows.append(row | {"median": median, "p20": low, "p80": high, "repeats": len(ordered)})
        print(f"| {case} | {impl} | {median:.4g} {unit} |", flush=True)

    def time(self, case, impl, fn, *, repeats, scale=1e3, unit="ms", number=1):
        """Time ``number`` calls of ``fn``, ``repeats`` times over, after one call unmeasured."""
        fn()
        gc.collect()
        values = []
        for _ in range(repeats):
            start = time.perf_counter()
            for _ in range(number):
                fn()
            values.append((time.perf_counter() - start) * scale / number)
        self.add(case, impl, values, unit)

    def race(self, case, runs, *, rounds=10):
        """Time functions in turn, so many calls of each in every round, in ms."""
        values = {impl: [] for impl in runs}
        for fn, _ in runs.values():
            fn()
        gc.collect()
        for _ in range(rounds):
            for impl, (fn, calls) in runs.items():
                for _ in range(calls):
                    start = time.perf_counter()
                    fn()
                    values[impl].append((time.perf_counter() - start) * 1e3)
        for impl, found in values.items():
            self.add(case, impl, found, "ms")

    def behind(self):
        """Yield the rows of peers that beat ours in the same case."""
        ours = {row["case"]: row["median"] for row in self.rows if row["impl"] == "nanosets"}
        for row in self.rows:
            mine = ours.get(row["case"])
            if mine is None or row["impl"].startswith(("nanosets", "reading")):
                continue
            if row["median"] < mine:
                names = ("case", "impl", "unit", "median")
                yield {name: row[name] for name in names} | {"nanosets": mine}

    def goal(self, case, at_least, *, against, of=None, impl="nanosets"):
        """Ask that ``impl`` on ``case`` be so many times faster than ``against`` on ``of``."""
        self.goals.append((case, impl, of or case, against, at_least))

    def limit(self, case, at_most):
        """Ask that ours on ``case`` be below a number, in its unit."""
        self.limits.append((case, at_most))

    def verdicts(self):
        """Yield each goal with the ratio reached, None when a side is missing."""
        found = {(row["case"], row["impl"]): row["median"] for row in self.rows}
        for case, at_most in self.limits:
            ours = found[case, "nanosets"]
            yield {"case": case, "impl": "nanosets", "of": case, "against": f"{at_most} MB"} | {
                "goal": 1.0,
                "ratio": at_most / ours if ours > 0 else float(at_most),
            }
        for case, impl, of, against, at_least in self.goals:
            ours, theirs = found.get((case, impl)), found.get((of, against))
            ratio = theirs / ours if ours and theirs else None
            yield {"case": case, "impl": impl, "of": of, "against": against, "goal": at_least} | {
                "ratio": ratio
            }


def make_table(rows):
    """Return the table as pyarrow's, in one chunk."""
    import pyarrow as pa

    rng = np.random.default_rng(SEED)
    lengths = rng.integers(LENGTH // 2, LENGTH * 3 // 2, rows)
    offsets = np.concatenate(([0], np.cumsum(lengths))).astype(np.int32)
    tokens = rng.integers(0, 151_936, offsets[-1], dtype=np.int32)
    letters = rng.integers(90, 150, rows)
    text = np.concatenate(([0], np.cumsum(letters))).astype(np.int32)
    data = rng.integers(97, 123, text[-1], dtype=np.uint8)
    question = pa.StringArray.from_buffers(rows, pa.py_buffer(text), pa.py_buffer(data))
    return pa.table(
        {
            "id": pa.array(np.arange(rows)),
            "question": question,
            "tokens": pa.ListArray.from_arrays(pa.array(offsets), pa.array(tokens)),
        }
    )


def write_all(results, table, folder):
    """Write the table in every format and return the paths."""
    import datasets
    import polars as pl
    import pyarrow as pa

    from nanorlhf.nanosets import Dataset

    ours = Dataset.from_arrow(table)
    hf = datasets.Dataset(table, fingerprint="0")
    frame = pl.from_arrow(table)
    paths = {"nano": folder / "nano.nano", "hf": folder / "hf", "polars": folder / "polars.ipc"}
    paths |= {name: folder / f"{size or 'single'}.arrow" for name, size in ARROW_BATCHES.items()}

    def arrow(name, *, fsync=False):
        with (
            pa.OSFile(str(paths[name]), "wb") as sink,
            pa.ipc.new_file(sink, table.schema) as writer,
        ):
            writer.write_table(table, max_chunksize=ARROW_BATCHES[name])
        if fsync:
            handle = os.open(paths[name], os.O_RDONLY)
            os.fsync(handle)
            os.close(handle)

    def nano(**options):
        ours.save_to_disk(paths["nano"], **options)

    middle = "10k-row batches"
    writers = {
        "nanosets": ("nano", lambda: nano(sync=False)),
        "nanosets, crc32": ("nano", lambda: nano(sync=False, checksum="crc32")),
        **{f"pyarrow, {name}": (name, lambda n=name: arrow(n)) for name in ARROW_BATCHES},
        "HF datasets": ("hf", lambda: hf.save_to_disk(paths["hf"])),
        "polars": ("polars", lambda: frame.write_ipc(paths["polars"])),
    }
    written(results, "write", writers, paths, repeats=9)
    synced = {
        "nanosets": ("nano", nano),
        f"pyarrow, {middle}": (middle, lambda: arrow(middle, fsync=True)),
    }
    written(results, "write and fsync", synced, paths, repeats=5)
    for case in ("write", "write and fsync"):
        results.goal(case, 1.0, against=f"pyarrow, {middle}")
    results.goal("write", 0.75, against=f"pyarrow, {middle}", impl="nanosets, crc32")
    return paths


def written(results, case, writers, paths, repeats):
    """Time writers in turn, so that all of them meet the machine in the same moods."""
    times = {impl: [] for impl in writers}
    for _ in range(repeats):
        for impl, (key, write) in writers.items():
            removed(paths[key])
            start = time.perf_counter()
            write()
            times[impl].append(time.perf_counter() - start)
    for impl, values in times.items():
        results.add(case, impl, values, "s")


def removed(path):
    """Remove a file or folder, so that what is written next does not wait for that."""
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)


def open_all(results, paths, rows):
    """Open each file in a process of its own: how long, and how much memory it adds."""
    kinds = {"nanosets": ("nano", "nano"), "HF datasets": ("hf", "hf")}
    kinds |= {f"pyarrow, {name}": ("arrow", name) for name in ARROW_BATCHES}
    kinds["polars"] = ("polars", "polars")
    for impl, (kind, key) in kinds.items():
        command = [sys.executable, "-c", PROBE, kind, str(paths[key])]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
        assert found["rows"] == rows, (impl, found["rows"])
        results.add("open", impl, [t * 1e3 for t in found["times"]], "ms")
        results.add("memory added by open", impl, [found["added"] / 1e6], "MB")
    results.goal("open", 20, against="HF datasets")
    results.goal("open", 20, against="pyarrow, 1k-row batches")
    results.goal("open", 20, against="pyarrow, 10k-row batches")
    results.goal("open", 3, against="pyarrow, a single batch")
    results.limit("memory added by open", 5)


def slices(table):
    """Return a function from row numbers to arrays, as one would write it by hand on chunks."""
    column = table["tokens"]
    chunks = column.chunks
    starts = np.cumsum([0, *(len(c) for c in chunks)])
    offsets = [c.offsets.to_numpy() for c in chunks]
    values = [c.values.to_numpy() for c in chunks]

    def rows(index):
        which = np.searchsorted(starts, index, side="right") - 1
        local = (index - starts[which]).tolist()
        found = []
        for c, i in zip(which.tolist(), local, strict=True):
            edges = offsets[c]
            found.append(values[c][edges[i] : edges[i + 1]])
        return found

    return rows


def looped(table):
    """The loop without prepared offsets: what most code does with a chunked array."""
    column = table["tokens"]

    def rows(index):
        return [column[i].values.to_numpy() for i in index]

    return rows


def random_rows(results, ours, arrow, hf, frame, rows):
    """256 random rows as arrays and packed; single rows; a shuffled epoch."""
    rng = np.random.default_rng(1)
    draws = [rng.integers(0, rows, BATCH) for _ in range(64)]
    turn = iter(range(10**9))

    def draw():
        return draws[next(turn) % len(draws)]

    case = "256 random rows as arrays"
    numpy_format = hf.select_columns(["tokens"]).with_format("numpy")
    column = ours["tokens"]
    runs = {
        "nanosets": (lambda: column[draw()], 20),
        "HF datasets, numpy": (lambda: numpy_format[draw()]["tokens"], 4),
        "polars gather": (lambda: frame["tokens"].gather(draw()), 1),
    }
    for name, table in arrow.items():
        theirs, by_hand, loop = table["tokens"], slices(table), looped(table)
        takes = 4 if name == "a single batch" else 1
        runs[f"pyarrow take, {name}"] = (lambda c=theirs: c.take(draw()), takes)
        runs[f"pyarrow loop, {name}"] = (lambda f=loop: f(draw()), 20)
        prepared = f"pyarrow loop, offsets prepared, {name}"
        runs[prepared] = (lambda f=by_hand: f(draw()), 20)
    results.race(case, runs)
    results.goal(case, 30, against="HF datasets, numpy")
    results.goal(case, 8, against="pyarrow loop, 1k-row batches")
    results.goal(case, 5, against="pyarrow loop, 10k-row batches")
    results.goal(case, 3, against="pyarrow take, a single batch")

    case, arrays = "256 random rows packed", case
    single = arrow["a single batch"]["tokens"].combine_chunks()

    def packed():
        found = single.take(draw())
        return found.values.to_numpy(), found.offsets.to_numpy()

    results.race(
        case,
        {
            "nanosets": (lambda: ours.gather("tokens", draw()), 20),
            "pyarrow take, a single batch": (packed, 10),
        },
    )
    results.goal(case, 12, against="HF datasets, numpy", of=arrays)

    case = "one row, tokens as numpy"
    results.time(
        case, "nanosets", lambda: column[12_345 % rows], repeats=50, scale=1e6, unit="us", number=50
    )
    for name, table in arrow.items():
        theirs = table["tokens"]
        run = lambda c=theirs: c[12_345 % rows].values.to_numpy()  # noqa: E731
        results.time(case, f"pyarrow, {name}", run, repeats=50, scale=1e6, unit="us", number=50)
    run = lambda: numpy_format[12_345 % rows]["tokens"]  # noqa: E731
    results.time(case, "HF datasets, numpy", run, repeats=30, scale=1e6, unit="us", number=20)
    series = frame["tokens"]
    run = lambda: series[12_345 % rows].to_numpy()  # noqa: E731
    results.time(case, "polars", run, repeats=50, scale=1e6, unit="us", number=50)
    case = "one row, all columns as Python values"
    run = lambda: ours[12_345 % rows]  # noqa: E731
    results.time(case, "nanosets", run, repeats=50, scale=1e6, unit="us", number=50)
    run = lambda: hf[12_345 % rows]  # noqa: E731
    results.time(case, "HF datasets", run, repeats=50, scale=1e6, unit="us", number=20)
    run = lambda: frame.row(12_345 % rows, named=True)  # noqa: E731
    results.time(case, "polars", run, repeats=50, scale=1e6, unit="us", number=50)


def epochs(results, ours, hf, rows, batches=400):
    """A shuffled epoch in batches of 256, per batch."""
    case = "shuffled epoch, batch of 256"
    batches = min(batches, rows // BATCH)

    def ours_epoch(packed):
        shuffled = ours.shuffle(seed=1)
        for start in range(0, batches * BATCH, BATCH):
            if packed:
                shuffled.gather("tokens", slice(start, start + BATCH))
            else:
                shuffled["tokens"][start : start + BATCH]

    def theirs():
        shuffled = hf.select_columns(["tokens"]).shuffle(seed=1).with_format("numpy")
        for start in range(0, batches * BATCH // 4, BATCH):
            shuffled[start : start + BATCH]["tokens"]

    each = 1e3 / batches
    results.time(case, "nanosets", lambda: ours_epoch(False), repeats=5, scale=each)
    results.time(case, "nanosets, packed", lambda: ours_epoch(True), repeats=5, scale=each)
    results.time(case, "HF datasets, numpy", theirs, repeats=2, scale=each * 4)


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

    def once(case, impl, fn, repeats):
        values = []
        for _ in range(repeats):
            for part in folder.glob("mapped*"):
                removed(part)
            start = time.perf_counter()
            fn()
            values.append(time.perf_counter() - start)
        results.add(case, impl, values, "s")

    def compared(case, rows, function, *, batched, repeats, processes):
        mine, other = text.take(rows), theirs.select(range(min(rows, len(theirs))))
        options = {"batched": batched, "remove_columns": ["question"]}
        hfs = {"cache_file_name": str(cache), "load_from_cache_file": False, **options}
        alone = "reading and calling alone"
        once(case, alone, lambda: called(mine, function, batched=batched), repeats[0])
        for count in processes:
            spread, suffix = (
                ({}, "") if count == 1 else ({"num_proc": count}, f", {count} processes")
            )
            once(
                case,
                f"nanosets{suffix}",
                lambda spread=spread: mine.map(function, **spread, **options),
                repeats[0],
            )
            once(
                case,
                f"HF datasets{suffix}",
                lambda spread=spread: other.map(function, **spread, **hfs),
                repeats[1],
            )
        return options

    case, everything = "map, strings to int32 arrays, batched", len(text)
    both = {"repeats": (3, 2), "processes": (1, 2)}
    options = compared(case, everything, ids_of_batch, batched=True, **both)
    out = folder / "mapped.nano"
    once(
        case,
        "nanosets, output= and fsync",
        lambda: text.map(ids_of_batch, output=out, **options),
        1,
    )
    by_row = "map, strings to int32 arrays, row by row"
    compared(by_row, everything, ids_of_row, batched=False, repeats=(3, 1), processes=(1, 2))
    for name in (case, by_row):
        results.goal(name, 4, against="HF datasets")
        results.goal(name, 1.5, impl="nanosets, 2 processes", against="nanosets")
    case = "map of 100,000 rows, strings to lists of ints, row by row"
    compared(case, 100_000, list_of_row, batched=False, repeats=(3, 2), processes=(1,))
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


def run(results, folder, rows):
    import datasets
    import polars as pl
    import pyarrow as pa

    from nanorlhf.nanosets import load_dataset

    datasets.disable_progress_bars()
    table = make_table(rows)
    megabytes = table.nbytes / 1e6
    print(f"\n{rows:,} rows, {megabytes:,.0f} MB\n{CHECKSUMS}\n{FSYNC}\n")
    print("| case | implementation | median |\n| --- | --- | --- |")
    paths = write_all(results, table, folder)
    del table
    gc.collect()
    open_all(results, paths, rows)
    ours = load_dataset(paths["nano"])
    start = time.perf_counter()
    load_dataset(paths["nano"], verify=True)
    results.add(
        "open and compare all checksums", "nanosets", [(time.perf_counter() - start) * 1e3], "ms"
    )
    arrow = {
        name: pa.ipc.open_file(pa.memory_map(str(paths[name]))).read_all() for name in ARROW_BATCHES
    }
    hf = datasets.load_from_disk(str(paths["hf"]))
    frame = pl.read_ipc(paths["polars"])
    random_rows(results, ours, arrow, hf, frame, rows)
    del frame
    epochs(results, ours, hf, rows)
    long_verbs(results, ours, arrow, hf, folder, rows)
    return megabytes


def git_commit():
    """Return the commit, and whether the files are those of it."""

    def git(*command):
        done = subprocess.run(["git", *command], cwd=REPOSITORY, capture_output=True, text=True)
        return done.stdout.strip()

    changed = " and changes" if git("status", "--porcelain", "--untracked-files=no") else ""
    return f"{git('rev-parse', 'HEAD') or 'unknown'}{changed}"


def processor():
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, help="where the files go; 8 GB, removed afterwards")
    parser.add_argument("--out", type=Path, help="where the JSON goes")
    options = parser.parse_args()
    results = Results()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        os.environ["HF_DATASETS_CACHE"] = str(Path(folder) / "cache")
        megabytes = run(results, Path(folder), options.rows)
    verdicts = list(results.verdicts())
    print("\n| case | implementation | against | goal | reached |\n| --- | --- | --- | --- | --- |")
    for v in verdicts:
        reached = "-" if v["ratio"] is None else f"{v['ratio']:.2f}"
        mark = "" if v["ratio"] and v["ratio"] >= v["goal"] else " MISSED"
        print(f"| {v['case']} | {v['impl']} | {v['against']} | {v['goal']} | {reached}{mark} |")
    behind = list(results.behind())
    print("\n| behind in | to | theirs | ours |\n| --- | --- | --- | --- |")
    for b in behind:
        print(
            f"| {b['case']} | {b['impl']} | {b['median']:.4g} {b['unit']} | {b['nanosets']:.4g} |"
        )
    cpus = len(os.sched_getaffinity(0))
    out = options.out or Path(__file__).parent / "results" / f"datasets-cpu-{cpus}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    result = {
        "bench": "datasets",
        "command": shlex.join(
            ["python", "packages/nanosets/benchmarks/bench_datasets.py", *sys.argv[1:]]
        ),
        "commit": git_commit(),
        "hardware": f"{processor()}, {cpus} CPUs",
        "versions": {"python": platform.python_version()}
        | {name: metadata.version(name) for name in PEERS},
        "table": {"rows": options.rows, "megabytes": megabytes},
        "data_checksums": CHECKSUMS,
        "fsync": FSYNC,
        "rows": results.rows,
        "goals": verdicts,
        "behind": behind,
    }
    out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"\nwritten to {out}", file=sys.stderr)


if __name__ == "__main__":
    main()
