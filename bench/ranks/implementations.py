"""What is compared across ranks: each layout of barlow_fast, and the all-reduce of C."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

import barlow_fast
from barlow_fast.distributed import LAYOUTS, cost
from bench.inputs import Variant
from bench.peers import LAMBD
from bench.ranks import official

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
        official.AllReducedCorrelation.apply,
        dtypes=("fp32",),
        exact=False,
    )
    return {each.name: each for each in (*ours, all_reduce)}


def split(n: int, ranks: int) -> list[int]:
    """Rows of each rank: as equal as can be."""
    return [n // ranks + (rank < n % ranks) for rank in range(ranks)]


def automatic(rows: Sequence[int], d: int, variant: Variant) -> str:
    """The layout that `layout="auto"` takes on ranks of one machine without GPUs."""
    precision = PRECISION[variant.name]
    network = cost.network_of("cpu", 1, precision)
    return cost.choose_layout("auto", "auto", tuple(rows), d, variant.dtype, precision, network)
