"""`barlow-fast --version`, and `barlow-fast doctor` as a command."""

from __future__ import annotations

import sys

from .exits import failures


def doctor() -> None:
    """Report what is installed, what is missing and what that costs."""
    from ..doctor import report

    with failures():
        status = report()
    sys.exit(status)


def version_line() -> str:
    """The versions, and which kernels a loss on the CPU uses."""
    import torch

    from .. import __version__
    from ..kernels import cpu, why_unusable

    problem = why_unusable("cpu", torch.device("cpu"))
    if problem is None:
        native = f"native kernels for {cpu.instruction_set()}"
    else:
        native = f"no native kernels: {problem}"
    return f"barlow-fast {__version__}, torch {torch.__version__}, {native}"
