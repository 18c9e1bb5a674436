"""Losses of any number of views need little memory beside their inputs and gradients."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from ended import completed

PROGRAM = Path(__file__).with_name("family_memory.py")
STATUS = Path("/proc/self/clear_refs")


@pytest.mark.skipif(not STATUS.exists(), reason="Linux has the peak of a process")
@pytest.mark.parametrize(
    ("case", "most"),
    [
        ("mixed 3 256 32768", 2.0), ("vicreg 2 512 32768", 0.5), ("frossl 2 512 32768", 0.5),
        ("barlow 8 256 8192", 1.0),
    ],
)  # fmt: skip
def test_memory_beyond_inputs_and_gradients(case, most):
    """As multiples of the inputs; one D x D matrix of the widest would be 43 times all of them."""
    done = completed(sys.executable, PROGRAM, *case.split(), BARLOW_FAST_CPU_POOL_MIB="0")
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < most
