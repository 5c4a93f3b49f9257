"""When a worker that has answered looks for its next call without sleeping."""

import itertools
import time

from nanorlhf.nanoray.spin import Spin

WAIT_S = 60


def dues(spin, number):
    """Return which of the next answers are followed by a look, all of them in vain."""
    found = []
    for answer in range(number):
        if spin.is_due():
            found.append(answer)
            spin.note(150e-6)
    return found


def test_looks_in_vain_become_rarer_up_to_a_bound():
    found = dues(Spin(), 5000)
    gaps = [after - before for before, after in itertools.pairwise(found)]
    assert gaps[:9] == [2, 3, 5, 9, 17, 33, 65, 129, 257]
    assert set(gaps[9:]) == {257}


def test_a_message_that_came_makes_every_answer_worth_a_look_again():
    spin = Spin()
    dues(spin, 3)
    while not spin.is_due():
        pass
    spin.note(100e-6, is_caught=True)
    assert [spin.is_due() for _ in range(3)] == [True] * 3


def test_a_message_that_came_late_counts_as_a_look_in_vain():
    spin = Spin()
    spin.note(3e-3, is_caught=True)
    assert not spin.is_due()


def test_a_look_ends_after_a_while_or_when_another_wants_the_processor():
    spin = Spin()
    assert not spin.is_over(spent_s=100e-6, yielded_s=1e-6)
    assert spin.is_over(spent_s=200e-6, yielded_s=1e-6)
    assert spin.is_over(spent_s=50e-6, yielded_s=50e-6)


def test_a_worker_that_waits_uses_no_processor_time(start):
    ray = start(num_cpus=1)

    @ray.remote
    class Meter:
        def used_s(self):
            return time.process_time()

    meter, nap = Meter.remote(), ray.remote(time.sleep)
    before = [ray.get(meter.used_s.remote(), timeout=WAIT_S) for _ in range(50)][-1]
    ray.get(nap.remote(0.5), timeout=WAIT_S)
    assert ray.get(meter.used_s.remote(), timeout=WAIT_S) - before < 0.1
