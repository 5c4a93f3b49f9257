r"""Matrix product whose rows do not depend on how many of them there are.

Libraries pick another algorithm for another M: a row multiplied alone and the same row in a batch
then differ in their last bits, and so do a policy's log-probabilities as it samples and as it
trains. Here every element of ``c = a b`` is one chain of tensor-core steps, 16 terms each, from the
first term to the last::

    c[i, j] = ((a[i, 0:16] b[0:16, j]) + a[i, 16:32] b[16:32, j]) + ...   in float32, rounded once

Tiles differ with M, the chain does not, and the tensor cores give an element the same bits
wherever in a tile it stands. So K is never split, and where M is small, and a product reads its
weights and does little else, the tiles are narrow instead, so that there are enough of them::

          M >= 1024             M <= 64
        +-----+-----+        +-+-+-+-+-+-+-+-+
        |     |     |        | | | | | | | | |   64 x 16: many programs read b side by side
        +-----+-----+        +-+-+-+-+-+-+-+-+
        |     |     |   128 x 256: each element of a and b is used often
        +-----+-----+

FLOPs: 2 M N K. Bytes: those of a, b and c. Backward: ``da = dc b^T``, ``db = a^T dc``, by the same
kernel; of those, ``da`` does not depend on M either.
"""

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .configs import Config, table
from .dispatch import (
    Impl,
    accumulator,
    cdiv,
    jit,
    jit_varying,
    launch,
    tl,
    use_triton,
)
from .registration import register

if TYPE_CHECKING:
    from .tune import Tunable

FEW_ROWS = 16
"""Up to here rows are read through pointers, which skip those a tile has too many."""


def reference(a: Tensor, b: Tensor) -> Tensor:
    """Return ``a @ b`` in plain PyTorch, computed in float32 (float64 stays)."""
    high = accumulator(a.dtype)
    return (a.to(high) @ b.to(high)).to(a.dtype)


@jit
def _pointed(
    x_ptr: tl.tensor,
    row: tl.tensor,
    column: tl.tensor,
    rows: tl.tensor,
    columns: tl.tensor,
    stride: tl.tensor,
    BY_ROWS: tl.constexpr,
) -> tl.tensor:
    """Load a tile of a matrix whose rows (or columns) lie in memory one after another."""
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    if BY_ROWS:
        at = row.to(tl.int64)[:, None] * stride + column[None, :]
    else:
        at = column.to(tl.int64)[None, :] * stride + row[:, None]
    return tl.load(x_ptr + at, mask=inside, other=0.0)


@jit
def _place(
    tile: tl.tensor,
    m: tl.tensor,
    n: tl.tensor,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    GROUP: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """Return a tile's first row and column.

    GROUP rows of tiles go down the columns together, so that what they share stays in the cache.
    """
    tiles_n = tl.cdiv(n, BLOCK_N)
    first = tile // (GROUP * tiles_n) * GROUP
    height = tl.minimum(tl.cdiv(m, BLOCK_M) - first, GROUP)
    within = tile % (GROUP * tiles_n)
    return (first + within % height) * BLOCK_M, within // height * BLOCK_N


@jit
def _keep(
    c_ptr: tl.tensor,
    acc: tl.tensor,
    row: tl.tensor,
    column: tl.tensor,
    m: tl.tensor,
    n: tl.tensor,
) -> None:
    """Round a tile and store what of it is inside."""
    at = row.to(tl.int64)[:, None] * n + column[None, :]
    inside = (row < m)[:, None] & (column < n)[None, :]
    tl.store(c_ptr + at, acc.to(c_ptr.dtype.element_ty), mask=inside)


@jit
def _described_tile(
    tile: tl.tensor,
    c_ptr: tl.tensor,
    a_tiles: tl.tensor,
    b_tiles: tl.tensor,
    c_tiles: tl.tensor,
    m: tl.tensor,
    n: tl.tensor,
    k: tl.tensor,
    A_BY_ROWS: tl.constexpr,
    B_BY_ROWS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
) -> None:
    first_m, first_n = _place(tile, m, n, BLOCK_M, BLOCK_N, GROUP)
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for first in tl.range(0, k, BLOCK_K):
        if A_BY_ROWS:
            a = a_tiles.load([first_m, first])
        else:
            a = tl.trans(a_tiles.load([first, first_m]))
        if B_BY_ROWS:
            b = b_tiles.load([first, first_n])
        else:
            b = tl.trans(b_tiles.load([first_n, first]))
        acc = tl.dot(a, b, acc)
    c_tiles.store([first_m, first_n], acc.to(c_ptr.dtype.element_ty))


@jit_varying("m")
def _described_kernel(
    c_ptr: tl.tensor,
    a_tiles: tl.tensor,
    b_tiles: tl.tensor,
    c_tiles: tl.tensor,
    m: tl.tensor,
    n: tl.tensor,
    k: tl.tensor,
    A_BY_ROWS: tl.constexpr,
    B_BY_ROWS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
    PERSISTENT: tl.constexpr,
) -> None:
    if PERSISTENT:
        tiles = tl.cdiv(m, BLOCK_M) * tl.cdiv(n, BLOCK_N)
        # Flattened, so that a tile's first loads are under way while the last tile is stored.
        for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0), flatten=True):
            _described_tile(
                tile, c_ptr, a_tiles, b_tiles, c_tiles, m, n, k,
                A_BY_ROWS, B_BY_ROWS, BLOCK_M, BLOCK_N, BLOCK_K, GROUP,
            )  # fmt: skip
    else:
        _described_tile(
            tl.program_id(0), c_ptr, a_tiles, b_tiles, c_tiles, m, n, k,
            A_BY_ROWS, B_BY_ROWS, BLOCK_M, BLOCK_N, BLOCK_K, GROUP,
        )  # fmt: skip


