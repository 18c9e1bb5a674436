"""The processes that all tests of this folder share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from ranks import pool

__all__ = ["pool"]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The many small products of this process are taken beside others that want its cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
