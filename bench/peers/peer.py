"""What a peer is: an implementation that is compared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.peers.mathematics import PAPER, Mathematics

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Peer:
    """One implementation of the loss.

    Attributes:
        name: what `--peers` and the results call it.
        title: what the tables call it.
        source: where the implementation comes from, with its version.
        build: (n, d, dtype) -> loss(z_a, z_b), for (n, d) inputs of `dtype`; called once per shape,
            not timed, with the device of the inputs as torch's default device.
        mathematics: what it states to compute, and is checked against; the paper's by default.
        exact: whether that is the loss itself, rather than a relaxation of it.
        double: whether it accepts float64 inputs.
        ours: whether it is this repository's.
        kinds: of devices on which it is measured.
        compile: whether a peer is derived from it that is this one under torch.compile.
        compiled_name: of that peer; `name` with '-compiled' by default.
        compiled_title: of that peer; `title` with ', compiled' by default.
        compiles: whether its first call at a shape compiles, and so its time and memory are not
            representative.
        unavailable: () -> None, or the reason why it cannot run here.
        build_for_graph: like `build`, for the loss that is captured in a CUDA graph; None where
            that is the same.
    """

    name: str
    title: str
    source: str
    build: Callable[[int, int, torch.dtype], Loss]
    mathematics: Mathematics = PAPER
    exact: bool = True
    double: bool = True
    ours: bool = False
    kinds: tuple[str, ...] = ("cpu", "cuda")
    compile: bool = True
    compiled_name: str | None = None
    compiled_title: str | None = None
    compiles: bool = False
    unavailable: Callable[[], str | None] = lambda: None  # nothing beyond torch is needed
    build_for_graph: Callable[[int, int, torch.dtype], Loss] | None = None

    def columns(self) -> dict[str, str]:
        """Of its rows."""
        return {"peer": self.name, "source": self.source}


def stateless(loss: Loss) -> Callable[[int, int, torch.dtype], Loss]:
    """`build` of a loss that is a function without state."""
    return lambda n, d, dtype: loss
