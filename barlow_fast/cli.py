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

DOCTOR = """Usage: barlow-fast doctor

Report what is installed, what is missing and what that costs."""
WITHOUT_EXTRA = """Usage: barlow-fast [OPTIONS] COMMAND [ARGS]...

The exact Barlow Twins loss, and the training that goes with it.

Options:
  --version  Show the versions of this program and of torch, and the kernels, and exit.
  --help     Show this message and exit.

Commands that need torch alone:
  doctor     Report what is installed, what is missing and what that costs.
  tune       Measure configurations of the Triton kernels on this GPU and keep the best.

Commands that need libraries which are missing here:
  pretrain   Pretrain an encoder on images without labels.
  evaluate   Judge pretrained encoders: k-NN, linear, finetuned, on other images.
  export     Write the encoder of a checkpoint for other programs.
  data       Look over, pack and show images."""


def main() -> None:
    """Runs the command line. Without the extra's libraries `--help`, `--version`, `doctor` and
    `tune`, which need none, still work."""
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
    arguments = sys.argv[1:]
    if arguments == ["--version"]:
        terminal.say(version_line())
    elif arguments in (["--help"], ["doctor", "--help"]):
        terminal.say(WITHOUT_EXTRA if len(arguments) == 1 else DOCTOR)
        terminal.say(f"\n{missing_libraries(missing)}")
    elif arguments == ["doctor"]:
        from .doctor import report

        sys.exit(report())
    elif arguments[:1] == ["tune"]:
        sys.exit(tune(arguments[1:]))
    else:
        terminal.complain(missing_libraries(missing))
        sys.exit(1)


def version_line() -> str:
    """The versions, and which kernels a loss on the CPU uses."""
    import torch

    from . import __version__
    from .kernels import cpu, why_unusable

    problem = why_unusable("cpu", torch.device("cpu"))
    if problem is None:
        native = f"native kernels for {cpu.instruction_set()}"
    else:
        native = f"no native kernels: {problem}"
    return f"barlow-fast {__version__}, torch {torch.__version__}, {native}"


def tune(arguments: list[str]) -> int:
    """`barlow-fast tune`: the exit status."""
    from .kernels import load

    try:
        load("triton")
    except ImportError as error:
        terminal.complain(f"barlow-fast tune: {error}")
        return 1
    from .kernels.triton.tuning import main

    try:
        with terminal.escaping():
            return main(arguments)
    except (ValueError, OSError, RuntimeError) as error:
        terminal.complain(f"barlow-fast tune: {error}")
        return 1 if isinstance(error, RuntimeError) else 2


def missing_libraries(names: list[str]) -> str:
    """What to tell someone who lacks the libraries `names`."""
    return (
        f"barlow-fast: {', '.join(names)} not found. The commands need the extra: "
        "pip install 'barlow-fast[train]'"
    )


if __name__ == "__main__":
    main()
