"""What is compared across ranks: each layout of barlow_fast, and the all-reduce of C.

The authors' formulation on several ranks: C is summed over ranks by one all-reduce.

    C_r = z_hat_a^T z_hat_b / N over own rows, standardised over all rows;  C = sum of all C_r
    loss = sum_i (C_ii - 1)^2 + lambd * sum over i != j of C_ij^2
    dL/dz_hat_a = z_hat_b (dL/dC)^T / N      dL/dz_hat_b = z_hat_a (dL/dC) / N      own rows

Written from these formulas, not from the authors' code, and generous to it: backward is by hand and
C is the only D x D matrix there ever is. It is summed, and turned into dL/dC, in place; its squares
are one read. Under autograd the authors' in-place code holds four such matrices and passes over
them many times, and four ranks of that would not fit into this benchmark's machine at D = 16384.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

import barlow_fast
from barlow_fast.distributed import LAYOUTS, cost
from bench.inputs import Variant
from bench.peers import LAMBD

EPS = 1e-5
OURS = "ours-"
OFFICIAL = "official"
# What `precision="auto"` makes of the inputs of a variant.
PRECISION = {"fp32": "fp32", "bf16-autocast": "bf16"}


@dataclass(frozen=True)
class Implementation:
    """One way to compute the loss of all ranks, called by every one of them with its own samples.

    Attributes:
        name: what `--peers` and the results call it.
        title: what the tables call it.
        source: where it comes from.
        loss: (z_a, z_b, samples of all ranks) -> scalar.
        layout: that of barlow_fast; None for others.
        dtypes: variants it takes part in.
        exact: whether each rank's gradient is W times its part of the derivative (whose mean over
            ranks is the derivative), rather than that part.
    """

    name: str
    title: str
    source: str
    loss: Callable[[Tensor, Tensor, int], Tensor]
    layout: str | None = None
    dtypes: tuple[str, ...] = tuple(PRECISION)
    exact: bool = True


def layout_loss(layout: str, z_a: Tensor, z_b: Tensor, n: int) -> Tensor:
    """As a user calls it, on the default kernels."""
    return barlow_fast.barlow_twins_loss(z_a, z_b, LAMBD, process_group="world", layout=layout)


def discover() -> dict[str, Implementation]:
    """All of them by name, ours first."""
    ours = [
        Implementation(
            OURS + layout,
            f"barlow_fast, `{layout}`",
            f"barlow_fast {barlow_fast.__version__}, layout='{layout}'",
            functools.partial(layout_loss, layout),
            layout,
        )
        for layout in LAYOUTS
    ]
    all_reduce = Implementation(
        OFFICIAL,
        "all-reduce of C",
        "the formulation of the authors' code (Zbontar et al., ICML 2021) on several ranks, "
        "gradients by hand, C in place",
        AllReducedCorrelation.apply,
        dtypes=("fp32",),
        exact=False,
    )
    return {each.name: each for each in (*ours, all_reduce)}


def wire_bytes(d: int, ranks: int, itemsize: int) -> int:
    """What a rank sends in a ring all-reduce of a D x D matrix; the statistics are left out."""
    return 2 * (ranks - 1) * d * d * itemsize // ranks


def standardise(z: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """(z_hat, rstd) with mean and biased variance over the n rows of all ranks."""
    total = z.sum(0)
    dist.all_reduce(total)
    hat = z - total / n
    squares = torch.linalg.vecdot(hat, hat, dim=0)
    dist.all_reduce(squares)
    rstd = (squares / n + EPS).rsqrt()
    return hat.mul_(rstd), rstd


class AllReducedCorrelation(torch.autograd.Function):
    """The loss of the rows of all ranks; each rank's gradient is that of its own rows."""

    @staticmethod
    def forward(ctx, z_a: Tensor, z_b: Tensor, n: int) -> Tensor:
        (hat_a, rstd_a), (hat_b, rstd_b) = (standardise(z, n) for z in (z_a, z_b))
        c = (hat_a / n).T @ hat_b
        dist.all_reduce(c)
        diagonal = c.diagonal().clone()
        squares = torch.linalg.vecdot(c, c).sum() - diagonal.square().sum()
        c.mul_(2 * LAMBD).diagonal().copy_(2 * (diagonal - 1))  # dL/dC
        ctx.save_for_backward(hat_a, hat_b, rstd_a, rstd_b, c)
        ctx.n = n
        return (diagonal - 1).square().sum() + LAMBD * squares

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        hat_a, hat_b, rstd_a, rstd_b, c = ctx.saved_tensors
        scale = grad / ctx.n
        grad_a = through_norm((hat_b @ c.T).mul_(scale), hat_a, rstd_a, ctx.n)
        grad_b = through_norm((hat_a @ c).mul_(scale), hat_b, rstd_b, ctx.n)
        return grad_a, grad_b, None


def through_norm(grad: Tensor, hat: Tensor, rstd: Tensor, n: int) -> Tensor:
    """dL/dz from dL/dz_hat, whose mean over all rows is zero: columns of z_hat sum to zero."""
    projection = torch.linalg.vecdot(grad, hat, dim=0)
    dist.all_reduce(projection)
    return grad.addcmul_(hat, projection / n, value=-1).mul_(rstd)


def split(n: int, ranks: int) -> list[int]:
    """Rows of each rank: as equal as can be."""
    return [n // ranks + (rank < n % ranks) for rank in range(ranks)]


def automatic(rows: Sequence[int], d: int, variant: Variant) -> str:
    """The layout that `layout="auto"` takes on ranks of one machine without GPUs."""
    precision = PRECISION[variant.name]
    network = cost.network_of("cpu", 1, precision)
    return cost.choose_layout("auto", "auto", tuple(rows), d, variant.dtype, precision, network)
