"""Loss, terms and gradients of every layout against one process that has all rows, in float64."""

from __future__ import annotations

import pytest
import torch
from whole import LAYOUTS, computed, differentiated, views

# Rows of four ranks (the first W of them count) and D: both sides of N = D, columns that do not
# divide by W, fewer columns than ranks, one column, several tiles of K.
EQUAL = (((5, 5, 5, 5), 24), ((5, 5, 5, 5), 31), ((40, 40, 40, 40), 3), ((9, 9, 9, 9), 1))
UNEQUAL = (((2, 5, 9, 3), 130), ((7, 3, 2, 11), 2), ((70, 33, 65, 64), 129), ((30, 21, 9, 4), 17))
# One rank has a single row, or none; then statistics cannot be its own.
FEW = (((6, 1, 3, 4), 17), ((1, 30, 21, 9), 5), ((6, 0, 3, 4), 33), ((0, 40, 0, 9), 6))
BOUND = 1e-12


def case(group, kind, rows, d, options):
    return computed(group, *views(kind, rows, d), rows, **options)


def sequence(group, cases, options):
    return [case(group, "correlated", rows, d, options) for rows, d in cases]


def assert_equal(found: list, rows: tuple[int, ...], d: int, statistics: str) -> None:
    """Of all ranks: the same loss and terms, and W times the gradient of their rows."""
    exact = differentiated(*views("correlated", rows, d), rows, statistics)
    for values in found:
        for name, got, want in zip(("loss", "on", "off"), values, exact, strict=False):
            # off_diagonal is what remains of two sums that are at most D each.
            error = abs(float(got) - float(want)) / max(float(want), d)
            assert error < BOUND, f"{name} for rows {rows}, D = {d}: {error:.3g}"
    for view in (3, 4):
        got = torch.cat([values[view] for values in found]) / len(rows)
        error = float((got - exact[view]).norm() / exact[view].norm())
        assert error < BOUND, f"gradient {view - 3} for rows {rows}, D = {d}: {error:.3g}"


@pytest.mark.parametrize("ranks", [2, 3, 4])
@pytest.mark.parametrize("statistics", ["global", "local"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_equals_one_process(layout, statistics, ranks, backend, pool):
    every = EQUAL + UNEQUAL + (FEW if statistics == "global" else ())
    cases = [(rows[:ranks], d) for rows, d in every]
    options = {"layout": layout, "statistics": statistics, "backend": backend}
    by_rank = pool.run(sequence, ranks, cases, options)
    for (rows, d), *found in zip(cases, *by_rank, strict=True):
        assert_equal(found, rows, d, statistics)
