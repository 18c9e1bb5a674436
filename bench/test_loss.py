"""The suite `loss` under pytest-benchmark: `pytest bench --benchmark-only --suite loss`."""

from __future__ import annotations


def test_loss(replayed):
    replayed()
