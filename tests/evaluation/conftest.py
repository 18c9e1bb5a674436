"""Keeps tiny networks on one thread."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _one_thread(one_thread: None) -> None:
    """On cores that others use too, threads wait for each other ten times longer than these
    networks compute."""
