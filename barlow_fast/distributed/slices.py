"""Feature slices of the embeddings, and shares of packed matrices, of each rank.

Pure arithmetic on sizes that all ranks know: no exchange is needed.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from ..kernels import tiles


@functools.lru_cache(maxsize=128)
def columns(d: int, ranks: int) -> tuple[tuple[int, int], ...]:
    """(begin, end) of each rank's columns: consecutive, nearly equal, in whole blocks of kernels
    where there are enough columns for that; empty for some ranks where D < W."""
    # Whole cache lines and vectors, as long as the largest share grows by at most an eighth.
    unit = next(u for u in (64, 16, 8, 1) if u == 1 or d >= 8 * u * ranks)
    blocks = -(-d // unit)
    base, extra = divmod(blocks, ranks)
    ends = [min(d, unit * (base * (r + 1) + min(r + 1, extra))) for r in range(ranks)]
    return tuple(zip([0, *ends[:-1]], ends, strict=True))


def widths(d: int, ranks: int) -> list[int]:
    return [end - begin for begin, end in columns(d, ranks)]


class TileShare(NamedTuple):
    """One rank's rows of the packed tiles of a symmetric matrix."""

    weights: Tensor  # (rows,) float64: 2 for rows that stand for their mirror image too, 0: padding
    diagonal: Tensor  # positions of diagonal elements in the flattened (rows, B) share


@functools.lru_cache(maxsize=32)
def share_of_tiles(
    n: int, precision: str, rank: int, ranks: int, device: torch.device
) -> TileShare:
    """What `rank` holds of all T * B rows of tiles, dealt out in consecutive, equal pieces."""
    b, count = tiles.side(n, precision), tiles.count(n, precision)
    rows = -(-count * b // ranks)
    tile = (torch.arange(rows, device=device) + rank * rows) // b
    tile_rows, tile_columns = tiles.positions(-(-n // b), device)
    real = tile < count
    last = tile.clamp_max(count - 1)
    weights = torch.where(tile_rows[last] == tile_columns[last], 1.0, 2.0).double() * real
    diagonal = tiles.diagonal(n, precision, device) - rank * rows * b
    return TileShare(weights, diagonal[(diagonal >= 0) & (diagonal < rows * b)])
