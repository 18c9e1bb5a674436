"""Two processes of this machine, as torchrun starts them."""

from __future__ import annotations

import os
import subprocess
import sys

from ended import SECONDS

LAUNCH = (sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone")


def torchrun(*arguments: object) -> subprocess.CompletedProcess:
    """What they are started with, until they end."""
    return subprocess.run(
        [*LAUNCH, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
