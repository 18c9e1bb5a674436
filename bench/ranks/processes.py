"""Ranks as processes of this machine: they meet on 127.0.0.1 and end in time, whatever happens."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from bench import lifetime

HOST = "127.0.0.1"
LOOPBACK = Path("/sys/class/net/lo")
POLL = 0.5  # seconds

Entry = Callable[..., None]


def threads_of_each(ranks: int) -> int:
    """Equal shares of the cores, at least one thread each."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return max(cores // ranks, 1)


def run(entry: Entry, ranks: int, arguments: tuple[Any, ...], seconds: float) -> None:
    """Calls `entry(*arguments)` in `ranks` new processes that form torch's default process group.

    Raises:
        TimeoutError: they did not end within `seconds`.
        RuntimeError: one of them raised, with its traceback, or died.
    """
    end = time.monotonic() + seconds
    # This process keeps the store, so the port is free when it is given out and stays taken.
    store = dist.TCPStore(HOST, 0, is_master=True, wait_for_workers=False)
    context = mp.start_processes(
        _rank, (entry, ranks, store.port, seconds, arguments), ranks, join=False, daemon=True,
        start_method="spawn",
    )  # fmt: skip
    try:
        while not context.join(timeout=POLL):
            if time.monotonic() > end:
                raise TimeoutError(f"{ranks} ranks did not end within {seconds:.0f} s")
    except (mp.ProcessRaisedException, mp.ProcessExitedException) as error:
        raise RuntimeError(str(error).strip()) from error
    finally:
        for process in context.processes:
            if process.is_alive():
                process.kill()
            process.join()


def _rank(
    rank: int, entry: Entry, ranks: int, port: int, seconds: float, arguments: tuple[Any, ...]
) -> None:
    lifetime.end_with_parent()
    # And should an exchange never end:
    faulthandler.dump_traceback_later(seconds, exit=True)
    torch.set_num_threads(threads_of_each(ranks))
    if LOOPBACK.exists():
        os.environ["GLOO_SOCKET_IFNAME"] = LOOPBACK.name
    limit = timedelta(seconds=seconds)
    store = dist.TCPStore(HOST, port, is_master=False, timeout=limit)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks, timeout=limit)
    try:
        entry(*arguments)
        dist.barrier()
    finally:
        with contextlib.suppress(RuntimeError):  # of what has failed already
            dist.destroy_process_group()
