"""A data set and settings small enough to train in a test."""

from __future__ import annotations

from dataclasses import replace

import pytest

from barlow_fast.data import ImageDataset, load
from barlow_fast.training import PretrainConfig, configure, reporting
from barlow_fast.training.reporting.finishing import Report


@pytest.fixture(scope="session")
def small_digits() -> ImageDataset:
    """200 training and 100 test images."""
    digits = load("digits")
    return replace(
        digits,
        train_images=digits.train_images[:200],
        train_labels=digits.train_labels[:200],
        test_images=digits.test_images[:100],
        test_labels=digits.test_labels[:100],
    )


@pytest.fixture
def small_config() -> PretrainConfig:
    """4 epochs of 6 steps; the Gram form, as by default."""
    return configure(
        "digits",
        epochs=4,
        batch_size=32,
        encoder_widths=(8, 16),
        projector=(32, 64),
        warmup_epochs=1,
        evaluate_every=2,
        precision="fp32",
    )


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ends runs of the command without their figures, which take ten times as long as the rest."""
    monkeypatch.setattr(reporting, "report_run", lambda trainer, folder, name: Report())
