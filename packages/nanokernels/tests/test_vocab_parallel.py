from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from nanorlhf.nanokernels.vocab_parallel import Share, join

RANKS = 3


def share_of(logits, targets):
    """Log-sum-exp, entropy and the target's logit over all columns, one row at a time."""
    rows = []
    for z, target in zip(logits, targets.tolist(), strict=True):
        p = z.softmax(0)
        picked = z[target] if 0 <= target < len(z) else z.new_zeros(())
        rows.append(torch.stack((z.exp().sum().log(), -(p * p.log()).sum(), picked)))
    return Share(*torch.stack(rows).unbind(1))


def weigh(share):
    """A loss in which every number of every token counts differently."""
    scale = torch.linspace(-1, 2, 3 * len(share.lse_T), dtype=torch.float64)
    return (torch.cat(tuple(share)) * scale).sum()


@pytest.mark.parametrize("cuts", [(0, 4, 5, 11), (0, 1, 10, 11)])
def test_ranks_join_to_what_one_rank_knows_and_share_its_gradient(cuts):
    logits = torch.randn(5, 11, dtype=torch.float64) * 4
    targets = torch.tensor([0, 10, 4, 3, 9])
    whole = logits.clone().requires_grad_()
    expected = share_of(whole, targets)
    (grad,) = torch.autograd.grad(weigh(expected), whole)
    store = dist.HashStore()

    def run(rank):
        group = dist.ProcessGroupGloo(store, rank, RANKS, timedelta(seconds=60))
        mine = logits[:, cuts[rank] : cuts[rank + 1]].clone().requires_grad_()
        joined = join(share_of(mine, targets - cuts[rank]), group)
        return [x.detach() for x in joined], torch.autograd.grad(weigh(joined), mine)[0]

    with ThreadPoolExecutor(RANKS) as threads:
        futures = [threads.submit(run, rank) for rank in range(RANKS)]
        found = [future.result(120) for future in futures]
    for joined, _ in found:
        torch.testing.assert_close(joined, [x.detach() for x in expected])
    torch.testing.assert_close(torch.cat([g for _, g in found], dim=1), grad)


def test_without_a_group_a_share_is_all_there_is():
    share = share_of(torch.randn(2, 3), torch.tensor([0, 1]))
    assert join(share, None) is share
