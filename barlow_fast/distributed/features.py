"""Features for samples: each rank computes with all samples of some columns (Gram form).

    own samples, all columns  --all-to-all-->  all samples, own columns
    K_a, K_b over own columns  --summed over ranks, as tiles-->  K_a, K_b
    dL/dz of own columns  --all-to-all-->  dL/dz of own samples

Global statistics need no exchange beyond the moments, which travel beside the embeddings: they are
columns' own. Local ones standardise before samples are sent, and differentiate after the gradients
came home. While one view travels the other one is computed with, forward and backward.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..forms.norms import differentiate_norm
from ..kernels import Coefficients, GradientInputs, tiles
from ..kernels.precision import accumulation_dtype, gram_scale
from . import slices, statistics, wire
from .call import Call
from .collectives import Reduction, Transfer, all_to_all, gather_shares, total
from .groups import Group

# What `backward` takes besides tensors: the matrices, which are still on their way.
Saved = tuple[tuple[Tensor, ...], Transfer | None]


def forward(
    call: Call, z_a: Tensor, z_b: Tensor, need: bool
) -> tuple[tuple[Tensor, Tensor, Tensor], Saved]:
    """((loss, on_diagonal, off_diagonal), what `backward` takes)."""
    moments = statistics.own_moments(call, z_a, z_b)
    moments_transfer = statistics.send_moments(call, moments)
    home = None if call.is_global else statistics.own(call, moments)
    dtype = wire.embedding_dtype(z_a.dtype, call.precision)
    encoded = call.is_global and dtype != z_a.dtype
    transfers = []
    for view, z in enumerate((z_a, z_b)):
        if home is not None:
            z = call.kernels.standardise(z, *home[3 * view : 3 * view + 3], call.precision)
        elif encoded:
            mean, deviation = wire.spread(moments, torch.tensor(call.own_samples, device="cpu"))
            z = wire.encode(call.kernels, z, mean[view], deviation[view], call.precision)
        transfers.append(to_columns(z, call.samples, call.group))
    columns = statistics.of_columns(call, moments_transfer)
    views, reductions = [], []
    for view, transfer in enumerate(transfers):
        z = transfer.wait().view(call.n, columns.parts.shape[2])
        if encoded:
            mean, deviation = wire.spread(columns.parts, call.counts(columns.parts))
            z = wire.decode(z, mean[:, view], deviation[:, view], call.samples, call.dtype)
        elif home is not None and z.dtype == torch.float16:
            z = z.float()  # its gradient is returned in its type and has no known range
        views.append(z)
        vectors = columns.statistics[3 * view : 3 * view + 3]
        reductions.append(_add_up(call, z, vectors, columns.centres[view]))
    outputs, shares, centres = _finish(call, columns, reductions)
    if not need:
        return outputs, ((), None)
    wire_dtype = wire.matrix_dtype(call.precision)
    rounded = [(share * _scale(call)).to(wire_dtype) for share in shares]
    matrices = gather_shares("matrices", rounded, reductions)
    tensors = (*views, columns.statistics, centres)
    if home is not None:
        tensors += (z_a, z_b, home)
    return outputs, (tensors, matrices)


def to_columns(z: Tensor, samples: tuple[int, ...], group: Group) -> Transfer:
    """Starts the exchange of this rank's (n_r, D) samples for its columns of all samples, flat."""
    widths = slices.widths(z.shape[1], group.size)
    return all_to_all(
        "embeddings",
        wire.by_columns(z, group.size),
        [z.shape[0] * width for width in widths],
        [n * widths[group.rank] for n in samples],
        group,
    )


def _add_up(call: Call, z: Tensor, vectors: Tensor, centre: Tensor) -> Reduction:
    """Starts the sum of one view's K' = K - centre I over all ranks."""
    if z.shape[1] == 0:
        b = tiles.side(call.n, call.precision)
        count = tiles.count(call.n, call.precision)
        packed = z.new_zeros((count, b, b), dtype=accumulation_dtype(call.precision))
    else:
        packed = call.kernels.gram_tiles(z, vectors, call.precision)
    diagonal = tiles.diagonal(call.n, call.precision, z.device)
    packed.view(-1)[diagonal] -= centre.to(packed.dtype)
    packed = packed.flatten(0, 1) * _scale(call) if _scale(call) != 1 else packed.flatten(0, 1)
    wire_dtype = wire.matrix_dtype(call.precision)
    return Reduction("matrices", packed, wire_dtype, call.group, call.use_all_reduce)


