"""Column statistics over the samples of all ranks, from each rank's own moments.

Moments of row blocks merge exactly (Chan, Golub, LeVeque 1979; float64 here). Each rank merges
those of its own columns; nothing of size W x D is ever on one rank.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..kernels.precision import accumulation_dtype, reciprocal_deviation
from . import slices, wire
from .call import Call
from .collectives import Transfer, all_gather, all_to_all, total


class Columns(NamedTuple):
    """Statistics of this rank's columns over all samples."""

    parts: Tensor  # (W, 5, D_r) float64: the moments of each rank's samples
    statistics: Tensor  # (7, D_r): what standardises the samples as they arrive, and C_ii
    sums: Tensor  # (2,) float64: sum (C_ii - 1)^2 and sum C_ii^2 over these columns
    centres: Tensor  # (2,) float64: the mean over all samples of sum_i z_hat_i^2 over these columns


def own_moments(call: Call, z_a: Tensor, z_b: Tensor) -> Tensor:
    """(5, D) float64 moments of this rank's samples."""
    if z_a.shape[0] == 0:
        return torch.zeros((5, z_a.shape[1]), dtype=torch.float64, device=z_a.device)
    return call.kernels.column_moments(z_a, z_b, call.precision)


def send_moments(call: Call, moments: Tensor) -> Transfer:
    """To each rank the moments of its columns."""
    widths = slices.widths(call.d, call.group.size)
    return all_to_all(
        "statistics",
        wire.by_columns(moments, call.group.size),
        [5 * width for width in widths],
        [5 * widths[call.group.rank]] * call.group.size,
        call.group,
    )


def of_columns(call: Call, transfer: Transfer) -> Columns:
    """Statistics of this rank's columns from what all ranks sent.

    Local statistics standardise at home, before the samples are sent: here they only yield C_ii.
    """
    parts = transfer.wait().view(call.group.size, 5, -1)
    counts = call.counts(parts)
    if call.is_global:
        merged = merge(parts, counts, call.n)
        statistics, sums = call.kernels.standardisation(merged, call.n, call.eps, call.precision)
        squares = 1 - call.eps * statistics[1:5:3].double().square()
        return Columns(parts, statistics, sums[:, :2].sum(0), squares.sum(1))
    share, filled = counts / call.n, counts.clamp_min(1)
    dtype = accumulation_dtype(call.precision)
    rstd = reciprocal_deviation(parts[:, 2:4] / filled + call.eps, dtype)
    squares = (share * parts[:, 2:4] / filled * rstd.square()).sum(0)
    diagonal = (share[:, 0] * parts[:, 4] / filled[:, 0] * rstd[:, 0] * rstd[:, 1]).sum(0)
    statistics = torch.zeros((7, parts.shape[2]), dtype=dtype, device=parts.device)
    statistics[1:5:3] = 1
    statistics[6] = diagonal
    sums = torch.stack(((diagonal - 1).square().sum(), diagonal.square().sum()))
    return Columns(parts, statistics, sums, squares.sum(1))


def merge(parts: Tensor, counts: Tensor, n: int) -> Tensor:
    """(5, D) moments of all samples from (W, 5, D) moments of `counts` (W, 1, 1) samples each."""
    means = (counts * parts[:, 0:2]).sum(0) / n
    delta = parts[:, 0:2] - means
    squares = (parts[:, 2:4] + counts * delta.square()).sum(0)
    comoment = (parts[:, 4] + counts[:, 0] * delta[:, 0] * delta[:, 1]).sum(0)
    return torch.cat((means, squares, comoment[None]))


class AllColumns(NamedTuple):
    """Statistics of all columns, for this rank's own samples."""

    # (7, D): what standardises them; C_ii over the samples of all ranks in row 6
    statistics: Tensor
    sums: Tensor  # (2,) float64: what this rank adds to sum (C_ii - 1)^2 and sum C_ii^2
    centres: Tensor  # (2,) float64: what it adds to the mean over all samples of sum_i z_hat_i^2


def of_all_columns(call: Call, moments: Tensor) -> AllColumns:
    """Statistics of all columns from this rank's moments and those of the others."""
    if call.use_all_reduce:
        return _by_sums(call, moments)
    columns = of_columns(call, send_moments(call, moments))
    width = max(slices.widths(call.d, call.group.size))
    padded = torch.nn.functional.pad(columns.statistics, (0, width - columns.statistics.shape[1]))
    if not call.is_global:
        padded = padded[6:]
    gathered = all_gather("statistics", padded, call.group).wait().transpose(0, 1)
    pieces = [
        gathered[:, rank, : end - begin]
        for rank, (begin, end) in enumerate(slices.columns(call.d, call.group.size))
    ]
    shared = torch.cat(pieces, dim=1)
    if not call.is_global:
        shared = torch.cat((own(call, moments)[:6], shared))
    return AllColumns(shared, columns.sums, columns.centres)


def _by_sums(call: Call, moments: Tensor) -> AllColumns:
    """The same by sums of whole vectors over all ranks: more bytes, but no message from each rank
    to each other."""
    samples, n = call.own_samples, call.n
    if call.is_global:
        means = total("statistics", samples * moments[:2], call.group) / n
        delta = moments[:2] - means
        squares = moments[2:4] + samples * delta.square()
        comoment = moments[4] + samples * delta[0] * delta[1]
        rest = total("statistics", torch.cat((squares, comoment[None])), call.group)
        merged = torch.cat((means, rest))
        statistics, sums = call.kernels.standardisation(merged, n, call.eps, call.precision)
        sums = sums[:, :2].sum(0)
        squares = 1 - call.eps * statistics[1:5:3].double().square()
    else:
        variance = moments[2:4] / max(samples, 1)
        rstd = reciprocal_deviation(variance + call.eps, accumulation_dtype(call.precision))
        diagonal = moments[4] / n * rstd[0] * rstd[1]
        squares = samples / n * variance * rstd.square()
        summed = total("statistics", torch.cat((diagonal[None], squares)), call.group)
        diagonal, squares = summed[0], summed[1:]
        sums = torch.stack(((diagonal - 1).square().sum(), diagonal.square().sum()))
        statistics = own(call, moments)
        statistics = torch.cat((statistics[:6], diagonal[None].to(statistics.dtype)))
    return AllColumns(statistics, sums / call.group.size, squares.sum(1) / call.group.size)


def own(call: Call, moments: Tensor) -> Tensor:
    """(7, D) statistics of this rank's own samples."""
    samples = max(call.samples[call.group.rank], 1)
    return call.kernels.standardisation(moments, samples, call.eps, call.precision)[0]