@jit_varying("m")
def _pointed_kernel(
    c_ptr: tl.tensor,
    a_ptr: tl.tensor,
    b_ptr: tl.tensor,
    m: tl.tensor,
    n: tl.tensor,
    k: tl.tensor,
    stride_a: tl.tensor,
    stride_b: tl.tensor,
    A_BY_ROWS: tl.constexpr,
    B_BY_ROWS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
    WHOLE_K: tl.constexpr,
) -> None:
    first_m, first_n = _place(tl.program_id(0), m, n, BLOCK_M, BLOCK_N, GROUP)
    row = first_m + tl.arange(0, BLOCK_M)
    column = first_n + tl.arange(0, BLOCK_N)
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for first in tl.range(0, k, BLOCK_K):
        term = first + tl.arange(0, BLOCK_K)
        # Nothing to mask where steps come out even: a mask of unknown end costs wide loads.
        depth = first + BLOCK_K if WHOLE_K else k
        a = _pointed(a_ptr, row, term, m, depth, stride_a, A_BY_ROWS)
        b = _pointed(b_ptr, term, column, depth, n, stride_b, B_BY_ROWS)
        acc = tl.dot(a, b, acc, input_precision="tf32x3")
    _keep(c_ptr, acc, row, column, m, n)


def _is_by_rows(x: Tensor) -> bool:
    """Return whether rows, not columns, lie in memory one after another."""
    return x.stride(1) == 1 or x.shape[1] == 1


def _as_lines(x: Tensor) -> Tensor:
    """Return ``x`` as it is if its rows or its columns are contiguous, else a copy."""
    return x if x.stride(1) == 1 or x.stride(0) == 1 else x.contiguous()


def _is_described(x: Tensor) -> bool:
    """Return whether a tensor descriptor can hold ``x``: 2-byte lines on 16-byte boundaries."""
    step = max(x.stride()) * x.element_size()
    return x.element_size() == 2 and step % 16 == 0 and x.data_ptr() % 16 == 0


def _describe(x: Tensor, rows: int, columns: int) -> object:
    """Return a descriptor of tiles of ``x``, of its transpose where columns are contiguous."""
    # Made on the host: a descriptor made by each program costs a microsecond of a product of five.
    from triton.tools.tensor_descriptor import TensorDescriptor

    if _is_by_rows(x):
        return TensorDescriptor.from_tensor(x, [rows, columns])
    return TensorDescriptor.from_tensor(x.t(), [columns, rows])


def _config(m: int, n: int, kind: str) -> Config:
    """Return the first tile of a kind that makes enough programs, or the last: large to small."""
    tiles = [c for key, c in table("matmul").items() if key.startswith(kind)]
    for config in tiles:
        programs = cdiv(m, config["block_m"]) * cdiv(n, config["block_n"])
        if config["block_m"] <= max(64, m) and programs >= config["programs"]:
            return config
    return tiles[-1]


def _launch(a: Tensor, b: Tensor, config: Config | None = None) -> Tensor:
    (m, k), n = a.shape, b.shape[1]
    c = torch.empty(m, n, dtype=a.dtype, device=a.device)
    if not k:
        return c.zero_()
    if c.numel():
        a, b = _as_lines(a), _as_lines(b)
        is_described = m > FEW_ROWS and all(map(_is_described, (a, b, c)))
        kind = "many" if is_described else f"few/{a.element_size()}"
        run = _run_described if is_described else _run_pointed
        run(a, b, c, config or _config(m, n, kind))
    return c


