"""The correlation matrix of all samples, summed over ranks (correlation form, for N > D).

    C of own samples  --all-to-all, added, all-gather-->  C of all samples
    gradients of own samples from C, at home

Each rank adds up some rows of C and takes their squares there; C travels twice in halves, as in any
all-reduce, but only once where no gradient is wanted.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..forms.views import Run
from ..kernels import Coefficients, GradientInputs
from ..kernels.precision import accumulation_dtype
from . import statistics, wire
from .call import Call
from .collectives import Reduction, Transfer, all_gather, gather_shares, total

Saved = tuple[tuple[Tensor, ...], Transfer | None]


def forward(
    call: Call, z_a: Tensor, z_b: Tensor, need: bool
) -> tuple[tuple[Tensor, Tensor, Tensor], Saved]:
    """((loss, on_diagonal, off_diagonal), what `backward` takes)."""
    moments = statistics.own_moments(call, z_a, z_b)
    columns, sums, _ = statistics.of_all_columns(call, moments)
    dtype = accumulation_dtype(call.precision)
    if call.own_samples:
        matrix, _ = call.kernels.correlation(z_a, z_b, columns, call.precision)
    else:
        shape, kept = call.kernels.correlation_layout(call.d, call.precision)
        matrix = torch.zeros(shape, dtype=kept, device=z_a.device)
    part = matrix[:, : call.d].to(dtype)
    if call.is_global and matrix.dtype == dtype:
        part.mul_(call.own_samples / call.n)  # not used again
    else:
        part = part * (call.own_samples / call.n)
    of_own_samples = () if call.is_global else (matrix, statistics.own(call, moments)[6])
    wire_dtype = wire.matrix_dtype(call.precision)
    reduction = Reduction("matrices", part, wire_dtype, call.group, call.use_all_reduce)
    del part, matrix  # D x D each: not while their sum comes in
    share = reduction.share()
    if call.use_all_reduce:
        # Every rank has all of C and of the diagonal: no exchange is needed.
        on_diagonal, diagonal_squares = sums * call.group.size
        row_squares, column_squares = squared_sums(reduction.whole[: call.d])
        off_diagonal = row_squares.sum()
    else:
        row_squares, column_squares = squared_sums(share)
        scalars = torch.cat((sums, row_squares.sum()[None], column_squares))
        summed = total("terms", scalars, call.group)
        (on_diagonal, diagonal_squares, off_diagonal), column_squares = summed[:3], summed[3:]
    outputs = call.kernels.terms(
        torch.stack((on_diagonal, diagonal_squares))[None], off_diagonal[None], 1, False,
        call.lambd, call.precision,
    )  # fmt: skip
    if not need:
        return outputs, ((), None)
    if not call.use_all_reduce:
        row_squares = all_gather("terms", row_squares, call.group).wait().flatten()[: call.d]
    transfer = gather_shares("matrices", [share.to(wire_dtype)], [reduction])
    squares = torch.stack((row_squares, column_squares))
    return outputs, ((z_a, z_b, columns, squares, *of_own_samples), transfer)


def squared_sums(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Row and column sums of squares, float64; added up in the matrix's own type, because D^2
    values are better not widened at once."""
    return tuple(torch.linalg.vecdot(matrix, matrix, dim=dim).double() for dim in (1, 0))


def backward(
    call: Call, saved: Saved, scale: Tensor, need: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """dL/dz_a, dL/dz_b of this rank's samples, times `scale`."""
    (z_a, z_b, columns, squares, *own), transfer = saved
    if not call.own_samples:
        return tuple(z if needed else None for z, needed in zip((z_a, z_b), need, strict=True))
    n, lambd = call.n, call.lambd
    coefficients = Coefficients(2 * lambd / n, 2 / n, -2 / n)
    summed = transfer.wait().flatten(0, 2)[: call.d]
    matrix = in_layout(call, summed)
    if own:
        coefficients, matrix, squares = _local_projection(
            call, matrix, summed, *own, columns[6], coefficients
        )
    grads = call.kernels.correlation_gradients(
        GradientInputs(
            z_a, z_b, columns, (matrix, squares), scale, coefficients, call.precision, need
        )
    )
    return tuple(g if needed else None for g, needed in zip(grads, need, strict=True))


def in_layout(call: Call | Run, summed: Tensor) -> Tensor:
    """C as the kernel set keeps it: its type, rows padded with zeros."""
    (rows, width), dtype = call.kernels.correlation_layout(call.d, call.precision)
    matrix = wire.to_operand(summed, call.precision).to(dtype)
    if (rows, width) == matrix.shape:
        return matrix
    return torch.nn.functional.pad(matrix, (0, width - call.d, 0, rows - call.d))


def _local_projection(
    call: Call,
    matrix: Tensor,
    summed: Tensor,
    own_matrix: Tensor,
    own_diagonal: Tensor,
    diagonal: Tensor,
    coefficients: Coefficients,
) -> tuple[Coefficients, Tensor, Tensor]:
    """(coefficients, matrix, squares) whose projections are those of this rank's own norm.

    mean_n(G_a z_hat_a) over own samples is product sum_j C_ij C'_ij + w C'_ii with C' of those.
    The kernels compute product squares + w C_ii: squares make up for the difference.
    """
    if coefficients.product == 0:  # then C has no part in the gradient, and any factor will do
        coefficients, matrix = coefficients._replace(product=1.0), torch.zeros_like(matrix)
        summed = matrix[:, : call.d]
    own_matrix = own_matrix[:, : call.d].to(accumulation_dtype(call.precision))
    summed = summed.to(own_matrix.dtype)
    weight = coefficients.slope * diagonal.double() + coefficients.offset
    rest = weight * (own_diagonal - diagonal).double() / coefficients.product
    squares = [torch.linalg.vecdot(summed, own_matrix, dim=dim).double() for dim in (1, 0)]
    return coefficients, matrix, torch.stack(squares) + rest
