"""The forward for Hopper, with its warps specialised: one loads, two groups of four compute.

Mathematics and masks are those of :mod:`.forward`. There the warps of a program do everything one
after another, and the tensor cores wait while exponentials are taken. Here a program of 128 queries
has three parts (FlashAttention-3, Shah et al., arXiv:2407.08608, section 3)::

    producer    1 warp    loads K and V, BLOCK_N keys a slot, into a ring of slots as they come free
    consumer 0  4 warps   queries  0 ..  63   each at its own pace: the exponentials of one run
    consumer 1  4 warps   queries 64 .. 127   under the matrix products of the other

Within a consumer, too, the product with v runs one step behind, under the next exponentials::

    tensor cores   q k_j    p_j-1 v_j-1        q k_j+1    p_j v_j
    the rest                p_j = 2^(...)                 p_j+1 = 2^(...)

A tile has twice the queries of :mod:`.forward`'s, so K and V are read half as often. There are as
many programs as multiprocessors. They take tiles from one list, those with the most keys first, in
rounds that go forth and back, so that no program always draws the longer end::

    round 0   program 0, 1, .. P-1       round 1   program P-1, .. 1, 0       round 2   0, 1, ..

Gluon is an experimental dialect of Triton with explicit layouts and barriers; it has no
interpreter. :func:`.forward.launch_forward` says which inputs come here. A mistake in the barriers
shows as a hang or as wrong numbers: the tests marked ``gpu`` are this file's only numeric tests.
The file is long because the parts of one program that wait for each other are read side by side.

Shape legend: T = packed query tokens, H = query heads, K = KV heads, D = head dimension.
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

from nanorlhf.nanokernels.attention.gluon_ring import (
    barriers,
    describe,
    fill,
    jit,
    jit_varying,
    load,
    store,
)
from nanorlhf.nanokernels.attention.order import longest_first
from nanorlhf.nanokernels.attention.packed import (
    Packed,
    as_batch,
    as_rows,
    batched,
    ragged,
)
from nanorlhf.nanokernels.configs import table
from nanorlhf.nanokernels.dispatch import cdiv

BLOCK_M = 128
"""Queries of a tile, half of them each consumer's; the kernel counts on it."""


@jit
def _rounds(
    total: gl.tensor,
) -> gl.tensor:
    """Return how many of ``total`` items are this program's."""
    programs = gl.num_programs(0)
    whole = total // programs
    place = gl.program_id(0)
    if whole % 2 == 1:
        place = programs - 1 - place
    return whole + (place < total - whole * programs).to(gl.int32)


@jit
def _item(
    turn: gl.tensor,
) -> gl.tensor:
    """Return which item is this program's in a round."""
    place = gl.program_id(0)
    if turn % 2 == 1:
        place = gl.num_programs(0) - 1 - place
    return turn * gl.num_programs(0) + place


