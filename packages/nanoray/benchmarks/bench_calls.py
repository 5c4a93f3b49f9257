"""Times calls and objects on nanoray, on Ray and with the least the standard library can do.

    python packages/nanoray/benchmarks/bench_calls.py [--rounds 5] [--hardware NAME]

Each implementation lives in a process of its own; they take turns, case by case, so that a change
of the machine's mood meets all of them. A sample is what a case takes on average while it is
repeated for 0.2 s, as long as ``timeit`` has it, so that it does not tell how processes get going
after others had the processors. Where Ray is not installed its rows are left out.

The floors: of a call, a round trip over ``multiprocessing.Pipe``; of tasks, a process pool;
of objects, a copy into and an attach to ``multiprocessing.shared_memory``.

The file is long because each implementation's process runs this same file.
"""

import argparse
import importlib
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from multiprocessing import Pipe, get_context, resource_tracker, shared_memory
from multiprocessing.connection import Connection
from pathlib import Path

MB = 1 << 20
IMPLS = ("nanoray", "ray", "stdlib")
MODULES = {"nanoray": "nanorlhf.nanoray", "ray": "ray", "stdlib": "concurrent.futures.process"}
STARTS = 3
SAMPLE_S = 0.2

UNITS = {
    "import": ("s", 1),
    "init to the first task": ("s", 1),
    "shutdown": ("s", 1),
    "idle memory, shared pages divided": ("MB", 1 / MB),
    "idle memory, own pages": ("MB", 1 / MB),
    "no-op tasks, 1000 at once": ("1/s", None),
    "no-op tasks, 10000 at once": ("1/s", None),
    "task, one at a time": ("us", 1e6),
    "actor call, one at a time": ("us", 1e6),
    "actor calls, 2000 at once": ("1/s", None),
    "put 1 MB": ("us", 1e6),
    "get 1 MB": ("us", 1e6),
    "put 100 MB": ("ms", 1e3),
    "get 100 MB": ("us", 1e6),
    "actor call with a 1 MB ref": ("us", 1e6),
    "actor call with a 100 MB ref": ("us", 1e6),
}
"""Case -> unit and what the raw seconds or bytes are multiplied with; None is one over it."""

BOUNDS = {
    "init to the first task": 10,
    "no-op tasks, 1000 at once": 15,
    "actor call, one at a time": 8,
    "actor calls, 2000 at once": 10,
    "put 100 MB": 1.5,
    "get 100 MB": 2,
    "actor call with a 100 MB ref": 20,
    "idle memory, shared pages divided": 8,
}
"""How many times better than Ray nanoray is to be."""

SLOW = {"no-op tasks, 10000 at once"}
"""Cases that get three samples, however many rounds there are."""


# -- what is measured ----------------------------------------------------------------------------


def each(work):
    """Return the mean seconds that ``work`` takes while it is repeated."""
    count, spent, begin = 0, 0.0, time.perf_counter()
    while spent < SAMPLE_S:
        work()
        count, spent = count + 1, time.perf_counter() - begin
    return spent / count


