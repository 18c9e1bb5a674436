"""barlow_fast with its native CPU kernels."""

from __future__ import annotations

import functools

import torch

import barlow_fast
from barlow_fast.kernels import why_unusable
from bench.peers import LAMBD, Loss, Peer


def build(n: int, d: int, dtype: torch.dtype) -> Loss:
    """The module as a user makes it, on the native kernels."""
    return barlow_fast.BarlowTwinsLoss(lambd=LAMBD, backend="cpu")


PEER = Peer(
    name="ours",
    title="barlow_fast",
    source=f"barlow_fast {barlow_fast.__version__}, backend='cpu'",
    build=build,
    ours=True,
    unavailable=functools.partial(why_unusable, "cpu", torch.device("cpu")),
)
