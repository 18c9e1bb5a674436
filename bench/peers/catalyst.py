"""catalyst's class from PyPI, which standardises by the unbiased variance plus 1e-12."""

from __future__ import annotations

import functools

import torch

from bench.peers import LAMBD, Loss, Mathematics, Peer, installation

EPS = 1e-12


def build(n: int, d: int, dtype: torch.dtype) -> Loss:
    """The class with lambda matched."""
    from catalyst.contrib.losses import BarlowTwinsLoss  # imported late: it takes seconds

    return BarlowTwinsLoss(offdiag_lambda=LAMBD, eps=EPS)


PEER = Peer(
    name="catalyst",
    title="catalyst",
    source=f"catalyst {installation.version('catalyst')}, catalyst.contrib.losses.BarlowTwinsLoss",
    build=build,
    mathematics=Mathematics(unbiased=True, eps=EPS),
    unavailable=functools.partial(installation.why_missing, "catalyst", "pip install catalyst"),
)
