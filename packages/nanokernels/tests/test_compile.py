"""Compiles the kernels for sm_90, GPU or not, in a process that does not interpret them.

The cases are run by this same file as a script: ``python test_compile.py NAME...`` prints one JSON
object per case.
"""

import json
import os
import subprocess
import sys

import pytest

SHARED_BYTES_LIMIT = 227 * 1024
ELEMENT = {2: "bf16", 4: "fp32"}

SCALARS = {
    **dict.fromkeys(("scale", "eps"), "fp32"),
    **dict.fromkeys(("tokens", "splits", "rows", "inner", "width"), "i32"),
    **dict.fromkeys(("stride_q", "stride_k", "stride_v", "stride_table", "stride_x"), "i32"),
    **dict.fromkeys(("stride_outer", "stride_inner", "stride_t", "stride_h"), "i32"),
    **dict.fromkeys(("stride_kt", "stride_kh", "stride_vt", "stride_vh"), "i32"),
    **dict.fromkeys(("lse_ptr", "delta_ptr", "rstd_ptr", "dw_ptr", "parts_ptr"), "*fp32"),
    **dict.fromkeys(("cos_ptr", "sin_ptr"), "*fp32"),
    **dict.fromkeys(("cu_q_ptr", "cu_k_ptr", "table_ptr", "lens_ptr"), "*i32"),
    "slots_ptr": "*i64",
}


def attention_cases():
    from nanorlhf.nanokernels.attention import backward, forward

    tables = {
        "forward": (forward._forward_kernel, forward.FORWARD_TILES),
        "dq": (backward._dq_kernel, backward.DQ_TILES),
        "dkdv": (backward._dkdv_kernel, backward.DKDV_TILES),
    }
    for name, (kernel, tiles) in tables.items():
        for (dim, size), tile in tiles.items():
            constants = {"GROUP": 2, "D": dim, "BLOCK_M": tile.block_m, "BLOCK_N": tile.block_n}
            case = f"{name}-{dim}-{ELEMENT[size]}"
            yield case, kernel, size, constants, tile.num_warps, tile.num_stages, {}


def all_cases():
    return {case[0]: case[1:] for case in attention_cases()}


def compile_case(name, kernel, size, constants, num_warps, num_stages, types):
    from nanorlhf.nanokernels.compile import compile_kernel

    known = {n: f"*{ELEMENT[size]}" for n in kernel.arg_names if n.endswith("_ptr")}
    usage = compile_kernel(
        kernel,
        known | SCALARS | types,
        constants=constants,
        num_warps=num_warps,
        num_stages=num_stages,
    )
    return {"case": name, **usage._asdict()}


def usages(names):
    """Run this file where kernels are compiled, and return what each case uses."""
    pytest.importorskip("triton")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, __file__, *names],
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def assert_lean(usage):
    assert usage["spills"] == 0, usage
    assert usage["shared_bytes"] <= SHARED_BYTES_LIMIT, usage
    if usage["case"].split("-")[0] in ("forward", "dq", "dkdv", "split"):
        assert usage["tensor_core_instructions"] > 0, usage


def test_the_kernels_of_a_qwen3_compile_without_spilling():
    names = ["forward-128-bf16", "dq-128-bf16", "dkdv-128-bf16"]
    found = usages(names)
    assert len(found) == len(names)
    for usage in found:
        assert_lean(usage)


@pytest.mark.slow
def test_every_entry_of_every_table_compiles_without_spilling():
    for usage in usages([]):
        assert_lean(usage)


if __name__ == "__main__":
    cases = all_cases()
    for name in sys.argv[1:] or cases:
        print(json.dumps(compile_case(name, *cases[name])), flush=True)  # noqa: T201
