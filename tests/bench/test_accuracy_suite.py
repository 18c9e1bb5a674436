"""`python -m bench accuracy`: rows of a tiny run, and what the table says of them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from barlow_fast.data import load
from barlow_fast.data.datasets import SYSTEM_FASHION_MNIST
from bench.suites import accuracy

pytest.importorskip("lightly")
pytest.importorskip("torchvision")


def row(peer: str, knn: float, linear: float, rate: float | None = None, runs: int = 3) -> dict:
    spread = None if runs == 1 else 0.3
    return {
        "suite": "accuracy", "case": accuracy.CASE, "n": 256, "d": 1024, "dtype": "auto",
        "peer": peer, "epochs": 6, "images": 60_000, "runs": runs, "provenance": {},
        "knn": knn, "knn_std": spread, "linear": linear, "linear_std": spread,
        "images_per_second": rate, "images_per_second_std": None,
    }  # fmt: skip


def test_the_table_has_means_and_deviations():
    rows = [
        row(accuracy.OURS, 87.0, 88.0, 2400.0),
        row(accuracy.LIGHTLY, 86.9, 88.1, 1000.0),
        row(accuracy.RANDOM, 83.0, 87.0),
        row(accuracy.PIXELS, 87.5, 84.0, runs=1),
    ]
    text = accuracy.tables(rows)
    assert "| barlow_fast | 87.00 ± 0.30 | 88.00 ± 0.30 |" in text


@pytest.mark.slow
@pytest.mark.skipif(not SYSTEM_FASHION_MNIST.is_dir(), reason="needs Fashion-MNIST's files")
def test_a_tiny_run_has_a_row_for_each():
    whole = load(accuracy.CASE)
    data = replace(
        whole,
        train_images=whole.train_images[:512],
        train_labels=whole.train_labels[:512],
        test_images=whole.test_images[:200],
        test_labels=whole.test_labels[:200],
    )
    rows = {each["peer"]: each for each in accuracy.measure(data, [0], 1)}
    assert set(rows) == set(accuracy.TITLES)
    for name, each in rows.items():
        assert 20 < each["knn"] < 100
        assert 20 < each["linear"] < 100
        trained = name in (accuracy.OURS, accuracy.LIGHTLY)
        assert (each["images_per_second"] is not None) == trained
        assert each["images"] == 512
