"""The bracket around the largest D, for memory that is known; one real process at the end."""

from __future__ import annotations

import json

import pytest
from invoked import invoke

from bench import peak_memory, results
from bench.suites import largest

LIMIT = 20_000_000_000


def measuring(size):
    """A measurement of a peer that needs size(D) bytes; remembers what was tried."""
    tried = []

    def measure(d):
        tried.append(d)
        if size(d) > LIMIT:
            return {"problem": f"requested {size(d)}"}
        return {"input_bytes": 0, "peak_bytes": int(size(d))}

    return measure, tried


@pytest.mark.parametrize(
    "size",
    [
        lambda d: 6144 * d,  # ours: a few times the inputs
        lambda d: 16 * d * d + 4096 * d,  # four matrices of D x D
        lambda d: 38 * d * d,
        lambda d: 6144 * d * (1 + 0.02 * (d % 7)),  # a noisy machine
        lambda d: 6144 * d + 3e8,  # what a process costs anyway
    ],
)
def test_the_edge_is_bracketed_within_five_percent(size):
    measure, tried = measuring(size)
    found = largest.search(measure, LIMIT, largest.FIRST)
    assert size(found["d"]) <= LIMIT < size(found["failed_d"])
    assert found["d"] < found["failed_d"] <= largest.CLOSE * found["d"]
    assert found["problem"].startswith("requested")
    assert len(tried) <= 9
    assert [d for d, _ in found["points"]] == sorted(tried)
    assert dict(map(tuple, found["points"]))[found["failed_d"]] is None


def test_a_peer_that_never_fits():
    measure, tried = measuring(lambda d: 10 * LIMIT)
    found = largest.search(measure, LIMIT, largest.FIRST)
    assert (found["d"], found["failed_d"], tried) == (0, largest.FIRST[0], [largest.FIRST[0]])


def test_a_peer_that_never_fails_ends_at_the_largest_d():
    measure, tried = measuring(lambda d: 1000)
    found = largest.search(measure, LIMIT, largest.FIRST)
    assert found["d"] == largest.MOST_D
    assert found["failed_d"] is None
    assert len(tried) <= largest.MOST_TRIES


def test_measuring_again_replaces_a_group_though_its_d_changed(tmp_path):
    path = tmp_path / "rows.jsonl"
    row = {"suite": "largest", "n": 256, "d": 10, "dtype": "fp32", "peer": "ours"}
    results.merge(path, [row, row | {"peer": "official", "d": 5}])
    results.merge(path, [row | {"d": 12}])
    assert [r["d"] for r in results.read(path)] == [12]


def test_tables_rank_the_peers_and_compare_with_ours():
    common = {
        "suite": "largest", "n": 256, "dtype": "fp32", "limit_bytes": LIMIT, "problem": "no memory",
    }  # fmt: skip
    rows = [
        common
        | {"peer": "official", "d": 32000, "failed_d": 33000, "points": [[16384, 4 * 10**9]]},
        common | {"peer": "ours", "d": 3200000, "failed_d": 3300000, "points": [[16384, 10**8]]},
    ]
    text = largest.tables(rows)
    assert "| barlow_fast | 3200000 | 3300000 | 1× | 0.10 GB |" in text
    assert "| official | 32000 | 33000 | 100× | 4.00 GB |" in text
    assert text.index("barlow_fast |") < text.index("official |")
    assert "- official: no memory" in text


@pytest.mark.slow
@pytest.mark.skipif(not peak_memory.STATUS.exists(), reason="needs /proc")
def test_a_real_peer_fails_with_its_own_error(tmp_path, monkeypatch):
    monkeypatch.setattr(largest, "QUICK_FIRST", (256, 3000))  # 3000 x 3000 x 4 x 4 > 0.06 GB
    out = tmp_path / "rows.jsonl"
    arguments = ["largest", "--quick", "--limit-gb", "0.06", "--peers", "official", "--n", "8"]
    monkeypatch.setattr(largest, "MOST_TRIES", 2)
    result = invoke([*arguments, "--out", str(out)])
    assert result.exit_code == 0, result.output
    (row,) = (json.loads(line) for line in out.read_text().splitlines())
    assert (row["d"], row["failed_d"]) == (256, 3000)
    assert "allocate" in row["problem"]


def test_a_limit_beyond_the_machine_is_refused(monkeypatch):
    monkeypatch.setattr(peak_memory, "available", lambda: 10**9)
    result = invoke(["largest"])
    assert result.exit_code == 2
    assert "1.0 GB are free" in result.output
