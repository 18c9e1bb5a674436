"""The entry point of `barlow-fast`: finds out whether the command's libraries are there before it
needs them."""

from __future__ import annotations

import importlib.util
import signal
import sys

from . import terminal

# As shells report a process that a signal ended: this and its number.
SIGNALLED = 128
INTERRUPTED = SIGNALLED + signal.SIGINT
REQUIRED = ("typer", "rich", "numpy")


def main() -> None:
    """Runs the command line. Without the extra's libraries only `doctor` and `tune`, which need
    none, still work."""
    terminal.install()
    try:
        run()
    except KeyboardInterrupt:
        terminal.complain("barlow-fast: interrupted")
        sys.exit(_interrupted())
    except SystemExit as end:
        if end.code == INTERRUPTED:
            _interrupted()
        raise


def _interrupted() -> int:
    """The exit status. What is left is to end: another Ctrl-C would only show where."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    return INTERRUPTED


def run() -> None:
    """See `main`."""
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
