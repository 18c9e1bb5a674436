"""lightly's class from PyPI."""

from __future__ import annotations

import importlib.metadata
import importlib.util

import torch

from bench.peers import LAMBD, Loss, Peer


def build(n: int, d: int, dtype: torch.dtype) -> Loss:
    """The class with lambda matched."""
    from lightly.loss import BarlowTwinsLoss  # imported late: lightly brings torchvision with it

    return BarlowTwinsLoss(lambda_param=LAMBD)


def installed() -> bool:
    return importlib.util.find_spec("lightly") is not None


def unavailable() -> str | None:
    """lightly is an optional dependency."""
    return None if installed() else "lightly is not installed (pip install 'barlow-fast[bench]')"


PEER = Peer(
    name="lightly",
    title="lightly",
    source=f"lightly {importlib.metadata.version('lightly') if installed() else ''}, "
    "lightly.loss.BarlowTwinsLoss",
    build=build,
    unavailable=unavailable,
)
