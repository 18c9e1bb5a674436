"""Symmetric matrices as the tiles on and below their diagonal: half the bytes, the whole matrix.

The tiles are counted row by row: tile (i, j), j <= i, is number i (i + 1) / 2 + j. Tiles on the
diagonal are stored whole; values beyond row and column N are zero. Every kernel set uses this
layout for matrices that leave it (`gram_tiles`, `gram_from_tiles`). Sums over ranks may be taken
tile by tile: the parts of K over the columns of each rank add up to K.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

SMALL, LARGE = 64, 128


def side(n: int, precision: str) -> int:
    """Rows of a tile: what the blocks of the products on GPUs are."""
    return SMALL if n <= 256 or precision in ("fp32", "fp64") else LARGE


def count(n: int, precision: str) -> int:
    """Tiles on and below the diagonal of an n x n matrix."""
    blocks = -(-n // side(n, precision))
    return blocks * (blocks + 1) // 2


@functools.lru_cache(maxsize=32)
def positions(blocks: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """(rows, columns), in tiles, of every tile."""
    rows, columns = torch.tril_indices(blocks, blocks, device=device)
    return rows, columns


@functools.lru_cache(maxsize=32)
def diagonal(n: int, precision: str, device: torch.device) -> Tensor:
    """Positions of the N diagonal elements in flattened (T, B, B) tiles."""
    b = side(n, precision)
    sample = torch.arange(n, device=device)
    block, within = sample // b, sample % b
    return ((block * (block + 3) // 2) * b + within) * b + within


def take_centres(tiles: Tensor, n: int, precision: str) -> Tensor:
    """Subtracts from each of the (M, T, B, B) symmetric matrices the mean of its diagonal times the
    identity, in place; returns the (M,) means. What is left of it can be rounded to operands."""
    flat, at = tiles.flatten(1), diagonal(n, precision, tiles.device)
    centres = flat[:, at].mean(1)
    flat[:, at] -= centres[:, None]
    return centres


@functools.lru_cache(maxsize=32)
def _off_diagonal(blocks: int, device: torch.device) -> Tensor:
    """(T,) float64: 2 for tiles below the diagonal, which stand for their mirror images too."""
    rows, columns = positions(blocks, device)
    return torch.where(rows == columns, 1.0, 2.0).double()


def inner(x: Tensor, y: Tensor, n: int) -> Tensor:
    """<X, Y> of two symmetric (N, N) matrices in (T, B, B) tiles: a float64 scalar. Added up row by
    row in the tiles' own type, then in float64."""
    b = x.shape[1]
    rows = torch.linalg.vecdot(x, y).sum(1, dtype=torch.float64)
    return rows @ _off_diagonal(-(-n // b), x.device)


def pack(matrix: Tensor, precision: str) -> Tensor:
    """The (T, B, B) tiles of a symmetric (N, N) matrix."""
    n = matrix.shape[0]
    b = side(n, precision)
    blocks = -(-n // b)
    if n % b:
        matrix = torch.nn.functional.pad(matrix, (0, blocks * b - n, 0, blocks * b - n))
    square = matrix.reshape(blocks, b, blocks, b).transpose(1, 2)
    return square[positions(blocks, matrix.device)]


def unpack(tiles: Tensor, n: int) -> Tensor:
    """The (N, N) matrix of (T, B, B) tiles; contiguous."""
    b = tiles.shape[1]
    blocks = -(-n // b)
    rows, columns = positions(blocks, tiles.device)
    matrix = tiles.new_empty(blocks, b, blocks, b)
    square = matrix.transpose(1, 2)
    square[columns, rows] = tiles.transpose(1, 2)
    square[rows, columns] = tiles
    return matrix.view(blocks * b, blocks * b)[:n, :n].contiguous()
