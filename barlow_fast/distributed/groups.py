"""Which ranks compute one loss together, and how they reach each other."""

from __future__ import annotations

import hashlib
import socket
import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..arguments import check_process_group, is_group

# gloo groups made beside groups without a CPU backend; each lives as long as that group.
_host_groups: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()
# Groups made for ranks that have none of their own, by the world and its ranks.
_made: weakref.WeakKeyDictionary[Any, dict[tuple[int, ...], Any]] = weakref.WeakKeyDictionary()


@dataclass(frozen=True)
class Group:
    """A process group, this process's rank in it, and its size."""

    handle: Any  # torch.distributed.ProcessGroup
    rank: int  # within the group
    size: int

    def through_host(self, x: Tensor) -> bool:
        """Whether x goes through gloo, whose collectives are not all equally good."""
        return not x.is_cuda or dist.get_backend(self.handle) == dist.Backend.GLOO


def resolve(process_group: Any) -> Group | None:
    """The group that `process_group` stands for; None where this process is alone.

    Raises:
        TypeError: something else than None, 'world', a process group or a 1-D device mesh.
        RuntimeError: 'world' before torch.distributed was initialised.
        ValueError: a group that this process is not a member of.
    """
    if process_group is None:
        return None
    check_process_group(process_group)
    if isinstance(process_group, str):
        if not (dist.is_available() and dist.is_initialized()):
            raise RuntimeError(
                "process_group='world' needs torch.distributed: call "
                "torch.distributed.init_process_group first, or pass process_group=None for the "
                "loss of this process alone"
            )
        process_group = dist.group.WORLD
    elif process_group is dist.GroupMember.NON_GROUP_MEMBER:
        raise ValueError("this process is not a member of the process_group that it was given")
    elif not is_group(process_group):
        process_group = process_group.get_group()
    rank, size = process_group.rank(), process_group.size()
    return Group(process_group, rank, size) if size > 1 else None


def host_group(group: Group) -> Any:
    """A process group of the same ranks that takes CPU tensors: the group itself or, beside NCCL, a
    gloo group that is made once, by all ranks, with the same timeout."""
    if any(device.type == "cpu" for device in group.handle._device_types):
        return group.handle
    made = _host_groups.get(group.handle)
    if made is None:
        made = dist.new_group(
            dist.get_process_group_ranks(group.handle),
            timeout=_timeout(group.handle),
            backend="gloo",
            use_local_synchronization=True,
        )
        _host_groups[group.handle] = made
    return made


def group_of(ranks: list[int], candidates: Iterable[Any]) -> Group:
    """The group of these ranks of the world, in order: one of `candidates`, the world, or one that
    is made once, by all of them."""
    for handle in (*candidates, dist.group.WORLD):
        if dist.get_process_group_ranks(handle) == ranks:
            return resolve(handle)
    made = _made.setdefault(dist.group.WORLD, {})
    if tuple(ranks) not in made:
        made[tuple(ranks)] = dist.new_group(ranks, backend="gloo", use_local_synchronization=True)
    return resolve(made[tuple(ranks)])


def _timeout(handle: Any) -> Any:
    """The group's timeout; None, torch's default, where this version of torch does not say."""
    try:
        return handle._get_backend(torch.device("cuda")).options._timeout
    except (AttributeError, RuntimeError):
        return None


def node() -> int:
    """A number that processes of one machine share: what is between nodes is slower."""
    name = hashlib.blake2b(socket.gethostname().encode(), digest_size=8)
    return int.from_bytes(name.digest(), "big")
