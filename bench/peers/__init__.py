"""The implementations that are compared: one file each, found by being in this folder.

A file defines `PEER`, a `Peer`, which runs on any device unless the file also defines `CUDA_PEER`,
which then stands for it on CUDA devices. A file with `CUDA_PEER` alone is not measured on CPUs.
Adding an implementation is adding such a file.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor

from bench.peers.mathematics import LAMBD as LAMBD
from bench.peers.mathematics import PAPER, Mathematics

Loss = Callable[[Tensor, Tensor], Tensor]


def always_available() -> str | None:
    """For peers that need nothing beyond torch."""
    return None


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
        compiles: whether its first call at a shape compiles, and so says nothing about its time and
            memory.
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
    compiles: bool = False
    unavailable: Callable[[], str | None] = always_available
    build_for_graph: Callable[[int, int, torch.dtype], Loss] | None = None


def discover(kind: str = "cpu") -> dict[str, Peer]:
    """All peers of a kind of device, 'cpu' or 'cuda', by name: ours first, then alphabetically."""
    modules = [
        importlib.import_module(f"{__name__}.{m.name}") for m in pkgutil.iter_modules(__path__)
    ]
    found = [_of(module, kind) for module in modules]
    peers = sorted(filter(None, found), key=lambda peer: (not peer.ours, peer.name))
    return {peer.name: peer for peer in peers}


def _of(module: ModuleType, kind: str) -> Peer | None:
    everywhere = getattr(module, "PEER", None)
    return getattr(module, "CUDA_PEER", everywhere) if kind == "cuda" else everywhere


def choose(names: str | None, kind: str = "cpu") -> list[Peer]:
    """The peers of a comma-separated list, all of them for None; ValueError for an unknown name."""
    known = discover(kind)
    if names is None:
        return list(known.values())
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    for name in wanted:
        if name not in known:
            raise ValueError(f"unknown peer {name!r}; known are {', '.join(known)}")
    return [peer for name, peer in known.items() if name in wanted]
