"""Where `barlow_twins_loss` leaves a graph of torch.compile.

A module of its own, imported by the first call with a process group: `torch.compiler.disable` loads
the compiler, which takes a second.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


@torch.compiler.disable
def outside_graphs(function: Callable[..., Any], *arguments: Any) -> Any:
    """`function(*arguments)` in eager mode: in a graph, exchanges between processes could change
    their order."""
    return function(*arguments)
