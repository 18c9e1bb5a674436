"""The model as the ranks share it: wrapped for the run, and put together again for checkpoints."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import nn

from ..models import BarlowTwinsModel, checkpoint_activations
from ..models.batch_norm import synchronise
from .config import PretrainConfig
from .ranks import Ranks

LOG = logging.getLogger("barlow_fast.training")


def prepare(model: BarlowTwinsModel, config: PretrainConfig, ranks: Ranks) -> BarlowTwinsModel:
    """The model on its device, with batch norm over all ranks, recomputed activations and shards
    where the settings require them. The keys of its state dict stay as they are.

    Raises:
        ValueError: an encoder without blocks whose activations could be computed again.
    """
    # channels_last makes the small convolutions of a CPU twice as fast, and is what tensor cores
    # want.
    sharded = not ranks.alone and config.parallel == "fsdp"
    # FSDP cuts contiguous weights only; the views are channels_last even so.
    kept = torch.contiguous_format if sharded else torch.channels_last
    model = model.to(ranks.device, memory_format=kept)
    if not ranks.alone and config.sync_batch_norm:
        model = synchronise(model, ranks.device.type)
    if config.checkpoint_activations:
        checkpoint_activations(model.encoder)
    if sharded:
        _shard(model, ranks)
    return model


def _shard(model: BarlowTwinsModel, ranks: Ranks) -> None:
    """FSDP2: every larger part is gathered when it is needed and let go after it."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(ranks.device.type, (ranks.size,))
    for part in (model.encoder, model.projector):
        for child in part.children():
            has_parts = next(child.children(), None) is not None
            if has_parts and any(p.requires_grad for p in child.parameters()):
                fully_shard(child, mesh=mesh)
        fully_shard(part, mesh=mesh)
    fully_shard(model, mesh=mesh)


def wrap(model: BarlowTwinsModel, config: PretrainConfig, ranks: Ranks) -> nn.Module:
    """What a step calls: the model itself, or DDP around it; compiled where requested."""
    network: nn.Module = model
    if not ranks.alone and config.parallel == "ddp":
        network = nn.parallel.DistributedDataParallel(
            model,
            device_ids=[ranks.device.index] if ranks.device.type == "cuda" else None,
            gradient_as_bucket_view=True,
        )
    if config.compile != "off":
        network.compile(mode=None if config.compile == "default" else config.compile)
    return network


def uncompile(network: nn.Module, error: Exception) -> bool:
    """Goes back to eager after a failed first call; False where there is nothing to go back from.

    torch.compile needs a C++ compiler on CPUs and Triton on GPUs, and not every network compiles.
    """
    if network._compiled_call_impl is None:
        return False
    network._compiled_call_impl = None
    reason = " ".join(str(error).split())
    LOG.warning("torch.compile failed, continuing without it: %s", reason[:300])
    return True


def is_sharded(model: nn.Module) -> bool:
    """Whether parameters are DTensors."""
    return any(hasattr(p, "device_mesh") for p in model.parameters())


def model_state(model: nn.Module) -> dict[str, Any]:
    """The whole state dict, on every rank; a collective call where the model is sharded."""
    if not is_sharded(model):
        return model.state_dict()
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    # On all ranks, since the first alone would write and the others forget how many there were.
    return _gathered(get_model_state_dict(model, options=StateDictOptions(full_state_dict=True)))


def load_model_state(model: nn.Module, state: dict[str, Any]) -> None:
    """RuntimeError where keys or shapes differ."""
    if not is_sharded(model):
        model.load_state_dict(state)
        return
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

    set_model_state_dict(model, state, options=StateDictOptions(full_state_dict=True))


def optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """As `optimizer.state_dict()`, with whole tensors; a collective call where they are sharded."""
    state = optimizer.state_dict()
    if is_sharded(model):
        state["state"] = {key: _gathered(value) for key, value in state["state"].items()}
    return state


def load_optimizer_state(
    model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]
) -> None:
    """ValueError where it does not fit."""
    if is_sharded(model):
        from torch.distributed.tensor import distribute_tensor

        flat = [p for group in optimizer.param_groups for p in group["params"]]
        shared = {}
        for key, values in state["state"].items():
            like = flat[key]
            shared[key] = {
                name: distribute_tensor(value.to(like.device), like.device_mesh, like.placements)
                if isinstance(value, torch.Tensor) and value.shape == like.shape
                else value
                for name, value in values.items()
            }
        state = {**state, "state": shared}
    optimizer.load_state_dict(state)


def _gathered(values: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value.full_tensor() if hasattr(value, "full_tensor") else value
        for name, value in values.items()
    }
