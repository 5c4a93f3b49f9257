"""Times calls and objects beside the floors of the standard library, and Ray where it is installed.

    python packages/nanoray/benchmarks/bench_calls.py [--repeats 5] [--json FILE]

The floor of a call is a round trip over ``multiprocessing.Pipe``; the floor of an object is a copy
into, and an attach to, ``multiprocessing.shared_memory``; of tasks, a ``ProcessPoolExecutor``.
"""

import argparse
import importlib.util
import json
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import shared_memory

import numpy as np

import nanorlhf.nanoray as nanoray

MB = 1 << 20


def timed(work, repeats, per=1):
    """Seconds per unit of work, one sample a repeat, after one warm-up."""
    work()
    samples = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        samples.append((time.perf_counter() - start) / per)
    return samples


def row(case, impl, unit, samples, scale=1.0, invert=False):
    values = sorted((1 / s if invert else s) * scale for s in samples)
    at = lambda q: values[round(q * (len(values) - 1))]  # noqa: E731
    return {
        "case": case,
        "impl": impl,
        "metric": "rate" if invert else "time",
        "unit": unit,
        "median": statistics.median(values),
        "p20": at(0.2),
        "p80": at(0.8),
    }


def engine_rows(engine, name, repeats):
    """The same program on an engine with Ray's names."""

    @engine.remote
    def noop():
        return None

    @engine.remote
    class Actor:
        def noop(self, *_):
            return None

    rows = []
    tasks = timed(lambda: engine.get([noop.remote() for _ in range(1000)]), repeats, 1000)
    rows.append(row("no-op tasks, 1000 at once", name, "1/s", tasks, invert=True))
    sync = timed(lambda: [engine.get(noop.remote()) for _ in range(200)], repeats, 200)
    rows.append(row("task, one at a time", name, "us", sync, 1e6))
    actor = Actor.remote()
    calls = timed(lambda: [engine.get(actor.noop.remote()) for _ in range(500)], repeats, 500)
    rows.append(row("actor call, one at a time", name, "us", calls, 1e6))
    many = timed(lambda: engine.get([actor.noop.remote() for _ in range(2000)]), repeats, 2000)
    rows.append(row("actor calls, 2000 at once", name, "1/s", many, invert=True))
    for size in (1, 100):
        array = np.ones(size * MB // 8)
        ref = engine.put(array)
        rows.append(
            row(f"put {size} MB", name, "ms", timed(lambda a=array: engine.put(a), repeats), 1e3)
        )
        rows.append(
            row(f"get {size} MB", name, "ms", timed(lambda r=ref: engine.get(r), repeats), 1e3)
        )
        pass_on = timed(lambda r=ref: engine.get(actor.noop.remote(r)), repeats)
        rows.append(row(f"actor call with a {size} MB ref", name, "ms", pass_on, 1e3))
    return rows


def nanoray_rows(repeats):
    rows = []
    samples = []
    for _ in range(repeats):
        begin = time.perf_counter()
        nanoray.init(num_cpus=2)
        nanoray.get(nanoray.remote(len).remote(()))
        samples.append(time.perf_counter() - begin)
        nanoray.shutdown()
    rows.append(row("init and first task", "nanoray", "ms", samples, 1e3))
    nanoray.init(num_cpus=2)
    rows += engine_rows(nanoray, "nanoray", repeats)
    nanoray.shutdown()
    return rows


def echo(pipe):
    while True:
        pipe.send(pipe.recv())


def nothing(_=None):
    return None


def stdlib_rows(repeats):
    """Floors: what the standard library needs for the least that could be done."""
    rows = []
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=echo, args=(theirs,), daemon=True)
    process.start()

    def call():
        ours.send(None)
        ours.recv()

    calls = timed(lambda: [call() for _ in range(500)], repeats, 500)
    rows.append(row("actor call, one at a time", "Pipe", "us", calls, 1e6))
    process.kill()
    process.join()
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("fork")) as pool:
        tasks = timed(lambda: [*pool.map(nothing, range(1000))], repeats, 1000)
        rows.append(row("no-op tasks, 1000 at once", "ProcessPool", "1/s", tasks, invert=True))
        sync = timed(lambda: [pool.submit(nothing).result() for _ in range(200)], repeats, 200)
        rows.append(row("task, one at a time", "ProcessPool", "us", sync, 1e6))
    for size in (1, 100):
        rows += shared_rows(size, repeats)
    return rows


def shared_rows(size, repeats):
    array = np.ones(size * MB // 8)

    def store():
        block = shared_memory.SharedMemory(create=True, size=array.nbytes)
        view = np.frombuffer(block.buf, count=array.size)
        view[:] = array
        del view
        block.close()
        block.unlink()

    kept = shared_memory.SharedMemory(create=True, size=array.nbytes)

    def attach():
        shared_memory.SharedMemory(name=kept.name).close()

    rows = [row(f"put {size} MB", "SharedMemory", "ms", timed(store, repeats), 1e3)]
    rows.append(row(f"get {size} MB", "SharedMemory", "ms", timed(attach, repeats), 1e3))
    kept.close()
    kept.unlink()
    return rows


def ray_rows(repeats):
    if importlib.util.find_spec("ray") is None:
        return []
    import ray

    start = time.perf_counter()
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    ray.get(ray.remote(len).remote(()))
    rows = [row("init and first task", "ray", "ms", [time.perf_counter() - start], 1e3)]
    rows += engine_rows(ray, f"ray {ray.__version__}", repeats)
    ray.shutdown()
    return rows


def commit():
    found = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    return found.stdout.strip() or "unknown"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", help="also write the rows to this file")
    options = parser.parse_args()
    rows = [
        *stdlib_rows(options.repeats),
        *nanoray_rows(options.repeats),
        *ray_rows(options.repeats),
    ]
    print("| case | impl | median | p20 | p80 | unit |\n| --- | --- | --- | --- | --- | --- |")
    for r in sorted(rows, key=lambda r: (r["case"], r["impl"])):
        figures = " | ".join(f"{r[key]:,.3g}" for key in ("median", "p20", "p80"))
        print(f"| {r['case']} | {r['impl']} | {figures} | {r['unit']} |")
    result = {
        "bench": "calls",
        "command": " ".join(["python", *sys.argv]),
        "commit": commit(),
        "hardware": f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}",
        "versions": {"python": platform.python_version(), "numpy": np.__version__},
        "rows": rows,
    }
    if options.json:
        with open(options.json, "w") as file:
            json.dump(result, file, indent=1)


if __name__ == "__main__":
    main()
