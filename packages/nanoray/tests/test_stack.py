import os
import time

import pytest

from nanorlhf.nanoray.stack import dump, workers

WAIT_S = 30


def test_the_stack_of_a_worker_that_never_answers_is_read_from_outside(ray, until):
    @ray.remote
    class Busy:
        def pid(self):
            return os.getpid()

        def spin_for_ever(self):
            while True:
                time.sleep(0.001)

    actor = Busy.remote()
    pid = ray.get(actor.pid.remote(), timeout=WAIT_S)
    actor.spin_for_ever.remote()
    assert pid in workers()
    assert until(lambda: "spin_for_ever" in dump(pid).text)
    stack = dump(pid)
    assert stack.pid == pid
    assert stack.name.startswith("nanoray-")
    assert stack.text.count("most recent call first") >= 1
    ray.kill(actor)


def test_what_is_no_worker_has_no_stack():
    assert os.getpid() not in workers()
    with pytest.raises(ProcessLookupError, match=f"pid={os.getpid()} is no worker"):
        dump(os.getpid())
