"""The processes that all tests of this folder share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from ranks import Pool


@pytest.fixture(scope="session")
def pool() -> Iterator[Pool]:
    if not (dist.is_available() and dist.is_gloo_available()):
        pytest.skip("this torch has no gloo")
    pool = Pool()
    yield pool
    pool.close()


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The many small products of this process are taken beside others that want its cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
