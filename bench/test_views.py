"""`pytest bench --benchmark-only --suite views`, see `bench/replay/views.py`."""

from __future__ import annotations


def test_views(replayed):
    replayed()
