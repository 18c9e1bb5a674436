"""One door for every kernel launch: the device's properties, the launch itself, and its recording.

All host code of this set starts kernels through `launch`. Inside `recording(...)` nothing runs:
each launch is noted with its arguments, its operations and its bytes, on meta tensors and for any
architecture. Ahead-of-time compilation, the table of resources, the launch counts and the floors of
the benchmark all come from the very calls that a user's step makes.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from .arithmetic import INTERPRETED

KIBI = 1 << 10


@dataclass(frozen=True)
class Device:
    """What planning has to know of a device."""

    name: str
    capability: int  # compute capability as 10 * major + minor
    processors: int  # streaming multiprocessors
    shared_memory: int  # bytes that one program may use

    @property
    def architecture(self) -> int:
        """The row of the configuration table: 90 and 100 have matrix instructions of their own, all
        others (consumer parts of any age among them) have what 80 has."""
        return {90: 90, 100: 100, 103: 100}.get(self.capability, 80)


# Vendor's figures of the full SXM parts; for recording and compiling where none is present.
REFERENCE_DEVICES = {
    80: Device("A100", 80, 108, 163 * KIBI),
    90: Device("H100", 90, 132, 227 * KIBI),
    100: Device("B200", 100, 148, 227 * KIBI),
    89: Device("L40S", 89, 142, 99 * KIBI),
}

# The interpreter has no device. Few processors, so that small matrices already take more than one
# wave of tiles.
_INTERPRETER = Device("interpreter", 90, 4, 227 * KIBI)


@dataclass
class Launch:
    """A recorded launch."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    warps: int
    stages: int
    flops: float
    bytes: float

    @property
    def name(self) -> str:
        return self.kernel.__name__


@dataclass
class Recording:
    """What ran inside `recording`."""

    device: Device
    launches: list[Launch] = field(default_factory=list)


_active = threading.local()


@contextlib.contextmanager
def recording(device: Device) -> Iterator[Recording]:
    """Records launches for `device` instead of starting them; use with meta tensors."""
    before = getattr(_active, "recording", None)
    _active.recording = Recording(device)
    try:
        yield _active.recording
    finally:
        _active.recording = before


def device_of(z: Tensor) -> Device:
    """The device that kernels on `z` are planned for. No synchronisation."""
    record = getattr(_active, "recording", None)
    if record is not None:
        return record.device
    if z.device.type != "cuda":
        return _INTERPRETER
    return _cuda_device(z.get_device())


@functools.cache
def _cuda_device(index: int) -> Device:
    properties = torch.cuda.get_device_properties(index)
    shared = getattr(properties, "shared_memory_per_block_optin", 99 * KIBI)
    return Device(
        properties.name,
        10 * properties.major + properties.minor,
        properties.multi_processor_count,
        shared,
    )


def launch(
    kernel: Any,
    grid: tuple[int, ...],
    *arguments: Any,
    warps: int = 4,
    stages: int = 1,
    flops: float = 0.0,
    moved: float = 0.0,
    **constants: Any,
) -> None:
    """Starts `kernel` on the current stream of its tensors' device.

    Args:
        kernel: a function under triton.jit.
        grid: number of programs on each axis.
        arguments: the run-time arguments, in order; at least one is a tensor.
        warps, stages: num_warps and num_stages of Triton.
        flops: operations of the matrix products, multiplications and additions.
        moved: bytes that must pass through device memory: every input once, every output once.
        constants: the constexpr arguments.
    """
    record = getattr(_active, "recording", None)
    if record is not None:
        named = dict(zip(kernel.arg_names, arguments, strict=False)) | constants
        record.launches.append(Launch(kernel, grid, named, warps, stages, flops, moved))
        return
    device = next(x for x in arguments if isinstance(x, Tensor)).device
    if INTERPRETED.value:
        kernel[grid](*arguments, **constants)
        return
    # A device index of the current device costs nothing; switching costs microseconds.
    elsewhere = device.index != torch.cuda.current_device()
    with torch.cuda.device(device) if elsewhere else contextlib.nullcontext():
        kernel[grid](*arguments, **options(warps, stages), **constants)


def options(warps: int, stages: int) -> dict[str, Any]:
    """What a kernel is compiled with. Fused multiply-adds are asked for by name: Triton's default
    is about to change, and results should not."""
    return {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": True}


def described(matrix: Tensor, rows: int, columns: int) -> TensorDescriptor:
    """A contiguous matrix as the bulk copy engine sees it: read in blocks of (rows, columns), zero
    outside."""
    return TensorDescriptor.from_tensor(matrix, [rows, columns])


cdiv = triton.cdiv


def round_up(value: int, multiple: int) -> int:
    """The smallest multiple that is at least `value`."""
    return -(-value // multiple) * multiple
