"""What a run needs, before it is begun: steps, memory, and which kernels compute its loss."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from .. import explain
from ..explain import Plan
from ..losses.catalogue import MIXED
from ..models import BarlowTwinsModel, checkpoint_activations
from .config import MUON, PretrainConfig
from .muon import matrices
from .network import build_network

# Temporaries of single operations, the allocator's rounding, the libraries' workspaces.
MARGIN = 1.15
GIB = 2**30


@dataclass(frozen=True)
class Memory:
    """Bytes on one rank."""

    parameters: int
    gradients: int
    optimizer: int
    activations: int  # between forward and backward, of one micro-batch
    batch: int  # views, and the embeddings with their gradients
    loss: int

    @property
    def total(self) -> int:
        parts = (
            self.parameters, self.gradients, self.optimizer, self.activations, self.batch, self.loss
        )  # fmt: skip
        return int(MARGIN * sum(parts))

    def __str__(self) -> str:
        return (
            f"about {self.total / GIB:.2f} GiB: weights {self.parameters / GIB:.2f}, gradients "
            f"{self.gradients / GIB:.2f}, optimizer {self.optimizer / GIB:.2f}, activations "
            f"{self.activations / GIB:.2f}, batch {self.batch / GIB:.2f}, loss "
            f"{self.loss / GIB:.2f}, and {100 * (MARGIN - 1):.0f} % for what is short-lived"
        )


def resolved_precision(config: PretrainConfig, device: torch.device) -> torch.dtype:
    """The type of autocast, or float32 for none.

    'auto' is bfloat16 on GPUs and CPUs that compute in it, and float32 elsewhere.

    Raises:
        ValueError: float16 on a CPU.
    """
    if config.precision == "fp16" and device.type != "cuda":
        raise ValueError("precision fp16 is for GPUs: a CPU computes in fp32 or bf16")
    if config.precision != "auto":
        names = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
        return names[config.precision]
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = _cpu_computes_in_bfloat16()
    return torch.bfloat16 if native else torch.float32


def _cpu_computes_in_bfloat16() -> bool:
    """AVX-512 BF16 or AMX, in which oneDNN computes convolutions and products. Not ARM's bf16:
    there its backward convolutions of bfloat16 are the reference implementation."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("flags"):
                return not {"avx512_bf16", "amx_bf16"}.isdisjoint(line.split())
    return False


def plan_loss(
    config: PretrainConfig, views: int, device: torch.device, ranks: int = 1, nodes: int = 1
) -> Plan:
    """What the loss of this run does with `views` views of an image; see `explain` for what is
    raised."""
    dtype = resolved_precision(config, device)
    return explain(
        config.batch_size,
        config.projector[-1],
        dtype,
        device,
        backend=config.backend,
        loss=config.loss,
        views=views + (config.loss == MIXED),
        world_size=ranks,
        nodes=nodes,
    )


def estimate_memory(
    config: PretrainConfig,
    channels: int,
    sizes: Sequence[int],
    device: torch.device,
    ranks: int = 1,
) -> Memory:
    """Bytes of a step on one rank, from a forward pass without data (torch's meta device).

    Args:
        config: settings.
        channels: of the images.
        sizes: pixels a side of each view.
        device: that computes.
        ranks: how many share the batch.

    Raises:
        ValueError: see `build_twins`.
    """
    dtype = resolved_precision(config, device)
    batch = max(1, config.batch_size // ranks)
    micro = min(batch, config.micro_batch_size or batch)
    with torch.device("meta"):
        model = build_network(config, channels, sizes)
    if config.checkpoint_activations:
        checkpoint_activations(model.encoder)
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    shards = ranks if config.parallel == "fsdp" and ranks > 1 else 1
    # The mixed images pass through the network too.
    passed = [*sizes, sizes[0]] if config.loss == MIXED else sizes
    # Two samples show what one more adds; activations grow with their number.
    saved = _saved_bytes(model.train(), channels, passed, 2)
    views = sum(batch * channels * size**2 * 4 for size in passed)
    embeddings = len(passed) * batch * config.projector[-1] * dtype.itemsize
    plan = plan_loss(config, len(sizes), device)
    share = 4 / dtype.itemsize
    return Memory(
        parameters=weights // shards,
        gradients=weights // shards,
        optimizer=_optimizer_bytes(config, model, weights) // shards,
        activations=int(saved / 2 * micro / share),
        batch=views + 2 * embeddings,
        loss=int(plan.costs[plan.form].extra_bytes),
    )


def _optimizer_bytes(config: PretrainConfig, model: BarlowTwinsModel, weights: int) -> int:
    """Of what the optimizer keeps of so many bytes of weights."""
    if config.optimizer == MUON:
        return 2 * weights - sum(p.numel() * p.element_size() for p in matrices(model.encoder))
    return weights * (2 if config.optimizer == "adamw" else int(config.momentum > 0))


def _saved_bytes(model: torch.nn.Module, channels: int, sizes: Sequence[int], batch: int) -> int:
    """Of what autograd keeps of a forward pass, weights left out; every storage once."""
    own = {t.untyped_storage()._cdata for t in (*model.parameters(), *model.buffers())}
    kept: dict[int, torch.UntypedStorage] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage
        return tensor

    views = [torch.empty(batch, channels, size, size, device="meta") for size in sizes]
    views = [view.contiguous(memory_format=torch.channels_last) for view in views]
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        embeddings = model(*views)
    del embeddings
    return sum(storage.nbytes() for storage in kept.values())


def available_memory(device: torch.device) -> int | None:
    """Bytes that a new run may take on the device; None where the system does not report it.

    On Linux the smaller of what the machine has free and what the control group allows.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    found = []
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                found.append(int(line.split()[1]) * 1024)
    with contextlib.suppress(OSError, ValueError):
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text())
        found.append(limit - int((group / "memory.current").read_text()))
    return min(found) if found else None


def check_memory(memory: Memory, config: PretrainConfig, device: torch.device) -> None:
    """Raises ValueError, with what would help, where the run does not fit."""
    available = available_memory(device)
    if available is None or memory.total <= available:
        return
    advice = []
    if memory.activations > memory.total / 4:
        advice.append(
            f"--micro-batch-size {max(2, (config.micro_batch_size or config.batch_size) // 4)} "
            "(the loss stays that of the whole batch)"
        )
        if not config.checkpoint_activations:
            advice.append("checkpoint_activations=true")
    if memory.parameters + memory.optimizer > memory.total / 4:
        advice.append("a narrower --projector")
    advice.append("a smaller --batch-size")
    raise ValueError(
        f"the run does not fit: a step needs {memory}; {device} has "
        f"{available / GIB:.2f} GiB. What helps: {', '.join(advice)}. --ignore-memory tries anyway"
    )
