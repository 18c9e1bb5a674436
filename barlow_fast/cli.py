"""The entry point of `barlow-fast`: finds out whether the command's libraries are there before it
needs them."""

from __future__ import annotations

import importlib.util
import sys

REQUIRED = ("typer", "rich", "numpy")


def main() -> None:
    """Runs the command line. Without the extra's libraries only `doctor` and `tune`, which need
    none, still work."""
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
    sys.exit(missing_libraries(missing))


def tune(arguments: list[str]) -> int | str:
    """`barlow-fast tune`: the exit status, or why there is no tuning here."""
    from .kernels import load

    try:
        load("triton")
    except ImportError as error:
        return f"barlow-fast tune: {error}"
    from .kernels.triton.tuning import main

    return main(arguments)


def missing_libraries(names: list[str]) -> str:
    """What to tell someone who lacks the libraries `names`."""
    return (
        f"barlow-fast: {', '.join(names)} not found. The commands need the extra: "
        "pip install 'barlow-fast[train]'"
    )


if __name__ == "__main__":
    main()
