"""torch.compile of the Gram form in plain torch, on CUDA devices."""

from __future__ import annotations

import torch

from bench.peers import Loss, Peer
from bench.peers.gram_plain import gram_loss
from bench.peers.official_compiled import tuned, unavailable_cuda


def build(n: int, d: int, dtype: torch.dtype) -> Loss:
    """max-autotune, which replays CUDA graphs of its own."""
    return tuned(gram_loss)


def build_for_graph(n: int, d: int, dtype: torch.dtype) -> Loss:
    """The same code without graphs of its own."""
    return tuned(gram_loss, "max-autotune-no-cudagraphs")


CUDA_PEER = Peer(
    name="gram-compiled",
    title="Gram form, compiled",
    source=f"torch.compile (torch {torch.__version__}, static shapes, mode='max-autotune') of the "
    "smaller-side identity in plain torch",
    build=build,
    compiles=True,
    unavailable=unavailable_cuda,
    build_for_graph=build_for_graph,
)
