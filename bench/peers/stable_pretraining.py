"""stable-pretraining's class from PyPI, which divides by the unbiased deviation plus 1e-5."""

from __future__ import annotations

import functools

import torch

from bench.peers import LAMBD, Loss, Mathematics, Peer, installation

MATHEMATICS = Mathematics(unbiased=True, eps=1e-5, eps_on="deviation")


def build(n: int, d: int, dtype: torch.dtype) -> Loss:
    """The class with lambda matched."""
    from stable_pretraining.losses import BarlowTwinsLoss  # imported late: it takes seconds

    return BarlowTwinsLoss(lambd=LAMBD)


PEER = Peer(
    name="stable-pretraining",
    title="stable-pretraining",
    source=f"stable-pretraining {installation.version('stable-pretraining')}, "
    "stable_pretraining.losses.BarlowTwinsLoss",
    build=build,
    mathematics=MATHEMATICS,
    unavailable=functools.partial(
        installation.why_missing, "stable_pretraining", "pip install stable-pretraining"
    ),
)
