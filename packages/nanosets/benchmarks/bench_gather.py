"""Random batches out of a chunked file, nanosets against peers that are installed.

``python packages/nanosets/benchmarks/bench_gather.py [rows] [result.json]`` prints a Markdown
table and, when asked, writes JSON. Every peer reads the same rows from its own file of
64k-row (nanosets), 10k-row (pyarrow) or default (datasets) chunks, page cache warm.
"""

import json
import platform
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np

from nanorlhf.nanosets import Dataset, Ragged, load_dataset

BATCH = 256
REPEATS = 50


def make(rows):
    rng = np.random.default_rng(0)
    lengths = rng.integers(100, 300, rows)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    tokens = rng.integers(0, 150_000, offsets[-1], dtype=np.int32)
    text = ["What is the answer to question number " + str(i) + "?" * 60 for i in range(rows)]
    return {"id": np.arange(rows), "question": text, "tokens": Ragged(tokens, offsets)}


def timed(function, batches):
    seconds = []
    for batch in batches:
        start = time.perf_counter()
        function(batch)
        seconds.append(time.perf_counter() - start)
    return {
        "median": float(np.median(seconds) * 1e3),
        "p20": float(np.quantile(seconds, 0.2) * 1e3),
        "p80": float(np.quantile(seconds, 0.8) * 1e3),
    }


def nanosets_cases(path, batches):
    start = time.perf_counter()
    ds = load_dataset(path)
    opened = (time.perf_counter() - start) * 1e3
    yield "open", {"median": opened, "p20": opened, "p80": opened}
    ds.gather("tokens", [0])
    yield "256 random rows, packed", timed(lambda rows: ds.gather("tokens", rows), batches)
    yield "256 random rows, views", timed(lambda rows: ds["tokens"][rows], batches)
    yield "256 random rows, padded", timed(lambda rows: ds.padded("tokens", rows), batches)
    yield "256 random rows, all columns", timed(lambda rows: ds[rows], batches)
    yield "one row, all columns", timed(lambda rows: ds[int(rows[0])], batches)
    yield "filter by length", timed(lambda _: np.flatnonzero(ds["tokens"].lengths() > 200), [0] * 5)
    yield "shuffle", timed(lambda seed: ds.shuffle(seed=seed), range(5))


def pyarrow_cases(table, folder, batches):
    import pyarrow as pa

    path = folder / "a.arrow"
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=10_000)
    start = time.perf_counter()
    found = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    opened = (time.perf_counter() - start) * 1e3
    yield "open", {"median": opened, "p20": opened, "p80": opened}
    few = batches[:5]
    yield "256 random rows, packed", timed(lambda rows: found["tokens"].take(rows), few)
    one = found["tokens"].combine_chunks()
    yield (
        "256 random rows, packed (one chunk in RAM)",
        timed(lambda rows: one.take(rows), batches),
    )


def datasets_cases(table, folder, batches):
    import datasets

    datasets.disable_progress_bars()
    datasets.Dataset(table, fingerprint="bench").save_to_disk(str(folder / "hf"))
    start = time.perf_counter()
    ds = datasets.load_from_disk(str(folder / "hf"))
    opened = (time.perf_counter() - start) * 1e3
    yield "open", {"median": opened, "p20": opened, "p80": opened}
    numpy = ds.with_format("numpy").select_columns(["tokens"])
    yield "256 random rows, views", timed(lambda rows: numpy[rows], batches)
    yield "256 random rows, all columns", timed(lambda rows: ds[rows], batches)
    yield "one row, all columns", timed(lambda rows: ds[int(rows[0])], batches)
    yield "shuffle", timed(lambda seed: ds.shuffle(seed=seed), range(3))


def arrow_table(columns):
    import pyarrow as pa

    ragged = columns["tokens"]
    tokens = pa.ListArray.from_arrays(pa.array(ragged.offsets, pa.int32()), pa.array(ragged.values))
    return pa.table({"id": columns["id"], "question": columns["question"], "tokens": tokens})


def main():
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else 200_000
    columns = make(rows)
    rng = np.random.default_rng(1)
    batches = [rng.integers(0, rows, BATCH) for _ in range(REPEATS)]
    found = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        start = time.perf_counter()
        Dataset.from_dict(columns).save_to_disk(folder / "a.nano")
        size = (folder / "a.nano").stat().st_size / 1e6
        print(f"{rows} rows, {size:.0f} MB, written in {time.perf_counter() - start:.2f} s\n")
        found += [("nanosets", *case) for case in nanosets_cases(folder / "a.nano", batches)]
        try:
            table = arrow_table(columns)
            found += [("pyarrow", *case) for case in pyarrow_cases(table, folder, batches)]
            found += [("datasets", *case) for case in datasets_cases(table, folder, batches)]
        except ImportError as error:
            print(f"peers left out: {error}\n")
    print("| case | impl | median ms | p20 | p80 |\n|---|---|---|---|---|")
    for impl, case, row in sorted(found, key=lambda f: f[1]):
        print(f"| {case} | {impl} | {row['median']:.3f} | {row['p20']:.3f} | {row['p80']:.3f} |")
    if len(sys.argv) > 2:
        write(Path(sys.argv[2]), found)


def write(path, found):
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    rows = [{"case": c, "impl": i, "metric": "time", "unit": "ms", **row} for i, c, row in found]
    content = {
        "bench": "gather",
        "command": " ".join(["python", *sys.argv]),
        "commit": commit,
        "hardware": f"{platform.processor() or platform.machine()}, {platform.system()}",
        "versions": {"python": platform.python_version(), "numpy": version("numpy")},
        "rows": rows,
    }
    path.write_text(json.dumps(content, indent=1))


if __name__ == "__main__":
    main()
