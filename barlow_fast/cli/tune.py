"""`barlow-fast tune`; it needs none of the extra's libraries."""

from __future__ import annotations

from .. import terminal


def tune(arguments: list[str]) -> int:
    """`barlow-fast tune`: the exit status."""
    from ..kernels import load

    try:
        load("triton")
    except ImportError as error:
        terminal.complain(f"barlow-fast tune: {error}")
        return 1
    from ..kernels.triton.tuning import main

    try:
        with terminal.escaping():
            return main(arguments)
    except (ValueError, OSError, RuntimeError) as error:
        terminal.complain(f"barlow-fast tune: {error}")
        return 1 if isinstance(error, RuntimeError) else 2
