"""`python -m bench`: every module of `bench.suites` is a command, besides `all`, `report` and
`compare`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from bench import cli, compare, devices, everything, exits, report, suites

COMMANDS = {name: suite.command for name, suite in suites.discover().items()} | {
    "all": everything.command,
    "report": report.command,
    "compare": compare.command,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; an exit status of `bench.exits`."""
    try:
        return cli.run(COMMANDS, arguments, "python -m bench")
    except devices.DeviceLostError as error:
        print(f"the CUDA context is broken: {error}", flush=True)
        return exits.RESTART


if __name__ == "__main__":
    sys.exit(main())
