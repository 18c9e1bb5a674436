"""Kernel launches: the device's properties, the launch itself, and its recording.

All host code of this set starts kernels through `launch`. Inside `recording(...)` nothing runs:
each launch is recorded with its arguments, its operations and its bytes, on meta tensors and for
any architecture. Ahead-of-time compilation, the table of resources, the launch counts and the
floors of the benchmark are made from these records, that is, from the calls of a training step.
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
    """The properties of a device that configurations depend on."""

    name: str
    capability: int  # compute capability as 10 * major + minor
    num_sms: int  # streaming multiprocessors
    shared_memory: int  # bytes that one program may use

    @property
    def architecture(self) -> int:
        """The architecture in the configuration table: 90 and 100 have matrix instructions of their
        own; all others, consumer devices included, have those of 80."""
        return {90: 90, 100: 100, 103: 100}.get(self.capability, 80)


# NVIDIA's figures of the full SXM modules, for recording and compiling without a device.
REFERENCE_DEVICES = {
    80: Device("A100", 80, 108, 163 * KIBI),
    90: Device("H100", 90, 132, 227 * KIBI),
    100: Device("B200", 100, 148, 227 * KIBI),
    89: Device("L40S", 89, 142, 99 * KIBI),
}

# The interpreter has no device. With few SMs, small matrices already take more than one wave.
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

    @property
    def constants(self) -> dict[str, Any]:
        """The meta-parameters by name, those of `Meta` among them."""
        given = self.arguments
        constants = {p.name: given[p.name] for p in self.kernel.params if p.is_constexpr}
        if "META" in given:
            constants |= {name: field.value for name, field in given["META"]._asdict().items()}
        return constants


@dataclass
class Recording:
    """The launches inside `recording`."""

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
    """The device that kernels on `z` are configured for. Does not synchronise."""
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
        arguments: the run-time arguments, in order: tensors, numbers and NamedTuples of these; at
            least one is a tensor itself.
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
    """The options that a kernel is compiled with. Fused multiply-adds are requested explicitly:
    Triton's default will change, and results should not."""
    return {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": True}


def tma_descriptor(matrix: Tensor, rows: int, columns: int) -> TensorDescriptor:
    """A contiguous matrix for TMA: read in blocks of (rows, columns), zero outside."""
    return TensorDescriptor.from_tensor(matrix, [rows, columns])


# Offsets within a block are 32-bit, and blocks have up to 512 rows (arithmetic.py).
LARGEST_STRIDE = 2**31 // 512 - 1


def addressable(z: Tensor) -> Tensor:
    """z itself where its columns are contiguous and its row stride is small enough, else a
    contiguous copy.

    Raises:
        ValueError: more dimensions than the kernels can address.
    """
    if z.shape[1] > LARGEST_STRIDE:
        raise ValueError(
            f"the triton kernels take up to {LARGEST_STRIDE} embedding dimensions, got "
            f"{z.shape[1]}; backend='aten' takes any number"
        )
    columns_contiguous = z.stride(1) == 1 or z.shape[1] == 1
    return z if columns_contiguous and z.stride(0) <= LARGEST_STRIDE else z.contiguous()


cdiv = triton.cdiv


def round_up(value: int, multiple: int) -> int:
    """The smallest multiple that is at least `value`."""
    return -(-value // multiple) * multiple


def aligned(*views: Tensor) -> bool:
    """Whether all rows of these matrices begin at 16 bytes."""
    return all(z.stride(0) * z.element_size() % 16 == 0 for z in views)
