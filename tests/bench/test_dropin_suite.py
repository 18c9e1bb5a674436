"""lightly's example before and after the patch: a tiny run, refusals, tables."""

from __future__ import annotations

import math

import pytest
import torch
from invoked import invoke
from test_report import ORIGIN

from barlow_fast.adapters.lightly import BarlowTwinsLoss
from bench import report, results
from bench.agreement import Errors
from bench.inputs import FP64, VARIANTS
from bench.suites import dropin
from bench.suites.dropin import LIGHTLY, MOVED, PATCHED

FP32 = VARIANTS["fp32"]


def small_network():
    """In the place of ResNet-18: small, but with norms and all that moves rounding about."""
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 16, 4, 4), torch.nn.BatchNorm2d(16), torch.nn.ReLU(),
        torch.nn.AvgPool2d(4), torch.nn.Flatten(), torch.nn.Linear(64, 32),
    )  # fmt: skip


def test_a_tiny_run(tmp_path, monkeypatch):
    for name in dropin.NEEDED:
        pytest.importorskip(name)
    import lightly.loss

    monkeypatch.setattr(dropin, "network", small_network)
    original = lightly.loss.BarlowTwinsLoss
    out = tmp_path / "rows.jsonl"
    arguments = ["dropin", "--steps", "3", "--batch", "16", "--out", str(out)]
    result = invoke(arguments)
    assert result.exit_code == 0, result.output
    assert lightly.loss.BarlowTwinsLoss is original
    rows = {(row["dtype"], row["peer"]): row for row in results.read(out)}
    assert list(rows) == [
        ("fp32", LIGHTLY), ("fp32", PATCHED), ("fp32", MOVED), ("fp64", LIGHTLY), ("fp64", PATCHED),
    ]  # fmt: skip
    for row in rows.values():
        assert (row["n"], row["d"], row["steps"]) == (16, 32, 3)
        assert 0 < row["loss_ms"] < row["median_ms"]
        assert row["loss_share"] == pytest.approx(row["loss_ms"] / row["median_ms"], rel=1e-3)
        assert row["provenance"]["lightly"]
    patched, double = rows["fp32", PATCHED], rows["fp64", PATCHED]
    assert patched["first_difference"] < 1e-5
    assert patched["locked_gradient_difference"] < 1e-4
    # Weights that are moved by one rounding show at the first step already.
    assert rows["fp32", MOVED]["first_difference"] > 0
    assert double["largest_difference"] < 1e-9
    assert double["locked_gradient_difference"] < 1e-12


class Biased(torch.nn.Module):
    """lightly's loss with another weight of its second term."""

    def forward(self, z_a, z_b):
        return BarlowTwinsLoss(5.01e-3)(z_a, z_b)


@pytest.mark.parametrize("variant", [FP32, FP64], ids=["fp32", "fp64"])
def test_another_loss_is_refused(variant):
    generator = torch.Generator().manual_seed(0)
    pair = torch.randn(2, 16, 24, generator=generator, dtype=variant.dtype)
    same, other = (
        dropin.Locked({LIGHTLY: BarlowTwinsLoss(), PATCHED: patched}, variant)
        for patched in (BarlowTwinsLoss(), Biased())
    )
    for each in (same, other):
        each.compare(pair, probe=True)
    same.check()
    with pytest.raises(dropin.DisagreementError, match="patched loss is off by"):
        other.check()


def test_a_loss_that_is_not_a_number_is_refused():
    found = dropin.Locked({}, FP32)
    found.errors = {LIGHTLY: Errors(0.0, 0.0), PATCHED: Errors(0.0, math.nan)}
    with pytest.raises(dropin.DisagreementError, match="gradient is off by nan"):
        found.check()


def test_a_step_in_two_parts_is_the_step():
    """The backward pass that is cut at the embeddings gives the same weights."""
    pytest.importorskip("lightly")
    pytest.importorskip("torchvision")
    x_a, x_b = torch.randn(2, 4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    run = dropin.start(PATCHED, BarlowTwinsLoss(), torch.float32)
    plain = dropin.start(LIGHTLY, BarlowTwinsLoss(), torch.float32)
    run.step(x_a, x_b)
    loss = plain.criterion(plain.model(x_a), plain.model(x_b))
    loss.backward()
    plain.optimizer.step()
    assert run.losses == [loss.item()]
    for got, want in zip(run.model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(got, want)


def test_missing_packages_are_named(monkeypatch):
    monkeypatch.setattr(dropin, "NEEDED", ("torch", "no_such_package"))
    result = invoke(["dropin"])
    assert result.exit_code == 1
    assert "no_such_package" in result.output


def made_up(peer, step, loss, difference=None, dtype="fp32"):
    row = {
        "suite": "dropin", "n": 128, "d": 2048, "dtype": dtype, "peer": peer, "steps": 50,
        "median_ms": step, "p20_ms": step - 1, "p80_ms": step + 1, "loss_ms": loss,
        "loss_share": loss / step, "provenance": ORIGIN,
    }  # fmt: skip
    if difference is not None:
        row |= {
            "first_difference": difference / 100, "median_difference": difference / 2,
            "largest_difference": difference,
        }  # fmt: skip
    if peer == PATCHED:
        row |= {"locked_loss_difference": 1.2e-7, "locked_gradient_difference": 3.4e-7}
    return row


def test_tables_show_seconds_shares_and_differences(tmp_path):
    rows = [
        made_up(LIGHTLY, 500.0, 60.0),
        made_up(PATCHED, 440.0, 6.0, 0.02),
        made_up(MOVED, 505.0, 61.0, 0.04),
        made_up(LIGHTLY, 900.0, 90.0, dtype="fp64"),
        made_up(PATCHED, 800.0, 9.0, 5e-13, dtype="fp64"),
    ]
    text = dropin.tables(rows)
    assert "| 128 | 2048 | lightly | 500 | 499 | 501 | 60 | 12.0% |  |" in text
    assert "| 128 | 2048 | patched | 440 | 439 | 441 | 6 | 1.4% | 1.14× |" in text
    assert "| fp32 | 50 | patched | 1.2e-07 | 3.4e-07 | 2.0e-04 | 1.0e-02 | 2.0e-02 |" in text
    assert "moved by one rounding |  |  | 4.0e-04 | 2.0e-02 | 4.0e-02 |" in text
    assert "| fp64 | 50 | patched | 1.2e-07 | 3.4e-07 | 5.0e-15 | 2.5e-13 | 5.0e-13 |" in text
    assert "is 0.50 times as far from lightly's" in text
    assert "slower" not in text
    slow = [made_up(LIGHTLY, 400.0, 60.0), *rows[1:3]]
    text = dropin.tables(slow)
    assert "A patched step is slower there (1.10 times)." in text
    assert "| patched | 440 | 439 | 441 |" in text
    results.merge(tmp_path / "cpu-example.jsonl", rows)
    assert f"# {dropin.SECTION}" in report.page("dropin", report.machine_files(tmp_path))
