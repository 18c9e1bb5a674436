"""Compiled code of each launch, without a device: registers, spills, shared memory, the tensor-core
instruction, hazards of its registers.

    with recording(REFERENCE_DEVICES[90]) as record:
        ... run primitives on meta tensors ...
    resources(record.launches[0], 90)

Needs only the tools in Triton's wheel (ptxas, cuobjdump).

    python -m barlow_fast.kernels.triton.inspection --capability 90     # compile all, count spills
"""

from __future__ import annotations

import argparse
import functools
import itertools
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import create_function_from_signature

from .. import triton as kernels
from ..contract import Coefficients, GradientInputs, ViewGradients
from ..photometry import PARAMETERS
from .launch import REFERENCE_DEVICES, Device, Launch, options, recording
from .sass import hazards

Result = TypeVar("Result")

# The instruction of a product on each architecture, most specific first.
_INSTRUCTIONS = ("tcgen05.mma", "wgmma.mma_async", "mma.sync")


class Resources(NamedTuple):
    """Resources of one program of a kernel."""

    registers: int  # per thread
    spilled: int  # bytes of stack and local memory per thread
    shared: int  # bytes per program
    instruction: str  # of the tensor cores; '' where there is none
    operands: str  # the operand type in that instruction's name, such as bf16
    hazards: tuple[str, ...]  # registers that are used while such an instruction needs them


def resources(launch: Launch, capability: int) -> Resources:
    """Compiles a recorded launch for a compute capability (80, 90, 100) and reads the result."""
    compiled = compile_launch(launch, capability)
    usage = _usage(compiled.asm["cubin"])
    instruction, operands = _tensor_core(compiled.asm["ptx"])
    asynchronous = instruction == "wgmma.mma_async"
    found = hazards(machine_code(compiled)) if asynchronous else ()
    return Resources(
        usage["REG"], usage["spilled"], compiled.metadata.shared, instruction, operands, found
    )


def machine_code(compiled: Any) -> str:
    """The SASS of a compiled kernel, as cuobjdump lists it."""
    return _dump(compiled.asm["cubin"], "--dump-sass")


def compile_launch(launch: Launch, capability: int) -> Any:
    """The kernel of a recorded launch as Triton compiles it for that device: with the same types,
    divisibility and constants that the launch itself would be specialised on."""
    signature, constants, attributes = specialisation(launch)
    source = ASTSource(launch.kernel, signature, constants, attributes)
    return triton.compile(
        source,
        target=GPUTarget("cuda", capability, 32),
        options=options(launch.warps, launch.stages),
    )


def specialisation(launch: Launch) -> tuple[dict[str, str], dict[tuple, Any], dict[tuple, Any]]:
    """(signature, constants, attributes) of a launch, from Triton's own binding of its arguments:
    what is a constant or marked as divisible differs between versions, and the key of the disk
    cache is made of it. A meta tensor counts as allocated at 0, a view of it at its offset."""
    bind, backend = _binder(launch.kernel)
    chosen = options(launch.warps, launch.stages)
    bound, specialised, _ = bind(**launch.arguments, **chosen)
    return launch.kernel._pack_args(backend, chosen, bound, specialised, chosen)[1:]


@functools.cache
def _binder(kernel: Any) -> tuple[Any, Any]:
    """What a kernel's run-time compiler binds arguments with; alike for all NVIDIA devices."""
    backend = make_backend(GPUTarget("cuda", 90, 32))
    return create_function_from_signature(kernel.signature, kernel.params, backend), backend


@functools.cache
def _tool(name: str) -> str:
    return str(Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name)


def _dump(cubin: bytes, option: str) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [_tool("cuobjdump"), option, file.name]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _usage(cubin: bytes) -> dict[str, int]:
    text = _dump(cubin, "--dump-resource-usage")
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


class Case(NamedTuple):
    """A step of the loss whose launches are inspected. The form 'tiles' is 'gram' where K is a sum
    over the columns of several devices. The forms 'vicreg' and 'multiview' are those of two and of
    eight views with a matrix each.

    The forms 'views' and 'gray views' are the photometric part of N views of D x D pixels with
    three channels or one, to be `dtype`; nothing there has a precision.
    """

    form: str
    n: int
    d: int
    dtype: torch.dtype
    precision: str

    def __str__(self) -> str:
        name = str(self.dtype).removeprefix("torch.")
        return f"{self.form} {self.n}x{self.d} {name} {self.precision}"