@jit
def _work(
    item: gl.tensor,
    batch: gl.tuple,
    HEADS: gl.constexpr,
    DENSE: gl.constexpr,
    CAUSAL: gl.constexpr,
    WINDOW: gl.constexpr,
    BLOCK_N: gl.constexpr,
) -> gl.tuple:
    """Return what an item is: whose rows, and the first key and number of blocks they see."""
    order_ptr, cu_q_ptr, cu_k_ptr, sequences, tiles, q_length, k_length, window = batch
    head = item % HEADS
    rest = item // HEADS
    if DENSE:
        sequence = rest % sequences
        top = (tiles - 1 - rest // sequences) * 128
        q_end = (sequence + 1) * q_length
        q_len = q_length
        k_end = 0
        k_len = k_length
    else:
        sequence = gl.load(order_ptr + 2 * rest)
        top = gl.load(order_ptr + 2 * rest + 1) * 128
        q_start = gl.load(cu_q_ptr + sequence)
        q_end = gl.load(cu_q_ptr + sequence + 1)
        q_len = q_end - q_start
        k_end = gl.load(cu_k_ptr + sequence + 1)
        k_len = k_end - gl.load(cu_k_ptr + sequence)
    start = 0
    end = k_len
    if CAUSAL:
        end = gl.minimum(top + 128 + k_len - q_len, k_len)
    if WINDOW:
        start = gl.maximum(top + k_len - q_len + 1 - window, 0) // BLOCK_N * BLOCK_N
    # A tile without keys has one block, all masked, and writes zeros.
    blocks = gl.maximum(gl.cdiv(gl.maximum(end - start, 0), BLOCK_N), 1)
    return sequence, head, top, q_end, q_len, k_end, k_len, start, blocks


@jit
def _at(
    sequence: gl.tensor,
    head: gl.tensor,
    end: gl.tensor,
    length: gl.tensor,
    first: gl.tensor,
    D: gl.constexpr,
    DENSE: gl.constexpr,
) -> gl.tuple:
    """Return the coordinates of row ``first`` of a sequence and head in a descriptor."""
    if DENSE:
        at = [sequence, first, head, 0]
    else:
        at = [1 << 30, end, (1 << 30) - length + first, head * D]
    return at


@jit
def _produce(
    rows: gl.tuple,
    shared: gl.tuple,
    batch: gl.tuple,
    total: gl.tensor,
    HEADS: gl.constexpr,
    GROUP: gl.constexpr,
    D: gl.constexpr,
    DENSE: gl.constexpr,
    CAUSAL: gl.constexpr,
    WINDOW: gl.constexpr,
    BLOCK_N: gl.constexpr,
    SLOTS: gl.constexpr,
) -> None:
    q_rows, k_rows, v_rows = rows
    q_tile, q_full, q_empty, ring, full, empty = shared
    done = 0
    step = 0
    for turn in range(_rounds(total)):
        sequence, head, top, q_end, q_len, k_end, k_len, start, blocks = _work(
            _item(turn), batch, HEADS, DENSE, CAUSAL, WINDOW, BLOCK_N
        )
        if blocks > 0:
            for half in gl.static_range(2):
                mbarrier.wait(q_empty.index(half), (done & 1) ^ 1)
                mbarrier.expect(q_full.index(half), q_rows.block_type.nbytes)
                at = _at(sequence, head, q_end, q_len, top + half * 64, D, DENSE)
                load(q_rows, at, q_full.index(half), q_tile.index(half))
            done += 1
        for block in range(blocks):
            first = start + (blocks - 1 - block) * BLOCK_N
            at = _at(sequence, head // GROUP, k_end, k_len, first, D, DENSE)
            fill(k_rows, at, ring, full, empty, step, SLOTS)
            fill(v_rows, at, ring, full, empty, step + 1, SLOTS)
            step += 2


@jit
def _weigh(
    s: gl.tensor,
    sums: gl.tuple,
    mask: gl.tuple,
    first: gl.tensor,
    WINDOW: gl.constexpr,
    BLOCK_N: gl.constexpr,
) -> gl.tuple:
    """Return a block's weights, the new maximum and sum, and what the output so far shrinks by."""
    peak, weight = sums
    last, lowest, whole, begin, scale_log2 = mask
    LAYOUT: gl.constexpr = s.type.layout
    if (first + BLOCK_N > whole) | (first < begin):
        key = first + gl.arange(0, BLOCK_N, gl.SliceLayout(0, LAYOUT))
        seen = key[None, :] <= last[:, None]
        if WINDOW:
            seen = seen & (key[None, :] >= lowest[:, None])
        s = gl.where(seen, s, -float("inf"))
    new_peak = gl.maximum(peak, gl.max(s, 1) * scale_log2)
    # Nothing seen yet: -inf - -inf would be NaN.
    shift = gl.where(new_peak == -float("inf"), 0.0, new_peak)
    p = gl.exp2(s * scale_log2 - shift[:, None])
    shrink = gl.exp2(peak - shift)
    return p, (new_peak, weight * shrink + gl.sum(p, 1)), shrink


@jit
def _consume(
    o_rows: gl.tensor,
    lse_ptr: gl.tensor,
    scale_log2: gl.tensor,
    tokens: gl.tensor,
    shared: gl.tuple,
    batch: gl.tuple,
    total: gl.tensor,
    HALF: gl.constexpr,
    HEADS: gl.constexpr,
    D: gl.constexpr,
    DENSE: gl.constexpr,
    CAUSAL: gl.constexpr,
    WINDOW: gl.constexpr,
    BLOCK_N: gl.constexpr,
    SLOTS: gl.constexpr,
) -> None:
    q_tile, q_full, q_empty, ring, full, empty = shared
    S: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_N, 16])
    OUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, D, 16])
    P: gl.constexpr = gl.DotOperandLayout(0, OUT, 2)
    ROWS: gl.constexpr = gl.SliceLayout(1, S)
    zero = gl.full((64, BLOCK_N), 0.0, gl.float32, S)
    q = q_tile.index(HALF).reshape([64, D])
    done = 0
    step = 0
    for turn in range(_rounds(total)):
        sequence, head, top, q_end, q_len, _, k_len, start, blocks = _work(
            _item(turn), batch, HEADS, DENSE, CAUSAL, WINDOW, BLOCK_N
        )
        if blocks > 0:
            top += HALF * 64
            row = top + gl.arange(0, 64, ROWS)
            offset = k_len - q_len
            lowest = row + offset + 1 - batch[7]
            begin = 0
            whole = k_len
            last = gl.full((64,), 0, gl.int32, ROWS) + (k_len - 1)
            if CAUSAL:
                whole = gl.minimum(top + offset + 1, k_len)
                last = gl.minimum(row + offset, k_len - 1)
            if WINDOW:
                begin = top + 64 + offset - batch[7]
            mask = (last, lowest, whole, begin, scale_log2)
            sums = (
                gl.full((64,), -float("inf"), gl.float32, ROWS),
                gl.full((64,), 0.0, gl.float32, ROWS),
            )
            acc = gl.full((64, D), 0.0, gl.float32, OUT)

            first = start + (blocks - 1) * BLOCK_N
            slot = step % SLOTS
            mbarrier.wait(q_full.index(HALF), done & 1)
            mbarrier.wait(full.index(slot), (step // SLOTS) & 1)
            k = ring.index(slot).reshape([BLOCK_N, D]).permute((1, 0))
            later = warpgroup_mma(q, k, zero, use_acc=False, is_async=True)
            s = warpgroup_mma_wait(0, [later])
            mbarrier.arrive(empty.index(slot))
            weights, sums, shrink = _weigh(s, sums, mask, first, WINDOW, BLOCK_N)
            p = gl.convert_layout(weights.to(q_tile.dtype), P)
            behind = (step + 1) % SLOTS
            mbarrier.wait(full.index(behind), ((step + 1) // SLOTS) & 1)
            step += 2
            for _block in range(1, blocks):
                first -= BLOCK_N
                slot = step % SLOTS
                mbarrier.wait(full.index(slot), (step // SLOTS) & 1)
                k = ring.index(slot).reshape([BLOCK_N, D]).permute((1, 0))
                later = warpgroup_mma(q, k, zero, use_acc=False, is_async=True)
                v = ring.index(behind).reshape([BLOCK_N, D])
                acc_later = warpgroup_mma(p, v, acc, is_async=True)
                s = warpgroup_mma_wait(1, [later])
                mbarrier.arrive(empty.index(slot))
                weights, sums, shrink = _weigh(s, sums, mask, first, WINDOW, BLOCK_N)
                # v is not needed before the next step, but a wait for it here keeps the assembler
                # from moving the wait for the product before the exponentials.
                slot = (step + 1) % SLOTS
                mbarrier.wait(full.index(slot), ((step + 1) // SLOTS) & 1)
                acc, weights, p = warpgroup_mma_wait(0, [acc_later, weights, p])
                mbarrier.arrive(empty.index(behind))
                acc = acc * gl.convert_layout(shrink, gl.SliceLayout(1, OUT))[:, None]
                p = gl.convert_layout(weights.to(q_tile.dtype), P)
                behind = slot
                step += 2
            v = ring.index(behind).reshape([BLOCK_N, D])
            acc = warpgroup_mma_wait(0, [warpgroup_mma(p, v, acc, is_async=True)])
            mbarrier.arrive(empty.index(behind))

            # A query that saw nothing returns 0, and -inf as its log-sum-exp.
            peak, weight = sums
            weight = gl.where(weight == 0.0, 1.0, weight)
            acc = acc * (1.0 / gl.convert_layout(weight, gl.SliceLayout(1, OUT)))[:, None]
            q.store(acc.to(q_tile.dtype))
            fence_async_shared()
            at = _at(sequence, head, q_end, q_len, top, D, DENSE)
            store(o_rows, at, q_tile.index(HALF))
            lse = (peak + gl.log2(weight)) * 0.6931471805599453
            token = head.to(gl.int64) * tokens + (q_end - q_len) + row
            gl.store(lse_ptr + token, lse, mask=row < q_len)
            tma.store_wait(0)
            mbarrier.arrive(q_empty.index(HALF))
            done += 1


@jit_varying(do_not_specialize=["tokens", "sequences", "tiles", "q_length", "k_length", "window"])
def _forward_kernel(
    q_rows: gl.tensor,
    k_rows: gl.tensor,
    v_rows: gl.tensor,
    o_rows: gl.tensor,
    lse_ptr: gl.tensor,
    order_ptr: gl.tensor,
    cu_q_ptr: gl.tensor,
    cu_k_ptr: gl.tensor,
    scale: gl.tensor,
    tokens: gl.tensor,
    sequences: gl.tensor,
    tiles: gl.tensor,
    q_length: gl.tensor,
    k_length: gl.tensor,
    window: gl.tensor,
    HEADS: gl.constexpr,
    GROUP: gl.constexpr,
    D: gl.constexpr,
    DENSE: gl.constexpr,
    CAUSAL: gl.constexpr,
    WINDOW: gl.constexpr,
    BLOCK_N: gl.constexpr,
    SLOTS: gl.constexpr,
) -> None:
    # Kernels know no [2, *shape].
    q_shape: gl.constexpr = [2] + q_rows.block_type.shape  # noqa: RUF005
    k_shape: gl.constexpr = [SLOTS] + k_rows.block_type.shape  # noqa: RUF005
    q_tile = gl.allocate_shared_memory(q_rows.dtype, q_shape, q_rows.layout)
    ring = gl.allocate_shared_memory(k_rows.dtype, k_shape, k_rows.layout)
    q_full = barriers(2, 1)
    q_empty = barriers(2, 1)
    full = barriers(SLOTS, 1)
    empty = barriers(SLOTS, 2)
    fence_async_shared()
    shared = (q_tile, q_full, q_empty, ring, full, empty)
    total = sequences * tiles * HEADS
    if not DENSE:
        total = gl.load(order_ptr + 2 * tiles) * HEADS
    batch = (order_ptr, cu_q_ptr, cu_k_ptr, sequences, tiles, q_length, k_length, window)
    rows = (q_rows, k_rows, v_rows)
    scale_log2 = scale * 1.4426950408889634
    gl.warp_specialize(
        [
            (
                _consume,
                (
                    o_rows, lse_ptr, scale_log2, tokens, shared, batch, total,
                    0, HEADS, D, DENSE, CAUSAL, WINDOW, BLOCK_N, SLOTS,
                ),
            ),
            (
                _consume,
                (
                    o_rows, lse_ptr, scale_log2, tokens, shared, batch, total,
                    1, HEADS, D, DENSE, CAUSAL, WINDOW, BLOCK_N, SLOTS,
                ),
            ),
            (
                _produce,
                (
                    rows, shared, batch, total,
                    HEADS, GROUP, D, DENSE, CAUSAL, WINDOW, BLOCK_N, SLOTS,
                ),
            ),
        ],
        [4, 1],
        [240, 24],
    )  # fmt: skip


def launch(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    o: Tensor,
    lse_HT: Tensor,
    *,
    queries: Packed | None,
    keys: Packed | None,
    scale: float,
    causal: bool,
    window: int | None,
) -> None:
    """Write attention's output and log-sum-exp; arguments as in :func:`.forward.launch_forward`."""
    heads, dim = q.shape[-2:]
    config = table("attention_gluon")[str(dim)]
    order = None
    if queries is None or keys is None:
        q, k, v = as_batch(q), as_batch(k), as_batch(v)
        sequences, tiles, geometry = q.shape[0], cdiv(q.shape[1], BLOCK_M), batched
    else:
        q, k, v = as_rows(q), as_rows(k), as_rows(v)
        order, geometry = longest_first(q, queries, keys, BLOCK_M), ragged
        sequences, tiles = queries.num_sequences, len(order) // 2

    with torch.cuda.device_of(q):  # type: ignore[no-untyped-call]
        processors = torch.cuda.get_device_properties(q.device).multi_processor_count
        _forward_kernel[(processors,)](
            describe(q, geometry(q, 64)),
            describe(k, geometry(k, config["block_n"])),
            describe(v, geometry(v, config["block_n"])),
            describe(o, geometry(o, 64)),
            lse_HT,
            order,
            None if queries is None else queries.cu_seqlens,
            None if keys is None else keys.cu_seqlens,
            scale,
            lse_HT.shape[1],
            sequences,
            tiles,
            q.shape[-3],
            k.shape[-3],
            window or 0,
            HEADS=heads,
            GROUP=heads // k.shape[-2],
            D=dim,
            DENSE=queries is None,
            CAUSAL=causal,
            WINDOW=window is not None,
            BLOCK_N=config["block_n"],
            SLOTS=config["slots"],
            num_warps=4,
            enable_fp_fusion=True,
        )
