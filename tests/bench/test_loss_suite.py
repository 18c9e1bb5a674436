"""What the loss suite times and leaves out, on shapes that take no time."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from bench import memory_limit, results
from bench.__main__ import app
from bench.inputs import VARIANTS
from bench.loss import grid, measurement, tables
from bench.loss.prediction import MARGIN, Prediction
from bench.optional import PlainConsole
from bench.peers import discover
from bench.timing import Budget

FP32 = [VARIANTS["fp32"]]


def run(peers, shapes, out, limits=None, more_shapes=()):
    console = PlainConsole(file=io.StringIO())
    failures = measurement.measure(
        shapes, FP32, peers, Budget(repeats=2), out, console, limits, more_shapes
    )
    return failures, results.read(out), console.file.getvalue()


@pytest.fixture(autouse=True)
def peaks(monkeypatch):
    """Measuring them takes seconds."""
    monkeypatch.setattr(measurement, "measure_peaks", lambda: measurement.Peaks(100.0, 200.0, 20.0))


def test_the_forward_half_is_part_of_every_call(tmp_path):
    peers = [discover()[name] for name in ("ours-aten", "official")]
    failures, rows, _ = run(peers, [(64, 256)], tmp_path / "rows.jsonl")
    assert not failures
    assert [row["peer"] for row in rows] == ["ours-aten", "official"]
    for row in rows:
        assert 0 < row["forward_ms"] < row["median_ms"]
        assert row["forward_p20_ms"] <= row["forward_ms"] <= row["forward_p80_ms"]
        assert row["repeats"] == 2


def test_what_does_not_fit_is_a_row_and_is_not_tried_again(tmp_path):
    calls = []

    def build(n, d, dtype):
        def loss(z_a, z_b):
            calls.append(z_a.shape)
            if d > 80:
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory: 8 bytes")
            return discover()["official"].build(n, d, dtype)(z_a, z_b)

        return loss

    greedy = replace(discover()["official"], name="greedy", build=build, double=False)
    shapes = [(16, 32), (16, 96), (32, 128), (8, 128)]
    failures, rows, said = run([greedy], shapes, tmp_path / "rows.jsonl")
    assert not failures
    problems = {(row["n"], row["d"]): row.get("problem") for row in rows}
    assert problems[16, 32] is None
    assert "can't allocate" in problems[16, 96]
    assert problems[32, 128].startswith("not tried, as at 16 x 96: does not fit into memory")
    assert problems[8, 128].startswith("does not fit")  # fewer samples: tried
    assert (32, 128) not in calls
    assert "can't allocate" in said
    text = tables.tables(rows, brief=False)
    assert "| 16 × 96 | " in text
    assert "memory |" in text


def test_a_slow_peer_is_not_tried_at_larger_shapes(tmp_path):
    official = discover()["official"]
    limits = measurement.Limits(longest=0.0)
    _, rows, _ = run([official], [(16, 32), (16, 64)], tmp_path / "rows.jsonl", limits)
    assert "median_ms" in rows[0]
    assert rows[1]["problem"].startswith("not tried, as at 16 x 32: one call took")
    assert "slow" in tables.tables(rows, brief=False)


def test_ours_is_never_left_out_for_being_slow(tmp_path):
    ours = discover()["ours-aten"]
    limits = measurement.Limits(longest=0.0)
    _, rows, _ = run([ours], [(16, 32), (16, 64)], tmp_path / "rows.jsonl", limits)
    assert ["problem" in row for row in rows] == [False, False]


def test_when_time_is_up_the_rest_is_named(tmp_path):
    limits = measurement.Limits(minutes=0.0)
    _, rows, said = run([discover()["official"]], [(16, 32)], tmp_path / "rows.jsonl", limits)
    assert rows == []
    assert "left out, as beyond 0 minutes: 16x32 fp32" in said


def test_a_group_that_would_not_be_done_in_time_is_not_begun(tmp_path):
    limits = measurement.Limits(minutes=1.0)
    shapes = [(16, 32), (16, 2**20), (16, 64)]
    _, rows, said = run([discover()["ours-aten"]], shapes, tmp_path / "rows.jsonl", limits)
    assert [(row["n"], row["d"]) for row in rows] == [(16, 32), (16, 64)]
    assert "left out, as beyond 1 minutes: 16x1048576 fp32" in said


def test_a_group_is_predicted_by_the_nearest_dimension():
    ours, official = discover()["ours-aten"], discover()["official"]
    prediction = Prediction(lambda seconds: 3)
    assert prediction.seconds([official], (256, 8192)) == 0
    prediction.add((256, 1024), {official: 1.0, ours: 0.5})
    prediction.add((256, 4096), {official: 2.0})
    assert prediction.seconds([official], (512, 8192)) == pytest.approx(MARGIN * 4 * 2.0 * 8)
    both = prediction.seconds([official, ours], (256, 2048))
    assert both == pytest.approx(MARGIN * 4 * (1.0 * 4 + 0.5 * 4), rel=1e-9)


def test_compiled_peers_take_part_where_told():
    compiled = replace(discover()["official"], compiles=True)
    limits = measurement.Limits(compiled_shapes=((16, 32),))
    assert limits.takes_part(compiled, (16, 32), VARIANTS["fp32"])
    assert not limits.takes_part(compiled, (16, 64), VARIANTS["fp32"])
    assert not limits.takes_part(compiled, (16, 32), VARIANTS["bf16-inputs"])
    assert limits.takes_part(discover()["official"], (16, 64), VARIANTS["fp32"])
    assert measurement.Limits(compiled_shapes=None).takes_part(compiled, (9, 9), FP32[0])


def test_the_full_grid_spans_what_it_should():
    shapes = grid.full()
    assert shapes[: len(grid.SHAPES)] == grid.SHAPES
    assert len(set(shapes)) == len(shapes)
    assert {n for n, _ in shapes} >= set(grid.BATCHES)
    assert {d for _, d in shapes} >= set(grid.DIMENSIONS)
    assert all(n * d <= grid.MOST_ELEMENTS for n, d in shapes)


def test_quick_takes_the_quick_shapes_and_writes_nothing(monkeypatch, tmp_path):
    seen = {}

    def measure(shapes, variants, peers, budget, out, console, limits, more_shapes):
        seen.update(shapes=shapes, out=out, minutes=limits.minutes, more=more_shapes)
        return {}

    monkeypatch.setattr(measurement, "measure", measure)
    assert CliRunner().invoke(app, ["loss", "--quick"]).exit_code == 0
    assert seen["shapes"] == grid.QUICK_SHAPES
    assert seen["out"] is None
    assert seen["minutes"] is not None
    assert CliRunner().invoke(app, ["loss", "--full", "--out", str(tmp_path / "r")]).exit_code == 0
    assert seen["shapes"] == grid.SHAPES
    assert seen["more"] == grid.full()
    assert seen["minutes"] is None


@pytest.mark.skipif(not memory_limit.STATUS.exists(), reason="needs /proc")
def test_the_limit_on_memory_ends_with_its_block():
    import resource

    before = resource.getrlimit(resource.RLIMIT_AS)
    with memory_limit.within(64 << 20):
        assert resource.getrlimit(resource.RLIMIT_AS) != before
        with pytest.raises(MemoryError):
            bytearray(256 << 20)
    assert resource.getrlimit(resource.RLIMIT_AS) == before
