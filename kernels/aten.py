"""The contract of `barlow_fast.kernels` in plain torch: for any device, and the reference that the
other sets are tested against.

Each function is the formula of its docstring in the contract. Matrix products take operands in the
operand type of the precision. Where torch cannot return float32 from half-precision operands, the
rounded operands are multiplied in float32: no product is rounded to half precision.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from . import tiles
from .contract import GradientInputs, Layout, ViewGradients
from .photometry import photometric
from .precision import (
    OPERAND_DTYPE,
    accumulation_dtype,
    float32_products,
    gram_scale,
    reciprocal_deviation,
)
from .resizing import crop_resize

__all__ = ["crop_resize", "photometric"]

NAME = "aten"


def column_moments(z_a: Tensor, z_b: Tensor, precision: str) -> Tensor:
    n = z_a.shape[0]
    wide = torch.promote_types(z_a.dtype, accumulation_dtype(precision))
    mean_a, rest_a, centred_a = _centre(z_a.to(wide))
    mean_b, rest_b, centred_b = _centre(z_b.to(wide))
    # The squares are about the rounded mean: move them to the true one, which is off by `rest`.
    m2_a = centred_a.square().sum(0).double() - n * rest_a.square()
    m2_b = centred_b.square().sum(0).double() - n * rest_b.square()
    comoment = (centred_a * centred_b).sum(0).double() - n * rest_a * rest_b
    return torch.stack((mean_a + rest_a, mean_b + rest_b, m2_a, m2_b, comoment))


def _centre(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(rounded mean, what it lacks, z - rounded mean): the first two in float64."""
    mean = z.mean(0)
    centred = z - mean
    return mean.double(), centred.mean(0).double(), centred


def standardisation(
    moments: Tensor, count: int, eps: float, precision: str
) -> tuple[Tensor, Tensor]:
    mean_a, mean_b, m2_a, m2_b, comoment = moments.unbind(0)
    dtype = accumulation_dtype(precision)
    rstd_a = reciprocal_deviation(m2_a / count + eps, dtype)
    rstd_b = reciprocal_deviation(m2_b / count + eps, dtype)
    diagonal = comoment / count * rstd_a * rstd_b
    sums = torch.stack(((diagonal - 1).square().sum(), diagonal.square().sum()))[None]
    shift_a = (mean_a - mean_a.to(dtype)) * rstd_a
    shift_b = (mean_b - mean_b.to(dtype)) * rstd_b
    statistics = torch.stack((mean_a, rstd_a, shift_a, mean_b, rstd_b, shift_b, diagonal))
    return statistics.to(dtype), sums


def statistics(z_a: Tensor, z_b: Tensor, eps: float, precision: str) -> tuple[Tensor, Tensor]:
    return standardisation(column_moments(z_a, z_b, precision), z_a.shape[0], eps, precision)


def standardise(z: Tensor, mean: Tensor, rstd: Tensor, shift: Tensor, precision: str) -> Tensor:
    return _hat(z, mean, rstd, shift).to(OPERAND_DTYPE[precision])


def _hat(z: Tensor, mean: Tensor, rstd: Tensor, shift: Tensor) -> Tensor:
    return (z.to(mean.dtype) - mean) * rstd - shift


def gram_layout(n: int, precision: str) -> Layout:
    return (2, n, n), accumulation_dtype(precision)


def gram_pair(
    z_a: Tensor, z_b: Tensor, statistics: Tensor, sums: Tensor, precision: str
) -> tuple[Tensor, Tensor, Tensor]:
    shape, dtype = gram_layout(z_a.shape[0], precision)
    grams = torch.empty(shape, dtype=dtype, device=z_a.device)
    for gram, z, rows in zip(grams, (z_a, z_b), (statistics[0:3], statistics[3:6]), strict=True):
        hat = standardise(z, *rows, precision)
        gram.copy_(product(hat, hat.T, precision))
    # Row by row in the accumulation type, then in float64: the N^2 values are never widened at
    # once.
    inner = torch.linalg.vecdot(*grams).double()
    return grams, grams.new_zeros(2), inner


