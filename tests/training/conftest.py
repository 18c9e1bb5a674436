"""A data set and settings small enough to train in a test."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import apart_on_ranks
import pytest
import torch.distributed as dist
from launched import torchrun
from scenarios import part_of

from barlow_fast.data import ImageDataset, load
from barlow_fast.training import Hook, PretrainConfig, Trainer, configure, reporting
from barlow_fast.training.reporting.finishing import Report


@pytest.fixture(scope="session")
def small_digits() -> ImageDataset:
    """200 training and 100 test images."""
    return part_of(load("digits"), 200, 100)


@pytest.fixture
def small_config() -> PretrainConfig:
    """4 epochs of 6 steps of Barlow Twins; the Gram form, as by default."""
    return configure(
        "digits", loss="barlow-twins", epochs=4, batch_size=32, encoder_widths=(8, 16),
        projector=(32, 64), warmup_epochs=1, evaluate_every=2, precision="fp32",
    )  # fmt: skip


@pytest.fixture
def start(small_config, small_digits) -> Callable[..., Trainer]:
    """A trainer of `small_config` with changes, at its beginning or at a checkpoint."""

    def ready(
        *hooks: Hook, path: Path | None = None, resume: Path | None = None, **changes: Any
    ) -> Trainer:
        trainer = Trainer(replace(small_config, **changes), small_digits, "cpu", path, hooks)
        if resume is not None:
            trainer.resume(resume)
        trainer.network.train()
        return trainer

    return ready


@pytest.fixture
def train(start) -> Callable[..., Trainer]:
    """`start`, and the run to its end."""

    def run(*hooks: Hook, **options: Any) -> Trainer:
        trainer = start(*hooks, **options)
        trainer.run()
        return trainer

    return run


@pytest.fixture(scope="session")
def two_ranks(tmp_path_factory) -> Path:
    """The folder with what two processes found, of `run_on_ranks.py`; started once for all tests,
    since they take seconds to start."""
    if not (dist.is_available() and dist.is_gloo_available()):
        pytest.skip("this torch has no gloo")
    folder = tmp_path_factory.mktemp("ranks")
    apart_on_ranks.write_folders(folder)
    done = torchrun(Path(__file__).parent / "run_on_ranks.py", folder)
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ends runs of the command without their figures, which take ten times as long as the rest."""
    monkeypatch.setattr(reporting, "report_run", lambda trainer, folder, name: Report())
