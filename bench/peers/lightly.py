"""lightly's class from PyPI."""

from __future__ import annotations

import functools

import torch

from bench.peers import LAMBD, Loss, Peer, installation


def build(n: int, d: int, dtype: torch.dtype) -> Loss:
    """The class with lambda matched."""
    from lightly.loss import BarlowTwinsLoss  # imported late: lightly brings torchvision with it

    return BarlowTwinsLoss(lambda_param=LAMBD)


PEER = Peer(
    name="lightly",
    title="lightly",
    source=f"lightly {installation.version('lightly')}, lightly.loss.BarlowTwinsLoss",
    build=build,
    unavailable=functools.partial(
        installation.why_missing, "lightly", "pip install 'barlow-fast[bench]'"
    ),
)
