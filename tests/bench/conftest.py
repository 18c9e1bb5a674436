"""Fixtures of the tests of the bench."""

from __future__ import annotations

import pytest
import torch


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
