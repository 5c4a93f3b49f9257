"""One way to time everything: kernels, peers and ceilings alike.

A case is a function that makes its own inputs and returns the call to be timed. Enough sets of
inputs are made that together they pass the L2 cache several times, the calls on all of them are
captured in one CUDA graph, and the graph's replays are timed with events: launch gaps and cached
inputs are nobody's advantage. What cannot be captured runs eagerly over the same sets, and its row
says so.
"""

import gc
import json
import re
import subprocess
from pathlib import Path
from typing import NamedTuple

import torch

L2_BYTES = 60 << 20
MAX_SETS = 24
WARMUP, REPEATS = 3, 25
MIN_REPLAY_MS = 2.0  # starting a replay takes about 0.01 of them, and is timed too
UNITS = {"GB/s": 1e9, "TFLOP/s": 1e12}
REPOSITORY = Path(__file__).resolve().parents[3]


class Timing(NamedTuple):
    """Milliseconds of one call."""

    median: float
    p20: float
    p80: float
    graph: bool


class Bench:
    """Rows of results, in the order they were measured, and what is asked of them."""

    def __init__(self):
        self.rows = []
        self.goals = []

    def time(self, case, impl, make, *, work, unit, set_bytes, graph=True):
        """Time a call and record its work per second.

        Args:
            case: What is computed, with its shape.
            impl: Who computes it.
            make: ``make()`` allocates inputs and returns the call; run once for each set.
            work: Bytes or FLOPs of a call, those the case needs, whoever computes it.
            unit: "GB/s" or "TFLOP/s".
            set_bytes: Bytes that one set of inputs and outputs takes.
            graph: False for a call that waits for the device.
        """
        sets = min(MAX_SETS, max(1, -(-4 * L2_BYTES // max(1, set_bytes))))
        try:
            timing = measure(make, sets=sets, graph=graph)
        except Exception as error:  # noqa: BLE001 - a peer that fails is a row that says so
            message = f"{type(error).__name__}: {str(error).splitlines()[0][:120]}"
            self.rows.append({"case": case, "impl": impl, "error": message})
            print(f"| {case} | {impl} | - | {message} |", flush=True)
            release()
            return
        rate = work / UNITS[unit] * 1e3
        row = {"case": case, "impl": impl, "metric": "throughput", "unit": unit}
        row |= {"median": rate / timing.median, "p20": rate / timing.p80, "p80": rate / timing.p20}
        self.rows.append(row | {"ms": timing.median, "graph": timing.graph})
        note = "" if timing.graph else " (eager)"
        print(
            f"| {case} | {impl}{note} | {timing.median * 1e3:.1f} | {row['median']:.0f} {unit} |",
            flush=True,
        )

    def memory(self, case, impl, make):
        """Record the most memory a call takes besides its inputs."""
        call = make()
        call()
        release()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        result = call()
        gib = (torch.cuda.max_memory_allocated() - before) / 2**30
        del result, call
        release()
        row = {"case": case, "impl": impl, "metric": "peak memory", "unit": "GiB"}
        self.rows.append(row | {"median": gib, "p20": gib, "p80": gib})
        print(f"| {case} | {impl} | peak | {gib:.2f} GiB |", flush=True)

    def goal(self, case, at_least, *, against, of=None, impl="nanokernels"):
        """Ask that ``impl`` on ``case`` reach a multiple of ``against`` (an impl) on ``of``."""
        self.goals.append((case, impl, of or case, against, at_least))

    def verdicts(self):
        """Yield each goal with the ratio that was reached, None when a side is missing."""
        found = {
            (row["case"], row["impl"]): row["median"]
            for row in self.rows
            if row.get("metric") == "throughput"
        }
        for case, impl, of, against, at_least in self.goals:
            ours, theirs = found.get((case, impl)), found.get((of, against))
            ratio = ours / theirs if ours and theirs else None
            yield {"case": case, "against": against, "of": of, "goal": at_least, "ratio": ratio}


def release():
    """Give unused memory back, so that one case cannot starve the next."""
    gc.collect()
    torch.cuda.empty_cache()


def measure(make, *, sets, graph=True):
    """Return how long a call takes, with inputs that are not in the cache."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        calls = [make() for _ in range(sets)]
        for _ in range(WARMUP):
            for call in calls:
                call()
        torch.cuda.synchronize()
        replay, count, captured = _replayable(calls, stream, graph=graph)
        for _ in range(WARMUP):
            replay()
        times = []
        for _ in range(REPEATS):
            start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            replay()
            stop.record()
            stop.synchronize()
            times.append(start.elapsed_time(stop) / count)
    del calls, replay
    release()
    times.sort()
    low, middle, high = (times[int(q * (len(times) - 1))] for q in (0.2, 0.5, 0.8))
    return Timing(middle, low, high, captured)


def _replayable(calls, stream, *, graph):
    """Return what runs the calls, how many that makes, and whether a graph holds them.

    The calls are repeated until a replay takes ``MIN_REPLAY_MS``, by the time that a replay of one
    round takes: called one by one, small kernels wait for Python, and rounds would be too few.
    """
    run = _replay(calls, 1, stream) if graph else None
    captured = run is not None
    run = run or _in_turn(calls, 1)
    run()  # the first replay uploads the graph
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    run()
    stop.record()
    stop.synchronize()
    rounds = min(200, int(MIN_REPLAY_MS / max(1e-3, start.elapsed_time(stop))))
    if rounds > 1:
        del run  # and the memory its graph keeps
        run = _replay(calls, rounds, stream) if captured else _in_turn(calls, rounds)
    return run, max(1, rounds) * len(calls), captured


def _in_turn(calls, rounds):
    def run():
        for _ in range(rounds):
            for call in calls:
                call()

    return run


def _replay(calls, rounds, stream):
    """Return the replay of a graph of the calls, None where they cannot be captured."""
    captured = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(captured, stream=stream):
            _in_turn(calls, rounds)()
    except Exception:  # noqa: BLE001 - what cannot be captured is timed eagerly, and marked
        torch.cuda.synchronize()
        return None
    return captured.replay


def randn(*shape, grad=False, dtype=torch.bfloat16):
    """Return random inputs on the GPU."""
    return torch.randn(*shape, device="cuda", dtype=dtype, requires_grad=grad)


def backward(fn, inputs, grad):
    """Return a call that runs the backward alone, on a graph made once."""
    y = fn(*inputs)
    return lambda: torch.autograd.grad(y, inputs, grad, retain_graph=True)


def run_git(*args):
    """Return what git prints, empty where there is no repository."""
    done = subprocess.run(["git", *args], cwd=REPOSITORY, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else ""


def driver():
    """Return the driver's version."""
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=30)
    except OSError:
        return "unknown"
    return done.stdout.splitlines()[0].strip() if done.returncode == 0 else "unknown"


def write(bench, *, out, commit):
    """Write the rows so far with what made them."""
    import triton

    hardware = torch.cuda.get_device_name()
    slug = re.sub(r"[^a-z0-9]+", "-", hardware.lower()).strip("-")
    out = out or Path(__file__).parent / "results" / f"kernels-{slug}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    script = "packages/nanokernels/benchmarks/bench_kernels.py"
    versions = {"torch": torch.__version__, "triton": triton.__version__}
    versions |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    result = {
        "bench": "kernels",
        "command": f"python {script}",
        "commit": commit or run_git("rev-parse", "HEAD") or "unknown",
        "hardware": hardware,
        "versions": versions | {"driver": driver()},
        "warmup": WARMUP,
        "repeats": REPEATS,
        "rows": bench.rows,
        "goals": list(bench.verdicts()),
    }
    out.write_text(json.dumps(result, indent=1) + "\n")


def report(bench):
    """Print each goal and what was reached."""
    print("\n| case | against | goal | reached |\n| --- | --- | --- | --- |")
    for v in bench.verdicts():
        reached = "-" if v["ratio"] is None else f"{v['ratio']:.3f}"
        mark = "" if v["ratio"] is not None and v["ratio"] >= v["goal"] else " MISSED"
        print(f"| {v['case']} | {v['against']} {v['of']} | {v['goal']} | {reached}{mark} |")