def gram_terms(
    z_a: Tensor, z_b: Tensor, statistics: Tensor, sums: Tensor, lambd: float, precision: str
) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor, Tensor]:
    grams, centres, inner = gram_pair(z_a, z_b, statistics, sums, precision)
    return terms(sums, inner, z_a.shape[0] ** 2, True, lambd, precision), grams, centres


def gram_tiles(z: Tensor, statistics: Tensor, precision: str) -> Tensor:
    hat = standardise(z, *statistics, precision)
    return tiles.pack(product(hat, hat.T, precision), precision)


def gram_from_tiles(
    packed: Tensor, centres: Tensor, n: int, d: int, precision: str
) -> tuple[Tensor, Tensor]:
    (_, *shape), dtype = gram_layout(n, precision)
    grams = torch.empty((packed.shape[0], *shape), dtype=dtype, device=packed.device)
    for gram, view, centre in zip(grams, packed, centres, strict=True):
        gram.copy_(tiles.unpack(view, n))
        gram.diagonal().add_(centre)
    return grams, torch.zeros_like(centres)


def gram_gradients(inputs: GradientInputs) -> tuple[Tensor, Tensor]:
    grams, _ = inputs.matrices
    coefficients, precision = inputs.coefficients, inputs.precision
    n, d = inputs.z_a.shape
    scale = gram_scale(n, coefficients.dimensions or d, precision)

    def gradient(view: int, hats: list[Tensor], weight: Tensor) -> tuple[Tensor, Tensor]:
        hat = hats[view]
        moved, centre = _gram_product(grams[1 - view], hat, scale, precision)
        g = coefficients.product * moved + weight * hats[1 - view]
        projection = -coefficients.product * centre
        if coefficients.projected:
            rstd = inputs.statistics[3 * view + 1]
            projection = (g * hat).mean(0) + projection * coefficients.eps * rstd.square()
        return g, projection

    return _gradients(inputs, gradient)


def _gram_product(gram: Tensor, hat: Tensor, scale: float, precision: str) -> tuple[Tensor, Tensor]:
    """(K' z_hat, c), K' = K - c I: Gram centring. The multiple of the identity that the norm's
    backward would remove again is taken out of K first, which is what keeps half-precision products
    accurate (kernels/README.md)."""
    centre = gram.diagonal().mean()
    centred = gram.clone()
    centred.diagonal().sub_(centre)
    moved = product(_cast(centred * scale, precision), _cast(hat, precision), precision)
    return moved / scale, centre


def view_moments(views: Sequence[Tensor], precision: str) -> tuple[Tensor, Tensor]:
    n = views[0].shape[0]
    wide = torch.promote_types(views[0].dtype, accumulation_dtype(precision))
    means, rests, centred = zip(*(_centre(z.to(wide)) for z in views), strict=True)
    rest = torch.stack(rests)
    comoments = rest.new_empty((len(views), *rest.shape))
    for v, x in enumerate(centred):
        for u, y in enumerate(centred[: v + 1]):
            comoments[v, u] = (x * y).sum(0).double() - n * rest[v] * rest[u]
            comoments[u, v] = comoments[v, u]
    return torch.stack(means) + rest, comoments


def view_gradients(inputs: ViewGradients) -> tuple[Tensor, ...]:
    n, precision = inputs.views[0].shape[0], inputs.precision
    scale = gram_scale(n, inputs.dimensions, precision)
    hats = [_hat(z, *rows) for z, rows in zip(inputs.views, inputs.statistics, strict=True)]
    grams = () if inputs.matrices is None else inputs.matrices[0]
    grads = []
    for view, needed in enumerate(inputs.need):
        z, hat, rstd = inputs.views[view], hats[view], inputs.statistics[view, 1]
        if not needed:
            grads.append(z.new_empty(0))
            continue
        g = torch.zeros_like(hat)
        for (output, other), weight in zip(inputs.links, inputs.weights, strict=True):
            if output == view:
                g.addcmul_(weight, hats[other])
        if inputs.offsets is not None:
            g.add_(inputs.offsets[view])
        projection = torch.zeros_like(rstd)
        if view < len(grams):
            moved, centre = _gram_product(grams[view], hat, scale, precision)
            factor = inputs.products[view].to(hat.dtype)
            g.addcmul_(factor, moved)
            projection -= factor * centre
        if inputs.projected:
            projection = (g * hat).mean(0) + projection * inputs.eps * rstd.square()
        grads.append(((g - hat * projection) * (rstd * inputs.grad_scale)).to(z.dtype))
    return tuple(grads)


