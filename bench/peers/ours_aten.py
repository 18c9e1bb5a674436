"""barlow_fast without its native kernels: what an install without a compiler gets."""

from __future__ import annotations

import torch

import barlow_fast
from bench.peers import LAMBD, Loss, Peer


def build(n: int, d: int, dtype: torch.dtype) -> Loss:
    """The module on the plain-torch kernel set."""
    return barlow_fast.BarlowTwinsLoss(lambd=LAMBD, backend="aten")


PEER = Peer(
    name="ours-aten",
    title="barlow_fast (aten)",
    source=f"barlow_fast {barlow_fast.__version__}, backend='aten'",
    build=build,
    ours=True,
    compile=False,  # a custom op, which torch.compile leaves as it is
)
