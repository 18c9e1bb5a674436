"""The commands, on shapes that take no time."""

from __future__ import annotations

import pytest
from invoked import invoke

from bench import peak_memory, results
from bench.session import Session


def test_quick_run_on_a_tiny_shape(tmp_path):
    out = tmp_path / "rows.jsonl"
    peers = "ours,ours-aten,gram-plain,official"
    arguments = ["loss", "--quick", "--minutes", "60", "--shapes", "16x32,32x16", "--repeats", "2"]
    result = invoke([*arguments, "--peers", peers, "--out", str(out)])
    assert result.exit_code == 0, result.output
    rows = results.read(out)
    assert {row["dtype"] for row in rows} == {"fp32", "tf32", "bf16-autocast", "bf16-inputs"}
    for row in rows:
        assert row["p20_ms"] <= row["median_ms"] <= row["p80_ms"]
        assert row["fraction_of_floor"] == pytest.approx(
            row["floor_ms"] / row["median_ms"], rel=1e-3
        )
        assert row["peaks"]["gemm_fp32_gflops"] > 0
        assert row["provenance"]["cpu"]
        assert row["repeats"] == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("loss --shapes 16", "a shape is NxD"),
        ("loss --dtypes fp8", "unknown dtype 'fp8'"),
        ("loss --peers nobody", "unknown peer 'nobody'"),
        ("distributed --ranks 1", "ranks are numbers of at least 2"),
        ("distributed --ranks x", "ranks are numbers of at least 2"),
        ("distributed --dtypes fp8", "unknown dtype 'fp8'"),
        ("distributed --peers nobody", "unknown peer 'nobody'"),
        ("startup --cases shutdown", "unknown case 'shutdown'"),
        ("startup --peers nobody", "unknown peer 'nobody'"),
        ("startup --shapes 16", "a shape is NxD"),
        ("startup --dtypes fp8", "unknown dtype 'fp8'"),
        ("startup --device abacus", "unknown device 'abacus'"),
        ("train --cases films", "unknown case 'films'"),
        ("train --cases resnet50-224", "unknown case 'resnet50-224'"),
        ("train --peers tape", "unknown implementation 'tape'"),
        ("train --device abacus", "unknown device 'abacus'"),
    ],
)
def test_bad_options_are_refused_before_anything_runs(arguments, message, monkeypatch):
    monkeypatch.setattr(Session, "announce", lambda self: pytest.fail("something was begun"))
    result = invoke(arguments.split())
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())


@pytest.mark.skipif(not peak_memory.STATUS.exists(), reason="needs /proc")
def test_memory_of_a_peer_that_builds_c(tmp_path):
    measured = peak_memory.in_child(8, 2048, "fp32", "official")
    assert "problem" not in measured, measured
    assert measured["input_bytes"] == measured["gradient_bytes"] == 2 * 8 * 2048 * 4
    # C alone is 16 MiB, 128 times the inputs; the official formulation keeps several of its size.
    assert measured["extra_bytes"] > 2048 * 2048 * 4
