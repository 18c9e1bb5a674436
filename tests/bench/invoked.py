"""Commands of `python -m bench` in this process."""

from __future__ import annotations

import contextlib
import io
from typing import NamedTuple

from bench.__main__ import main


class Invoked(NamedTuple):
    """What a command ended with, and what it printed."""

    exit_code: int
    stdout: str
    stderr: str

    @property
    def output(self) -> str:
        return self.stdout + self.stderr


def invoke(arguments: list[str]) -> Invoked:
    """Runs a command."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main(arguments)
        except SystemExit as ended:
            code = ended.code or 0
    return Invoked(code, out.getvalue(), err.getvalue())
