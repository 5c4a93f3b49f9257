"""Compiles the memory-bound kernels for sm_90, GPU or not; as a script, prints what each uses."""

import importlib
import sys

import pytest

ELEMENTS = ("bf16", "fp32")


def module(name):
    # The package's functions of these names hide the modules.
    return importlib.import_module(f"nanorlhf.nanokernels.{name}")


def rms_norm_cases(Case, signature):
    rms_norm = module("rms_norm")
    for key, config in rms_norm.table("rms_norm").items():
        direction, width = key.split("/")
        blocks = rms_norm._blocks(config, int(width)) | {"inner": 1}
        backward = direction == "backward"
        kernel = rms_norm._backward_kernel if backward else rms_norm._forward_kernel
        if backward:
            blocks["STAGES"] = config["num_stages"]
        for element in ELEMENTS:
            types = {"rows": "i32", "eps": "fp32", "parts_ptr": "*fp32"}
            known = signature(kernel, element, **types)
            for add in (False, True):
                name = f"rms_norm-{key}-{element}{'-add' if add else ''}"
                yield Case(name, kernel, known, blocks | {"ADD": add}, config["num_warps"])
            # Heads of a wider tensor: rows with two strides.
            strided = {k: v for k, v in blocks.items() if k != "inner"} | {"ADD": False}
            name = f"rms_norm-{key}-{element}-heads"
            yield Case(name, kernel, known | {"inner": "i32"}, strided, config["num_warps"])
    partial_sums = module("partial_sums")
    for element in ELEMENTS:
        kernel = partial_sums._sum_parts_kernel
        types = signature(kernel, element, parts_ptr="*fp32", split="i32", parts="i32")
        constants = {"N": 1024, **partial_sums.SUM_BLOCKS}
        yield Case(f"sum_parts-{element}", kernel, types, constants, partial_sums.SUM_WARPS)


def qk_norm_rope_cases(Case, signature):
    qk_norm_rope, store = module("qk_norm_rope"), module("qk_norm_rope_store")
    kernels = {
        "forward": qk_norm_rope._forward_kernel,
        "backward": qk_norm_rope._backward_kernel,
        "store": store._store_kernel,
    }
    floats = dict.fromkeys(("cos_ptr", "sin_ptr", "parts_ptr"), "*fp32") | {"eps": "fp32"}
    ints = {"slots_ptr": "*i64", "tokens": "i32", "groups": "i32"}
    for key, config in qk_norm_rope.table("qk_norm_rope").items():
        for element in ELEMENTS:
            for dim in (64, 128, 256):
                shape = {"H": 16, "K": 8, "HALF": dim // 2, "BLOCK_HALF": dim // 2}
                shape |= {"BLOCK_H": config["heads"]}
                if key == "backward":
                    shape["STAGES"] = config["num_stages"]
                if key == "store":
                    shape["PAGE"] = 128
                types = signature(kernels[key], element, **floats, **ints)
                name = f"qk_norm_rope-{key}-{dim}-{element}"
                yield Case(name, kernels[key], types, shape, config["num_warps"])


def other_cases(Case, signature):
    swiglu, rope, kv_cache = (module(name) for name in ("swiglu", "rope", "attention.kv_cache"))
    for element in ELEMENTS:
        config = swiglu.table("swiglu")["any"]
        for name in ("forward", "backward"):
            kernel = getattr(swiglu, f"_{name}_kernel")
            types = signature(kernel, element, width="i32")
            constants, warps = {"BLOCK": config["block"]}, config["num_warps"]
            yield Case(f"swiglu-{name}-{element}", kernel, types, constants, warps)
        types = signature(rope._rotate_kernel, element, cos_ptr="*fp32", sin_ptr="*fp32")
        constants = {"H": 16, "HALF": 64, "BLOCK_H": 16, "BLOCK_HALF": 64, "SIGN": -1}
        yield Case(f"rope-128-{element}", rope._rotate_kernel, types, constants, 4)
        types = signature(kv_cache._store_kernel, element, slots_ptr="*i64")
        constants = {"K": 8, "D": 128, "PAGE": 16, "BLOCK": 1024}
        yield Case(f"store-128-{element}", kv_cache._store_kernel, types, constants, 4)


def adamw_cases(Case, signature):
    adamw = module("adamw")
    update, norm = adamw.table("adamw")["update"], adamw.table("adamw")["norm"]
    names = ("keep", "one_minus_beta1", "beta2", "one_minus_beta2", "step_size", "root_scale")
    numbers = dict.fromkeys((*names, "eps"), "fp32") | {"size": "i32"}
    states = dict.fromkeys(("m_ptr", "v_ptr", "master_ptr", "scale_ptr"), "*fp32")
    for element in ELEMENTS:
        types = signature(adamw._update_kernel, element, **states, **numbers)
        for master in (True, False):
            constants = {"MASTER": master, "BLOCK": update["block"]}
            name = f"adamw-{element}{'-master' if master else ''}"
            yield Case(name, adamw._update_kernel, types, constants, update["num_warps"])
        types = signature(adamw._squares_kernel, element, parts_ptr="*fp32", size="i32")
        constants = {"BLOCK": norm["block"], "STAGES": norm["num_stages"]}
        yield Case(f"norm-{element}", adamw._squares_kernel, types, constants, norm["num_warps"])
    types = signature(adamw._norm_kernel, "fp32", parts="i32")
    yield Case("norm-total", adamw._norm_kernel, types, {"BLOCK": 1024}, 4)


def cases():
    from nanorlhf.nanokernels.compile import Case, signature

    for make in (rms_norm_cases, qk_norm_rope_cases, other_cases, adamw_cases):
        yield from make(Case, signature)


def test_the_memory_bound_kernels_of_a_qwen3_compile_without_spilling(compiled):
    names = ["rms_norm-forward/1024-bf16-add", "rms_norm-backward/1024-bf16-add"]
    names += ["qk_norm_rope-backward-128-bf16", "qk_norm_rope-store-128-bf16"]
    compiled(__file__, *names, "swiglu-backward-bf16", "adamw-bf16-master")


@pytest.mark.slow
def test_every_memory_bound_entry_of_every_table_compiles_without_spilling(compiled):
    compiled(__file__)


if __name__ == "__main__":
    from nanorlhf.nanokernels.compile import report

    report(cases(), sys.argv[1:])
