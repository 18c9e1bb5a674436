"""The implementations that are compared: one file each, found by being in this folder.

A file defines `PEERS`, each a `Peer`. Adding an implementation is adding such a file; its form
under torch.compile is derived (`compiled.py`). Files without `PEERS` hold what peers share.
"""

from __future__ import annotations

import importlib
import itertools
import pkgutil
from collections.abc import Sequence

from bench import cli
from bench.peers import compiled
from bench.peers.peer import LAMBD as LAMBD
from bench.peers.peer import Loss as Loss
from bench.peers.peer import Peer

# Time on GPU machines is short, and compilation takes most of it.
DEFAULT_ON_CUDA = (
    "ours", "ours-aten", "gram-compiled", "gram-plain", "lightly", "lightly-formula", "official",
    "official-compiled", "solo-learn", "vissl",
)  # fmt: skip
ALL = "all"


def discover(kind: str = "cpu") -> dict[str, Peer]:
    """All peers of a kind of device, 'cpu' or 'cuda', by name: ours first, then alphabetically."""
    modules = (
        importlib.import_module(f"{__name__}.{m.name}") for m in pkgutil.iter_modules(__path__)
    )
    known = itertools.chain.from_iterable(getattr(module, "PEERS", ()) for module in modules)
    found = [peer for peer in known if kind in peer.kinds]
    found += [compiled.compiled(peer, kind) for peer in found if peer.compile]
    peers = sorted(found, key=lambda peer: (not peer.ours, peer.name))
    return {peer.name: peer for peer in peers}


def choose(names: str | None, kind: str = "cpu", compiled: bool = True) -> list[Peer]:
    """The peers of a comma-separated list, all of them for 'all'; for None those that take part by
    default: DEFAULT_ON_CUDA, or all on a CPU, without those that compile if `compiled` is false.
    ValueError for an unknown name."""
    known = discover(kind)
    default = DEFAULT_ON_CUDA if names is None and kind == "cuda" else None
    wanted = cli.listed(None if names == ALL else names, known, "peer", default)
    found = [known[name] for name in wanted]
    return [peer for peer in found if compiled or names is not None or not peer.compiles]


def titles(kind: str = "cpu") -> dict[str, str]:
    """What the tables call the peers."""
    return {name: peer.title for name, peer in discover(kind).items()}


def available(peers: Sequence[Peer]) -> list[Peer]:
    """The peers that can run here; prints why the others cannot."""
    names = cli.usable({peer.name: peer.unavailable() for peer in peers})
    return [peer for peer in peers if peer.name in names]
