"""What the compiler makes of each launch, without a device: registers, spills, shared memory, the
tensor-core instruction.

    with recording(REFERENCE_DEVICES[90]) as record:
        ... run primitives on meta tensors ...
    resources(record.launches[0], 90)

Needs the tools that Triton's wheel brings along (ptxas, cuobjdump), nothing else.
"""

from __future__ import annotations

import functools
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from .launch import Launch

# Most specific first: what a product compiles to on each architecture.
_INSTRUCTIONS = ("tcgen05.mma", "wgmma.mma_async", "mma.sync")
_TYPES = {
    torch.float64: "fp64",
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.int32: "i32",
}


class Resources(NamedTuple):
    """What one program of a kernel takes."""

    registers: int  # per thread
    spilled: int  # bytes of stack and local memory per thread
    shared: int  # bytes per program
    instruction: str  # of the tensor cores; '' where there is none
    operands: str  # the operand type in that instruction's name, such as bf16


def resources(launch: Launch, capability: int) -> Resources:
    """Compiles a recorded launch for a compute capability (80, 90, 100) and reads the result."""
    compiled = compile_launch(launch, capability)
    usage = _usage(compiled.asm["cubin"])
    instruction, operands = _tensor_core(compiled.asm["ptx"])
    return Resources(usage["REG"], usage["spilled"], compiled.metadata.shared, instruction, operands)


def compile_launch(launch: Launch, capability: int) -> Any:
    """The kernel of a recorded launch as Triton compiles it for that device: with the same types,
    divisibility and constants that the launch itself would be specialised on."""
    signature, constants, attributes = specialisation(launch)
    source = ASTSource(launch.kernel, signature, constants, attributes)
    return triton.compile(
        source,
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": launch.warps, "num_stages": launch.stages},
    )


def specialisation(launch: Launch) -> tuple[dict[str, str], dict[tuple[int], Any], dict]:
    """(signature, constants, attributes) of a launch, by Triton's rules: integers equal to 1 are
    constants, pointers and integers divisible by 16 are marked so, unless excluded."""
    signature, constants, attributes = {}, {}, {}
    for index, parameter in enumerate(launch.kernel.params):
        value = launch.arguments[parameter.name]
        if parameter.is_constexpr:
            signature[parameter.name] = "constexpr"
            constants[(index,)] = value
        elif isinstance(value, Tensor):
            signature[parameter.name] = "*" + _TYPES[value.dtype]
            # Allocations are aligned; a view is as aligned as its offset.
            if value.storage_offset() * value.element_size() % 16 == 0:
                attributes[(index,)] = [["tt.divisibility", 16]]
        elif isinstance(value, float):
            signature[parameter.name] = "fp32"
        elif value == 1 and not parameter.do_not_specialize:
            signature[parameter.name] = "constexpr"
            constants[(index,)] = 1
        else:
            signature[parameter.name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            if value % 16 == 0 and not parameter.do_not_specialize:
                attributes[(index,)] = [["tt.divisibility", 16]]
    return signature, constants, attributes


@functools.cache
def _tool(name: str) -> str:
    return str(Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name)


def _usage(cubin: bytes) -> dict[str, int]:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run(
            [_tool("cuobjdump"), "--dump-resource-usage", file.name],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
    found = {key: int(value) for key, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", text)}
    return found | {"spilled": found["STACK"] + found["LOCAL"]}


def _tensor_core(ptx: str) -> tuple[str, str]:
    for name in _INSTRUCTIONS:
        found = re.search(re.escape(name) + r"[\w.:]*", ptx)
        if found:
            types = re.findall(r"\b(bf16|f16|tf32|f32)\b", found[0].replace(".", " "))
            inputs = [t for t in types if t != "f32"]
            return name, inputs[0] if inputs else ""
    return "", ""
