"""Second pass of attention's backward for Hopper, with its warps specialised.

Mathematics and masks are those of :mod:`.backward_dkdv`, on the transposes as there. A program owns
128 keys of one KV head and walks over the queries that see them, of all GROUP query heads::

    producer    1 warp    loads K and V once, then q with its row's numbers and do, 64 rows a slot
    consumer 0  4 warps   keys  0 ..  63
    consumer 1  4 warps   keys 64 .. 127

Both consumers use the same q and do, so these are loaded half as often as with 64 keys a program.
That is what it is about: with 64 x 64 tiles shared memory is as busy as the tensor cores. Of the
1,024 cycles that four products of 64 x 64 x 128 take, it would feed them for 768 (both factors of
s^T and dp^T, one of dv and dk) and be written for 256; the latter are shared now. The products of
one consumer run under the exponentials of the other::

    s^T = k q^T             p^T = 2^(c s^T - lse)
    dp^T = v do^T           dv += p^T do
                            ds^T = p^T (dp^T - delta)         dk += ds^T q

dp^T starts after p^T, not beside s^T: 32 registers fewer while exponentials are taken. dk, dv, s^T
and dp^T fill the registers, and all else stays out of them: the numbers of rows and the ramps that
masks are made from come from shared memory, what a program does from :mod:`.backward_plan`.

Shape legend: S = packed key tokens, H = query heads, K = KV heads, D = head dimension.
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
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from nanorlhf.nanokernels.attention.backward_plan import STEP, plan
from nanorlhf.nanokernels.attention.gluon_ring import (
    barriers,
    describe,
    fill,
    jit,
    jit_varying,
    load,
    place_of,
    store,
    work_of,
)
from nanorlhf.nanokernels.attention.packed import Mask, Rows, ragged
from nanorlhf.nanokernels.configs import table


@jit
def _produce(
    rows: gl.tuple,
    own: gl.tuple,
    shared: gl.tuple,
    plan_ptr: gl.tensor,
    rounds: gl.tensor,
    slots: gl.tensor,
    GROUP: gl.constexpr,
    D: gl.constexpr,
    SLOTS: gl.constexpr,
) -> None:
    q_rows, do_rows, k_rows, v_rows, stats = rows
    tile, own_full, own_empty = own
    ring, numbers, full, empty, _ramp = shared
    step = 0
    for turn in range(rounds):
        work = work_of(plan_ptr, turn)
        kv_head = gl.load(work)
        first = gl.load(work + 1)
        k_end = gl.load(work + 4)
        k_len = gl.load(work + 5)
        for half in gl.static_range(2):
            mbarrier.wait(own_empty.index(half), (turn & 1) ^ 1)
            mbarrier.expect(own_full.index(half), 2 * k_rows.block_type.nbytes)
            at = place_of(k_end, k_len, first + half * 64, kv_head, D)
            load(k_rows, at, own_full.index(half), tile.index(2 * half))
            load(v_rows, at, own_full.index(half), tile.index(2 * half + 1))
        q_end = gl.load(work + 2)
        q_len = gl.load(work + 3)
        start = gl.load(work + 6)
        end = start + gl.load(work + 7) * 64
        slot = gl.load(work + 8)
        for head in range(kv_head * GROUP, kv_head * GROUP + GROUP):
            for top in range(start, end, 64):
                at = place_of(q_end, q_len, top, head, D)
                place = step % SLOTS
                mbarrier.wait(empty.index(place), ((step // SLOTS) & 1) ^ 1)
                mbarrier.expect(
                    full.index(place), q_rows.block_type.nbytes + stats.block_type.nbytes
                )
                load(q_rows, at, full.index(place), ring.index(place))
                here = [(head * slots + slot + top) * 2]
                load(stats, here, full.index(place), numbers.index(place // 2))
                fill(do_rows, at, ring, full, empty, step + 1, SLOTS)
                step += 2


@jit
def _next(
    slot: gl.tensor,
    phase: gl.tensor,
    SLOTS: gl.constexpr,
) -> gl.tuple:
    """Return the slot of the next pair of blocks, and the phase of its barriers."""
    slot += 2
    if slot == SLOTS:
        slot = 0
        phase ^= 1
    return slot, phase


@jit
def _pass_by(
    blocks: gl.tensor,
    slot: gl.tensor,
    phase: gl.tensor,
    full: gl.tensor,
    empty: gl.tensor,
    SLOTS: gl.constexpr,
) -> gl.tuple:
    """Give back blocks that only the other consumer needs."""
    for _ in range(blocks):
        for other in gl.static_range(2):
            mbarrier.wait(full.index(slot + other), phase)
            mbarrier.arrive(empty.index(slot + other))
        slot, phase = _next(slot, phase, SLOTS)
    return slot, phase


@jit
def _consume(
    dk_rows: gl.tensor,
    dv_rows: gl.tensor,
    own: gl.tuple,
    shared: gl.tuple,
    plan_ptr: gl.tensor,
    rounds: gl.tensor,
    scale_log2: gl.tensor,
    window: gl.tensor,
    HALF: gl.constexpr,
    GROUP: gl.constexpr,
    D: gl.constexpr,
    CAUSAL: gl.constexpr,
    WINDOW: gl.constexpr,
    SLOTS: gl.constexpr,
) -> None:
    tile, own_full, own_empty = own
    ring, numbers, full, empty, ramp = shared
    S: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 64, 16])
    OUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, D, 16])
    P: gl.constexpr = gl.DotOperandLayout(0, OUT, 2)
    COLUMNS: gl.constexpr = gl.SliceLayout(0, S)
    zero = gl.full((64, 64), 0.0, gl.float32, S)
    slot = 0
    phase = 0
    for turn in range(rounds):
        work = work_of(plan_ptr, turn)
        # Key i of the tile is seen from query low + i on.
        low = gl.load(work + 1) + HALF * 64 - (gl.load(work + 5) - gl.load(work + 3))
        start = gl.load(work + 6)
        end = start + gl.load(work + 7) * 64
        begin = start
        if CAUSAL:
            begin = gl.minimum(gl.maximum(low, 0) // 64 * 64, end)
        mbarrier.wait(own_full.index(HALF), turn & 1)
        k = tile.index(2 * HALF).reshape([64, D])
        v = tile.index(2 * HALF + 1).reshape([64, D])
        dk = gl.full((64, D), 0.0, gl.float32, OUT)
        dv = gl.full((64, D), 0.0, gl.float32, OUT)
        for _member in range(GROUP):
            slot, phase = _pass_by((begin - start) // 64, slot, phase, full, empty, SLOTS)
            for top in range(begin, end, 64):
                mbarrier.wait(full.index(slot), phase)
                q = ring.index(slot).reshape([64, D])
                s_later = warpgroup_mma(k, q.permute((1, 0)), zero, use_acc=False, is_async=True)
                s = warpgroup_mma_wait(0, [s_later])
                lse = numbers.index(slot // 2).slice(0, 64).load(COLUMNS)
                p = gl.exp2(s * scale_log2 - lse[None, :])
                cut = False
                if CAUSAL:
                    cut = top < low + 63
                if WINDOW:
                    cut = cut | (top + 64 > low + window)
                if cut:
                    key = low - top + ramp.load(gl.SliceLayout(1, S))
                    row = ramp.load(COLUMNS)
                    if CAUSAL:
                        p = gl.where(key[:, None] <= row[None, :], p, 0.0)
                    if WINDOW:
                        p = gl.where(key[:, None] > row[None, :] - window, p, 0.0)
                weights = gl.convert_layout(p.to(ring.dtype), P)
                # The number of slots is even: the next one is of the same round.
                mbarrier.wait(full.index(slot + 1), phase)
                do = ring.index(slot + 1).reshape([64, D])
                dp_later = warpgroup_mma(v, do.permute((1, 0)), zero, use_acc=False, is_async=True)
                dv_later = warpgroup_mma(weights, do, dv, is_async=True)
                dp = warpgroup_mma_wait(1, [dp_later])
                delta = numbers.index(slot // 2).slice(64, 64).load(COLUMNS)
                ds = gl.convert_layout((p * (dp - delta[None, :])).to(ring.dtype), P)
                dk_later = warpgroup_mma(ds, q, dk, is_async=True)
                dv = warpgroup_mma_wait(1, [dv_later])
                mbarrier.arrive(empty.index(slot + 1))
                dk = warpgroup_mma_wait(0, [dk_later])
                mbarrier.arrive(empty.index(slot))
                slot, phase = _next(slot, phase, SLOTS)
        k.store((dk * (scale_log2 * 0.6931471805599453)).to(ring.dtype))
        v.store(dv.to(ring.dtype))
        fence_async_shared()
        # Found again, and not kept in registers all along.
        work = work_of(plan_ptr, turn)
        row = gl.load(work + 1) + HALF * 64
        at = place_of(gl.load(work + 4), gl.load(work + 5), row, gl.load(work), D)
        store(dk_rows, at, tile.index(2 * HALF))
        store(dv_rows, at, tile.index(2 * HALF + 1))
        tma.store_wait(0)
        mbarrier.arrive(own_empty.index(HALF))


@jit_varying(do_not_specialize=["capacity", "slots", "window"])
def _dkdv_kernel(
    q_rows: gl.tensor,
    do_rows: gl.tensor,
    k_rows: gl.tensor,
    v_rows: gl.tensor,
    dk_rows: gl.tensor,
    dv_rows: gl.tensor,
    stats: gl.tensor,
    plan_ptr: gl.tensor,
    scale: gl.tensor,
    capacity: gl.tensor,
    slots: gl.tensor,
    window: gl.tensor,
    GROUP: gl.constexpr,
    D: gl.constexpr,
    CAUSAL: gl.constexpr,
    WINDOW: gl.constexpr,
    SLOTS: gl.constexpr,
) -> None:
    own_shape: gl.constexpr = [4] + k_rows.block_type.shape  # noqa: RUF005
    ring_shape: gl.constexpr = [SLOTS] + q_rows.block_type.shape  # noqa: RUF005
    tile = gl.allocate_shared_memory(k_rows.dtype, own_shape, k_rows.layout)
    ring = gl.allocate_shared_memory(q_rows.dtype, ring_shape, q_rows.layout)
    numbers = gl.allocate_shared_memory(gl.float32, [SLOTS // 2, 128], stats.layout)
    ramp = gl.allocate_shared_memory(gl.int32, [64], gl.SwizzledSharedLayout(1, 1, 1, [0]))
    ramp.store(gl.arange(0, 64, gl.BlockedLayout([1], [32], [4], [0])))
    own_full = barriers(2, 1)
    own_empty = barriers(2, 1)
    full = barriers(SLOTS, 1)
    empty = barriers(SLOTS, 2)
    fence_async_shared()
    rounds = gl.load(plan_ptr + capacity + gl.program_id(0))
    own = (tile, own_full, own_empty)
    shared = (ring, numbers, full, empty, ramp)
    sources = (q_rows, do_rows, k_rows, v_rows, stats)
    scale_log2 = scale * 1.4426950408889634
    gl.warp_specialize(
        [
            (
                _consume,
                (
                    dk_rows, dv_rows, own, shared, plan_ptr, rounds, scale_log2, window,
                    0, GROUP, D, CAUSAL, WINDOW, SLOTS,
                ),
            ),
            (
                _consume,
                (
                    dk_rows, dv_rows, own, shared, plan_ptr, rounds, scale_log2, window,
                    1, GROUP, D, CAUSAL, WINDOW, SLOTS,
                ),
            ),
            (
                _produce,
                (
                    sources, own, shared, plan_ptr, rounds, slots,
                    GROUP, D, SLOTS,
                ),
            ),
        ],
        [4, 1],
        [240, 24],
    )  # fmt: skip


def launch(rows: Rows, stats: Tensor, mask: Mask) -> tuple[Tensor, Tensor]:
    """Return the gradients of the keys and the values, [S, K, D].

    Args:
        rows: The inputs, and the gradient of the output.
        stats: What :mod:`.gluon_dq` wrote, float32 [H, any, 2].
        mask: Who sees whom, in a packed batch.
    """
    kv_heads, dim = rows.k.shape[1:]
    config = table("attention_gluon_dkdv")[str(dim)]
    dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (rows.k, rows.v))
    processors = torch.cuda.get_device_properties(dk.device).multi_processor_count
    work = plan(rows.k, mask, programs=processors, of_keys=True)
    flat = gl.NVMMASharedLayout(swizzle_byte_width=0, element_bitwidth=32, rank=1)
    with torch.cuda.device_of(rows.q):  # type: ignore[no-untyped-call]
        _dkdv_kernel[(processors,)](
            describe(rows.q, ragged(rows.q, STEP)),
            describe(rows.do, ragged(rows.do, STEP)),
            describe(rows.k, ragged(rows.k, STEP)),
            describe(rows.v, ragged(rows.v, STEP)),
            describe(dk, ragged(dk, STEP)),
            describe(dv, ragged(dv, STEP)),
            TensorDescriptor(stats, [stats.numel()], [1], [128], flat),
            work,
            mask.scale,
            len(work) - processors,
            stats.shape[1],
            mask.window or 0,
            GROUP=rows.q.shape[1] // kv_heads,
            D=dim,
            CAUSAL=mask.causal,
            WINDOW=mask.window is not None,
            SLOTS=config["slots"],
            num_warps=4,
            enable_fp_fusion=True,
        )
    return dk, dv
