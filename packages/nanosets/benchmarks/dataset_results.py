"""What the benchmark of datasets measured, row by row, and what was asked of it."""

import gc
import statistics
import time


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
