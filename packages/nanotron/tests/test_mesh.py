import itertools

import pytest

from nanorlhf.nanotron import Mesh
from nanorlhf.nanotron.mesh import Coordinates, Grid
from nanorlhf.nanotron.testing import run_ranks

GRIDS = [Grid(dp=d, pp=p, tp=t) for d, p, t in itertools.product((1, 2, 3), (1, 2, 4), (1, 2))]


@pytest.mark.parametrize("grid", GRIDS, ids=repr)
def test_coordinates_and_rank_are_inverse_and_tp_runs_fastest(grid):
    places = [grid.coordinates(rank) for rank in range(grid.size)]
    want = itertools.product(range(grid.dp), range(grid.pp), range(grid.tp))
    assert places == [Coordinates(*at) for at in want]
    assert [grid.rank(at) for at in places] == list(range(grid.size))


@pytest.mark.parametrize("grid", GRIDS, ids=repr)
def test_lines_of_any_axes_divide_the_ranks(grid):
    for axes in [("dp",), ("pp",), ("tp",), ("pp", "tp")]:
        lines = grid.lines(*axes)
        assert sorted(rank for line in lines for rank in line) == list(range(grid.size))
        for line in lines:
            places = [grid.coordinates(rank)._asdict() for rank in line]
            for axis in {"dp", "pp", "tp"} - set(axes):
                assert len({at[axis] for at in places}) == 1


def test_a_layout_that_is_not_the_world_is_refused():
    with pytest.raises(ValueError, match=r"dp=2 \* pp=1 \* tp=2 = 4 ranks, but the world has 1"):
        Mesh(dp=2, tp=2)
    with pytest.raises(ValueError, match="pp=0: every axis has at least 1 rank"):
        Mesh(pp=0)


def groups(rank):
    import torch.distributed as dist

    mesh = Mesh(pp=2, tp=2)
    named = {
        name: dist.get_process_group_ranks(group)
        for name in ("dp", "pp", "tp", "model", "tied")
        if (group := getattr(mesh, f"{name}_group")) is not None
    }
    return named, mesh.stage_rank(0), mesh.stage_rank(1), repr(mesh)


def test_every_rank_is_in_the_groups_of_its_axes():
    ranks = run_ranks(groups, 4)
    assert ranks[2][0] == {"pp": [0, 2], "tp": [2, 3], "model": [0, 1, 2, 3], "tied": [0, 2]}
    assert ranks[1][0] == {"pp": [1, 3], "tp": [0, 1], "model": [0, 1, 2, 3], "tied": [1, 3]}
    assert ranks[3][1:] == (1, 3, "Mesh(dp=1, pp=2, tp=2, rank=3)")