# Together these reach every row of the table (tests/triton_kernels/test_compilation.py checks it).
SHAPES = (
    ("gram", 64, 2048),
    ("gram", 128, 2048),
    ("gram", 256, 8192),
    ("gram", 512, 8192),
    ("gram", 2048, 8192),
    ("gram", 4096, 8192),
    ("gram", 1024, 65536),
    ("correlation", 169343, 256),
    ("correlation", 65536, 128),
    ("correlation", 4096, 64),
    ("correlation", 4096, 512),
    ("correlation", 8192, 4096),
)
OPERANDS = (
    (torch.bfloat16, "bf16"),
    (torch.float32, "bf16"),
    (torch.float32, "tf32"),
    (torch.float32, "fp32"),
)
EXTRA = (
    Case("tiles", 256, 2048, torch.bfloat16, "bf16"),
    Case("tiles", 2048, 1024, torch.bfloat16, "bf16"),
    Case("tiles", 2048, 1024, torch.float32, "tf32"),
    Case("tiles", 2048, 1024, torch.float32, "fp32"),
    Case("gram", 256, 8192, torch.float16, "fp16"),
    Case("correlation", 4096, 512, torch.float16, "fp16"),
)
FAMILY = (
    *(
        Case("vicreg", n, 8192, *operands)
        for n in (64, 128, 256, 512, 2048)
        for operands in OPERANDS
    ),
    *(Case("multiview", 256, 8192, *operands) for operands in OPERANDS),
    Case("vicreg", 256, 8192, torch.float16, "fp16"),
    Case("multiview", 2048, 1024, torch.bfloat16, "bf16"),
    Case("multiview", 2048, 1024, torch.float32, "tf32"),
    Case("multiview", 512, 1024, torch.float16, "fp16"),
)
VIEWS = (
    Case("views", 256, 224, torch.bfloat16, "bf16"),
    Case("views", 256, 224, torch.float32, "fp32"),
    Case("views", 256, 96, torch.float16, "fp16"),
    Case("views", 256, 99, torch.bfloat16, "bf16"),
    Case("gray views", 256, 28, torch.bfloat16, "bf16"),
)
# Rows that do not start at 16 bytes are read element by element, and registers go to addresses.
UNALIGNED = (
    Case("gram", 250, 1001, torch.float32, "fp32"),
    Case("gram", 250, 1001, torch.bfloat16, "bf16"),
    Case("correlation", 999, 333, torch.bfloat16, "bf16"),
    Case("vicreg", 250, 1001, torch.float32, "fp32"),
    Case("multiview", 250, 1001, torch.bfloat16, "bf16"),
)


def cases() -> list[Case]:
    """All shapes in all operand types, and what they leave out."""
    return [Case(*shape, *operands) for shape in SHAPES for operands in OPERANDS] + [
        *EXTRA,
        *FAMILY,
        *VIEWS,
        *UNALIGNED,
    ]


def survey(capability: int, workers: int = 1) -> list[tuple[Case, Launch, Resources]]:
    """Resources of every distinct kernel of `cases`, as `for_each`."""
    return for_each(resources, cases(), capability, workers)


def for_each(
    function: Callable[[Launch, int], Result], some: Iterable[Case], capability: int, workers: int
) -> list[tuple[Case, Launch, Result]]:
    """`function(launch, capability)` of every distinct kernel that these cases launch on the
    reference device of a capability.

    A kernel is listed with the first case that needs it. `workers` processes compile in parallel;
    then the function has to be one of a module.
    """
    seen: dict[tuple, tuple[Case, int, Launch]] = {}
    for case in some:
        for index, launch in enumerate(record_step(case, REFERENCE_DEVICES[capability])):
            seen.setdefault(identity(launch), (case, index, launch))
    if workers == 1:
        found = [function(launch, capability) for _, _, launch in seen.values()]
    else:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, mp_context=context) as pool:
            futures = [
                pool.submit(_recorded, function, case, index, capability)
                for case, index, _ in seen.values()
            ]
            found = [future.result() for future in futures]
    return [
        (case, launch, each) for (case, _, launch), each in zip(seen.values(), found, strict=True)
    ]


def _recorded(
    function: Callable[[Launch, int], Result], case: Case, index: int, capability: int
) -> Result:
    return function(_launches(case, capability)[index], capability)


@functools.cache
def _launches(case: Case, capability: int) -> list[Launch]:
    return record_step(case, REFERENCE_DEVICES[capability])


