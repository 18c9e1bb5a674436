"""Runs `barlow-fast pretrain` again and again, each time killed at another moment, then to its end.

    python killed_again.py SEED KILLS MOST RANKS ARGUMENT...

A moment is one of the first MOST operations of the run that matter to what a killed process leaves:
opening, renaming, linking and removing files, pieces of a checkpoint written to disk, and parts of
training steps. They are drawn from SEED and counted, so that no clock decides. Every run is a fork
of this process, which has imported all that is needed. Prints a line for each: the number of the
signal, or the exit status, of every rank.
"""

from __future__ import annotations

import os
import random
import signal
import socket
import sys
from collections.abc import Callable
from typing import Any

# For the forks: what a run imports while it runs.
import sklearn.datasets  # noqa: F401
import torch._dynamo  # noqa: F401

from barlow_fast.checkpoints import archive
from barlow_fast.cli import pretrain as pretrain_commands
from barlow_fast.cli.app import app
from barlow_fast.training import Trainer, reporting
from barlow_fast.training.reporting.finishing import Report

FILE_EVENTS = {"open", "os.rename", "os.link", "os.remove", "os.mkdir", "os.utime", "os.scandir"}


def die_at(moment: int) -> None:
    """Kills this process at an operation, counted from where the run's folder is made."""
    left = moment

    def count(*_: Any) -> None:
        nonlocal left
        left -= 1
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)

    def counted(function: Callable) -> Callable:
        def call(*arguments: Any, **options: Any) -> Any:
            count()
            found = function(*arguments, **options)
            count()
            return found

        return call

    archive._Stream.write = counted(archive._Stream.write)
    for name in ("next_batch", "_backward", "_guard", "close_epoch", "state_dict", "_notify"):
        setattr(Trainer, name, counted(getattr(Trainer, name)))
    prepare = pretrain_commands._prepare

    def prepare_and_count(*arguments: Any) -> Any:
        sys.addaudithook(lambda event, _: count() if event in FILE_EVENTS else None)
        return prepare(*arguments)

    pretrain_commands._prepare = prepare_and_count


def run(moment: int | None, rank: int, ranks: int, port: int, arguments: list[str]) -> None:
    """One process of a run, which ends with it."""
    reporting.report_run = lambda *_: Report()
    if ranks > 1:
        os.environ |= {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks),
            "LOCAL_WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        }  # fmt: skip
    if moment is not None:
        die_at(moment)
    code: Any = 70  # whatever goes wrong before the command ends itself
    try:
        app(["pretrain", *arguments])
    except SystemExit as left:
        code = left.code or 0
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def attempt(moment: int | None, victim: int, ranks: int, arguments: list[str]) -> list[int]:
    """Signal (below 0) or status of every rank. Those that outlive the victim are killed too, as
    torchrun ends them."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    pids = []
    for rank in range(ranks):
        pid = os.fork()
        if not pid:
            run(moment if rank == victim else None, rank, ranks, port, arguments)
        pids.append(pid)
    statuses = {}
    if moment is not None:
        statuses[pids[victim]] = os.waitstatus_to_exitcode(os.waitpid(pids[victim], 0)[1])
        for pid in pids:
            if pid not in statuses:
                os.kill(pid, signal.SIGKILL)
    for pid in pids:
        if pid not in statuses:
            statuses[pid] = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return [statuses[pid] for pid in pids]


def main(seed: int, kills: int, most: int, ranks: int, arguments: list[str]) -> None:
    drawn = random.Random(seed)
    for _ in range(kills):
        moment, victim = drawn.randint(1, most), drawn.randrange(ranks)
        print(*attempt(moment, victim, ranks, arguments), flush=True)
    print(*attempt(None, 0, ranks, arguments), flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:5]), sys.argv[5:])