def once(work):
    """Return the seconds that ``work`` takes."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


class Engine:
    """The same program on nanoray and on Ray, which have the same names."""

    def __init__(self, name):
        self.name = name
        self.ray = importlib.import_module(MODULES[name])

    def start(self):
        if self.name == "ray":
            self.ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
        else:
            self.ray.init(num_cpus=2)
        self.ray.get(self.ray.remote(lambda: None).remote())

    def stop(self):
        self.ray.shutdown()

    def cases(self):
        import numpy as np

        ray = self.ray

        @ray.remote
        def noop():
            return None

        @ray.remote
        class Actor:
            def noop(self, *_):
                return None

        actor = Actor.remote()
        arrays = {size: np.ones(size * MB // 8) for size in (1, 100)}
        refs = {size: ray.put(array) for size, array in arrays.items()}

        def tasks(count):
            return each(lambda: ray.get([noop.remote() for _ in range(count)])) / count

        def calls(count):
            return each(lambda: ray.get([actor.noop.remote() for _ in range(count)])) / count

        return {
            "no-op tasks, 1000 at once": lambda: tasks(1000),
            "no-op tasks, 10000 at once": lambda: tasks(10000),
            "task, one at a time": lambda: each(lambda: ray.get(noop.remote())),
            "actor call, one at a time": lambda: each(lambda: ray.get(actor.noop.remote())),
            "actor calls, 2000 at once": lambda: calls(2000),
            "put 1 MB": lambda: each(lambda: ray.put(arrays[1])),
            "get 1 MB": lambda: each(lambda: ray.get(refs[1])),
            "put 100 MB": lambda: each(lambda: ray.put(arrays[100])),
            "get 100 MB": lambda: each(lambda: ray.get(refs[100])),
            "actor call with a 1 MB ref": lambda: each(lambda: ray.get(actor.noop.remote(refs[1]))),
            "actor call with a 100 MB ref": lambda: each(
                lambda: ray.get(actor.noop.remote(refs[100]))
            ),
        }


def nothing(_=None):
    return None


class Floor:
    """The least that could be done, by the standard library."""

    def __init__(self):
        self.kept = {}
        # Before the first fork, so that all processes share it: one of their own would take what
        # they attach to for leaked.
        resource_tracker.ensure_running()

    def start(self):
        self.pool = ProcessPoolExecutor(2, mp_context=get_context("fork"))
        self.pool.submit(nothing).result()

    def stop(self):
        self.pool.shutdown()
        while self.kept:
            _, block = self.kept.popitem()
            block.close()
            block.unlink()

    def cases(self):
        import numpy as np

        ours, theirs = Pipe()
        process = get_context("fork").Process(target=echo, args=(theirs,), daemon=True)
        process.start()
        arrays = {size: np.ones(size * MB // 8) for size in (1, 100)}
        self.kept = kept = {size: stored(array) for size, array in arrays.items()}

        def call(message=None):
            ours.send(message)
            ours.recv()

        def calls(count):
            def burst():
                for _ in range(count // 50):  # more in flight could fill the pipe both ways
                    for _ in range(50):
                        ours.send(None)
                    for _ in range(50):
                        ours.recv()

            return each(burst) / count

        def tasks(count):
            return each(lambda: [*self.pool.map(nothing, range(count))]) / count

        def put(size):
            block = stored(arrays[size])
            block.close()
            block.unlink()

        def get(size):
            shared_memory.SharedMemory(name=kept[size].name).close()

        return {
            "no-op tasks, 1000 at once": lambda: tasks(1000),
            "no-op tasks, 10000 at once": lambda: tasks(10000),
            "task, one at a time": lambda: each(lambda: self.pool.submit(nothing).result()),
            "actor call, one at a time": lambda: each(call),
            "actor calls, 2000 at once": lambda: calls(2000),
            "put 1 MB": lambda: each(lambda: put(1)),
            "get 1 MB": lambda: each(lambda: get(1)),
            "put 100 MB": lambda: each(lambda: put(100)),
            "get 100 MB": lambda: each(lambda: get(100)),
            "actor call with a 1 MB ref": lambda: each(lambda: call(kept[1].name)),
            "actor call with a 100 MB ref": lambda: each(lambda: call(kept[100].name)),
        }


def echo(pipe):
    """Answer every message, after attaching to the shared memory it names."""
    while True:
        name = pipe.recv()
        if name is not None:
            shared_memory.SharedMemory(name=name).close()
        pipe.send(None)


def stored(array):
    """Return a new shared memory that holds the array."""
    import numpy as np

    block = shared_memory.SharedMemory(create=True, size=array.nbytes)
    view = np.frombuffer(block.buf, count=array.size)
    view[:] = array
    return block


# -- the process of one implementation -----------------------------------------------------------


def serve(impl, orders):
    """Do what the main process asks: start, stop, or take one sample of a case."""
    subject = Floor() if impl == "stdlib" else Engine(impl)
    cases = {}
    while True:
        order = orders.recv()
        if order == "start":
            orders.send(once(subject.start))
        elif order == "stop":
            cases = {}
            orders.send(once(subject.stop))
        elif order == "end":
            return
        else:
            cases = cases or subject.cases()
            orders.send(cases[order]())


class Subject:
    """An implementation in its process, as the main process sees it."""

    def __init__(self, impl):
        self._orders, theirs = Pipe()
        command = [sys.executable, __file__, "--serve", impl, "--fd", str(theirs.fileno())]
        self.process = subprocess.Popen(command, pass_fds=[theirs.fileno()])
        theirs.close()

    def ask(self, order):
        self._orders.send(order)
        return self._orders.recv()

    def end(self):
        self._orders.send("end")
        self.process.wait()


def idle_memory(pid):
    """Return the bytes that all descendants of a process hold: (shared pages divided, own)."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text()
            except OSError:  # gone meanwhile
                continue
            parents[int(entry.name)] = int(stat.rpartition(")")[2].split()[1])
    family = {pid}
    while grown := {p for p, parent in parents.items() if parent in family} - family:
        family |= grown
    shares, own = 0, 0
    for member in family - {pid}:
        rollup = Path(f"/proc/{member}/smaps_rollup").read_text().splitlines()
        sizes = {line.split(":")[0]: line.split()[1] for line in rollup if line.endswith("kB")}
        shares += int(sizes["Pss"]) * 1024
        own += (int(sizes["Private_Clean"]) + int(sizes["Private_Dirty"])) * 1024
    return shares, own


