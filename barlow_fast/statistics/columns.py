"""A matrix (N, D) that is read by blocks of its columns, and the moments of these columns."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from .. import plan
from ..arguments import check_number, check_view
from ..kernels import KernelSet, load

Matrix = Tensor | Iterable[Tensor] | Callable[[], Iterable[Tensor]]

MEMORY = 2**30
LEAST_MEMORY = 2**20
PRECISION = "fp64"


class Columns:
    """A matrix, checked while it is read.

    Attributes:
        name: for errors.
        n, device: known once a block was read.
        d: known after `measure`.
        statistics: (3, D) float64, the mean, reciprocal deviation and shift that standardise the
            columns, as in the kernels' contract; set by the caller.
    """

    def __init__(self, name: str, source: Matrix) -> None:
        if isinstance(source, Iterator):
            raise TypeError(
                f"{name} is an iterator, which can be read only once: pass a list of blocks, or a "
                "function that returns a new iterator"
            )
        if not (isinstance(source, Iterable) or callable(source)):
            raise TypeError(
                f"{name} must be a torch.Tensor, an iterable of blocks of columns or a function "
                f"that returns one, got {type(source).__name__}"
            )
        self.name = name
        self.source = source
        self.n = self.d = 0
        self.device = torch.device("cpu")
        self.statistics = torch.empty(0, device="cpu")

    @property
    def kernels(self) -> KernelSet:
        """The set that serves float64 on the device."""
        return load(plan.choose_backend("auto", self.device), PRECISION)

    def blocks(self, width: int | None = None) -> Iterator[tuple[int, Tensor]]:
        """(first column, (N, d)) of blocks of at most `width` columns, in their order; None for the
        blocks as they are given. Reads the source once.

        Raises:
            TypeError: a block that is not a tensor, not dense or not floating point.
            ValueError: fewer than 2 samples, no columns; shapes or devices that do not fit.
        """
        start = 0
        for given in self._given():
            for block in given.split(width or given.shape[1], 1):
                yield start, block
                start += block.shape[1]
        if self.d and start != self.d:
            raise ValueError(f"{self.name} had {self.d} columns, then {start}: it must not change")

    def _given(self) -> Iterator[Tensor]:
        if isinstance(self.source, Tensor):
            check_view(self.name, self.source)
            if self.source.dim() < 2:
                raise ValueError(
                    f"{self.name} must be (N, D) or (..., D), got {tuple(self.source.shape)}"
                )
            yield self._checked(self.name, self.source.flatten(0, -2))
            return
        for number, block in enumerate(self.source() if callable(self.source) else self.source):
            name = f"block {number} of {self.name}"
            check_view(name, block)
            yield self._checked(name, block)

    def _checked(self, name: str, block: Tensor) -> Tensor:
        if block.dim() != 2 or (self.n and block.shape[0] != self.n):
            raise ValueError(f"{name} must be ({self.n or 'N'}, d), got {tuple(block.shape)}")
        if block.shape[0] < 2:
            raise ValueError(f"{name} must have at least 2 samples, got {tuple(block.shape)}")
        if block.shape[1] < 1:
            raise ValueError(f"{name} must have at least one column, got {tuple(block.shape)}")
        if self.n and block.device != self.device:
            raise ValueError(f"{name} must be on {self.device}, is on {block.device}")
        self.n, self.device = block.shape[0], block.device
        return block.detach()


def check_memory(memory: int) -> None:
    """TypeError or ValueError unless `memory` is a number of bytes that blocks fit into."""
    check_number("memory", memory, at_least=LEAST_MEMORY)


def measure(a: Columns, b: Columns, memory: int) -> tuple[Tensor, float]:
    """((5, D) float64 moments of the columns as `KernelSet.column_moments` has them, the resolution
    of the inputs' dtype), by one read of two matrices of one shape, or of one that is passed twice.

    Raises:
        TypeError, ValueError: inputs that are not finite (N, D) with N >= 2 and D >= 1.
    """
    parts, resolution = [], 0.0
    for x, y in _pairs(a, b):
        dtype = torch.promote_types(x.dtype, y.dtype)
        resolution = max(resolution, torch.finfo(dtype).eps)
        width = max(1, memory // (64 * a.n))
        for left, right in zip(x.split(width, 1), y.split(width, 1), strict=True):
            parts.append(a.kernels.column_moments(left.to(dtype), right.to(dtype), PRECISION))
    if not parts:
        raise ValueError(f"{a.name} must have at least one column, got no blocks")
    a.d = b.d = sum(part.shape[1] for part in parts)
    moments = torch.cat(parts, 1)
    for view, each in enumerate((a, b)):
        if not moments[[view, 2 + view]].isfinite().all():
            raise ValueError(
                f"{each.name} must be finite, got NaN, infinity or values whose squares overflow"
            )
    return moments, resolution


def _pairs(a: Columns, b: Columns) -> Iterator[tuple[Tensor, Tensor]]:
    """Blocks of both with the same columns."""
    if a is b:
        yield from ((block, block) for _, block in a.blocks())
        return
    missing = (0, torch.empty(0, device="cpu"))
    pairs = itertools.zip_longest(a.blocks(), b.blocks(), fillvalue=missing)
    for (start, x), (other, y) in pairs:
        if x.shape != y.shape:
            raise ValueError(
                f"{a.name} and {b.name} must have the same shape, and blocks of the same widths, "
                f"got {tuple(x.shape)} and {tuple(y.shape)} from column {max(start, other)}"
            )
        check_devices(a, b)
        yield x, y


def check_devices(a: Columns, b: Columns) -> None:
    """ValueError unless both are on one device."""
    if a.device != b.device:
        raise ValueError(
            f"{a.name} and {b.name} must be on one device, got {a.device} and {b.device}"
        )
