"""When a process that waits for a message looks for it without sleeping."""

import itertools

from nanorlhf.nanoray.spin import Spin

AWAY_S = 60e-6
"""How long the processor is away while somebody on it makes a call."""


def dues(spin, number):
    """Return which of the next waits begin with a look, all of them in vain."""
    found = []
    for wait in range(number):
        if spin.is_due():
            found.append(wait)
            spin.note(200e-6, away_s=0.0, is_caught=False)
    return found


def moves(spin, aways):
    """Return after which looks the process moves, all of which find a message."""
    found = []
    for number, away_s in enumerate(aways, 1):
        spin.note(100e-6, away_s=away_s, is_caught=True)
        if spin.must_move():
            found.append(number)
    return found


def test_looks_in_vain_become_rarer_up_to_a_bound():
    found = dues(Spin(), 5000)
    gaps = [after - before for before, after in itertools.pairwise(found)]
    assert gaps[:9] == [2, 3, 5, 9, 17, 33, 65, 129, 257]
    assert set(gaps[9:]) == {257}


def test_a_message_that_came_makes_every_wait_worth_a_look_again():
    spin = Spin()
    dues(spin, 3)
    while not spin.is_due():
        pass
    spin.note(100e-6, away_s=0.0, is_caught=True)
    assert [spin.is_due() for _ in range(3)] == [True] * 3


def test_a_message_that_came_late_counts_as_a_look_in_vain():
    spin = Spin()
    spin.note(400e-6, away_s=10e-6, is_caught=True)
    assert [spin.is_due() for _ in range(2)] == [False, True]


def test_on_a_busy_machine_looks_become_rare_and_frequent_again_by_and_by():
    spin, found = Spin(), []
    for wait in range(2000):
        if spin.is_due():
            found.append(wait)
            away_s = 3e-3 if wait < 700 else 0.0
            spin.note(away_s, away_s=away_s, is_caught=True)
    gaps = [after - before for before, after in itertools.pairwise(found)]
    assert gaps[:14] == [9, 33, 129, 257, 257, 257, 129, 65, 33, 17, 9, 5, 3, 2]
    assert set(gaps[14:]) == {1}


def test_who_shares_a_busy_machine_stays_where_it_is():
    spin = Spin()
    for _ in range(10):
        spin.note(3e-3, away_s=3e-3, is_caught=True)
    assert not spin.must_move()


def test_a_look_ends_after_a_while_or_when_another_wants_the_processor():
    assert not Spin.is_over(100e-6, away_s=1e-6)
    assert Spin.is_over(200e-6, away_s=1e-6)
    assert Spin.is_over(50e-6, away_s=AWAY_S)


def test_who_shares_a_processor_with_the_caller_moves_and_less_often_when_that_does_not_help():
    assert moves(Spin(), [AWAY_S] * 100) == [2, 6, 14, 30, 62]
    found = moves(Spin(), [AWAY_S] * 9000)
    assert found[-1] - found[-2] == 1024


def test_who_has_moved_with_success_moves_as_readily_again():
    spin = Spin()
    assert moves(spin, [AWAY_S, AWAY_S] + [0.0] * 2 + [AWAY_S, AWAY_S]) == [2, 6]
    assert moves(spin, [AWAY_S, 0.0] * 50) == []
