"""Turns, repeats and percentiles."""

from __future__ import annotations

import pytest

from bench.timing import FEWEST, MOST, Budget, interleave, percentile, schedule


def test_slow_candidates_are_spread_over_the_rounds():
    rounds = schedule({"fast": 20, "slow": 5})
    assert len(rounds) == 20
    assert all("fast" in names for names in rounds)
    assert [index for index, names in enumerate(rounds) if "slow" in names] == [3, 7, 11, 15, 19]


def test_every_candidate_gets_its_count():
    counts = {"a": 7, "b": 3, "c": 11}
    samples = interleave({name: lambda: 1.0 for name in counts}, counts)
    assert {name: len(times) for name, times in samples.items()} == counts


def test_order_changes_between_rounds():
    assert len({tuple(names) for names in schedule(dict.fromkeys("abcd", 20))}) > 5


@pytest.mark.parametrize(("estimate", "count"), [(10.0, FEWEST), (0.1, 10), (1e-9, MOST)])
def test_budget_keeps_within_bounds(estimate, count):
    assert Budget(seconds=1.0).count(estimate) == count
    assert Budget(seconds=1.0, repeats=3).count(estimate) == 3


def test_percentiles_interpolate():
    samples = [4.0, 1.0, 3.0, 2.0]
    assert percentile(samples, 50) == 2.5
    assert percentile(samples, 0) == 1.0
    assert percentile(samples, 100) == 4.0
    assert percentile([7.0], 80) == 7.0
