"""What a layout knows of the call that it serves."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from ..kernels import KernelSet
from .groups import Group


@dataclass(frozen=True)
class Call:
    kernels: KernelSet
    group: Group
    samples: tuple[int, ...]  # samples of each rank
    d: int
    dtype: torch.dtype  # of the embeddings
    lambd: float
    eps: float
    precision: str
    statistics: str  # 'global' or 'local'
    use_all_reduce: bool = False  # for sums over ranks (`collectives.Reduction`)

    @property
    def n(self) -> int:
        """Samples of all ranks."""
        return sum(self.samples)

    @property
    def own_samples(self) -> int:
        return self.samples[self.group.rank]

    @property
    def is_global(self) -> bool:
        return self.statistics == "global"

    def counts(self, like: Tensor) -> Tensor:
        """(W, 1, 1) float64: the samples of each rank."""
        return _counts(self.samples, like.device)


@functools.lru_cache(maxsize=64)
def _counts(samples: tuple[int, ...], device: torch.device) -> Tensor:
    """Cached, because a copy to a GPU would wait for it."""
    return torch.tensor(samples, dtype=torch.float64, device="cpu").view(-1, 1, 1).to(device)
