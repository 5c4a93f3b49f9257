"""Compiles attention's kernels for sm_90, GPU or not; as a script, prints what each case uses."""

import sys
from collections.abc import Iterator
from itertools import product

import pytest

from nanorlhf.nanokernels.compile import Case, report, signature
from nanorlhf.nanokernels.configs import table

ELEMENT = {2: "bf16", 4: "fp32"}
MASKS = {
    "causal": {"CAUSAL": True, "WINDOW": False},
    "full": {"CAUSAL": False, "WINDOW": False},
    "window": {"CAUSAL": True, "WINDOW": True},
}
LAYOUTS = {"packed": False, "dense": True}


def types(kernel, element, **rows):
    numbers = ("sequences", "tokens", "q_length", "k_length", "window", "tiles", "slots")
    pointers = dict.fromkeys(("cu_q_ptr", "cu_k_ptr", "order_ptr"), "*i32") | {"lse_ptr": "*fp32"}
    return signature(
        kernel, element, **rows, **pointers, **dict.fromkeys(numbers, "i32"), scale="fp32"
    )


def block_shape(rows, dim, dense):
    return [1, rows, 1, dim] if dense else [1, 1, rows, dim]


def forward_cases() -> Iterator[Case]:
    from nanorlhf.nanokernels.attention import forward

    kernel = forward._forward_kernel
    for (key, config), (layout, dense), (name, mask) in product(
        table("attention_forward").items(), LAYOUTS.items(), MASKS.items()
    ):
        dim, size = (int(part) for part in key.split("/"))
        rows = f"tensordesc<{ELEMENT[size]}{block_shape(config['block_n'], dim, dense)}>"
        constants = {"HEADS": 16, "GROUP": 2, "D": dim, "DENSE": dense, **mask}
        constants |= {"BLOCK_M": config["block_m"], "BLOCK_N": config["block_n"]}
        yield Case(
            f"forward-{key}-{layout}-{name}",
            kernel,
            types(kernel, ELEMENT[size], k_rows=rows, v_rows=rows),
            constants,
            config["num_warps"],
            config["num_stages"],
        )


def gluon_cases() -> Iterator[Case]:
    from triton.experimental.gluon import language as gl

    from nanorlhf.nanokernels.attention import gluon_forward

    def described(rows, dim, dense):
        block = block_shape(rows, dim, dense)
        return (
            f"tensordesc<bf16{block},{gl.NVMMASharedLayout.get_default_for(block, gl.bfloat16)!r}>"
        )

    kernel = gluon_forward._forward_kernel
    for (key, config), (layout, dense), (name, mask) in product(
        table("attention_gluon").items(), LAYOUTS.items(), MASKS.items()
    ):
        dim = int(key)
        rows = dict.fromkeys(("q_rows", "o_rows"), described(64, dim, dense))
        rows |= dict.fromkeys(("k_rows", "v_rows"), described(config["block_n"], dim, dense))
        constants = {"HEADS": 16, "GROUP": 2, "D": dim, "DENSE": dense, **mask}
        constants |= {"BLOCK_N": config["block_n"], "SLOTS": config["slots"]}
        yield Case(
            f"gluon-{key}-{layout}-{name}", kernel, types(kernel, "bf16", **rows), constants, 4
        )


def order_cases() -> Iterator[Case]:
    from nanorlhf.nanokernels.attention import order

    kernel = order._order_kernel
    yield Case("order", kernel, types(kernel, "i32"), {"BLOCK": 128}, 1)


def cases() -> Iterator[Case]:
    yield from forward_cases()
    yield from gluon_cases()
    yield from order_cases()


def test_the_kernels_of_a_qwen3_compile_without_spilling(compiled):
    names = ["forward-128/2-packed-causal", "forward-128/2-dense-causal", "gluon-128-packed-causal"]
    for usage in compiled(__file__, *names):
        assert usage["tensor_core_instructions"] > 0, usage


@pytest.mark.slow
def test_every_entry_of_every_table_compiles_without_spilling(compiled):
    for usage in compiled(__file__):
        assert usage["tensor_core_instructions"] > 0 or usage["case"] == "order", usage


if __name__ == "__main__":
    report(cases(), sys.argv[1:])
