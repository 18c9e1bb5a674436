"""The scripts of examples/, run as a user runs them."""

from __future__ import annotations

import os
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
