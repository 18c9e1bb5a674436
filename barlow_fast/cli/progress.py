"""The progress bar of the commands."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from rich.console import Console

Update = Callable[[str, int, "int | None"], None]


@contextlib.contextmanager
def progress_bar(console: Console) -> Iterator[Update]:
    """Yield `update(description, done, total)`, which does nothing off a terminal."""
    if not console.is_terminal:
        yield lambda description, done, total: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as progress:
        task = progress.add_task("", total=None)
        shown = ""

        def update(description: str, done: int, total: int | None) -> None:
            nonlocal shown
            if description != shown:
                shown = description
                progress.reset(task, total=total, description=description)
            progress.update(task, completed=done)

        yield update
