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


def gluon_cases() -> Iterator[Case]:
    from triton.experimental.gluon import language as gl

    from nanorlhf.nanokernels.attention import gluon_dkdv, gluon_dq

    flat = gl.NVMMASharedLayout(swizzle_byte_width=0, element_bitwidth=32, rank=1)
    numbers = dict.fromkeys(("capacity", "slots", "tokens", "window"), "i32")
    pointers = {"plan_ptr": "*i32", "lse_ptr": "*fp32", "stats_ptr": "*fp32"}
    names = ("q", "k", "v", "o", "do", "dq", "dk", "dv")
    for name, kernel in {"dq": gluon_dq._dq_kernel, "dkdv": gluon_dkdv._dkdv_kernel}.items():
        for key, config in table(f"attention_gluon_{name}").items():
            block = [1, 1, 64, int(key)]
            layout = gl.NVMMASharedLayout.get_default_for(block, gl.bfloat16)
            rows = {f"{x}_rows": f"tensordesc<bf16{block},{layout!r}>" for x in names}
            types = signature(
                kernel,
                "bf16",
                **rows,
                **numbers,
                **pointers,
                stats=f"tensordesc<fp32[128],{flat!r}>",
                scale="fp32",
            )
            for mask, flags in MASKS.items():
                constants = {"GROUP": 2, "D": int(key), "SLOTS": config["slots"], **flags}
                yield Case(f"gluon-{name}-{key}-{mask}", kernel, types, constants, 4)


def plan_cases() -> Iterator[Case]:
    from nanorlhf.nanokernels.attention import backward_plan as plan

    kernel = plan._plan_kernel
    numbers = dict.fromkeys(("sequences", "programs", "capacity", "window"), "i32")
    sizes = {"TILE": plan.TILE, "STEP": plan.STEP, "COLUMNS": plan.COLUMNS, "SPAN": 32}
    for of_keys in (False, True):
        constants = {"HEADS": 16, "OF_KEYS": of_keys, **MASKS["window"], **sizes}
        name = f"plan-{'keys' if of_keys else 'queries'}"
        yield Case(name, kernel, signature(kernel, "i32", **numbers), constants, 1)


def all_cases() -> Iterator[Case]:
    yield from cases()
    yield from gluon_cases()
    yield from plan_cases()


def test_the_backward_of_a_qwen3_compiles_without_spilling(compiled):
    names = ["dq-128/2-packed-causal", "dkdv-128/2-packed-causal"]
    names += ["gluon-dq-128-causal", "gluon-dkdv-128-causal"]
    for usage in compiled(__file__, *names):
        assert usage["tensor_core_instructions"] > 0, usage


@pytest.mark.slow
def test_every_entry_of_the_backwards_tables_compiles_without_spilling(compiled):
    for usage in compiled(__file__):
        assert usage["tensor_core_instructions"] > 0 or usage["case"].startswith("plan"), usage


if __name__ == "__main__":
    report(all_cases(), sys.argv[1:])
