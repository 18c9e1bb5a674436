"""The scripts of examples/, run as a user runs them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]


def run(name: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "examples" / name)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=140,
    )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_graph():
    done = run("cuda_graph.py")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "replays equal eager steps" in done.stdout


def test_cuda_graph_says_that_it_needs_a_device():
    done = run("cuda_graph.py", CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 2, done.stderr
    assert "needs a CUDA device" in done.stderr
    assert not done.stdout


def test_ddp_under_torchrun():
    """Two ranks print one loss per step, which falls, and the bytes that the loss sent."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [*launcher, "--nproc_per_node", "2", str(ROOT / "examples" / "ddp.py")],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=140,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    losses = [float(line.split()[-1]) for line in lines if line.startswith("step ")]
    assert len(losses) == 8
    assert losses[-1] < 0.8 * losses[0]
    sent = re.search(r"in each step: ([\d.]+) MiB sent", done.stdout)
    matrix = re.search(r"D x D matrix would send ([\d.]+) MiB", done.stdout)
    assert 0 < float(sent[1]) < float(matrix[1])


def test_ddp_alone_says_how_to_run_it():
    environment = {name: value for name, value in os.environ.items() if name != "RANK"}
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "ddp.py")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=140,
    )
    assert done.returncode == 2
    assert "torchrun --nproc_per_node 2 examples/ddp.py" in done.stderr
