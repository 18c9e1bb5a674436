"""Lets `pytest bench --benchmark-only` time, though the project's settings switch timing off."""

from __future__ import annotations

import pytest


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """--benchmark-only asks for timing as plainly as --benchmark-enable does."""
    if getattr(config.option, "benchmark_only", False):
        config.option.benchmark_enable = True