def _gradients(
    inputs: GradientInputs, gradient: Callable[[int, list[Tensor], Tensor], tuple[Tensor, Tensor]]
) -> tuple[Tensor, Tensor]:
    """dL/dz of both views; gradient(view, z_hats, w) returns G and mean_n(G * z_hat) of one."""
    statistics, views = inputs.statistics, (inputs.z_a, inputs.z_b)
    hats = [_hat(z, *statistics[3 * view : 3 * view + 3]) for view, z in enumerate(views)]
    weight = inputs.coefficients.slope * statistics[6] + inputs.coefficients.offset
    grads = [z.new_empty(0) for z in views]
    for view, z in enumerate(views):
        if inputs.need[view]:
            g, projection = gradient(view, hats, weight)
            factor = statistics[3 * view + 1] * inputs.grad_scale
            grads[view] = ((g - hats[view] * projection) * factor).to(z.dtype)
    return grads[0], grads[1]


def correlation_layout(d: int, precision: str) -> Layout:
    return (d, d), accumulation_dtype(precision)


def correlation(
    z_a: Tensor, z_b: Tensor, statistics: Tensor, precision: str
) -> tuple[Tensor, Tensor]:
    hat_a = standardise(z_a, *statistics[0:3], precision)
    hat_b = standardise(z_b, *statistics[3:6], precision)
    matrix = product(hat_a.T, hat_b, precision).div_(z_a.shape[0])
    matrix.fill_diagonal_(0)
    squares = matrix.square()
    return matrix, torch.stack(
        (squares.sum(1, dtype=torch.float64), squares.sum(0, dtype=torch.float64))
    )


def correlation_gradients(inputs: GradientInputs) -> tuple[Tensor, Tensor]:
    matrix, squares = inputs.matrices
    factor, precision, diagonal = (
        inputs.coefficients.product,
        inputs.precision,
        inputs.statistics[6],
    )
    operand = _cast(matrix, precision)
    operands = (operand.T, operand)

    def gradient(view: int, hats: list[Tensor], weight: Tensor) -> tuple[Tensor, Tensor]:
        other = hats[1 - view]
        g = factor * product(_cast(other, precision), operands[view], precision) + weight * other
        return g, (factor * squares[view]).to(weight.dtype) + weight * diagonal

    return _gradients(inputs, gradient)


def terms(
    sums: Tensor, parts: Tensor, divisor: int, diagonal_included: bool, lambd: float, precision: str
) -> tuple[Tensor, Tensor, Tensor]:
    on_diagonal, squares = sums[:, 0].sum(), sums[:, 1].sum()
    off_diagonal = parts.sum() / divisor
    if diagonal_included:
        off_diagonal = off_diagonal - squares
    dtype = accumulation_dtype(precision)
    loss = torch.add(on_diagonal, off_diagonal, alpha=lambd)
    return loss.to(dtype), on_diagonal.to(dtype), off_diagonal.to(dtype)


def _cast(x: Tensor, precision: str) -> Tensor:
    return x.to(OPERAND_DTYPE[precision])


def product(left: Tensor, right: Tensor, precision: str) -> Tensor:
    """left @ right, accumulated and returned in the accumulation type of `precision`."""
    if precision in ("bf16", "fp16"):
        if left.is_cuda:
            return torch.mm(left, right, out_dtype=torch.float32)
        left, right = left.float(), right.float()
    with float32_products("tf32" if precision == "tf32" else "ieee", left.device.type):
        return torch.mm(left, right).to(accumulation_dtype(precision))