def record_step(case: Case, device: Device, need: tuple[bool, bool] = (True, True)) -> list[Launch]:
    """The launches of one forward and backward pass, planned for `device`; nothing runs."""
    if case.form in ("views", "gray views"):
        return _record_views(case, device)
    if case.form in ("vicreg", "multiview"):
        with recording(device) as record:
            run_family(case, "meta")
        return record.launches
    z_a, z_b = (torch.empty(case.n, case.d, dtype=case.dtype, device="meta") for _ in range(2))
    grad_scale, precision = torch.empty((), device="meta"), case.precision
    coefficients = Coefficients(1e-5, 0.1, 0.1, eps=1e-5)
    with recording(device) as record:
        statistics, sums = kernels.statistics(z_a, z_b, 1e-5, precision)
        gradients = kernels.gram_gradients
        if case.form == "gram":
            _, *matrices = kernels.gram_terms(z_a, z_b, statistics, sums, 0.0051, precision)
        elif case.form == "tiles":
            packed = kernels.gram_tiles(z_a, statistics[0:3], precision)
            packed = packed.new_empty((2, *packed.shape), dtype=case.dtype)
            centres = statistics.new_empty(2)
            matrices = kernels.gram_from_tiles(packed, centres, case.n, 8 * case.d, precision)
            coefficients = coefficients._replace(dimensions=8 * case.d, projected=False)
        else:
            matrices = kernels.correlation(z_a, z_b, statistics, precision)
            kernels.terms(sums, matrices[1][0], 1, False, 0.0051, precision)
            gradients = kernels.correlation_gradients
        inputs = (z_a, z_b, statistics, matrices, grad_scale, coefficients, precision, need)
        gradients(GradientInputs(*inputs))
    return record.launches


def run_family(case: Case, device: str) -> None:
    """The calls of a step on two views or eight. Of two: of VICReg, with offsets and without the
    norm's backward. Of eight: of Barlow Twins, each view linked to all others; and the pass over
    views without a matrix."""
    zeros = functools.partial(torch.zeros, device=device)
    count = 2 if case.form == "vicreg" else 8
    views = (zeros(case.n, case.d, dtype=case.dtype),) * count
    kernels.view_moments(views, case.precision)
    statistics = zeros(count, 3, case.d)
    packed = kernels.gram_tiles(views[0], statistics[0], case.precision)
    packed = packed.new_zeros((count, *packed.shape))
    matrices = kernels.gram_from_tiles(packed, zeros(count), case.n, 2 * case.d, case.precision)
    every = itertools.product(range(count), repeat=2)
    links = tuple((o, v) for o, v in every if count == 2 or o != v)
    inputs = ViewGradients(
        views, statistics, matrices, zeros(count, dtype=torch.float64), links,
        zeros(len(links), case.d), zeros(count, case.d) if count == 2 else None, zeros(()),
        2 * case.d, 1e-5, count > 2, case.precision, (True,) * count,
    )  # fmt: skip
    kernels.view_gradients(inputs)
    if count > 2:
        kernels.view_gradients(inputs._replace(matrices=None))


def _record_views(case: Case, device: Device) -> list[Launch]:
    channels = 3 if case.form == "views" else 1
    crops = torch.empty(case.n, case.d, case.d, channels, dtype=torch.uint8, device="meta")
    parameters = torch.empty(case.n, PARAMETERS, device="meta")
    mean, std = (torch.empty(channels, device="meta") for _ in range(2))
    with recording(device) as record:
        kernels.photometric(crops, parameters, mean, std, case.dtype)
    return record.launches


def identity(launch: Launch) -> tuple:
    """Equal for launches that run the same machine code."""
    signature, constants, attributes = specialisation(launch)
    return (
        launch.name,
        tuple(signature.items()),
        tuple(sorted(constants.items())),
        tuple(key for key, value in attributes.items() if value),
        launch.warps,
        launch.stages,
    )


def capability_here() -> int | None:
    """The capability of `REFERENCE_DEVICES` that stands for this machine's device; None without a
    CUDA device."""
    if not torch.cuda.is_available():
        return None
    major, minor = torch.cuda.get_device_capability()
    capability = 10 * major + minor
    known = capability in REFERENCE_DEVICES
    return capability if known else Device("", capability, 1, 0).architecture


def main(arguments: list[str] | None = None) -> int:
    """Compiles everything for one capability, by default this machine's device; 1 if a kernel has a
    hazard, or spills though its inputs are aligned."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--capability", type=int, choices=sorted(REFERENCE_DEVICES))
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args(arguments)
    capability = options.capability
    if capability is None:
        capability = capability_here()
        if capability is None:
            parser.error("without a CUDA device, --capability is required")
    found = survey(capability, options.workers)
    spilling = [x for x in found if x[2].spilled and x[0] not in UNALIGNED]
    hazardous = [x for x in found if x[2].hazards]
    for kind, cases_of_kind in (("spills", spilling), ("hazard", hazardous)):
        for case, launch, taken in cases_of_kind:
            print(f"{kind}: {launch.name} {case}: {taken}")
    print(
        f"sm_{capability}: {len(found)} kernels compiled, {len(spilling)} spill, "
        f"{len(hazardous)} have hazards"
    )
    return 1 if spilling or hazardous else 0


if __name__ == "__main__":
    sys.exit(main())
