"""Peak memory of one pass of a loss of the family beyond its inputs and gradients, as a multiple of
the inputs: run by `test_family_memory.py` in a process of its own, which has no pool."""

from __future__ import annotations

import ctypes
import re
import sys
from pathlib import Path

import torch
from torch import Tensor

from barlow_fast import barlow_twins_loss, frossl_loss, mixed_barlow_twins_loss, vicreg_loss

STATUS = Path("/proc/self/status")


def resident(key: str) -> int:
    return int(re.search(rf"^{key}:\s+(\d+) kB", STATUS.read_text(), re.MULTILINE)[1]) << 10


def step(name: str, views: list[Tensor]) -> None:
    if name == "mixed":
        loss = mixed_barlow_twins_loss(*views, torch.arange(len(views[0])).flip(0), 0.3)
    elif name == "vicreg":
        loss = vicreg_loss(views)
    elif name == "frossl":
        loss = frossl_loss(views)
    else:
        loss = barlow_twins_loss(views)
    loss.backward()


def drawn(count: int, n: int, d: int) -> list[Tensor]:
    return [torch.randn(n, d).requires_grad_() for _ in range(count)]


def main(name: str, count: int, n: int, d: int) -> None:
    step(name, drawn(count, 8, 32))  # threads, libraries and code
    views = drawn(count, n, d)
    ctypes.CDLL(None).malloc_trim(0)
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    step(name, views)
    inputs = sum(z.nbytes for z in views)
    print((resident("VmHWM") - before - inputs) / inputs)


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
