"""Compiles the kernels of inference for sm_90: paged attention, its store, sampling, matmul.

As a script, ``python test_compile_decode.py NAME...``, it prints what each case uses.
"""

import itertools
import sys

import pytest

ELEMENT = {2: "bf16", 4: "fp32"}
QUICK = (
    "split-128/2-page16-many",
    "split-128/2-page128-many",
    "combine-128/2",
    "store-128",
    "prefill-128/2-page16",
    "prefill-128/2-page128",
    "scan-bf16-nnn",
    "draw-bf16-yyy",
    "matmul-many/0-yn",
    "matmul-few/2/1-yn",
)


def paged_cases():
    from nanorlhf.nanokernels.attention import kv_cache, paged
    from nanorlhf.nanokernels.compile import Case, signature
    from nanorlhf.nanokernels.configs import table

    ints = {"table_ptr": "*i32", "lens_ptr": "*i32", "scale": "fp32", "splits": "i32"}
    for key, config in table("paged").items():
        dim, size = map(int, key.split("/"))
        element = ELEMENT[size]
        shared = {"D": dim, "BLOCK_D": dim, "SPLIT": config["split"], "MAX_SPLITS": 64}
        for page in (16, 48, 128):
            for final in (True, False):
                types = signature(
                    paged._split_kernel,
                    element,
                    **ints,
                    lse_ptr="*fp32",
                    o_ptr=f"*{element}" if final else "*fp32",
                )
                constants = shared | {"GROUP": 2, "ROWS": 16, "PAGE": page}
                constants |= {"BLOCK": config["block"], "FINAL": final}
                name = f"split-{key}-page{page}-{'one' if final else 'many'}"
                yield Case(
                    name, paged._split_kernel, types, constants,
                    config["num_warps"], config["num_stages"],
                )  # fmt: skip
        kernel = paged._combine_kernel
        types = signature(kernel, element, **ints, lse_ptr="*fp32", parts_ptr="*fp32")
        constants = shared | {"CHUNK": config["chunk"]}
        yield Case(f"combine-{key}", kernel, types, constants, config["combine_warps"])
    kernel = kv_cache._store_kernel
    types = signature(kernel, "bf16", slots_ptr="*i64")
    yield Case("store-128", kernel, types, {"K": 8, "D": 128, "PAGE": 16, "BLOCK": 1024}, 4)


def prefill_cases():
    from nanorlhf.nanokernels.attention import paged_prefill
    from nanorlhf.nanokernels.compile import Case, signature
    from nanorlhf.nanokernels.configs import table

    kernel = paged_prefill._prefill_kernel
    ints = {"table_ptr": "*i32", "lens_ptr": "*i32", "cu_q_ptr": "*i32", "cells": "i32"}
    for key, config in table("paged_prefill").items():
        dim, size = map(int, key.split("/"))
        for page in (16, 128):
            types = signature(kernel, ELEMENT[size], **ints, scale="fp32")
            constants = {"GROUP": 2, "D": dim, "BLOCK_D": dim, "PAGE": page}
            constants |= {"BLOCK_M": config["block_m"], "BLOCK_N": config["block_n"]}
            constants |= {"WHOLE": size == 2 and page % config["block_n"] == 0}
            yield Case(
                f"prefill-{key}-page{page}", kernel, types, constants,
                config["num_warps"], config["num_stages"],
            )  # fmt: skip


SAMPLING = {
    **dict.fromkeys(("temperature_ptr", "top_p_ptr", "min_p_ptr", "sums_ptr"), "*fp32"),
    **dict.fromkeys(("logprob_ptr", "raw_ptr", "share_ptr"), "*fp32"),
    **dict.fromkeys(("top_k_ptr", "picks_ptr", "column_ptr"), "*i32"),
    **dict.fromkeys(("seeds_ptr", "steps_ptr", "token_ptr"), "*i64"),
    **dict.fromkeys(("vocab", "chunks"), "i32"),
}


def sampling_cases():
    from nanorlhf.nanokernels import sampling_kernels
    from nanorlhf.nanokernels.compile import Case, signature
    from nanorlhf.nanokernels.configs import table

    for key, config in table("sampling").items():
        element, shift = {"2": ("bf16", 16), "4": ("fp32", 0)}[key]
        for limits in itertools.product((False, True), repeat=3):
            has = dict(zip(("HAS_K", "HAS_P", "HAS_MIN"), limits, strict=True))
            name = f"{element}-{''.join('ny'[x] for x in limits)}"
            kernel = sampling_kernels._scan_kernel
            types = signature(kernel, element, **SAMPLING)
            constants = has | {"BLOCK": config["chunk"]}
            yield Case(f"scan-{name}", kernel, types, constants, config["scan_warps"])
            kernel = sampling_kernels._draw_kernel
            types = signature(kernel, element, **SAMPLING)
            constants = has | {"BLOCK": config["block"], "FEW": config["few"]}
            constants |= {"SHIFT": shift, "CHUNKS": 64}
            yield Case(f"draw-{name}", kernel, types, constants, config["num_warps"])


def matmul_cases():
    import importlib

    from nanorlhf.nanokernels.compile import Case, signature
    from nanorlhf.nanokernels.configs import table

    matmul = importlib.import_module("nanorlhf.nanokernels.matmul")
    ints = dict.fromkeys("mnk", "i32")
    for key, config in table("matmul").items():
        m, n, k = (config[f"block_{x}"] for x in "mnk")
        blocks = {"BLOCK_M": m, "BLOCK_N": n, "BLOCK_K": k, "GROUP": 8}
        for by_rows in itertools.product((True, False), repeat=2):
            a, b = ((m, k) if by_rows[0] else (k, m)), ((k, n) if by_rows[1] else (n, k))
            constants = blocks | dict(zip(("A_BY_ROWS", "B_BY_ROWS"), by_rows, strict=True))
            tiles = {"a_tiles": a, "b_tiles": b, "c_tiles": (m, n)}
            tiles = {name: f"tensordesc<bf16[{x}, {y}]>" for name, (x, y) in tiles.items()}
            if key.startswith("many"):
                kernel, element = matmul._described_kernel, "bf16"
                constants["PERSISTENT"] = "persistent" in config
            else:
                kernel, element = matmul._pointed_kernel, ELEMENT[int(key.split("/")[1])]
                constants["WHOLE_K"] = True
            types = signature(kernel, element, **ints, **tiles)
            name = f"matmul-{key}-{''.join('ny'[x] for x in by_rows)}"
            options = config["num_warps"], config["num_stages"]
            yield Case(name, kernel, types, constants, *options)


def cases():
    yield from paged_cases()
    yield from prefill_cases()
    yield from sampling_cases()
    yield from matmul_cases()


def check(found):
    for usage in found:
        if usage["case"].split("-")[0] in ("split", "prefill", "matmul"):
            assert usage["tensor_core_instructions"] > 0, usage


def test_the_kernels_of_a_qwen3_compile_without_spilling(compiled):
    check(compiled(__file__, *QUICK))


@pytest.mark.slow
def test_every_entry_of_every_table_compiles_without_spilling(compiled):
    check(compiled(__file__))


if __name__ == "__main__":
    from nanorlhf.nanokernels.compile import report

    report(cases(), sys.argv[1:])
