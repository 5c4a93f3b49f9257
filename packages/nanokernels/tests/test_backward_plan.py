from itertools import chain, pairwise

import pytest
import torch

from nanorlhf.nanokernels.attention.backward_plan import COLUMNS, STEP, TILE, plan
from nanorlhf.nanokernels.attention.packed import Batch, Mask

LENGTHS = [300, 1, 0, 129, 128, 700, 64], [300, 70, 5, 129, 0, 300, 900]
MASKS = {"causal": (True, None), "full": (False, None), "window": (True, 150)}


def masked(lengths, key_lengths, causal, window, device):
    q, k = (torch.tensor([0, *x]).cumsum(0).to(device, torch.int32) for x in (lengths, key_lengths))
    return Mask(Batch(len(lengths), q, k, 0, 0), 1.0, causal, window)


def visited(first, n, m, *, of_keys, causal, window):
    """First and last + 1 of the other side's rows that meet the tile, None without any."""
    own, other = (m, n) if of_keys else (n, m)
    rows = torch.arange(first, min(first + TILE, own))[:, None]
    others = torch.arange(other)[None, :]
    query, key = (others, rows) if of_keys else (rows, others)
    seen = torch.ones(len(rows), other, dtype=torch.bool)
    if causal:
        seen &= key <= query + m - n
    if window is not None:
        seen &= key > query + m - n - window
    met = seen.any(0).nonzero().flatten()
    return (met[0].item(), met[-1].item() + 1) if len(met) else None


def work_of(table, programs):
    """Each program's rows, in the order it takes them."""
    rounds = table[-programs:].tolist()
    rows = table[:-programs].view(-1, programs, COLUMNS)
    return [rows[:n, program].tolist() for program, n in enumerate(rounds)]


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("of_keys", [False, True])
def test_a_plan_visits_every_block_that_a_tile_meets(kernel_device, of_keys, mask):
    causal, window = MASKS[mask]
    where = masked(*LENGTHS, causal, window, kernel_device)
    own = LENGTHS[of_keys]
    x = torch.empty(sum(own), 3, 16, device=kernel_device)
    table = plan(x, where, programs=5, of_keys=of_keys)
    ends = [x.tolist()[1:] for x in (where.batch.cu_q, where.batch.cu_k)]
    want = {}
    for i, (n, m) in enumerate(zip(*LENGTHS, strict=True)):
        for first in range(0, own[i], TILE):
            met = visited(first, n, m, of_keys=of_keys, causal=causal, window=window)
            slot = (ends[0][i] - n) // TILE * TILE + i * TILE
            for head in range(3):
                exact = [ends[0][i], n, ends[1][i], m, slot]
                want[head, ends[of_keys][i], first] = exact, met
    for row in chain(*work_of(table, 5)):
        head, first, q_end, n, k_end, m, start, blocks, slot = row
        exact, met = want.pop((head, (q_end, k_end)[of_keys], first))
        assert [q_end, n, k_end, m, slot] == exact
        if met is not None:
            assert start % STEP == 0
            assert start <= met[0]
            assert start + blocks * STEP >= met[1]
            assert blocks <= -(-met[1] // STEP) - met[0] // STEP + TILE // STEP
    assert not want


@pytest.mark.parametrize("of_keys", [False, True])
def test_programs_have_equal_work_longest_first(kernel_device, of_keys):
    lengths = [500, 129, 0, 1300, 64]
    where = masked(lengths, lengths, True, None, kernel_device)
    x = torch.empty(sum(lengths), 5, 16, device=kernel_device)
    table = plan(x, where, programs=4, of_keys=of_keys)
    work = [[row[7] for row in rows] for rows in work_of(table, 4)]
    longest = -(-1300 // STEP)
    assert [blocks[0] for blocks in work] == [longest] * 4
    assert max(map(sum, work)) - min(map(sum, work)) <= longest // 2
    # Levels count whole tiles: within one, the ends of sequences make a tile's difference.
    for blocks in work:
        assert all(a >= b - TILE // STEP for a, b in pairwise(blocks))
