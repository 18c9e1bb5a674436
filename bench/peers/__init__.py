"""The implementations that are compared: one file each, found by being in this folder.

A file defines `PEER`, a `Peer`. Adding an implementation is adding such a file.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

LAMBD = 0.0051  # the paper's; every peer is built with it

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
            not timed.
        exact: whether it computes the loss itself; one that approximates it is not checked against
            the reference.
        double: whether it accepts float64 inputs.
        ours: whether it is this repository's.
        compiles: whether its first call at a shape compiles, and so says nothing about its time and
            memory.
        unavailable: () -> None, or the reason why it cannot run here.
    """

    name: str
    title: str
    source: str
    build: Callable[[int, int, torch.dtype], Loss]
    exact: bool = True
    double: bool = True
    ours: bool = False
    compiles: bool = False
    unavailable: Callable[[], str | None] = always_available


def discover() -> dict[str, Peer]:
    """All peers by name: ours first, then alphabetically."""
    modules = [
        importlib.import_module(f"{__name__}.{m.name}") for m in pkgutil.iter_modules(__path__)
    ]
    peers = sorted((m.PEER for m in modules), key=lambda peer: (not peer.ours, peer.name))
    return {peer.name: peer for peer in peers}


def choose(names: str | None) -> list[Peer]:
    """The peers of a comma-separated list, all of them for None; ValueError for an unknown name."""
    known = discover()
    if names is None:
        return list(known.values())
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    for name in wanted:
        if name not in known:
            raise ValueError(f"unknown peer {name!r}; known are {', '.join(known)}")
    return [peer for name, peer in known.items() if name in wanted]
