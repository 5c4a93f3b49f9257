"""Compiles the backward of attention for sm_90, GPU or not; as a script, prints what it uses."""

import sys
from collections.abc import Iterator

import pytest

from nanorlhf.nanokernels.compile import Case, report, signature
from nanorlhf.nanokernels.configs import table

ELEMENT = {2: "bf16", 4: "fp32"}
SPILLING = ("256/4",)
"""Float32 rows of 256, split in two, fit in registers with no tile: slow, and right."""
MASKS = {
    "causal": {"CAUSAL": True, "WINDOW": False},
    "full": {"CAUSAL": False, "WINDOW": False},
    "window": {"CAUSAL": True, "WINDOW": True},
}


def kernels():
    from nanorlhf.nanokernels.attention import backward_dkdv, backward_dq

    return {"dq": backward_dq._dq_kernel, "dkdv": backward_dkdv._dkdv_kernel}


def types_of(name, kernel, dim, size, config):
    """Types of the arguments: tiles walked over have one dimension more than those owned."""
    element = ELEMENT[size]
    rows = {"q": config["block_m"], "do": config["block_m"]}
    rows |= {"k": config["block_n"], "v": config["block_n"]}
    walked = ("k", "v") if name == "dq" else ("q", "do")
    tiles = {
        f"{x}_rows": f"tensordesc<{element}[{'1, ' if x in walked else ''}{block}, {dim}]>"
        for x, block in rows.items()
    }
    numbers = ("sequences", "tokens", "slots", "q_length", "k_length", "window")
    return signature(
        kernel,
        element,
        **tiles,
        **dict.fromkeys(numbers, "i32"),
        **dict.fromkeys(("lse_ptr", "stats_ptr"), "*fp32"),
        stats=f"tensordesc<fp32[{config['block_m']}]>",
        scale="fp32",
        cu_q_ptr="*i32",
        cu_k_ptr="*i32",
    )


def cases() -> Iterator[Case]:
    for name, kernel in kernels().items():
        for key, config in table(f"attention_{name}").items():
            if key in SPILLING:
                continue
            dim, size = (int(part) for part in key.split("/"))
            types = types_of(name, kernel, dim, size, config)
            for mask, flags in MASKS.items():
                for dense in (False, True):
                    constants = {"GROUP": 2, "D": dim, "DENSE": dense, **flags}
                    constants |= {"BLOCK_M": config["block_m"], "BLOCK_N": config["block_n"]}
                    if name == "dkdv":
                        constants["SLOTS"] = table("attention_dq")[key]["block_m"]
                    case = f"{name}-{key}-{'dense' if dense else 'packed'}-{mask}"
                    yield Case(
                        case, kernel, types, constants, config["num_warps"], config["num_stages"]
                    )


def test_the_backward_of_a_qwen3_compiles_without_spilling(compiled):
    names = ["dq-128/2-packed-causal", "dkdv-128/2-packed-causal"]
    for usage in compiled(__file__, *names):
        assert usage["tensor_core_instructions"] > 0, usage


@pytest.mark.slow
def test_every_entry_of_the_backwards_tables_compiles_without_spilling(compiled):
    for usage in compiled(__file__):
        assert usage["tensor_core_instructions"] > 0, usage


if __name__ == "__main__":
    report(cases(), sys.argv[1:])
