"""Real processes joined by gloo, started once: each runs named functions on request.

Starting torch takes seconds, a call of a running process milliseconds. All processes are forked off
one that has imported torch, its compiler included, and has started no thread. A function that fails
or does not come back ends all processes of the pool, by their handles, and with them whatever the
others were waiting for; the next call starts new ones.
"""

from __future__ import annotations

import contextlib
import datetime
import importlib
import io
import multiprocessing
import os
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ended import SECONDS

SIZE = 4
# The groups of the pool, by the ranks of the world in them.
GROUPS = ((0, 1), (0, 1, 2), (0, 1, 2, 3), (0,), (1, 3), (0, 2))
TIMEOUT = datetime.timedelta(seconds=SECONDS / 2)  # of the groups
GRACE = 3.0  # seconds for the other ranks once one has failed

context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["torch._dynamo", "torch.distributed", "barlow_fast", "pytest"])

# In a rank's process: its groups, of which it may or may not be a member.
groups: dict[tuple[int, ...], Any] = {}


class RanksFailed(Exception):
    """What became of each rank of a call that went wrong."""


class Pool:
    """`run(function, ranks, ...)` calls `function(group, ...)` on these ranks.

    `function` is found by its module and name. What goes in and comes out are tensors, numbers,
    strings and containers of them.
    """

    def __init__(self) -> None:
        self._processes: list[BaseProcess] = []
        self._connections: list[Connection] = []
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def run(
        self,
        function: Callable[..., Any],
        ranks: int | Sequence[int],
        *arguments: Any,
        limit: float = SECONDS,
        **options: Any,
    ) -> list[Any]:
        """The results of all ranks, in their order.

        ranks: those of the world, or how many of the first of them. limit: seconds for all.

        Raises:
            RanksFailed: a rank raised something, ended, or took too long.
        """
        members = tuple(range(ranks)) if isinstance(ranks, int) else tuple(ranks)
        if not self._processes:
            self._start()
        job = (function.__module__, function.__name__, members, arguments, options)
        outcomes: dict[int, tuple[bool, Any]] = {}
        try:
            for rank in members:
                _send(self._connections[rank], job)
            self._collect(members, outcomes, limit)
        finally:
            if not all(rank in outcomes and outcomes[rank][0] for rank in members):
                self.close()
        if all(done for done, _ in outcomes.values()):
            return [outcomes[rank][1] for rank in members]
        failed = (f"rank {rank}:\n{text}" for rank, (done, text) in outcomes.items() if not done)
        raise RanksFailed("\n".join(failed))

    def _collect(
        self, members: tuple[int, ...], outcomes: dict[int, tuple[bool, Any]], limit: float
    ) -> None:
        """Fills `outcomes`; once one rank has failed, the others have a moment left."""
        deadline = time.monotonic() + limit
        pending = {self._connections[rank]: rank for rank in members}
        while pending:
            ready = wait(list(pending), max(0.0, deadline - time.monotonic()))
            if not ready:
                text = "no answer in time"
                outcomes.update((rank, (False, text)) for rank in pending.values())
                return
            for connection in ready:
                rank = pending.pop(connection)
                try:
                    outcomes[rank] = _receive(connection)
                except (EOFError, ConnectionError):
                    outcomes[rank] = (False, "the process has ended")
                if not outcomes[rank][0]:
                    deadline = min(deadline, time.monotonic() + GRACE)

    def _start(self) -> None:
        self._folder = tempfile.TemporaryDirectory()
        store = str(Path(self._folder.name) / "store")
        for rank in range(SIZE):
            process, connection = _begin(_serve, rank, store)
            self._processes.append(process)
            self._connections.append(connection)

    def close(self) -> None:
        """Ends all processes; the next `run` starts new ones."""
        for connection in self._connections:
            connection.close()
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.join()
        self._processes, self._connections = [], []
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None


@pytest.fixture(scope="session")
def pool() -> Iterator[Pool]:
    if not (dist.is_available() and dist.is_gloo_available()):
        pytest.skip("this torch has no gloo")
    pool = Pool()
    yield pool
    pool.close()


def _begin(function: Callable[..., None], *arguments: Any) -> tuple[BaseProcess, Connection]:
    """A process that runs a function of a connection and these arguments, and the other end."""
    ours, theirs = context.Pipe()
    process = context.Process(target=function, args=(theirs, *arguments), daemon=True)
    process.start()
    theirs.close()
    return process, ours


def _send(connection: Connection, value: Any) -> None:
    # Not by the connection's own pickle, which would share the memory of tensors.
    buffer = io.BytesIO()
    torch.save(value, buffer)
    connection.send_bytes(buffer.getbuffer())


def _receive(connection: Connection) -> Any:
    return torch.load(io.BytesIO(connection.recv_bytes()), weights_only=True)


def join(rank: int, size: int, store: str, timeout: datetime.timedelta = TIMEOUT) -> None:
    """Makes this process a rank of the world; `store` is a file that does not exist yet."""
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=size, timeout=timeout
    )


def _serve(connection: Connection, rank: int, store: str) -> None:
    join(rank, SIZE, store)
    for members in GROUPS:
        groups[members] = dist.new_group(list(members), timeout=TIMEOUT)
    with contextlib.suppress(EOFError, ConnectionError):  # the test session has ended
        while True:
            module, name, members, arguments, options = _receive(connection)
            try:
                function = getattr(importlib.import_module(module), name)
                outcome = (True, function(groups[members], *arguments, **options))
            except Exception:
                outcome = (False, traceback.format_exc())
            _send(connection, outcome)


def in_processes(
    function: Callable[..., Any], size: int, *arguments: Any, limit: float, folder: Path
) -> list[tuple[Any, int]]:
    """What `function(rank, *arguments)` returned in processes that are ranks of a world of their
    own, for tests that end them: (None where the process has not come so far, its exit code)."""
    store = str(folder / "store")
    begun = [_begin(_once, function, rank, size, store, *arguments) for rank in range(size)]
    processes, connections = zip(*begun, strict=True)
    deadline = time.monotonic() + limit
    results: list[Any] = [None] * size
    try:
        for rank, connection in enumerate(connections):
            with contextlib.suppress(EOFError, ConnectionError):
                if connection.poll(max(0.0, deadline - time.monotonic())):
                    results[rank] = _receive(connection)
        for process in processes:
            process.join(max(0.0, deadline - time.monotonic()))
        return [(r, p.exitcode) for r, p in zip(results, processes, strict=True)]
    finally:
        for process in processes:
            process.kill()
            process.join()


def _once(connection: Connection, function: Callable[..., Any], *arguments: Any) -> None:
    _send(connection, function(*arguments))
