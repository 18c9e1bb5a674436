"""barlow_fast on its native kernels (C++ on a CPU, Triton on a CUDA device), and on the kernel set
in plain torch, which an installation without a compiler has."""

from __future__ import annotations

import functools
from typing import Any

import torch

import barlow_fast
from barlow_fast.kernels import why_unusable
from bench.peers.peer import LAMBD, Loss, Peer


def build(backend: str, n: int, d: int, dtype: torch.dtype) -> Loss:
    """The module as a user makes it."""
    return barlow_fast.BarlowTwinsLoss(lambd=LAMBD, backend=backend)


def _peer(name: str, backend: str, kind: str, title: str = "barlow_fast", **changes: Any) -> Peer:
    return Peer(
        name=name,
        title=title,
        source=f"barlow_fast {barlow_fast.__version__}, backend='{backend}'",
        build=functools.partial(build, backend),
        ours=True,
        compile=False,  # these are kernels already
        unavailable=functools.partial(why_unusable, backend, torch.device(kind)),
        **changes,
    )


PEERS = (
    _peer("ours", "cpu", "cpu", kinds=("cpu",)),
    # float64 is checked by the tests, not before every timing.
    _peer("ours", "triton", "cuda", kinds=("cuda",), double=False),
    _peer("ours-aten", "aten", "cpu", "barlow_fast (aten)"),
)
