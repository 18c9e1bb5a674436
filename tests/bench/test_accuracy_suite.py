"""`python -m bench accuracy`: rows of a tiny run, and what the table says of them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from invoked import invoke

from barlow_fast.data import ImageDataset, load
from barlow_fast.data.datasets import SYSTEM_FASHION_MNIST
from barlow_fast.training import configure
from bench.suites import accuracy

pytest.importorskip("lightly")
pytest.importorskip("torchvision")
quality = pytest.importorskip("bench.training.quality")


def row(peer: str, knn: float, linear: float, rate: float | None = None, runs: int = 3) -> dict:
    spread = None if runs == 1 else 0.3
    return {
        "suite": "accuracy", "case": accuracy.CASE, "n": 250, "d": 1024, "dtype": "auto",
        "peer": peer, "epochs": 6, "images": 60_000, "runs": runs, "provenance": {},
        "knn": knn, "knn_std": spread, "linear": linear, "linear_std": spread,
        "images_per_second": rate, "images_per_second_std": None,
    }  # fmt: skip


def test_the_table_says_what_was_met_and_what_was_missed():
    rows = [
        row(accuracy.OURS, 87.0, 88.0, 2400.0),
        row(accuracy.LIGHTLY, 86.9, 88.1, 1000.0),
        row(accuracy.RANDOM, 83.0, 87.0),
        row(accuracy.PIXELS, 87.5, 84.0, runs=1),
    ]
    text = accuracy.tables(rows)
    assert "| barlow_fast, two views | 6 | 87.00 ± 0.30 | 88.00 ± 0.30 |" in text
    assert "k-NN is +4.0 points above random weights (target 3: met)" in text
    assert "-0.5 above raw pixels (target 0: missed)" in text
    assert "linear is +1.0 points above random weights (target 2: missed)" in text
    # sqrt(0.3 ** 2 / 3 + 0.3 ** 2 / 3)
    assert "k-NN differs from lightly's by +0.10 (standard error 0.24)" in text


def test_a_table_without_lightly():
    text = accuracy.tables([row(accuracy.OURS, 87.0, 88.0, 2400.0)])
    assert "differs from lightly's" not in text


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
        assert (each["images_per_second"] is not None) == (name in accuracy.TRAINED)
        assert each["images"] == 512


def test_other_losses_train_as_long_as_two_views(monkeypatch):
    """Epochs by the fastest of three measurements, a machine that grows busier notwithstanding."""
    rates = {(None, "barlow-twins"): [1000, 500, 500], (4, "barlow-twins"): [300, 510, 100]}

    def timed(config, data, say):
        assert (len(data.train_images), config.epochs) == (256 * accuracy.TIMED, 1)
        return None, rates[config.view_count, config.loss].pop(0)

    monkeypatch.setattr(quality, "ours", timed)
    images = torch.zeros(5000, 1, 28, 28, dtype=torch.uint8)
    labels = torch.zeros(5000, dtype=torch.int64)
    data = ImageDataset("fashion-mnist", "", images, labels, images[:1], labels[:1], 10)
    config = configure(accuracy.CASE, epochs=8, loss="barlow-twins")
    configs = accuracy.as_long(config, [accuracy.FOUR_VIEWS], data)
    assert [each.epochs for each in configs.values()] == [8, 4]
    assert configs[accuracy.FOUR_VIEWS].view_count == 4


@pytest.mark.parametrize("peers", ["ours,theirs", "raw pixels"])
def test_peers_that_are_unknown_or_never_trained(peers):
    found = invoke(["accuracy", "--peers", peers])
    assert found.exit_code == 2
    assert "peer" in found.stderr
