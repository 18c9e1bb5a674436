"""The processes of a run: one alone, or those that `torchrun` or SLURM started."""

from __future__ import annotations

import contextlib
import datetime
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from ..distributed import agreement, groups
from ..distributed.groups import Group
from ..kernels.environment import whole_number

# Longer than an evaluation on the first rank takes, shorter than a night of waiting for the dead.
TIMEOUT = datetime.timedelta(minutes=30)

LOOK_EVERY = 1.0  # seconds, at whether the launcher still lives
# Seconds to save after it has died, as many as torchrun gives a process that it ends.
GRACE = 30.0


@dataclass(frozen=True)
class Ranks:
    """Which process this is, and where it computes."""

    device: torch.device
    rank: int = 0
    size: int = 1
    nodes: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and talks."""
        return self.rank == 0

    @property
    def alone(self) -> bool:
        return self.size == 1

    @property
    def group(self) -> Group | None:
        """The process group; None for a single process."""
        return groups.resolve("world") if not self.alone and dist.is_initialized() else None

    def barrier(self) -> None:
        """Waits for all."""
        with self.together("a barrier"):
            pass

    def together(self, purpose: str) -> contextlib.AbstractContextManager[None]:
        """A block without exchanges of its own, that all ranks leave together: what is raised on
        one is raised on all."""
        return agreement.errors_shared(purpose, self.group)

    def agree(self, flag: bool) -> bool:
        """Whether the flag is set on any rank; the same answer everywhere."""
        return self.total(int(flag)) > 0

    def total(self, count: int) -> int:
        """The sum over all ranks, on all of them. A message between hosts: no device waits."""
        group = self.group
        if group is None:
            return count
        return sum(r.rows for r in agreement.exchange("a total", b"", None, group, count))

    def gather(self, value: Any) -> list[Any]:
        """The values of all ranks, on all of them, in their order."""
        group = self.group
        return [value] if group is None else agreement.gather(value, group)

    def compare(self, values: dict[str, Any]) -> None:
        """ValueError on all ranks where they differ."""
        group = self.group
        if group is not None:
            agreement.compare(values, group)


def choose_device(name: str, local_rank: int = 0) -> torch.device:
    """The device of 'auto', 'cpu' or 'cuda'.

    Raises:
        ValueError: another name, no CUDA device, or fewer of them than processes on this machine.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise ValueError(f"--device must be auto, cpu or cuda, got {name!r}")
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise ValueError("--device cuda: torch finds no CUDA device")
    if name == "cpu" or not available:
        return torch.device("cpu")
    if local_rank >= torch.cuda.device_count():
        raise ValueError(
            f"process {local_rank} of this machine has no GPU of its own: torch finds "
            f"{torch.cuda.device_count()}; start as many processes, or use --device cpu"
        )
    return torch.device("cuda", local_rank)


@contextlib.contextmanager
def joined(device: str) -> Iterator[Ranks]:
    """Joins the process group that the environment describes, and leaves it at the end.

    `torchrun` sets RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT; without WORLD_SIZE
    the process is alone. NCCL between GPUs, gloo between CPUs. A process does not outlive the
    `torchrun` that started it.

    Raises:
        ValueError: see `choose_device`; an environment that is incomplete.
        RuntimeError: the others cannot be reached.
    """
    size = whole_number("WORLD_SIZE", 1)
    local = whole_number("LOCAL_RANK", 0)
    chosen = choose_device(device, local)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if size == 1 or dist.is_initialized():
        started = dist.is_initialized()
        rank, size = (dist.get_rank(), dist.get_world_size()) if started else (0, 1)
        yield Ranks(chosen, rank, size, _nodes(size))
        return
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise ValueError(
            f"WORLD_SIZE is {size} but {', '.join(missing)} is not set: start with torchrun, or "
            "unset WORLD_SIZE"
        )
    if "TORCHELASTIC_RUN_ID" in os.environ:
        threading.Thread(target=_follow_launcher, args=(os.getppid(),), daemon=True).start()
    dist.init_process_group(
        "nccl" if chosen.type == "cuda" else "gloo",
        timeout=TIMEOUT,
        device_id=chosen if chosen.type == "cuda" else None,
    )
    ranks = Ranks(chosen, dist.get_rank(), size, _nodes(size))
    # Only after an orderly end: with an error, the others may hang in a collective, and
    # destroying the group would wait for them instead of reporting.
    yield ranks
    dist.destroy_process_group()


def _follow_launcher(parent: int) -> None:
    """Ends this process, as SIGTERM from torchrun would, when torchrun itself was killed: nobody
    else would end one that hangs, and its loader's threads live as long as it does."""
    while os.getppid() == parent:
        time.sleep(LOOK_EVERY)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE)
    os._exit(1)


def _nodes(size: int) -> int:
    return max(1, size // max(1, whole_number("LOCAL_WORLD_SIZE", size)))
