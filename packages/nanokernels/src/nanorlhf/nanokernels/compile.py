"""Compiling a kernel for a GPU that is not there, and reading what the binary uses.

A kernel that spills registers or asks for more shared memory than a block has is a mistake that
shows without a GPU: Triton compiles for any target, and the disassembler it ships tells the rest.
Triton must not be interpreting (``TRITON_INTERPRET`` unset when the kernels are imported).
"""

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.experimental.gluon._runtime import GluonASTSource

from .dispatch import Kernel, is_interpreting

SM_90 = 90
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


class Usage(NamedTuple):
    """What one compiled kernel uses."""

    registers: int
    """Per thread."""
    spills: int
    """Instructions that store to or load from local memory."""
    shared_bytes: int
    """Shared memory of a block."""
    tensor_core_instructions: int
    """Matrix products on tensor cores (HGMMA and HMMA)."""


class Case(NamedTuple):
    """A kernel as some launch parameters make it."""

    name: str
    kernel: Kernel
    signature: Mapping[str, str]
    constants: Mapping[str, int | str | bool]
    num_warps: int
    num_stages: int = 1


def signature(kernel: Kernel, element: str, **types: str) -> dict[str, str]:
    """Return the Triton type of each argument by what its name says.

    Args:
        kernel: A jitted kernel.
        element: Type behind the pointers (``x_ptr``) that ``types`` leaves out, such as ``"bf16"``.
        **types: Type of any other argument; strides are ``i32``.
    """
    known = {name: f"*{element}" for name in kernel.arg_names if name.endswith("_ptr")}  # type: ignore[attr-defined]
    strides = {name: "i32" for name in kernel.arg_names if name.startswith("stride_")}  # type: ignore[attr-defined]
    return known | strides | types


def report(cases: Iterable[Case], names: Iterable[str]) -> None:
    """Compile the named cases, all without names, and print what each uses as a line of JSON."""
    wanted = set(names)
    for case in cases:
        if not wanted or case.name in wanted:
            usage = compile_kernel(
                case.kernel,
                case.signature,
                constants=case.constants,
                num_warps=case.num_warps,
                num_stages=case.num_stages,
            )
            sys.stdout.write(json.dumps({"case": case.name, **usage._asdict()}) + "\n")
            sys.stdout.flush()


def compile_kernel(
    kernel: Kernel,
    signature: Mapping[str, str],
    *,
    constants: Mapping[str, int | str | bool],
    num_warps: int,
    num_stages: int = 1,
    capability: int = SM_90,
) -> Usage:
    """Compile ``kernel`` and return what it uses.

    Args:
        kernel: A jitted kernel.
        signature: Triton type of each argument that is not a constant, such as ``"*bf16"``.
            Pointers and strides are taken to be multiples of 16, as they are in practice.
        constants: Value of each constexpr argument.
        num_warps: Warps of a block.
        num_stages: Depth of the software pipeline.
        capability: Ten times the GPU's compute capability.

    Raises:
        RuntimeError: Triton is interpreting, so kernels do not exist.
    """
    if is_interpreting():
        raise RuntimeError("TRITON_INTERPRET=1 leaves nothing to compile; unset it first")
    names = list(kernel.arg_names)  # type: ignore[attr-defined]
    types = {name: "constexpr" if name in constants else signature[name] for name in names}
    aligned = [
        index
        for index, name in enumerate(names)
        if types[name].startswith("*") or name.startswith("stride_")
    ]
    gluon = kernel.is_gluon()  # type: ignore[attr-defined]
    source = (GluonASTSource if gluon else ASTSource)(
        fn=kernel,
        signature=types,
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(index,): [["tt.divisibility", 16]] for index in aligned},
    )
    binary = triton.compile(
        source,
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": num_warps, "num_stages": num_stages, "enable_fp_fusion": True},
    )
    return _usage(binary.asm["cubin"], shared_bytes=binary.metadata.shared)


def _usage(cubin: bytes, *, shared_bytes: int) -> Usage:
    """Return what a binary uses, from its header and its disassembly."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        header = _run("cuobjdump", "-res-usage", file.name)
        assembly = _run("nvdisasm", file.name)
    registers = re.search(r"REG:(\d+)", header)
    assert registers is not None, f"cuobjdump printed no register count: {header!r}"
    return Usage(
        registers=int(registers[1]),
        spills=len(re.findall(r"\b(?:STL|LDL)\b", assembly)),
        shared_bytes=shared_bytes,
        tensor_core_instructions=len(re.findall(r"\b(?:HGMMA|HMMA)\b", assembly)),
    )


def _run(tool: str, *args: str) -> str:
    return subprocess.run(
        [str(TOOLS / tool), *args], check=True, capture_output=True, text=True, timeout=120
    ).stdout