def _scale(call: Call) -> float:
    """What matrices are multiplied with while they travel: float16 could not hold them."""
    return gram_scale(call.n, call.d, call.precision)


def _finish(
    call: Call, columns: statistics.Columns, reductions: list[Reduction]
) -> tuple[tuple[Tensor, Tensor, Tensor], list[Tensor], Tensor]:
    """The loss and its terms, this rank's rows of K'_a and K'_b, and the centres that they lack."""
    dtype = accumulation_dtype(call.precision)
    shares = [reduction.share() / _scale(call) for reduction in reductions]
    share = slices.share_of_tiles(
        call.n, call.precision, call.group.rank, call.group.size, shares[0].device
    )
    inner = torch.linalg.vecdot(*shares).double() @ share.weights
    traces = [x.view(-1)[share.diagonal].sum(dtype=torch.float64) for x in shares]
    # What was subtracted was rounded to the accumulation type.
    centres = columns.centres.to(dtype).double()
    scalars = torch.cat((columns.sums, centres, torch.stack((inner, *traces))))
    on, squares, c_a, c_b, inner, trace_a, trace_b = total("terms", scalars, call.group).unbind()
    inner = inner + c_a * trace_b + c_b * trace_a + call.n * c_a * c_b
    outputs = call.kernels.terms(
        torch.stack((on, squares))[None], inner[None], call.n**2, True, call.lambd, call.precision
    )
    return outputs, shares, torch.stack((c_a, c_b)).to(dtype)


def backward(
    call: Call, saved: Saved, scale: Tensor, need: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """dL/dz_a, dL/dz_b of this rank's samples, times `scale`."""
    (z_a, z_b, columns, centres, *home), matrices = saved
    n, lambd = call.n, call.lambd
    coefficients = Coefficients(
        2 * lambd / n**2, (2 - 2 * lambd) / n, -2 / n, call.eps, call.d, projected=call.is_global
    )
    grams = None
    if z_a.shape[1]:
        shares = matrices.wait().transpose(0, 1).flatten(1, 2)  # (2, W * rows, B)
        b, count = tiles.side(n, call.precision), tiles.count(n, call.precision)
        packed = shares[:, : count * b].unflatten(1, (count, b))
        if _scale(call) != 1:
            packed = packed.float() / _scale(call)
        grams = call.kernels.gram_from_tiles(packed, centres, n, call.d, call.precision)
    transfers: list[Transfer | None] = []
    for view in range(2):
        if not need[view]:
            transfers.append(None)
            continue
        grad = z_a
        if grams is not None:
            only = (view == 0, view == 1)
            grad = call.kernels.gram_gradients(
                GradientInputs(z_a, z_b, columns, grams, scale, coefficients, call.precision, only)
            )[view]
        dtype = wire.gradient_dtype(call.dtype, call.precision, call.statistics)
        transfers.append(to_samples(grad.to(dtype), call.samples, call.d, call.group))
    return tuple(
        None if transfer is None else _arrived(call, transfer, view, home)
        for view, transfer in enumerate(transfers)
    )


def to_samples(grad: Tensor, samples: tuple[int, ...], d: int, group: Group) -> Transfer:
    """Starts the way back, of gradients (N, D_r), D_r of the d columns."""
    widths = slices.widths(d, group.size)
    return all_to_all(
        "gradients",
        grad,
        [n * widths[group.rank] for n in samples],
        [samples[group.rank] * width for width in widths],
        group,
    )


def _arrived(call: Call, transfer: Transfer, view: int, home: list[Tensor]) -> Tensor:
    grad = wire.from_columns(transfer.wait(), call.own_samples, call.d, call.group.size)
    if home:
        z, statistics_of_view = home[view], home[2][3 * view : 3 * view + 3]
        grad = differentiate_norm(grad, z, statistics_of_view)
    return grad.to(call.dtype)
