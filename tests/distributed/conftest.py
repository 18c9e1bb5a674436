"""The processes that all tests of this folder share, and what most are run for."""

from __future__ import annotations

import pytest
from ranks import pool
from whole import LAYOUTS

__all__ = ["pool"]


@pytest.fixture(autouse=True)
def _one_thread(one_thread: None) -> None:
    """The many small products of this process are taken beside others that want its cores."""


@pytest.fixture(params=LAYOUTS)
def layout(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=["global", "local"])
def statistics(request: pytest.FixtureRequest) -> str:
    return request.param
