"""The suite `views` under pytest-benchmark: `pytest bench --benchmark-only --suite views`."""

from __future__ import annotations


def test_views(replayed):
    replayed()
