"""torch.compile of the official formulation."""

from __future__ import annotations

import importlib.util
import logging
import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace

import torch

from bench.peers import Loss, Peer
from bench.peers.official import OfficialLoss


def build(n: int, d: int, dtype: torch.dtype) -> Loss:
    """A compiled module, specialised to the shape; compilation happens in the warm-up."""
    # All shapes share one code object, and dynamo stops compiling an object after a few
    # specialisations.
    torch._dynamo.reset()
    silence()
    return torch.compile(OfficialLoss(d, dtype), dynamic=False)


def silence() -> None:
    """What inductor says about its own internals is nothing that a reader of the results can act
    on."""
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\._inductor")
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)


def build_tuned(n: int, d: int, dtype: torch.dtype) -> Loss:
    """max-autotune, which replays CUDA graphs of its own. The suite resets dynamo, once a shape."""
    return tuned(OfficialLoss(d, dtype))


def build_tuned_for_graph(n: int, d: int, dtype: torch.dtype) -> Loss:
    """The same code without graphs of its own, so that it can be captured in ours."""
    return tuned(OfficialLoss(d, dtype), "max-autotune-no-cudagraphs")


def tuned(loss: Callable, mode: str = "max-autotune") -> Loss:
    """A loss compiled for one shape, GEMM kernels tuned."""
    silence()
    compiled = torch.compile(loss, dynamic=False, mode=mode)

    def call(z_a: torch.Tensor, z_b: torch.Tensor) -> torch.Tensor:
        # The outputs of the call before are no longer needed: their memory may be used again.
        torch.compiler.cudagraph_mark_step_begin()
        return compiled(z_a, z_b)

    return call


def unavailable() -> str | None:
    """Inductor's CPU code needs a C++ compiler."""
    if any(shutil.which(name) for name in ("g++", "clang++", "cl")):
        return None
    return "torch.compile needs a C++ compiler, and none was found"


def unavailable_cuda() -> str | None:
    """Inductor's CUDA code needs Triton, which needs a C compiler for its launchers."""
    if importlib.util.find_spec("triton") is None:
        return "torch.compile needs Triton on CUDA devices, and it is not installed"
    if not any(shutil.which(name) for name in ("cc", "gcc", "clang")):
        return "torch.compile needs a C compiler for Triton's launchers, and none was found"
    return None


PEER = Peer(
    name="official-compiled",
    title="official, compiled",
    source=f"torch.compile (torch {torch.__version__}, static shapes) of the official formulation",
    build=build,
    compiles=True,
    unavailable=unavailable,
)
CUDA_PEER = replace(
    PEER,
    source=f"torch.compile (torch {torch.__version__}, static shapes, mode='max-autotune') of the "
    "official formulation",
    build=build_tuned,
    build_for_graph=build_tuned_for_graph,
    unavailable=unavailable_cuda,
)
