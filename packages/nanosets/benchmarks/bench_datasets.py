"""Times datasets of token lists against HF datasets, pyarrow and polars; writes tables and JSON.

    python packages/nanosets/benchmarks/bench_datasets.py [--rows 1000000] [--folder DIR]

One table {id: int64, question: about 120 bytes, tokens: list<int32> of about 200} is written in
each library's format, then opened, scanned, sampled, mapped, filtered and shuffled. Everything is
in the page cache. Arrow files come with 1k rows a batch (what HF datasets writes), with 10k, and
as a single batch (Arrow's best case, which takes a copy of the whole table to make).

Reading a .nano file checks its structure in all of these figures: rows, footer and directory when
it is opened, places of buffers and offsets when a column is first touched. Like is timed with
like, in turn, so that all meet the machine in the same moods. Before each repeat of what writes a
file the outputs of earlier ones are removed and dirty pages brought to the disk, for every library:
nobody pays for what another wrote, and nobody waits for the disk but in the rows named fsync. Then
the script rests while a virtual machine gives free memory back to its host, and takes and frees as
much as will be written: to get it again takes longer than to write to it, and without the rest some
repeats had to and some had not. What runs for more than two seconds, as the maps of HF datasets,
meets it all the same. Maps in several processes are repeated in one program, as one does to a data
set: ours then finds the interpreter from which workers are forked, which the first of them started.
"""

import argparse
import gc
import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path

import numpy as np
from dataset_files import ARROW_BATCHES, make_table, open_all, write_all
from dataset_results import Results
from dataset_verbs import long_verbs

CHECKSUMS = "data checksums: written always (xxh3_64 but where a row says crc32), compared only in "
CHECKSUMS += "the row that says so; checks of structure: always on"
FSYNC = "fsync: off but in rows that say so"
REPOSITORY = Path(__file__).resolve().parents[3]
BATCH = 256
PEERS = ("datasets", "pyarrow", "polars", "numpy", "xxhash")


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
        tempfile.tempdir = folder  # where the columns that our map makes go, as those of others
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
