"""The processes that the tests of adapters across ranks share: the pool of tests/distributed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).parents[1] / "distributed"))

from ranks import Pool


@pytest.fixture(scope="session")
def pool() -> Iterator[Pool]:
    if not (dist.is_available() and dist.is_gloo_available()):
        pytest.skip("this torch has no gloo")
    pool = Pool()
    yield pool
    pool.close()
