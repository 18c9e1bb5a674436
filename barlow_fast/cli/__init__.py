"""The entry point of `barlow-fast`: finds out whether the command's libraries are there before it
needs them."""

from __future__ import annotations

import importlib.util
import signal
import sys

from .. import terminal
from .exits import INTERRUPTED, missing_libraries

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
        from .app import app

        app()
        return
    arguments = sys.argv[1:]
    if arguments == ["--version"]:
        from .doctor import version_line

        terminal.say(version_line())
    elif arguments in (["--help"], ["doctor", "--help"]):
        terminal.say(WITHOUT_EXTRA if len(arguments) == 1 else DOCTOR)
        terminal.say(f"\n{missing_libraries(missing)}")
    elif arguments == ["doctor"]:
        from ..doctor import report

        sys.exit(report())
    elif arguments[:1] == ["tune"]:
        from .tune import tune

        sys.exit(tune(arguments[1:]))
    else:
        terminal.complain(missing_libraries(missing))
        sys.exit(1)
