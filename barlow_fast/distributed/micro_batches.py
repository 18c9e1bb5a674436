"""Into how many micro-batches the ranks of a model cut their samples.

What a model exchanges in its forward (statistics of a synchronised batch norm, shards of weights)
all ranks must exchange equally often. So they exchange their numbers of samples first, in one small
exchange between hosts.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from . import agreement
from .groups import Group, group_of

PURPOSE = "micro-batches"
_WANTED = struct.Struct("<qB")  # micro-batches, whether the model exchanges data


@dataclass(frozen=True)
class Plan:
    """What a rank does with its samples."""

    sizes: tuple[int, ...]  # samples of each of its micro-batches
    plain: bool  # one pass is enough for all ranks
    group: Group | None  # the ranks that share the model; None for this one alone
    exchanges: bool  # whether the model itself makes exchanges in its forward

    @property
    def listening(self) -> Group | None:
        """The ranks that an error is reported to while the embeddings are computed; None where the
        model makes exchanges, in which the others may be waiting."""
        return None if self.exchanges else self.group


def agree(model: nn.Module, call: Callable[[], tuple[int, int]]) -> Plan:
    """The plan of this rank, made with all ranks that share the model.

    call: checks what this rank was given, and returns its samples and its micro_batch_size.

    Raises, on all ranks alike:
        TypeError, ValueError: what `call` raised on one of them.
        ValueError: micro-batches without enough samples on some rank, see `_check`.
    """
    group, exchanges = sharing(model)
    samples, size, failure = 0, 1, None
    try:
        samples, size = call()
    except (TypeError, ValueError) as error:
        if group is None:
            raise
        failure = error
    wanted = number_of(samples, size)
    if group is None:
        return Plan(split(samples, wanted), wanted == 1, None, exchanges)
    gathered = agreement.exchange(PURPOSE, _WANTED.pack(wanted, exchanges), failure, group, samples)
    all_samples = [report.samples for report in gathered]
    reports = [_WANTED.unpack_from(report.payload) for report in gathered]
    count = max(wanted for wanted, _ in reports)
    exchanges = any(flag for _, flag in reports)
    if exchanges and count > 1:
        _check(model, all_samples, count)
    # Equally many, unless that would leave some rank with micro-batches of one row or none, and
    # no rank waits for another.
    own = count if exchanges or min(all_samples) >= 2 * count else wanted
    sizes = split(samples, own, sum(all_samples[: group.rank]))
    return Plan(sizes, count == 1, group, exchanges)


def number_of(samples: int, size: int) -> int:
    """Micro-batches of at most `size` samples; of one more where that saves one of a single sample,
    over which a batch norm has no statistics."""
    count = -(-samples // size)
    return count - 1 if size > 1 and 1 < samples < 2 * count else count


def split(samples: int, count: int, before: int = 0) -> tuple[int, ...]:
    """`samples` in `count` parts that differ by one at most.

    before: samples of the ranks before this one. Where the larger parts lie depends on it, so that
    the parts of all ranks put together differ by one at most, too.
    """
    least, larger = divmod(samples, count)
    return tuple(least + ((part - before) % count < larger) for part in range(count))


def _check(model: nn.Module, samples: list[int], count: int) -> None:
    """ValueError where a batch norm of each rank's own would get one row or none."""
    normalises = any(
        isinstance(m, _BatchNorm) and m.training and not synchronised(m) for m in model.modules()
    )
    if normalises and min(samples) < 2 * count:
        raise ValueError(
            f"all ranks need {count} micro-batches, since the model exchanges data in its forward, "
            f"and its batch norm two samples in each: rank {samples.index(min(samples))} has "
            f"{min(samples)} samples. Use a larger micro_batch_size, batches of more equal sizes, "
            "or a batch norm over all ranks (SyncBatchNorm)"
        )


def synchronised(module: nn.Module) -> bool:
    """Whether it is a batch norm with statistics of several ranks, of whatever library."""
    return _kind(type(module)) == "synchronised"


@functools.lru_cache(maxsize=1024)
def _kind(module: type) -> str:
    """How modules of a type take part in exchanges."""
    names = [base.__name__ for base in module.__mro__]
    if issubclass(module, nn.parallel.DistributedDataParallel):
        return "wrapper"
    if any("SyncBatchNorm" in name or name.endswith("Sync") for name in names):
        return "synchronised"
    return "sharded" if "FullyShardedDataParallel" in names else ""


def sharing(model: nn.Module) -> tuple[Group | None, bool]:
    """(The ranks that share the model, or None; whether it makes exchanges in its forward)."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return None, False
    handles: list[Any] = []
    meshes: set[Any] = set()
    exchanges = False
    for module in model.modules():
        kind = _kind(type(module))
        if kind in ("wrapper", "sharded") or (kind and module.training):
            handles.append(getattr(module, "process_group", None) or dist.group.WORLD)
            exchanges = exchanges or kind != "wrapper"
        # Not by `parameters()`, which goes through all modules again.
        for p in module._parameters.values():
            if type(p) is not nn.Parameter and hasattr(p, "device_mesh"):
                meshes.add(p.device_mesh)
    ranks = {rank for mesh in meshes for rank in mesh.mesh.flatten().tolist()}
    handles += [handle for mesh in meshes for handle in mesh.get_all_groups()]
    for handle in dict.fromkeys(handles):
        ranks.update(dist.get_process_group_ranks(handle))
    if len(ranks) < 2:
        return None, False
    return group_of(sorted(ranks), handles), exchanges or bool(meshes)
