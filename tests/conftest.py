"""Fixtures of all tests."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from barlow_fast.kernels import KERNEL_SETS, why_unusable

# tests/ is not a package: gate.py and embeddings.py are found here; and bench/ is not installed.
sys.path.insert(0, str(Path(__file__).parent))
sys.path.append(str(Path(__file__).parent.parent))

CPU = torch.device("cpu")
CPU_BACKENDS = [name for name in KERNEL_SETS if name != "triton"]


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    # The draws of a test are the same alone, in another order and in parallel.
    torch.manual_seed(0)


@pytest.fixture(params=CPU_BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    """Each kernel set that takes CPU tensors; a set that is not built here skips with its own
    reason."""
    problem = why_unusable(request.param, CPU)
    if problem is not None:
        pytest.skip(problem)
    return request.param


@pytest.fixture
def one_thread():
    """On a busy machine threads of small operations would mostly wait for each other; nor does
    other work change the order of sums."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fills memory that `torch.empty` and the output pool hand out with NaN: a tile nobody wrote
    cannot pass."""
    from barlow_fast.kernels.cpu.memory import Pool

    plain_empty, pooled_empty = torch.empty, Pool.empty

    def poison(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

    monkeypatch.setattr(torch, "empty", lambda *a, **k: poison(plain_empty(*a, **k)))
    monkeypatch.setattr(Pool, "empty", lambda self, *a: poison(pooled_empty(self, *a)))
