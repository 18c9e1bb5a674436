"""The suite `distributed`: agreement first, bytes counted twice, processes that always end."""

from __future__ import annotations

import json
import os
import threading
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from ended import SECONDS
from invoked import invoke

from barlow_fast.distributed import LAYOUTS, cost
from bench import peak_memory, report, results
from bench.inputs import VARIANTS
from bench.ranks import implementations, measurement
from bench.ranks.implementations import OFFICIAL, PRECISION
from bench.ranks.measurement import Task
from bench.suites import distributed
from bench.timing import Budget

# At N = 2048 and D = 16384 in float32, how many times fewer bytes than the all-reduce of C.
TARGETS = {2: 7, 4: 10}


def row(peer, seconds, sent, wire=None, **changes):
    layout = peer.removeprefix("ours-") if peer != OFFICIAL else None
    return {
        "suite": "distributed", "n": 64, "d": 256, "dtype": "fp32", "ranks": 2, "threads": 1,
        "peer": peer, "layout": layout, "auto": layout == "features", "source": "", "repeats": 3,
        "median_s": seconds, "p20_s": seconds * 0.9, "p80_s": seconds * 1.1,
        "counted_bytes": sent, "counted_by_step": None, "wire_bytes": wire,
    } | changes  # fmt: skip


def test_a_ring_sends_two_times_w_minus_one_w_ths():
    assert implementations.wire_bytes(16384, 2, 4) == 2**30
    assert implementations.wire_bytes(16384, 4, 4) == 1.5 * 2**30


@pytest.mark.parametrize("ranks", TARGETS)
def test_target_of_bytes_by_the_model(ranks):
    rows = tuple(implementations.split(2048, ranks))
    layout = implementations.automatic(rows, 16384, VARIANTS["fp32"])
    found = cost.cost(layout, rows, 16384, torch.float32, "fp32")
    assert implementations.wire_bytes(16384, ranks, 4) >= TARGETS[ranks] * found.sent


def committed():
    rows = [r for path in results.FOLDER.glob("cpu-*.jsonl") for r in results.read(path)]
    rows = [r for r in rows if r["suite"] == "distributed"]
    if not rows:
        pytest.skip("no rows across ranks are committed yet")
    return rows


@pytest.mark.parametrize("ranks", TARGETS)
def test_target_of_bytes_in_the_committed_rows(ranks):
    key = {"n": 2048, "d": 16384, "dtype": "fp32", "ranks": ranks}
    rows = [r for r in committed() if all(r[k] == v for k, v in key.items())]
    ours = next(r for r in rows if r.get("auto"))
    other = implementations.wire_bytes(16384, ranks, 4)
    assert other >= TARGETS[ranks] * ours["counted_bytes"]
    if ours["wire_bytes"] is not None:
        assert other >= TARGETS[ranks] * ours["wire_bytes"] * 0.99  # headers
    all_reduce = next(r for r in rows if r["peer"] == OFFICIAL)
    assert all_reduce["counted_bytes"] == other


def test_committed_bytes_are_those_of_the_model_and_of_the_system():
    for r in committed():
        if "problem" in r:
            continue
        if r["layout"] is not None:
            rows = tuple(implementations.split(r["n"], r["ranks"]))
            precision = PRECISION[r["dtype"]]
            found = cost.cost(r["layout"], rows, r["d"], torch.float32, precision)
            assert r["counted_bytes"] == found.sent
        if r["wire_bytes"] is None:
            continue
        # Headers and barriers; the all-reduce also exchanges statistics.
        assert r["counted_bytes"] <= r["wire_bytes"] <= 1.02 * r["counted_bytes"]


@pytest.mark.slow
def test_a_small_run(tmp_path):
    out = tmp_path / "rows.jsonl"
    arguments = ["distributed", "--shapes", "64x512", "--ranks", "2", "--repeats", "2"]
    result = invoke([*arguments, "--deadline", str(SECONDS), "--out", str(out)])
    assert result.exit_code == 0, result.output
    rows = results.read(out)
    assert {(r["peer"], r["dtype"]) for r in rows} == {
        *((f"ours-{layout}", name) for layout in LAYOUTS for name in PRECISION),
        (OFFICIAL, "fp32"),
    }
    for r in rows:
        assert 0 < r["p20_s"] <= r["median_s"] <= r["p80_s"]
        assert r["repeats"] == 2
        assert r["provenance"]["cpu"]
        if r["layout"] is None:
            assert r["counted_bytes"] == implementations.wire_bytes(512, 2, 4)
            continue
        precision = PRECISION[r["dtype"]]
        found = cost.cost(r["layout"], (32, 32), 512, torch.float32, precision)
        assert r["counted_bytes"] == sum(r["counted_by_step"].values()) == found.sent
        if measurement.loopback_bytes() is not None:
            assert r["wire_bytes"] >= r["counted_bytes"]
    for name in PRECISION:
        assert sum(r.get("auto", False) for r in rows if r["dtype"] == name) == 1


def wrong_loss(z_a, z_b, n):
    return 1.001 * implementations.layout_loss("rows", z_a, z_b, n)


