"""Commands of `barlow-fast`, run in this process."""

from __future__ import annotations

from click.testing import Result
from typer.testing import CliRunner

from barlow_fast.cli.app import app


def invoke(*arguments: object, code: int = 0) -> Result:
    """What a command prints, which must end with the status `code`."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result


def pretrain(*arguments: object, code: int = 0) -> Result:
    return invoke("pretrain", *arguments, code=code)
