"""What the loss suite times and leaves out on a CPU, on shapes that take no time."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
from invoked import invoke

from bench import floor, peak_memory
from bench import session as sessions
from bench.devices import Cpu
from bench.inputs import CPU_GRID, VARIANTS, Case
from bench.peers import discover
from bench.session import Given, Session
from bench.suites import loss
from bench.suites import loss as tables

FP32 = VARIANTS["fp32"]


def cases(*shapes):
    return [Case(n, d, FP32) for n, d in shapes]


@pytest.fixture(autouse=True)
def peaks(monkeypatch):
    """Measuring them takes seconds."""
    monkeypatch.setattr(floor, "measure", lambda device: floor.Peaks(100.0, 200.0, 20.0))


def test_the_forward_half_is_part_of_every_call(measure):
    peers = [discover()[name] for name in ("ours-aten", "official")]
    session, rows, _ = measure(peers, cases((64, 256)))
    assert not session.failures
    assert [row["peer"] for row in rows] == ["ours-aten", "official"]
    for row in rows:
        assert 0 < row["forward_ms"] < row["median_ms"]
        assert row["forward_p20_ms"] <= row["forward_ms"] <= row["forward_p80_ms"]
        assert row["repeats"] == 2
        assert not any(key.startswith("graph") for key in row)


def test_what_does_not_fit_is_a_row_and_is_not_tried_again(measure):
    calls = []

    def build(n, d, dtype):
        def loss(z_a, z_b):
            calls.append(z_a.shape)
            if d > 80:
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory: 8 bytes")
            return discover()["official"].build(n, d, dtype)(z_a, z_b)

        return loss

    greedy = replace(discover()["official"], name="greedy", build=build, double=False)
    shapes = cases((16, 32), (16, 96), (32, 128), (8, 128))
    session, rows, said = measure([greedy], shapes)
    assert not session.failures
    problems = {(row["n"], row["d"]): row["problem"] for row in rows}
    assert problems[16, 32] is None
    assert "can't allocate" in problems[16, 96]
    assert problems[32, 128].startswith("not tried, as at 16 x 96: does not fit into memory")
    assert problems[8, 128].startswith("does not fit")  # fewer samples: tried
    assert (32, 128) not in calls
    assert "can't allocate" in said
    text = tables.tables(rows)
    assert "| 16 × 96 | " in text
    assert "no memory |" in text


def test_a_slow_peer_is_not_tried_at_larger_shapes(measure):
    _, rows, _ = measure([discover()["official"]], cases((16, 32), (16, 64)), longest=0.0)
    assert rows[0]["median_ms"] > 0
    assert rows[1]["problem"].startswith("not tried, as at 16 x 32: one call took")
    assert "slow" in tables.tables(rows)


def test_ours_is_never_left_out_for_being_slow(measure):
    _, rows, _ = measure([discover()["ours-aten"]], cases((16, 32), (16, 64)), longest=0.0)
    assert [row["problem"] for row in rows] == [None, None]


def test_when_time_is_up_the_rest_is_named(measure, capsys):
    shapes = cases((16, 32), (32, 16))
    session, rows, _ = measure([discover()["official"]], shapes, minutes=0.0)
    assert (session.measured, session.left) == (0, ["16x32 fp32", "32x16 fp32"])
    assert rows == []
    assert session.end() == 0
    said = capsys.readouterr().out
    assert "left out, as beyond 0 minutes: 16x32 fp32, 32x16 fp32" in said


def test_a_group_as_long_as_the_longest_before_must_be_done_in_time(monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(sessions, "time", SimpleNamespace(monotonic=lambda: clock.now))
    session = Session(Cpu(), Given(quick=True, minutes=1.0))
    taken = {"short 1": 10.0, "long 1": 35.0, "long 2": 35.0, "short 2": 10.0, "short 3": 10.0}
    begun = []
    for case in session.in_time(taken, alike=lambda case: case.split()[0]):
        begun.append(case)
        clock.now += taken[case]
    assert begun == ["short 1", "long 1", "short 2"]
    assert session.left == ["long 2", "short 3"]
    assert session.measured == 3


def test_compiled_peers_take_part_where_the_options_say():
    compiled = replace(discover()["official"], compiles=True)
    peers = [compiled, discover()["ours-aten"]]

    def some(grid, case):
        return loss.Settings(None, compiled=grid).some(peers, case)

    def at(text, named=False, quick=False):
        return loss.compiled_grid(CPU_GRID, text, named, quick)

    (small, other), half = cases((16, 32), (16, 64)), Case(16, 32, VARIANTS["bf16-inputs"])
    assert some(at("16x32"), small) == some(at("all"), half) == peers
    for grid, case in ((at("16x32"), other), (at("16x32"), half), (at("none"), small)):
        assert some(grid, case) == peers[1:]
    assert at(None) is CPU_GRID
    assert some(at(None, quick=True), Case(256, 1024, FP32)) == peers[1:]
    assert at(None, named=True) is None


def test_the_full_grid_spans_what_it_should():
    found = [(case.n, case.d) for case in CPU_GRID.cases([FP32], full=True)]
    main = [(case.n, case.d) for case in CPU_GRID.cases([FP32])]
    assert found[: len(main)] == main
    assert len(set(found)) == len(found)
    assert {n for n, _ in found} >= {32, 128, 512, 2048, 8192, 65536}
    assert {d for _, d in found} >= {64, 256, 1024, 4096, 16384, 65536, 131072}
    assert all(n * d <= 2**26 for n, d in found)
    few = CPU_GRID.cases([FP32, VARIANTS["bf16-inputs"]], [(16, 32)], full=True)
    assert [case for case in few if case.variant != FP32] == [Case(16, 32, VARIANTS["bf16-inputs"])]


def test_quick_takes_the_quick_shapes_and_writes_nothing(monkeypatch, tmp_path):
    seen = {}

    def measure(session, cases, peers, settings):
        shapes = {(case.n, case.d) for case in cases}
        seen.update(shapes=shapes, out=session.out, minutes=session.given.minutes)

    monkeypatch.setattr(loss, "measure", measure)
    assert invoke(["loss", "--quick"]).exit_code == 0
    assert seen["shapes"] == set(CPU_GRID.quick)
    assert seen["out"] is None
    assert seen["minutes"] is not None
    assert invoke(["loss", "--full", "--out", str(tmp_path / "r")]).exit_code == 0
    assert seen["shapes"] > {*CPU_GRID.more}
    assert seen["minutes"] is None


@pytest.mark.skipif(not peak_memory.STATUS.exists(), reason="needs /proc")
def test_the_limit_on_memory_ends_with_its_block():
    import resource

    before = resource.getrlimit(resource.RLIMIT_AS)
    with peak_memory.within(64 << 20):
        assert resource.getrlimit(resource.RLIMIT_AS) != before
        with pytest.raises(MemoryError):
            bytearray(256 << 20)
    assert resource.getrlimit(resource.RLIMIT_AS) == before