def check_wrong_ones(folder):
    """Entry of a process: what is said of implementations that are wrong."""
    group = measurement.Group()
    right = implementations.discover()["ours-rows"]
    wrong = {
        "loss": replace(right, loss=wrong_loss),
        "gradient": replace(right, exact=False),
        "nothing": right,
    }
    variants = (VARIANTS["fp32"],)
    found = {name: measurement.check_small(each, variants, group) for name, each in wrong.items()}
    if group.rank == 0:
        (folder / "found").write_text(json.dumps(found))


@pytest.mark.slow
def test_wrong_ones_are_named(tmp_path):
    measurement.run(check_wrong_ones, 2, (tmp_path,), SECONDS)
    found = json.loads((tmp_path / "found").read_text())
    assert found["nothing"] is None
    for name in ("loss", "gradient"):
        assert "off by" in found[name]


def stand_still(folder):
    """Entry of a process that waits for another one in vain."""
    (folder / str(os.getpid())).touch()
    if dist.get_rank() == 0:
        threading.Event().wait()
    dist.barrier()


def raise_on_one_rank(folder):
    """Entry of a process."""
    (folder / str(os.getpid())).touch()
    if dist.get_rank() == 1:
        raise ArithmeticError("one of them is broken")
    dist.barrier()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("entry", "error", "text"),
    [
        (stand_still, TimeoutError, f"did not end within {SECONDS} s"),
        # Whichever rank is seen to fail first: the one that raised, or the one that waited for it.
        (raise_on_one_rank, RuntimeError, "one of them is broken|Connection|remote"),
    ],
)
def test_processes_end_whatever_happens(tmp_path, monkeypatch, entry, error, text):
    def clock():  # the time is over when both have come so far
        return 2.0 * SECONDS if len(list(tmp_path.iterdir())) == 2 else 0.0

    if error is TimeoutError:
        monkeypatch.setattr(measurement, "time", SimpleNamespace(monotonic=clock))
    with pytest.raises(error, match=text):
        measurement.run(entry, 2, (tmp_path,), SECONDS)
    assert len(list(tmp_path.iterdir())) == 2
    for each in tmp_path.iterdir():
        with pytest.raises(ProcessLookupError):
            os.kill(int(each.name), 0)


def allocate(share):
    """Entry of a process."""
    torch.empty(int(share * peak_memory.available()), dtype=torch.uint8)


@pytest.mark.slow
@pytest.mark.skipif(not peak_memory.MEMINFO.exists(), reason="needs /proc")
def test_a_rank_has_its_share_of_the_memory():
    measurement.run(allocate, 2, (0.1,), SECONDS)
    with pytest.raises(RuntimeError, match="alloc"):
        measurement.run(allocate, 2, (0.6,), SECONDS)


@pytest.fixture
def task(tmp_path):
    """(n, d, peer) -> a task of that peer on two ranks, whose inputs are there."""

    def task(n, d, name):
        peers = (implementations.discover()[name],)
        found = Task(n, d, 2, (VARIANTS["fp32"],), peers, Budget(), tmp_path)
        found.data.touch()
        return found

    return task


def test_what_was_finished_survives_a_failure(task, monkeypatch):
    finished = {"rows": [row("ours-rows", 1.0, 1)], "failures": {OFFICIAL: "off by 1"}}

    def break_off(entry, ranks, arguments, seconds):
        arguments[0].results.write_text(json.dumps(finished))
        raise TimeoutError("time is up")

    monkeypatch.setattr(measurement, "run", break_off)
    some = task(64, 256, "ours-rows")
    some.results.write_text("of an earlier run")
    rows, failures = distributed.measure(some, 1.0)
    assert rows == finished["rows"]
    assert failures == {
        "64 x 256 on 2 ranks": "time is up", f"2 ranks, {OFFICIAL}": "off by 1",
    }  # fmt: skip


def test_tables_state_both_counts_and_both_outcomes():
    rows = [
        row("ours-features", 2.0, 10 << 20, 11 << 20),
        row("ours-rows", 3.0, 20 << 20),
        row(OFFICIAL, 10.0, 100 << 20, 101 << 20),
        row("ours-features", 4.0, 10 << 20, ranks=4),
        row(OFFICIAL, 2.0, 100 << 20, ranks=4),
    ]
    text = distributed.tables(rows)
    assert (
        "| 64 × 256 | 2 | barlow_fast, `features` (auto) | **2** | 1.8 | 2.2 | 3 | 10.0 | 11.0 |"
        in text
    )
    assert "| 64 × 256 | 2 | barlow_fast, `rows` | 3 | 2.7 | 3.3 | 3 | 20.0 | – |" in text
    assert "64 × 256 on 2 ranks 5.0× as fast with 10.0× fewer bytes" in text
    assert "slower at: 64 × 256 on 4 ranks (2.00× the time)" in text
    assert "| s | p20 | p80 | repeats | MiB sent |" in text


def test_rows_of_other_ranks_are_another_group(tmp_path):
    path = tmp_path / "cpu-example.jsonl"
    results.merge(path, [row("ours-rows", 1.0, 1), row("ours-rows", 1.0, 1, ranks=4)])
    results.merge(path, [row("ours-rows", 2.0, 1, ranks=4)])
    assert [(r["ranks"], r["median_s"]) for r in results.read(path)] == [(2, 1.0), (4, 2.0)]


def test_the_results_have_a_page_for_it():
    files = report.machine_files(results.FOLDER)
    assert "](distributed.md)" in report.index(files)
    assert (results.FOLDER / "distributed.md").is_file()
