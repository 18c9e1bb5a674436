"""Runs in processes of their own: alone, and two ranks as torchrun starts them."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ended import SECONDS, completed, running, until

LAUNCH = (sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
TINY = ("--projector", "8-12", "encoder_widths=[4]", "precision=fp32", "--no-tensorboard")
EVERY_STEP = ("checkpoint_every=1", "checkpoint_minutes=1e-9")


def torchrun(*arguments: object) -> subprocess.CompletedProcess:
    """What they are started with, until they end."""
    return completed(*LAUNCH, *arguments, OMP_NUM_THREADS="1")


@contextlib.contextmanager
def pretraining(
    out: Path, *arguments: object, launcher: tuple[str, ...] = (sys.executable,), **streams: Any
) -> Iterator[subprocess.Popen]:
    """A run that has written a checkpoint; its errors are read, what it prints is not."""
    streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, **streams}
    command = [*launcher, "-m", "barlow_fast", "pretrain", *arguments, "--out", out]
    with running(command, env=ENVIRONMENT, **streams) as process:
        assert until((out / "checkpoint.pt").exists)
        yield process


def stopped(process: subprocess.Popen, out: Path) -> str:
    """The errors of a run that ends on request, among them how to continue it."""
    _, errors = process.communicate(timeout=SECONDS)
    assert f"--resume {out / 'checkpoint.pt'}" in errors, errors[-3000:]
    return errors
