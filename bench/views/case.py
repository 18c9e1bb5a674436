"""Images of one kind, and what is compared on them."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace

import numpy as np

from barlow_fast.data import PRESETS, Views, batches
from barlow_fast.data.order import Shard
from bench.views.images import Photographs

OFFICIAL, V2, LIGHTLY = "official", "torchvision-v2", "lightly"  # recipes


@dataclass(frozen=True)
class Case:
    """Images of one kind.

    Attributes:
        name: what `--cases` and the rows call it.
        title: what the tables call it.
        preset: of the views.
        side: of the views, in pixels.
        batch_size: images per batch.
        feeds: names, ours first; or kernels.
        photographs: the files; None: random pixels in memory.
        share: of the time that a feed gets; the faster the images, the less is needed.
        seconds: that the case takes at most; 0 where it is begun while any time is left.
    """

    name: str
    title: str
    preset: str
    side: int
    batch_size: int
    feeds: tuple[str, ...]
    photographs: Photographs | None = None
    share: float = 1.0
    seconds: float = 0.0

    def __str__(self) -> str:
        return self.name

    @property
    def views(self) -> Views:
        return PRESETS[self.preset]

    def samples(self, count: int) -> Iterator[np.ndarray]:
        """Those of the batches of `count` images, epoch after epoch."""
        while True:
            yield from batches(0, 0, count, self.batch_size, Shard(0, 1))

    def only(self, names: Collection[str]) -> Case:
        """The same with these feeds alone."""
        return replace(self, feeds=tuple(feed for feed in self.feeds if feed in names))
