"""Rows of the Gram matrices against the gathered embeddings of all ranks (Gram form).

    z_hat of all ranks  <--all-gather--  z_hat of own samples
    K[own rows, :] = z_hat[own] z_hat^T;   G = coefficient K[own rows, :] z_hat + w z_hat_other

Gradients never travel, but every rank holds all embeddings, and the products are not halved.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..forms.norms import standardised
from ..kernels.aten import product
from ..kernels.precision import accumulation_dtype, gram_scale
from . import statistics, wire
from .call import Call
from .collectives import Transfer, all_gather, total

Saved = tuple[tuple[Tensor, ...], None]


def forward(
    call: Call, z_a: Tensor, z_b: Tensor, need: bool
) -> tuple[tuple[Tensor, Tensor, Tensor], Saved]:
    """((loss, on_diagonal, off_diagonal), what `backward` takes)."""
    moments = statistics.own_moments(call, z_a, z_b)
    columns, sums, parts_of_centres = statistics.of_all_columns(call, moments)
    transfers = [
        _gather(call, call.kernels.standardise(z, *columns[3 * v : 3 * v + 3], call.precision))
        for v, z in enumerate((z_a, z_b))
    ]
    dtype = accumulation_dtype(call.precision)
    everything, grams = [], []
    for transfer in transfers:
        gathered = transfer.wait()
        own = gathered[call.group.rank, : call.own_samples]
        everything.append(gathered.flatten(0, 1))
        grams.append(product(own, everything[-1].T, call.precision))
    inner = torch.linalg.vecdot(*grams).double().sum()
    # What has to leave K's diagonal before it is rounded: the same number on all ranks.
    scalars = torch.cat((sums, parts_of_centres, inner[None]))
    on, squares, *centres, inner = total("terms", scalars, call.group).unbind()
    outputs = call.kernels.terms(
        torch.stack((on, squares))[None], inner[None], call.n**2, True, call.lambd, call.precision
    )
    if not need:
        return outputs, ((), None)
    scale = gram_scale(call.n, call.d, call.precision)
    operands = []
    for gram, centre in zip(grams, centres, strict=True):
        first = call.group.rank * max(call.samples)
        gram[:, first : first + call.own_samples].diagonal().sub_(centre.to(dtype))
        operands.append(wire.to_operand(gram * scale if scale != 1 else gram, call.precision))
    return outputs, ((z_a, z_b, columns, torch.stack(centres), *everything, *operands), None)


def _gather(call: Call, hat: Tensor) -> Transfer:
    """z_hat of all ranks, (W, most samples, D): zeros where a rank has fewer, which add nothing."""
    missing = max(call.samples) - call.own_samples
    if missing:
        hat = torch.nn.functional.pad(hat, (0, 0, 0, missing))
    return all_gather("embeddings", hat, call.group)


def backward(
    call: Call, saved: Saved, scale: Tensor, need: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """dL/dz_a, dL/dz_b of this rank's samples, times `scale`."""
    (z_a, z_b, columns, centres, all_a, all_b, gram_a, gram_b), _ = saved
    n, lambd = call.n, call.lambd
    coefficient = 2 * lambd / n**2
    weight = (2 - 2 * lambd) / n * columns[6] - 2 / n
    hats = [standardised(z, columns[3 * v : 3 * v + 3]) for v, z in enumerate((z_a, z_b))]
    products: list[Tensor | None] = [None, None]
    for view, (gram, everything) in enumerate(((gram_b, all_a), (gram_a, all_b))):
        if need[view]:
            products[view] = product(gram, everything, call.precision)
            products[view].mul_(coefficient / gram_scale(n, call.d, call.precision))
    # sum_n(G * z_hat) over own samples; over all samples where all samples made the statistics.
    projections = [
        None if p is None else torch.linalg.vecdot(p, hats[view], dim=0).double()
        for view, p in enumerate(products)
    ]
    if call.is_global:
        wanted = [p for p in projections if p is not None]
        sums = iter(total("projections", torch.stack(wanted), call.group) / n)
        projections = [None if p is None else next(sums) for p in projections]
    grads: list[Tensor | None] = [None, None]
    for view, p in enumerate(products):
        if p is None:
            continue
        own, rstd = hats[view], columns[3 * view + 1]
        centre = coefficient * centres[1 - view]
        if call.is_global:
            # The other half of mean_n(G * z_hat) is w C_ii: kernels/README.md.
            projection = projections[view] - centre * call.eps * rstd.double().square()
            projection = projection.to(rstd.dtype) + weight * columns[6]
        else:
            g = torch.linalg.vecdot(hats[1 - view], own, dim=0) * weight
            squares = torch.linalg.vecdot(own, own, dim=0)
            projection = (projections[view].to(rstd.dtype) + g) / call.own_samples
            # K' lacks the centre, and so does G: only what eps leaves of it survives the norm.
            projection -= (centre * (1 - squares.double() / call.own_samples)).to(rstd.dtype)
        g = p.add_(weight * hats[1 - view]).sub_(own * projection)
        grads[view] = g.mul_(rstd * scale).to(call.dtype)
    return tuple(grads)
