"""The bench is not installed: it is imported from the repository."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))


@pytest.fixture(autouse=True)
def small_peaks(monkeypatch):
    """Peaks of products and copies that take no time; nothing here depends on their size."""
    from bench import floor

    monkeypatch.setattr(floor, "GEMM_SHAPES", ((64, 64, 64),))
    monkeypatch.setattr(floor, "COPY_MIB", (1,))
    monkeypatch.setattr(floor, "PEAK_SECONDS", 0.05)


@pytest.fixture(autouse=True)
def one_thread():
    """On a busy machine two threads that wait for each other make tiny shapes take seconds."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