def _constants(a: Tensor, b: Tensor, config: Config) -> dict[str, int]:
    shape = {name.upper(): config[name] for name in ("block_m", "block_n", "block_k")}
    launch_options = {name: config[name] for name in ("num_warps", "num_stages")}
    layouts = {"A_BY_ROWS": _is_by_rows(a), "B_BY_ROWS": _is_by_rows(b)}
    return {**shape, **layouts, **launch_options, "GROUP": 8}


def _run_pointed(a: Tensor, b: Tensor, c: Tensor, config: Config) -> None:
    (m, k), n = a.shape, b.shape[1]
    launch(
        _pointed_kernel,
        (cdiv(m, config["block_m"]) * cdiv(n, config["block_n"]),),
        c,
        a,
        b,
        m,
        n,
        k,
        max(a.stride()),
        max(b.stride()),
        WHOLE_K=k % config["block_k"] == 0,
        **_constants(a, b, config),
    )


def _run_described(a: Tensor, b: Tensor, c: Tensor, config: Config) -> None:
    (m, k), n = a.shape, b.shape[1]
    block_m, block_n, block_k = (config[name] for name in ("block_m", "block_n", "block_k"))
    tiles = cdiv(m, block_m) * cdiv(n, block_n)
    persistent = config.get("persistent", 0)
    launch(
        _described_kernel,
        (min(tiles, persistent or tiles),),
        c,
        _describe(a, block_m, block_k),
        _describe(b, block_k, block_n),
        _describe(c, block_m, block_n),
        m,
        n,
        k,
        PERSISTENT=persistent > 0,
        **_constants(a, b, config),
    )


def _save(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:  # noqa: ANN401 - no type
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, dc: Tensor) -> tuple[Tensor | None, Tensor | None]:  # noqa: ANN401 - no type
    a, b = ctx.saved_tensors
    wants_a, wants_b = ctx.needs_input_grad[:2]
    return _op(dc, b.t()) if wants_a else None, _op(a.t(), dc) if wants_b else None


_op = register(
    "matmul(Tensor a, Tensor b) -> Tensor",
    _launch,
    fake=lambda a, b: a.new_empty(a.shape[0], b.shape[1]),
    backward=_backward,
    save=_save,
)


def matmul(a: Tensor, b: Tensor, *, impl: Impl = "auto") -> Tensor:
    """Return ``a @ b``, each row bit for bit the same whatever other rows ``a`` has (on CUDA).

    Differentiable. For a linear layer pass ``weight.t()``: every layout is read as it is.

    Args:
        a: [..., K].
        b: [K, N], in the same dtype.
        impl: Which implementation runs; see :mod:`.dispatch`.

    Returns:
        [..., N], in the inputs' dtype, accumulated in float32 (float64 for float64 input).

    Raises:
        ValueError: Shapes or dtypes do not fit.

    >>> matmul(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0], [4.0]]))
    tensor([[11.]])
    """
    if a.ndim == 0 or b.ndim != 2 or a.shape[-1] != b.shape[0] or a.dtype != b.dtype:
        raise ValueError(
            f"a={a.dtype}{tuple(a.shape)} and b={b.dtype}{tuple(b.shape)} do not fit; "
            "pass [..., K] and [K, N] in one dtype"
        )
    if not use_triton(impl, a):
        return reference(a, b)
    c: Tensor = _op(a.reshape(math.prod(a.shape[:-1]), a.shape[-1]), b)
    return c.view(*a.shape[:-1], b.shape[1])


def tunables() -> "Iterator[Tunable]":
    """Yield the choices of launch parameters, for a product large enough for any tile."""
    from .tune import Tunable

    def prepare() -> Callable[[Config], Tensor]:
        a = torch.randn(4096, 1024, device="cuda", dtype=torch.bfloat16)
        w = torch.randn(6144, 1024, device="cuda", dtype=torch.bfloat16)
        return lambda config: _launch(a, w.t(), config)

    for key, used in table("matmul").items():
        if not key.startswith("many"):
            continue
        candidates = [
            {**used, "num_warps": warps, "num_stages": stages}
            for warps in (4, 8)
            for stages in (2, 3, 4, 5, 6)
        ]
        yield Tunable("matmul", key, candidates, prepare)
