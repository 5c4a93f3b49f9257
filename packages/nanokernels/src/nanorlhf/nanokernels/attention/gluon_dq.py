"""First pass of attention's backward for Hopper, with its warps specialised.

Mathematics and masks are those of :mod:`.backward_dq`. A program owns 128 queries of one head and
walks back over the keys they see, as the forward does (:mod:`.gluon_forward`)::

    producer    1 warp    loads q and do of the next tile, then o, and k and v, 64 rows a slot
    consumer 0  4 warps   queries  0 ..  63
    consumer 1  4 warps   queries 64 .. 127

    s = q k^T       p = 2^(c s - lse)
    dp = do v^T     ds = p (dp - delta)       dq += ds k

A tile of o passes through the ring like k and v, to each consumer its half, for ``delta``. With
``lse log2(e)`` it is what the second pass needs of each row: float32 [H, slots, 2], a block of 64
rows after another, 64 numbers of the one kind and 64 of the other. Tiles begin where their
sequence does; sequence n's slots at 128 (q_start // 128 + n). Past its end lse is +inf, which makes
p 0.

Shape legend: T = packed query tokens, H = query heads, D = head dimension.
"""

import torch
from torch import Tensor
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from nanorlhf.nanokernels.attention.backward_plan import STEP, TILE, plan
from nanorlhf.nanokernels.attention.gluon_ring import (
    barriers,
    describe,
    fill,
    jit,
    jit_varying,
    load,
    pass_by,
    place_of,
    store,
    work_of,
)
from nanorlhf.nanokernels.attention.packed import Mask, Rows, as_rows, ragged
from nanorlhf.nanokernels.configs import table


