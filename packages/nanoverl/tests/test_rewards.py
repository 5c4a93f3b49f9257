"""The pool survives whatever a reward function does."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from nanorlhf.nanoverl import RewardConfig, RewardError, RewardItem, RewardPool, load_reward

FUNCTIONS = '''
import os, signal, subprocess, sys, time

PREPARED = []

def prepare():
    PREPARED.append(os.getpid())

def obey(prompt, response, answer, **row):
    """Do what the response says."""
    if response == "hang":
        while True:
            pass
    if response == "hang in C":
        time.sleep(1000)
    if response == "hang in a child":
        child = subprocess.Popen(["sleep", "1000"])
        with open(row["note"], "w") as note:
            note.write(f"{os.getpid()} {child.pid}")
        child.wait()
    if response == "raise":
        raise KeyError("nothing of the kind")
    if response == "exit":
        os._exit(3)
    if response == "sys.exit":
        sys.exit(4)
    if response == "die":
        os.kill(os.getpid(), signal.SIGSEGV)
    if response == "nan":
        return float("nan")
    if response == "parts":
        return {"reward": 1.5, "format": True, "length": 0.25}
    if response == "no total":
        return {"format": 1.0}
    if response == "words":
        return "good"
    if response == "pid":
        return os.getpid()
    if response == "modules":
        return float("torch" in sys.modules)
    if response == "row":
        return row["level"]
    if response == "prepared":
        return float(PREPARED == [os.getppid()])
    return float(response)
'''


@pytest.fixture(scope="module")
def functions(tmp_path_factory):
    """A file of reward functions."""
    path = tmp_path_factory.mktemp("rewards") / "functions.py"
    path.write_text(FUNCTIONS)
    return path


@pytest.fixture(scope="module")
def pool(functions):
    """Two workers with a second each."""
    config = RewardConfig(function=f"{functions}:obey", workers=2, timeout_s=1.0)
    with RewardPool(config) as pool:
        yield pool


def ask(pool, *responses, **row):
    """The pool's results for the responses."""
    return pool.score([RewardItem("?", response, "!", row) for response in responses])


def alive(pid):
    """Whether a process runs: a zombie does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def wait_until(condition, timeout_s=10.0):
    """Poll a condition that another process brings about."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def test_results_come_in_the_order_of_the_items(pool):
    results = ask(pool, *(str(i) for i in range(200)))
    assert [result.reward for result in results] == [float(i) for i in range(200)]
    assert all(result.error is None for result in results)


def test_no_items_give_no_results(pool):
    assert pool.score([]) == []


def test_parts_and_columns_of_the_row_pass_through(pool):
    parts, level = ask(pool, "parts", "row", level=4)
    assert parts.reward == 1.5
    assert parts.parts == {"format": 1.0, "length": 0.25}
    assert level.reward == 4.0


def test_a_column_of_the_row_cannot_hide_the_response(pool):
    (result,) = pool.score([RewardItem("?", "7", "!", {"response": "8", "prompt": "x"})])
    assert result.reward == 7.0


@pytest.mark.parametrize("response", ["hang", "hang in C"])
def test_what_hangs_is_killed_and_gets_nothing_and_the_rest_is_scored(pool, response):
    clock = time.monotonic()
    results = ask(pool, "1", response, "2", "3")
    assert [result.reward for result in results] == [1.0, 0.0, 2.0, 3.0]
    assert [result.error for result in results] == [None, "timeout", None, None]
    assert time.monotonic() - clock < 8.0


def test_what_hangs_is_killed_with_all_that_it_started(pool, tmp_path):
    good, bad = ask(pool, "1", "hang in a child", note=str(tmp_path / "pids"))
    assert (good.reward, bad.error) == (1.0, "timeout")
    for pid in (tmp_path / "pids").read_text().split():
        wait_until(lambda pid=pid: not alive(pid))


@pytest.mark.parametrize(
    ("response", "error"),
    [
        ("raise", r"error: KeyError: 'nothing of the kind' (functions.py:22)"),
        ("exit", "error: its process ended with exit status 3"),
        ("die", "error: its process ended with signal 11"),
        ("nan", "returned reward=nan; return a finite number"),
        ("no total", "returned parts ['format']; name the total 'reward'"),
        ("words", "could not convert string to float: 'good'"),
    ],
)
def test_what_fails_says_why_and_the_rest_is_scored(pool, response, error):
    good, bad, fine = ask(pool, "1", response, "2")
    assert (good.reward, bad.reward, fine.reward) == (1.0, 0.0, 2.0)
    assert error in bad.error


def test_sys_exit_ends_the_worker_alone(pool):
    good, bad = ask(pool, "1", "sys.exit")
    assert good.reward == 1.0
    assert "its process ended" in bad.error


def test_a_worker_killed_while_idle_is_replaced_and_costs_no_reward(pool):
    for pid in {int(result.reward) for result in ask(pool, *["pid"] * 20)}:
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda pid=pid: not alive(pid))
    assert [result.reward for result in ask(pool, "1", "2", "3")] == [1.0, 2.0, 3.0]


