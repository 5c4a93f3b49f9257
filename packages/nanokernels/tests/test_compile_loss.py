"""Compiles the kernels of losses for sm_90, GPU or not; as a script, prints what each case uses."""

import importlib
import sys

import pytest

ELEMENT = {2: "bf16", 4: "fp32"}
SUMS = ("peak_ptr", "total_ptr", "weighted_ptr", "lse_ptr", "entropy_ptr", "picked_ptr")
ROWS = ("shift_ptr", "a_ptr", "b_ptr", "y_ptr", "factor_ptr")
TYPES = (
    dict.fromkeys(SUMS + ROWS, "*fp32")
    | dict.fromkeys(("tokens", "vocab", "blocks", "numel"), "i32")
    | {"scale": "fp32", "target_ptr": "*i64", "row_ptr": "*i64", "wanted_ptr": "*i32"}
)
MATMULS = ("statistics", "guess", "exponentials", "picked-bf16", "picked-fp32")
QUICK = ["statistics/2", "guess/2", "forward-bf16"]


def module(name):
    # The package's functions of these names hide the modules.
    return importlib.import_module(f"nanorlhf.nanokernels.{name}")


def tile_cases(Case, signature):
    tiles = module("vocab_tiles")
    for key, config in tiles.table("vocab_tiles").items():
        name, size = key.split("/")
        kernel = tiles._exponentials_kernel if name == "exponentials" else tiles._statistics_kernel
        constants = {n.upper(): config[n] for n in ("block_m", "block_n", "block_k")} | {"C": 1024}
        if name != "exponentials":
            constants["STORE"] = name == "guess"
        types = signature(kernel, ELEMENT[int(size)], **TYPES)
        yield Case(key, kernel, types, constants, config["num_warps"], config["num_stages"])


def row_cases(Case, signature):
    tiles, picked, logits, linear = map(
        module, ("vocab_tiles", "picked_logits", "token_share", "linear_cross_entropy")
    )
    types = signature(tiles._merge_kernel, "fp32", **TYPES)
    blocks = {"ROWS": tiles.MERGED_ROWS, "BLOCKS": tiles.MERGED_BLOCKS}
    yield Case("merge", tiles._merge_kernel, types, blocks | {"ENTROPY": True}, 4)
    for element in ELEMENT.values():
        kernel = picked._picked_kernel
        types = signature(kernel, element, **TYPES)
        constants = {"C": 1024, "BLOCK": picked.BLOCK, "BLOCK_K": picked.BLOCK_K}
        warps, stages = picked.NUM_WARPS, picked.NUM_STAGES
        yield Case(f"picked-{element}", kernel, types, constants, warps, stages)
        kernel = linear._scaled_kernel
        types = signature(kernel, element, **TYPES | {"x_ptr": "*fp32", "y_ptr": f"*{element}"})
        constants = {"BLOCK": linear.SCALED_BLOCK}
        yield Case(f"scaled-{element}", kernel, types, constants, linear.SCALED_WARPS)
        for key, config in logits.table("token_share").items():
            kernel = getattr(logits, f"_{key}_kernel")
            types = signature(kernel, element, **TYPES)
            constants = {"LANES": config["lanes"]}
            yield Case(f"{key}-{element}", kernel, types, constants, config["num_warps"])


def cases():
    from nanorlhf.nanokernels.compile import Case, signature

    yield from tile_cases(Case, signature)
    yield from row_cases(Case, signature)


def assert_tensor_cores(found):
    for usage in found:
        if usage["case"].split("/")[0] in MATMULS:
            assert usage["tensor_core_instructions"] > 0, usage


def test_the_kernels_of_a_qwen3_compile_without_spilling(compiled):
    assert_tensor_cores(compiled(__file__, *QUICK))


@pytest.mark.slow
def test_every_entry_of_every_table_compiles_without_spilling(compiled):
    assert_tensor_cores(compiled(__file__))


if __name__ == "__main__":
    from nanorlhf.nanokernels.compile import report

    report(cases(), sys.argv[1:])
