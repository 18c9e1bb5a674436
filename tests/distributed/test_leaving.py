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
    return {task.name for task in Path("/proc/self/task").iterdir()}

def step(network):
    network(torch.ones(2, 3)).sum().backward()

step(torch.nn.Linear(3, 3))  # starts what computes
before = threads()
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
model = DistributedDataParallel(torch.nn.Linear(3, 3))
step(model)
del model
assert threads() - before
dist.destroy_process_group()
sys.exit(len(threads() - before))
"""


@pytest.mark.skipif(not THREADS.exists(), reason="threads are counted in Linux's /proc")
def test_no_thread_of_a_group_outlives_it():
    """Threads that do may abort the interpreter's exit ("terminate called without an active
    exception") while they let go of the last exchange of a backward."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=SECONDS
    )
    assert done.returncode == 0, done.stdout + done.stderr