def import_time(impl):
    code = f"import time; t = time.perf_counter(); import {MODULES[impl]}; "
    code += "print(time.perf_counter() - t)"
    command = [sys.executable, "-c", code]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


# -- the run -------------------------------------------------------------------------------------


def measure(impls, rounds):
    """Return ``{(case, impl): raw samples}``."""
    samples = {}

    def note(case, impl, value):
        samples.setdefault((case, impl), []).append(value)

    subjects = {impl: Subject(impl) for impl in impls}
    for start in range(STARTS):
        for impl, subject in subjects.items():
            note("import", impl, import_time(impl))
            if start:
                note("shutdown", impl, subject.ask("stop"))
            note("init to the first task", impl, subject.ask("start"))
    time.sleep(3)  # what starts in the background is part of what an idle engine holds
    for impl, subject in subjects.items():
        shares, own = idle_memory(subject.process.pid)
        note("idle memory, shared pages divided", impl, shares)
        note("idle memory, own pages", impl, own)
    for number in range(-1, rounds):  # the first warms up
        for case in [case for case in UNITS if not case.startswith(("i", "shut"))]:
            for impl, subject in subjects.items():
                if case in SLOW and not 0 <= number < 3:
                    continue
                value = subject.ask(case)
                if number >= 0:
                    note(case, impl, value)
    for impl, subject in subjects.items():
        note("shutdown", impl, subject.ask("stop"))
        subject.end()
    return samples


def rows_of(samples):
    """Return the samples in the units of the table."""
    rows = []
    for (case, impl), raw in samples.items():
        unit, scale = UNITS[case]
        values = sorted(1 / value if scale is None else value * scale for value in raw)
        row = {"case": case, "impl": impl, "metric": "rate" if scale is None else "cost"}
        row |= {"unit": unit, "median": statistics.median(values), "samples": len(values)}
        row |= {f"p{q}": values[round(q / 100 * (len(values) - 1))] for q in (20, 80)}
        rows.append(row)
    return rows


def compare(rows):
    """Return one line a bound: what was asked for, and what was measured."""
    medians = {(row["case"], row["impl"]): row["median"] for row in rows}
    found = []
    for case, asked in BOUNDS.items():
        ours, theirs = medians[case, "nanoray"], medians[case, "ray"]
        times = ours / theirs if UNITS[case][1] is None else theirs / ours
        found.append({"case": case, "asked": asked, "times": times, "holds": times >= asked})
    return found


def show(rows, bounds):
    print("| case | impl | median | p20 | p80 | unit |\n| --- | --- | --- | --- | --- | --- |")
    for case in UNITS:
        for row in [row for row in rows if row["case"] == case]:
            figures = " | ".join(f"{row[key]:,.4g}" for key in ("median", "p20", "p80"))
            print(f"| {case} | {row['impl']} | {figures} | {row['unit']} |")
    if bounds:
        print("\n| nanoray against Ray | asked | measured | |\n| --- | --- | --- | --- |")
    for bound in bounds:
        verdict = "holds" if bound["holds"] else "MISSED"
        print(f"| {bound['case']} | {bound['asked']}x | {bound['times']:.1f}x | {verdict} |")


def commit():
    command = ["git", "rev-parse", "--short", "HEAD"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return found.stdout.strip() or "unknown"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--hardware", default=f"{platform.machine()}-{os.cpu_count()}-cores")
    parser.add_argument("--serve", choices=IMPLS, help=argparse.SUPPRESS)
    parser.add_argument("--fd", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve, Connection(options.fd))
        return
    impls = [impl for impl in IMPLS if impl != "ray" or importlib.util.find_spec("ray")]
    load = os.getloadavg()[0]
    rows = rows_of(measure(impls, options.rounds))
    bounds = compare(rows) if "ray" in impls else []
    show(rows, bounds)
    names = ["numpy", "cloudpickle", *(["ray"] if "ray" in impls else [])]
    result = {
        "bench": "calls",
        "command": " ".join(["python", *sys.argv]),
        "commit": commit(),
        "hardware": f"{platform.machine()}, {os.cpu_count()} cores, load {load:.1f} before",
        "versions": {"python": platform.python_version()} | {name: version(name) for name in names},
        "rows": rows,
        "bounds": bounds,
    }
    folder = Path(__file__).parent / "results"
    folder.mkdir(exist_ok=True)
    path = folder / f"calls-{options.hardware}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(f"\nwritten to {path}")


if __name__ == "__main__":
    main()
