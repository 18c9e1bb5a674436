"""MONAI's class from PyPI.

It divides by the unbiased deviation plus 1e-6, and holds lambda in float32 whatever the inputs are.
"""

from __future__ import annotations

import functools

import torch

from bench.peers import LAMBD, Loss, Mathematics, Peer, installation

MATHEMATICS = Mathematics(
    unbiased=True, eps=1e-6, eps_on="deviation", lambd=torch.tensor(LAMBD).item()
)


def build(n: int, d: int, dtype: torch.dtype) -> Loss:
    """The class with lambda matched."""
    from monai.losses import BarlowTwinsLoss  # imported late: it takes seconds

    return BarlowTwinsLoss(lambd=LAMBD)


PEER = Peer(
    name="monai",
    title="MONAI",
    source=f"MONAI {installation.version('monai')}, monai.losses.BarlowTwinsLoss",
    build=build,
    mathematics=MATHEMATICS,
    unavailable=functools.partial(installation.why_missing, "monai", "pip install monai"),
)