@jit
def _produce(
    rows: gl.tuple,
    own: gl.tuple,
    shared: gl.tuple,
    plan_ptr: gl.tensor,
    rounds: gl.tensor,
    GROUP: gl.constexpr,
    D: gl.constexpr,
    SLOTS: gl.constexpr,
) -> None:
    q_rows, do_rows, o_rows, k_rows, v_rows = rows
    tile, own_full, own_empty = own
    ring, full, empty, _ramp = shared
    step = 0
    for turn in range(rounds):
        work = work_of(plan_ptr, turn)
        head = gl.load(work)
        first = gl.load(work + 1)
        q_end = gl.load(work + 2)
        q_len = gl.load(work + 3)
        for half in gl.static_range(2):
            index = turn % 2 * 2 + half
            mbarrier.wait(own_empty.index(index), ((turn // 2) & 1) ^ 1)
            mbarrier.expect(own_full.index(index), 2 * q_rows.block_type.nbytes)
            at = place_of(q_end, q_len, first + half * 64, head, D)
            load(q_rows, at, own_full.index(index), tile.index(2 * index))
            load(do_rows, at, own_full.index(index), tile.index(2 * index + 1))
            fill(o_rows, at, ring, full, empty, step, SLOTS)
            step += 1
        k_end = gl.load(work + 4)
        k_len = gl.load(work + 5)
        start = gl.load(work + 6)
        last = start + gl.load(work + 7) * 64 - 64
        for at_key in range(last, start - 1, -64):
            at = place_of(k_end, k_len, at_key, head // GROUP, D)
            fill(k_rows, at, ring, full, empty, step, SLOTS)
            fill(v_rows, at, ring, full, empty, step + 1, SLOTS)
            step += 2


@jit
def _consume(
    dq_rows: gl.tensor,
    lse_ptr: gl.tensor,
    stats_ptr: gl.tensor,
    own: gl.tuple,
    shared: gl.tuple,
    plan_ptr: gl.tensor,
    rounds: gl.tensor,
    slots: gl.tensor,
    tokens: gl.tensor,
    scale_log2: gl.tensor,
    window: gl.tensor,
    HALF: gl.constexpr,
    D: gl.constexpr,
    CAUSAL: gl.constexpr,
    WINDOW: gl.constexpr,
    SLOTS: gl.constexpr,
) -> None:
    tile, own_full, own_empty = own
    ring, full, empty, ramp = shared
    S: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 64, 16])
    OUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, D, 16])
    P: gl.constexpr = gl.DotOperandLayout(0, OUT, 2)
    ROWS: gl.constexpr = gl.SliceLayout(1, S)
    zero = gl.full((64, 64), 0.0, gl.float32, S)
    step = 0
    for turn in range(rounds):
        work = work_of(plan_ptr, turn)
        head = gl.load(work)
        top = gl.load(work + 1) + HALF * 64
        q_end = gl.load(work + 2)
        q_len = gl.load(work + 3)
        k_len = gl.load(work + 5)
        start = gl.load(work + 6)
        blocks = gl.load(work + 7)
        row = top + gl.arange(0, 64, ROWS)
        # Row i of the tile sees keys up to last + i.
        last = top + k_len - q_len
        at = head.to(gl.int64) * tokens + (q_end - q_len) + row
        lse = gl.load(lse_ptr + at, mask=row < q_len, other=float("inf"))
        lse = lse * 1.4426950408889634
        index = turn % 2 * 2 + HALF
        mbarrier.wait(own_full.index(index), (turn // 2) & 1)
        if HALF == 1:
            step = pass_by(1, step, full, empty, SLOTS)
        do = tile.index(2 * index + 1).reshape([64, D])
        mbarrier.wait(full.index(step % SLOTS), (step // SLOTS) & 1)
        product = ring.index(step % SLOTS).reshape([64, D]).load(OUT).to(gl.float32)
        product = product * do.load(OUT).to(gl.float32)
        delta = gl.convert_layout(gl.sum(product, 1), ROWS)
        place = (head * slots + gl.load(work + 8) + top).to(gl.int64) * 2
        number = stats_ptr + place + gl.arange(0, 64, ROWS)
        gl.store(number, lse)
        gl.store(number + 64, delta)
        # Not before o has been used: an arrival overtakes reads that are on their way.
        mbarrier.arrive(empty.index(step % SLOTS))
        step += 1
        if HALF == 0:
            step = pass_by(1, step, full, empty, SLOTS)
        q = tile.index(2 * index).reshape([64, D])
        dq = gl.full((64, D), 0.0, gl.float32, OUT)
        first = start + (blocks - 1) * 64
        if CAUSAL:
            idle = gl.minimum(gl.maximum(first - (last + 63) + 63, 0) // 64, blocks)
            step = pass_by(2 * idle, step, full, empty, SLOTS)
            first -= idle * 64
        for at_key in range(first, start - 1, -64):
            slot = step % SLOTS
            phase = (step // SLOTS) & 1
            mbarrier.wait(full.index(slot), phase)
            k = ring.index(slot).reshape([64, D])
            s_later = warpgroup_mma(q, k.permute((1, 0)), zero, use_acc=False, is_async=True)
            # The number of slots is even: the next one is of the same round.
            mbarrier.wait(full.index(slot + 1), phase)
            v = ring.index(slot + 1).reshape([64, D])
            dp_later = warpgroup_mma(do, v.permute((1, 0)), zero, use_acc=False, is_async=True)
            s = warpgroup_mma_wait(1, [s_later])
            p = gl.exp2(s * scale_log2 - lse[:, None])
            cut = at_key + 64 > k_len
            if CAUSAL:
                cut = cut | (at_key + 63 > last)
            if WINDOW:
                cut = cut | (at_key < last + 64 - window)
            if cut:
                key = at_key + ramp.load(gl.SliceLayout(0, S))[None, :]
                end = last + ramp.load(ROWS)[:, None]
                seen = key < k_len
                if CAUSAL:
                    seen = seen & (key <= end)
                if WINDOW:
                    seen = seen & (key > end - window)
                p = gl.where(seen, p, 0.0)
            dp, p = warpgroup_mma_wait(0, [dp_later, p])
            mbarrier.arrive(empty.index(slot + 1))
            ds = gl.convert_layout((p * (dp - delta[:, None])).to(ring.dtype), P)
            dq = warpgroup_mma_wait(0, [warpgroup_mma(ds, k, dq, is_async=True)])
            mbarrier.arrive(empty.index(slot))
            step += 2
        tile.index(2 * index).reshape([64, D]).store(
            (dq * (scale_log2 * 0.6931471805599453)).to(ring.dtype)
        )
        fence_async_shared()
        # Found again, and not kept in registers all along.
        work = work_of(plan_ptr, turn)
        row = gl.load(work + 1) + HALF * 64
        at = place_of(gl.load(work + 2), gl.load(work + 3), row, gl.load(work), D)
        store(dq_rows, at, tile.index(2 * index))
        tma.store_wait(0)
        mbarrier.arrive(own_empty.index(index))


@jit_varying(do_not_specialize=["capacity", "slots", "tokens", "window"])
def _dq_kernel(
    q_rows: gl.tensor,
    do_rows: gl.tensor,
    o_rows: gl.tensor,
    k_rows: gl.tensor,
    v_rows: gl.tensor,
    dq_rows: gl.tensor,
    lse_ptr: gl.tensor,
    stats_ptr: gl.tensor,
    plan_ptr: gl.tensor,
    scale: gl.tensor,
    capacity: gl.tensor,
    slots: gl.tensor,
    tokens: gl.tensor,
    window: gl.tensor,
    GROUP: gl.constexpr,
    D: gl.constexpr,
    CAUSAL: gl.constexpr,
    WINDOW: gl.constexpr,
    SLOTS: gl.constexpr,
) -> None:
    own_shape: gl.constexpr = [8] + q_rows.block_type.shape  # noqa: RUF005
    ring_shape: gl.constexpr = [SLOTS] + k_rows.block_type.shape  # noqa: RUF005
    tile = gl.allocate_shared_memory(q_rows.dtype, own_shape, q_rows.layout)
    ring = gl.allocate_shared_memory(k_rows.dtype, ring_shape, k_rows.layout)
    ramp = gl.allocate_shared_memory(gl.int32, [64], gl.SwizzledSharedLayout(1, 1, 1, [0]))
    ramp.store(gl.arange(0, 64, gl.BlockedLayout([1], [32], [4], [0])))
    own_full = barriers(4, 1)
    own_empty = barriers(4, 1)
    full = barriers(SLOTS, 1)
    empty = barriers(SLOTS, 2)
    fence_async_shared()
    rounds = gl.load(plan_ptr + capacity + gl.program_id(0))
    own = (tile, own_full, own_empty)
    shared = (ring, full, empty, ramp)
    sources = (q_rows, do_rows, o_rows, k_rows, v_rows)
    scale_log2 = scale * 1.4426950408889634
    gl.warp_specialize(
        [
            (
                _consume,
                (
                    dq_rows, lse_ptr, stats_ptr, own, shared, plan_ptr, rounds, slots, tokens,
                    scale_log2, window, 0, D, CAUSAL, WINDOW, SLOTS,
                ),
            ),
            (
                _consume,
                (
                    dq_rows, lse_ptr, stats_ptr, own, shared, plan_ptr, rounds, slots, tokens,
                    scale_log2, window, 1, D, CAUSAL, WINDOW, SLOTS,
                ),
            ),
            (
                _produce,
                (sources, own, shared, plan_ptr, rounds, GROUP, D, SLOTS),
            ),
        ],
        [4, 1],
        [240, 24],
    )  # fmt: skip


def launch(rows: Rows, o: Tensor, lse_HT: Tensor, mask: Mask) -> tuple[Tensor, Tensor]:
    """Return the gradient of the queries, [T, H, D], and the statistics of their rows.

    Arguments as of :func:`.backward_dq.launch_dq`, the batch a packed one.
    """
    tokens, heads, dim = rows.q.shape
    config = table("attention_gluon_dq")[str(dim)]
    o = as_rows(o.flatten(0, -3))
    dq = torch.empty(rows.q.shape, dtype=rows.q.dtype, device=rows.q.device)
    room = (tokens // TILE + mask.batch.sequences) * TILE
    stats = torch.empty(heads, room, 2, dtype=torch.float32, device=dq.device)
    processors = torch.cuda.get_device_properties(dq.device).multi_processor_count
    work = plan(rows.q, mask, programs=processors, of_keys=False)
    with torch.cuda.device_of(rows.q):  # type: ignore[no-untyped-call]
        _dq_kernel[(processors,)](
            describe(rows.q, ragged(rows.q, STEP)),
            describe(rows.do, ragged(rows.do, STEP)),
            describe(o, ragged(o, STEP)),
            describe(rows.k, ragged(rows.k, STEP)),
            describe(rows.v, ragged(rows.v, STEP)),
            describe(dq, ragged(dq, STEP)),
            lse_HT,
            stats,
            work,
            mask.scale,
            len(work) - processors,
            room,
            lse_HT.shape[1],
            mask.window or 0,
            GROUP=heads // rows.k.shape[1],
            D=dim,
            CAUSAL=mask.causal,
            WINDOW=mask.window is not None,
            SLOTS=config["slots"],
            num_warps=4,
            enable_fp_fusion=True,
        )
    return dq, stats
