"""Both forms of the loss, for tests that take `form`."""

from __future__ import annotations

import pytest


@pytest.fixture(params=["gram", "correlation"])
def form(request: pytest.FixtureRequest) -> str:
    return request.param
