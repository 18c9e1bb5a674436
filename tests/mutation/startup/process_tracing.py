"""Which lines run in a process that a test has started, and for which test."""

from __future__ import annotations

import atexit
import importlib
import os
from multiprocessing import util
from pathlib import Path
from typing import Any

import coverage

CONTEXT = "context"


def tracer(folder: Path, tree: Path) -> coverage.Coverage:
    """Writes files `data.*` into `folder`."""
    sources = [str(tree / "barlow_fast"), str(tree / "kernels")]
    return coverage.Coverage(
        str(folder / "data"), data_suffix=True, source=sources, config_file=False, messages=False
    )


def start(_: object = None) -> None:
    """Until this process ends; the test is the one that runs now."""
    folder, tree = map(Path, os.environ["BARLOW_FAST_TRACE"].split(os.pathsep))
    running = tracer(folder, tree)
    running.start()
    running.switch_context((folder / CONTEXT).read_text())
    # Processes of multiprocessing forget what was registered before they began.
    util.register_after_fork(running, start)
    atexit.register(_save, running)
    util.Finalize(None, _save, (running,), exitpriority=0)


def _save(running: coverage.Coverage) -> None:
    running.stop()
    running.save()


def call(group: Any, module: str, name: str, context: str, *arguments: Any, **options: Any) -> Any:
    """One call of a rank of the pool of `tests/distributed`, whose processes serve many tests."""
    function = getattr(importlib.import_module(module), name)
    running = coverage.Coverage.current()
    if running is None:
        return function(group, *arguments, **options)
    running.switch_context(context)
    try:
        return function(group, *arguments, **options)
    finally:
        running.switch_context("")
        running.save()
