"""The entry point of `barlow-fast`: finds out whether the command's libraries are there before it
needs them."""

from __future__ import annotations

import importlib.util
import sys

from . import terminal

REQUIRED = ("typer", "rich", "numpy")


def main() -> None:
    """Runs the command line. Without the extra's libraries only `doctor` and `tune`, which need
    none, still work."""
    terminal.install()
    missing = [name for name in REQUIRED if importlib.util.find_spec(name) is None]
    if not missing:
        from .commands import app

        app()
        return
    if sys.argv[1:] == ["doctor"]:
        from .doctor import report

        sys.exit(report())
    if sys.argv[1:2] == ["tune"]:
        sys.exit(tune(sys.argv[2:]))
    terminal.complain(missing_libraries(missing))
    sys.exit(1)


def tune(arguments: list[str]) -> int:
    """`barlow-fast tune`: the exit status."""
    from .kernels import load

    try:
        load("triton")
    except ImportError as error:
        terminal.complain(f"barlow-fast tune: {error}")
        return 1
    from .kernels.triton.tuning import main

    with terminal.escaping():
        return main(arguments)


def missing_libraries(names: list[str]) -> str:
    """What to tell someone who lacks the libraries `names`."""
    return (
        f"barlow-fast: {', '.join(names)} not found. The commands need the extra: "
        "pip install 'barlow-fast[train]'"
    )


if __name__ == "__main__":
    main()
