"""The table of the benchmark of datasets: made, written in every format, opened."""

import gc
import json
import os
import random
import shutil
import subprocess
import sys
import time

import numpy as np

LENGTH, SEED = 200, 0
ZEROS = bytes(256 << 10)

WRITTEN_MB, MAPPED_MB, WIDENED_MB = 1024, 768, 1792
"""MiB that a write, a map of one column, and a map that keeps all columns, of a million rows take
at most, workers included."""
REST_S = 2.5
"""Seconds that a virtual machine has to give free memory back to its host: Linux reports it two
seconds after some was freed (``PAGE_REPORTING_DELAY`` in mm/page_reporting.c)."""
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
while len(times) < 3 or (sum(times) < 0.5 and len(times) < 2000):
    del found
    start = time.perf_counter()
    found = open_it()
    times.append(time.perf_counter() - start)
print(json.dumps({"rows": rows, "added": added, "times": times}))
"""


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
    written(results, "write", writers, paths, repeats=5)
    synced = {
        "nanosets": ("nano", nano),
        f"pyarrow, {middle}": (middle, lambda: arrow(middle, fsync=True)),
    }
    written(results, "write and fsync", synced, paths, repeats=3)
    for case in ("write", "write and fsync"):
        results.goal(case, 1.0, against=f"pyarrow, {middle}")
    results.goal("write", 0.75, against=f"pyarrow, {middle}", impl="nanosets, crc32")
    return paths


def written(results, case, writers, paths, repeats):
    """Time writers in turn, so that all of them meet the machine in the same moods.

    In an order drawn anew for each turn: memory that one has freed is taken by the next.
    """
    times = {impl: [] for impl in writers}
    rng = random.Random(SEED)
    for _ in range(repeats):
        for impl in rng.sample(list(writers), len(writers)):
            key, write = writers[impl]
            removed(paths[key])
            settle(paths[key].parent, WRITTEN_MB)
            start = time.perf_counter()
            write()
            times[impl].append(time.perf_counter() - start)
    for impl, values in times.items():
        results.add(case, impl, values, "s")


def settle(folder, megabytes):
    """Let the machine come to rest, so that nobody pays for garbage or dirty pages of others.

    Nor for memory that a virtual machine gave back to its host while it was free: to get it again
    takes longer than to write to it, and who has to is chance. So wait until what was freed has
    been given back, then take as much as is about to be written and free it: for two seconds all
    of it is there.
    """
    gc.collect()
    os.sync()
    time.sleep(REST_S)
    scratch = folder / "scratch"
    with open(scratch, "wb", buffering=0) as handle:
        scratch.unlink()
        for _ in range(megabytes * 2**20 // len(ZEROS)):
            handle.write(ZEROS)


def removed(path):
    """Remove a file or folder, so that what is written next does not wait for that."""
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)


def open_all(results, paths, rows, rounds=5):
    """Open each file in processes of their own, in turn: how long, and what memory it adds."""
    kinds = {"nanosets": ("nano", "nano"), "HF datasets": ("hf", "hf")}
    kinds |= {f"pyarrow, {name}": ("arrow", name) for name in ARROW_BATCHES}
    kinds["polars"] = ("polars", "polars")
    found = {impl: [] for impl in kinds}
    for _ in range(rounds):
        for impl, (kind, key) in kinds.items():
            command = [sys.executable, "-c", PROBE, kind, str(paths[key])]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found[impl].append(json.loads(done.stdout.splitlines()[-1]))
    for impl, probes in found.items():
        assert all(probe["rows"] == rows for probe in probes), (impl, probes)
        results.add("open", impl, [t * 1e3 for probe in probes for t in probe["times"]], "ms")
        results.add("memory added by open", impl, [p["added"] / 1e6 for p in probes], "MB")
    results.goal("open", 20, against="HF datasets")
    results.goal("open", 20, against="pyarrow, 1k-row batches")
    results.goal("open", 20, against="pyarrow, 10k-row batches")
    results.goal("open", 3, against="pyarrow, a single batch")
    results.limit("memory added by open", 5)
