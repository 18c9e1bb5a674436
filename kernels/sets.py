"""The kernel sets by name, loaded when they are first used."""

from __future__ import annotations

import torch

from .contract import KernelSet

KERNEL_SETS = ("triton", "cpu", "aten")


def load(name: str, precision: str | None = None) -> KernelSet:
    """Returns the kernel set that computes in `precision` when `name` is chosen.

    That is the set of this name, except for fp64 on GPUs: Triton has no float64 path to tensor
    cores that would beat cuBLAS, so `aten` serves it.

    Raises:
        ImportError: the set cannot be imported here; states why.
    """
    if name == "aten" or (name == "triton" and precision == "fp64"):
        from . import aten

        return aten
    if name == "cpu":
        try:
            from . import cpu
        except ImportError:  # hub/build.py leaves it out
            raise ImportError(
                "this build has no native CPU kernels; pip install barlow-fast has them"
            ) from None
        cpu.require()
        return cpu
    if name == "triton":
        try:
            import triton as _  # noqa: F401
        except ImportError:
            raise ImportError(
                "Triton is not installed; pip install 'barlow-fast[triton]' (Linux)"
            ) from None
        from . import triton

        return triton
    raise ValueError(f"backend must be one of {('auto', *KERNEL_SETS)}, got {name!r}")


def why_unusable(name: str, device: torch.device) -> str | None:
    """None when the set `name` can serve tensors on `device`, else the reason why not, in one
    line."""
    if name == "cpu" and device.type != "cpu":
        return f"the cpu kernels take CPU tensors, these are on {device}"
    if name == "triton" and device.type not in ("cuda", "cpu"):
        return f"the triton kernels take CUDA tensors, these are on {device}"
    try:
        kernels = load(name)
        if name == "triton":
            kernels.require(device)
    except ImportError as error:
        return str(error)
    return None
