"""torch.compile of the official formulation."""

from __future__ import annotations

import logging
import shutil
import warnings

import torch

from bench.peers import Loss, Peer
from bench.peers.official import OfficialLoss


def build(n: int, d: int, dtype: torch.dtype) -> Loss:
    """A compiled module, specialised to the shape; compilation happens in the warm-up."""
    # All shapes share one code object, and dynamo stops compiling an object after a few
    # specialisations.
    torch._dynamo.reset()
    # What inductor says about its own internals is nothing that a reader of the results can act on.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\._inductor")
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    return torch.compile(OfficialLoss(d, dtype), dynamic=False)


def unavailable() -> str | None:
    """Inductor's CPU code needs a C++ compiler."""
    if any(shutil.which(name) for name in ("g++", "clang++", "cl")):
        return None
    return "torch.compile needs a C++ compiler, and none was found"


PEER = Peer(
    name="official-compiled",
    title="official, compiled",
    source=f"torch.compile (torch {torch.__version__}, static shapes) of the official formulation",
    build=build,
    compiles=True,
    unavailable=unavailable,
)
