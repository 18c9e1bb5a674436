"""Every peer under torch.compile: derived from the peer, not written anew.

On a CPU with the defaults of torch.compile for static shapes, on CUDA devices with GEMM kernels
tuned. What cannot be compiled raises in the first check, or computes something else and is found
there, like any peer. As for a user who calls torch.compile, graph breaks are allowed: where a
boolean mask picks the off-diagonal elements (MONAI, solo-learn) torch compiles what comes before.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from bench.peers.peer import Loss, Peer

TUNED = "max-autotune"  # replays CUDA graphs of its own
TUNED_FOR_GRAPH = "max-autotune-no-cudagraphs"  # the same code, to be captured in ours
# All shapes and dtypes share a peer's code objects, of which dynamo compiles 8 specialisations
# each, and then silently runs the eager code.
SPECIALISATIONS = 4096


def compiled(peer: Peer, kind: str) -> Peer:
    """The peer under torch.compile on 'cpu' or 'cuda'."""
    tuned = kind == "cuda"
    mode = f", mode='{TUNED}'" if tuned else ""
    return replace(
        peer,
        name=peer.compiled_name or f"{peer.name}-compiled",
        title=peer.compiled_title or f"{peer.title}, compiled",
        source=f"torch.compile (torch {torch.__version__}, static shapes{mode}) of {peer.source}",
        build=functools.partial(_build, peer.build, TUNED if tuned else None),
        compile=False,
        compiles=True,
        unavailable=lambda: peer.unavailable() or why_no_compiler(kind),
        build_for_graph=functools.partial(_build, peer.build, TUNED_FOR_GRAPH) if tuned else None,
    )


def _build(
    build: Callable[..., Loss], mode: str | None, n: int, d: int, dtype: torch.dtype
) -> Loss:
    """Compilation itself happens in the first call."""
    _prepare()
    options = {} if mode is None else {"mode": mode}
    loss = torch.compile(build(n, d, dtype), dynamic=False, **options)
    if mode is None:
        return loss

    def call(z_a: Tensor, z_b: Tensor) -> Tensor:
        # The outputs of the call before are no longer needed: their memory may be used again.
        torch.compiler.cudagraph_mark_step_begin()
        return loss(z_a, z_b)

    return call


def _prepare() -> None:
    """Allow all shapes to compile, and silence warnings about torch's internals, on which a reader
    of the results cannot act."""
    torch._dynamo.config.recompile_limit = SPECIALISATIONS
    torch._dynamo.config.accumulated_recompile_limit = SPECIALISATIONS
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\._inductor")
    # A boolean mask has no shape before it is known: that part of a loss is left to eager mode.
    warnings.filterwarnings("ignore", "Error detected in IndexPutBackward0", UserWarning)
    for name in ("torch._dynamo.exc", "torch.utils.cpp_extension"):
        logging.getLogger(name).setLevel(logging.ERROR)


def why_no_compiler(kind: str) -> str | None:
    """None, or what torch.compile needs and this machine lacks."""
    if kind == "cpu":
        if any(shutil.which(name) for name in ("g++", "clang++", "cl")):
            return None
        return "torch.compile needs a C++ compiler, and none was found"
    if importlib.util.find_spec("triton") is None:
        return "torch.compile needs Triton on CUDA devices, and it is not installed"
    if not any(shutil.which(name) for name in ("cc", "gcc", "clang")):
        return "torch.compile needs a C compiler for Triton's launchers, and none was found"
    return None
