"""The loss on a device that captures graphs, run on the CPU: rows, problems, time and resuming."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch

from bench import agreement, devices, sources
from bench.devices import Cpu, DeviceLostError, NoGraphError
from bench.floor import Peaks
from bench.inputs import CUDA_GRID, CUDA_VARIANTS, VARIANTS, Case
from bench.peers import choose, discover
from bench.peers.gram_plain import gram_loss
from bench.state import STOPPED, Journal

FP32 = VARIANTS["fp32"]
CASES = [Case(16, 32, FP32), Case(32, 16, FP32)]
PEAKS = Peaks(gemm_fp32=100.0, gemm_bf16=200.0, copy=20.0)


@pytest.fixture(autouse=True)
def fixed_sources(monkeypatch):
    """A file that is edited while the tests run makes no difference."""
    monkeypatch.setattr(sources, "fingerprint", lambda: "0123456789ab")


class Replaying(Cpu):
    """A CPU that can 'capture', and whose calls all take two milliseconds."""

    measures = devices.Cuda.measures
    identity = devices.Cuda.identity
    judges_others = devices.Cuda.judges_others
    row = {"device": "Example GPU"}  # noqa: RUF012

    def __init__(self, wrong: bool = False) -> None:
        super().__init__()
        self.wrong = wrong

    def origin(self):
        return super().origin() | {"gpu": "Example GPU"}

    def peaks(self):
        return PEAKS

    def capture(self, action):
        outcome = action()
        if self.wrong:
            return (lambda: None), replace(outcome, loss=outcome.loss * 2)
        return (lambda: None), outcome

    def timed(self, forward, backward):
        return {devices.WHOLE: 0.002}, backward(forward())

    def replay_seconds(self, replay):
        replay()
        return 0.002


class WithoutGraphs(Replaying):
    def capture(self, action):
        raise NoGraphError("operation not permitted when stream is capturing")


def peer(name, of, **changes):
    return replace(discover()["gram-plain"], name=name, build=lambda n, d, dtype: of, **changes)


def out_of_memory(z_a, z_b):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 64.00 GiB. GPU 0 has ...")


def wrong(z_a, z_b):
    return 1.1 * gram_loss(z_a, z_b)


def out_of_memory_when_large(z_a, z_b):
    small = tuple(z_a.shape) in agreement.SMALL_SHAPES
    return gram_loss(z_a, z_b) if small else out_of_memory(z_a, z_b)


@pytest.fixture
def run(measure):
    """The suite on a device that captures graphs, with the cases and grid of these tests."""

    def run(peers, device=None, cases=CASES, compiled=CUDA_GRID, **given):
        return measure(peers, cases, device or Replaying(), compiled, **given)

    return run


def test_a_row_has_both_times_the_floor_and_where_it_comes_from(run):
    summary, rows, text = run(choose("gram-plain,official"))
    assert (summary.measured, summary.left, summary.failures) == (2, [], {})
    assert [(r["n"], r["d"], r["peer"]) for r in rows] == [
        (16, 32, "gram-plain"), (16, 32, "official"), (32, 16, "gram-plain"), (32, 16, "official"),
    ]  # fmt: skip
    for row in rows:
        assert row["device"] == "Example GPU"
        assert row["problem"] is None
        assert row["graph_problem"] is None
        assert row["repeats"] == row["graph_repeats"] == 2
        assert row["p20_ms"] <= row["median_ms"] <= row["p80_ms"]
        assert row["graph_ms"] >= 1
        assert row["graph_fraction_of_floor"] == pytest.approx(
            row["floor_ms"] / row["graph_ms"], rel=1e-3
        )
        assert len(row["provenance"]["sources"]) == 12
    assert "n 16, d 32, dtype fp32, peer official, exact True, repeats 2, median_ms 2.0" in text


def test_a_peer_that_runs_out_of_memory_is_a_row_and_not_a_crash(run):
    peers = [peer("greedy", out_of_memory_when_large), *choose("gram-plain")]
    summary, rows, text = run(peers, cases=CASES[:1])
    greedy, other = rows
    assert greedy["problem"] == "out of memory (requested 64.00 GiB)"
    assert greedy["median_ms"] is greedy["graph_ms"] is None
    assert greedy["repeats"] == 0
    assert other["median_ms"] > 0
    assert re.search(r"peer greedy, .* problem out of memory \(requested 64", text, re.MULTILINE)
    assert summary.failures == {}


def test_a_wrong_peer_is_a_row_with_its_problem(run):
    summary, rows, _ = run([peer("ours", wrong, ours=True)], cases=CASES[:1])
    assert "off by" in rows[0]["problem"]
    assert rows[0]["median_ms"] is None
    assert set(summary.failures) == {"16x32 fp32 ours"}


def test_what_cannot_be_captured_says_so_and_is_called_all_the_same(run):
    _, rows, text = run(choose("official"), WithoutGraphs(), CASES[:1])
    assert rows[0]["graph_problem"] == "operation not permitted when stream is capturing"
    assert rows[0]["graph_ms"] is None
    assert rows[0]["problem"] is None
    assert rows[0]["median_ms"] > 0
    assert "peer official" in text


def test_a_replay_with_a_wrong_result_is_not_timed(run):
    _, rows, _ = run(choose("official"), Replaying(wrong=True), CASES[:1])
    assert "off by" in rows[0]["graph_problem"]
    assert rows[0]["graph_ms"] is None


@pytest.mark.slow
def test_finished_groups_of_the_same_sources_are_not_measured_again(run, monkeypatch):
    _, first, _ = run(choose("official"), cases=CASES[:1])
    summary, rows, _ = run(choose("official"), resume=True)
    assert (summary.measured, summary.left) == (1, [])
    assert rows[0] == first[0]
    assert run(choose("official"))[0].measured == 2
    monkeypatch.setattr(sources, "fingerprint", lambda: "another")
    assert run(choose("official"), resume=True)[0].measured == 2


@pytest.mark.slow
def test_a_group_that_lacks_a_peer_is_measured_again(run):
    run(choose("official"), cases=CASES[:1])
    both = choose("gram-plain,official")
    summary, rows, _ = run(both, cases=CASES[:1], resume=True)
    assert summary.measured == 1
    assert [row["peer"] for row in rows] == ["gram-plain", "official"]
    assert run(both, cases=CASES[:1], resume=True)[0].measured == 0
    assert run(choose("official"), cases=CASES[:1], resume=True)[0].measured == 0


def test_compiled_peers_take_part_at_their_shapes_only(run):
    peers = [peer("slow", gram_loss, compiles=True), *choose("official")]
    grid = replace(CUDA_GRID, compiled=([(32, 16)], ("fp32",)))
    _, rows, _ = run(peers, compiled=grid)
    assert [(row["n"], row["peer"]) for row in rows] == [
        (16, "official"), (32, "slow"), (32, "official"),
    ]  # fmt: skip
    assert not grid.compiles(Case(32, 16, CUDA_VARIANTS["tf32"]))


class Breaking(Replaying):
    """Its context is broken once a peer has raised."""

    broken = False

    def check_alive(self):
        if self.broken:
            raise DeviceLostError("an illegal memory access was encountered")


def test_a_broken_context_ends_the_process_and_the_next_one_leaves_the_peer_out(run, tmp_path):
    device, journal = Breaking(), tmp_path / "journal"

    def breaks(z_a, z_b):
        if tuple(z_a.shape) == (16, 32):
            device.broken = True
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return gram_loss(z_a, z_b)

    peers = [peer("breaking", breaks), *choose("official")]
    with pytest.raises(DeviceLostError):
        run(peers, device, journal=journal)
    assert not (tmp_path / "rows.jsonl").exists()
    _, rows, _ = run(peers, Replaying(), journal=journal, resume=True)
    assert "illegal memory access" in rows[0]["problem"]
    assert rows[1]["median_ms"] > 0
    assert rows[2]["problem"] is None


def test_a_peer_that_never_ended_is_left_out(run, tmp_path):
    journal = tmp_path / "journal"
    journal.write_text('{"start": "16x32 fp32 official"}\n{"start": "16x')
    assert Journal(journal).lost == {"16x32 fp32 official": STOPPED}
    _, rows, _ = run(choose("official"), cases=CASES[:1], journal=journal)
    assert rows[0]["problem"] == STOPPED


def test_the_grid_begins_with_what_matters_and_has_every_case_once():
    cases = CUDA_GRID.cases(list(CUDA_VARIANTS.values()))
    assert [str(case) for case in cases[:4]] == [
        "2048x8192 bf16-inputs", "256x8192 bf16-inputs", "169343x256 bf16-inputs",
        "2048x8192 bf16-autocast",
    ]  # fmt: skip
    assert len(cases) == len(set(cases)) == 26 * 5
    assert len(CUDA_GRID.compiled[0]) <= 8


def test_float32_is_bounded_by_the_better_of_two_rates():
    fields = {"gemm_bf16": 800e3, "gemm_fp16": 800e3, "copy": 3000.0}
    fields |= {"launch_eager_us": 4.0, "launch_graph_us": 1.0}
    peaks = Peaks(gemm_fp32=50e3, gemm_tf32=390e3, **fields)
    assert peaks.gemm("fp32") == 130e3
    assert peaks.gemm("tf32") == 390e3
    assert peaks.as_fields()["fp32_floor_rate"] == "TF32 GEMM / 3"
    peaks = Peaks(gemm_fp32=50e3, gemm_tf32=90e3, **fields)
    assert peaks.gemm("fp32") == 50e3
    assert peaks.as_fields()["fp32_floor_rate"] == "fp32 GEMM"
    assert peaks.gemm("tf32") == 800e3 / 3  # three products of bfloat16 pieces are more accurate
    assert peaks.as_fields()["copy_gbps"] == 3000.0
