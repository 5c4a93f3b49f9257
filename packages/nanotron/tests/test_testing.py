import time

import pytest
import torch
import torch.distributed as dist

from nanorlhf.nanotron.errors import RankFailed
from nanorlhf.nanotron.testing import run_ranks


def sum_of_ranks(rank, start):
    x = torch.tensor(start + rank)
    dist.all_reduce(x)
    return int(x), rank


def fail_on_rank_one(rank):
    if rank == 1:
        raise KeyError("lost")
    dist.barrier()


def sleep_on_rank_one(rank):
    if rank == 1:
        time.sleep(60)


def test_every_rank_runs_the_function_in_one_group():
    assert run_ranks(sum_of_ranks, 3, 10) == [(33, 0), (33, 1), (33, 2)]


def test_the_error_of_a_rank_is_raised_with_its_traceback():
    with pytest.raises(RankFailed, match=r"(?s)rank 1 raised.*fail_on_rank_one.*KeyError: 'lost'"):
        run_ranks(fail_on_rank_one, 2)


def test_a_rank_that_hangs_is_killed_and_its_stack_is_shown():
    began = time.monotonic()
    with pytest.raises(RankFailed, match=r"(?s)ranks \[1\] ran out of time.*sleep_on_rank_one"):
        run_ranks(sleep_on_rank_one, 2, timeout_s=6)
    assert time.monotonic() - began < 20