def test_when_nothing_is_scored_the_pool_says_so(pool):
    with pytest.raises(RewardError, match=r"scored none of 2 responses.*last error.*KeyError"):
        ask(pool, "exit", "raise")
    assert ask(pool, "1")[0].reward == 1.0


def test_workers_import_no_torch_and_the_module_prepares_once(pool):
    modules, prepared = ask(pool, "modules", "prepared")
    assert modules.reward == 0.0
    assert prepared.reward == 1.0


def test_threads_may_share_a_pool(pool):
    with ThreadPoolExecutor(4) as threads:
        futures = [threads.submit(ask, pool, *map(str, range(i, i + 20))) for i in range(8)]
    for i, future in enumerate(futures):
        assert [r.reward for r in future.result()] == [float(x) for x in range(i, i + 20)]


def test_scoring_can_overlap_other_work(pool):
    futures = [pool.submit(RewardItem("?", str(i), "!", {})) for i in range(3)]
    assert [result.reward for result in pool.gather(futures)] == [0.0, 1.0, 2.0]


def test_closing_leaves_no_process_and_fails_what_runs(functions):
    pool = RewardPool(RewardConfig(function=f"{functions}:obey", workers=2, timeout_s=60.0))
    pids = {int(result.reward) for result in ask(pool, *["pid"] * 20)}
    program = pool._nursery.process.pid
    running = pool.submit(RewardItem("?", "hang", "!", {}))
    wait_until(running.running)
    clock = time.monotonic()
    pool.close()
    pool.close()
    assert time.monotonic() - clock < 20.0
    assert "its process ended" in running.result().error
    wait_until(lambda: not any(map(alive, pids)))
    assert not Path(f"/proc/{program}").exists()  # not even a zombie
    with pytest.raises(RewardError, match="the pool is closed; make a new one"):
        pool.submit(RewardItem("?", "1", "!", {}))


def test_workers_die_with_a_parent_that_is_killed(functions, tmp_path):
    """Run as a script without a main guard, and shot while one worker hangs."""
    script = tmp_path / "trainer.py"
    script.write_text(
        textwrap.dedent(f"""
        import time
        from nanorlhf.nanoverl import RewardConfig, RewardItem, RewardPool
        pool = RewardPool(RewardConfig(function={f"{functions}:obey"!r}, workers=2, timeout_s=600))
        pids = [int(r.reward) for r in pool.score([RewardItem("", "pid", "", {{}})] * 20)]
        pool.submit(RewardItem("", "hang", "", {{}}))
        time.sleep(0.5)
        print(pool._nursery.process.pid, *set(pids), flush=True)
        time.sleep(1000)
        """)
    )
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    with parent:
        try:
            pids = [int(word) for word in parent.stdout.readline().split()]
        finally:
            parent.kill()
    assert len(pids) >= 2
    wait_until(lambda: not any(map(alive, pids)))


def test_a_function_that_cannot_be_loaded_is_refused_when_the_pool_is_made(functions, tmp_path):
    broken = tmp_path / "broken.py"
    broken.write_text("import no_such_module\n")
    dying = tmp_path / "dying.py"
    dying.write_text("import os; os._exit(1)\n")
    cases = {
        f"{functions}:nothing": "has no function nothing; it has .*obey",
        f"{tmp_path}/absent.py:f": "no file .*absent.py",
        f"{broken}:f": "No module named 'no_such_module'",
        "no_such_package.module:f": "No module named 'no_such_package'",
        "nanorlhf.nanoverl:no_reward": "nanorlhf.nanoverl has no function no_reward",
        f"{dying}:f": "the process ended while importing it",
    }
    for function, message in cases.items():
        with pytest.raises(RewardError, match=message):
            RewardPool(RewardConfig(function=function))


def test_an_import_that_takes_too_long_is_refused(tmp_path):
    slow = tmp_path / "slow.py"
    slow.write_text("import time; time.sleep(1000)\n")
    config = RewardConfig(function=f"{slow}:f", start_timeout_s=1.0)
    with pytest.raises(RewardError, match="not imported within start_timeout_s=1 s; raise it"):
        RewardPool(config)


def test_a_reward_is_loaded_from_a_module_or_a_file(functions):
    assert load_reward(f"{functions}:obey")("", "2", "") == 2.0
    assert load_reward("math:sqrt") is __import__("math").sqrt
    with pytest.raises(ValueError, match=r"names no function; use 'package.module:name'"):
        load_reward("math")
    with pytest.raises(ValueError, match="math has no function nope"):
        load_reward("math:nope")


def test_the_default_pool_scores_mathematics():
    items = [
        RewardItem("", r"\boxed{\frac{\sqrt{2}}{2}}", r"\frac{1}{\sqrt{2}}", {"level": 1}),
        RewardItem("", r"\boxed{3}", "4", {}),
        RewardItem("", r"\boxed{9^{9^{9^{9}}}}", "4", {}),
    ]
    with RewardPool(RewardConfig(workers=1)) as pool:
        results = pool.score(items)
    assert [result.reward for result in results] == [1.0, 0.0, 0.0]
    assert [result.error for result in results] == [None] * 3
