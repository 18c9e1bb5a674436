"""The implementations that are compared: one file each, found by being in this folder.

A file defines `PEER`, a `Peer`, which runs on any device unless the file also defines `CUDA_PEER`,
which then stands for it on CUDA devices; or `PEERS`, several of them. A file with `CUDA_PEER` alone
is not measured on CPUs.
Adding an implementation is adding such a file; its form under torch.compile is derived
(`compiled.py`). Files with neither name hold what peers share.
"""

from __future__ import annotations

import importlib
import itertools
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor

from bench import cli
from bench.peers.mathematics import LAMBD as LAMBD
from bench.peers.mathematics import PAPER, Mathematics

Loss = Callable[[Tensor, Tensor], Tensor]

# Time on GPU machines is short, and compilation takes most of it.
DEFAULT_ON_CUDA = (
    "ours",
    "ours-aten",
    "gram-compiled",
    "gram-plain",
    "lightly",
    "lightly-formula",
    "official",
    "official-compiled",
    "solo-learn",
    "vissl",
)
ALL = "all"


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
        compile: whether a peer is derived from it that is this one under torch.compile.
        compiled_name: of that peer; `name` with '-compiled' by default.
        compiled_title: of that peer; `title` with ', compiled' by default.
        compiles: whether its first call at a shape compiles, and so its time and memory are not
            representative.
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
    compile: bool = True
    compiled_name: str | None = None
    compiled_title: str | None = None
    compiles: bool = False
    unavailable: Callable[[], str | None] = always_available
    build_for_graph: Callable[[int, int, torch.dtype], Loss] | None = None


def discover(kind: str = "cpu") -> dict[str, Peer]:
    """All peers of a kind of device, 'cpu' or 'cuda', by name: ours first, then alphabetically."""
    from bench.peers.compiled import compiled  # which needs Peer

    modules = [
        importlib.import_module(f"{__name__}.{m.name}") for m in pkgutil.iter_modules(__path__)
    ]
    found = list(itertools.chain.from_iterable(_of(module, kind) for module in modules))
    found += [compiled(peer, kind) for peer in found if peer.compile]
    peers = sorted(found, key=lambda peer: (not peer.ours, peer.name))
    return {peer.name: peer for peer in peers}


def _of(module: ModuleType, kind: str) -> list[Peer]:
    everywhere = getattr(module, "PEER", None)
    peer = getattr(module, "CUDA_PEER", everywhere) if kind == "cuda" else everywhere
    return [*([peer] if peer else []), *getattr(module, "PEERS", ())]


def stateless(loss: Loss) -> Callable[[int, int, torch.dtype], Loss]:
    """`build` of a loss that is a function without state."""
    return lambda n, d, dtype: loss


def choose(names: str | None, kind: str = "cpu") -> list[Peer]:
    """The peers of a comma-separated list, all of them for 'all'; for None those that take part by
    default: DEFAULT_ON_CUDA, or all on a CPU. ValueError for an unknown name."""
    known = discover(kind)
    default = DEFAULT_ON_CUDA if names is None and kind == "cuda" else None
    wanted = cli.listed(None if names == ALL else names, known, "peer", default)
    return [known[name] for name in wanted]


def available(peers: Sequence[Peer]) -> list[Peer]:
    """The peers that can run here; prints why the others cannot."""
    reasons = {peer.name: peer.unavailable() for peer in peers}
    for name, reason in reasons.items():
        if reason is not None:
            print(f"{name} is left out: {reason}")
    return [peer for peer in peers if reasons[peer.name] is None]
