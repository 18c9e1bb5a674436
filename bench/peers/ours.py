"""barlow_fast with its native kernels: C++ on a CPU, Triton on a CUDA device."""

from __future__ import annotations

import functools
from dataclasses import replace

import torch

import barlow_fast
from barlow_fast.kernels import why_unusable
from bench.peers import LAMBD, Loss, Peer


def build(n: int, d: int, dtype: torch.dtype) -> Loss:
    """The module as a user makes it, on the native kernels."""
    return barlow_fast.BarlowTwinsLoss(lambd=LAMBD, backend="cpu")


def build_triton(n: int, d: int, dtype: torch.dtype) -> Loss:
    """The module as a user makes it, on the Triton kernels."""
    return barlow_fast.BarlowTwinsLoss(lambd=LAMBD, backend="triton")


PEER = Peer(
    name="ours",
    title="barlow_fast",
    source=f"barlow_fast {barlow_fast.__version__}, backend='cpu'",
    build=build,
    ours=True,
    compile=False,  # these are kernels already
    unavailable=functools.partial(why_unusable, "cpu", torch.device("cpu")),
)
CUDA_PEER = replace(
    PEER,
    source=f"barlow_fast {barlow_fast.__version__}, backend='triton'",
    build=build_triton,
    double=False,  # float64 is judged by the tests, not before every timing
    unavailable=functools.partial(why_unusable, "triton", torch.device("cuda")),
)
