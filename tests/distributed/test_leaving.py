"""What remains of a process group when it is left."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from ended import SECONDS

THREADS = Path("/proc/self/task")

SCRIPT = """
import sys
from pathlib import Path
import torch, torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
import barlow_fast

def threads():
    return [name for name in (task.read_text() for task in Path("/proc/self/task").glob("*/comm"))
            if "gloo" in name]

dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
model = DistributedDataParallel(torch.nn.Linear(3, 3))
model(torch.ones(2, 3)).sum().backward()
del model
assert threads()
dist.destroy_process_group()
sys.exit(len(threads()))
"""


@pytest.mark.skipif(not THREADS.exists(), reason="the names of threads are read from Linux's /proc")
def test_no_thread_of_a_group_outlives_it():
    """Threads that do may abort the interpreter's exit ("terminate called without an active
    exception") while they let go of the last exchange of a backward."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=SECONDS
    )
    assert done.returncode == 0, done.stdout + done.stderr
