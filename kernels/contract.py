"""The primitives of the loss: one contract, implemented by several kernel sets.

A *kernel set* does not depend on losses, ranks or autograd. It offers the functions of `KernelSet`
on raw embeddings `z` (N samples x D dimensions, any row stride) and the column statistics that
standardise them:

    z_hat = (z - mean) * rstd - shift,      rstd = (variance + eps)^-1/2

where `shift` is what rounding `mean` to the accumulation type lost, times rstd: with means far
larger than the deviations, columns of z_hat would otherwise not sum to zero, which the gradients
rely on.

* `column_moments`: means, sums of squared deviations and co-moments of both views, in one read
* `standardisation`: moments -> mean, rstd and the diagonal C_ii of the correlation, with its sums
* `statistics`: both of these at once
* `standardise`: z_hat in an operand type, materialised (for layouts that must send it somewhere)
* `gram_pair`: K_a = z_hat_a z_hat_a^T, K_b likewise, and their inner product <K_a, K_b>
* `gram_terms`: the same with `terms` of that inner product, for sets that make both at once
* `gram_tiles`, `gram_from_tiles`: a Gram matrix as tiles that ranks can add up, and back
* `gram_gradients`: dL/dz of both views from K_a and K_b; the norm's backward included
* `view_moments`, `view_gradients`: the same for any number of views, each with a matrix of its own
  or none, and any sums of views beside the product
* `correlation`: C = z_hat_a^T z_hat_b / N with a zeroed diagonal, its squared row and column sums
* `correlation_gradients`: dL/dz of both views from that matrix; the norm's backward included
* `terms`: the loss and its two terms from the sums of the above

And two that feed the loss instead of computing it:

* `photometric`: a view's colours, blur and normalisation, from cropped bytes to an encoder's input
* `crop_resize`: a window of an image of bytes to another size, as Pillow has it to the bit

The mathematics, with the reasons for the zeroed diagonal and for Gram centring, is in
kernels/README.md.

Sets: `aten` (plain torch, any device: the reference that the others are tested against), `cpu`
(native C++), `triton` (CUDA devices).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

Layout = tuple[tuple[int, ...], torch.dtype]


class Coefficients(NamedTuple):
    """The numbers of a gradient.

    Attributes:
        product: factor of the matrix product in G.
        slope: w = slope * C_ii + offset, per column.
        offset: see `slope`.
        eps: of the norm; read by `gram_gradients` alone.
        dimensions: the columns that K was summed over, where the views hold only some of them; None
            for the columns of the views. Read by `gram_gradients` alone.
        projected: whether the norm's backward is included; without it dL/dz = rstd * G *
            grad_scale. Read by `gram_gradients` alone.
    """

    product: float
    slope: float
    offset: float
    eps: float = 0.0
    dimensions: int | None = None
    projected: bool = True


class GradientInputs(NamedTuple):
    """The arguments of the gradient primitives.

    Attributes:
        z_a: (N, D) embeddings.
        z_b: of the shape and dtype of z_a.
        statistics: (7, D), from `standardisation`.
        matrices: what the forward primitive returned: (grams, centres) of `gram_pair` or
            `gram_from_tiles`, or (matrix, squares) of `correlation`.
        grad_scale: one element, a factor of the results.
        coefficients: see `Coefficients`.
        precision: see `KernelSet`.
        need: which of the two gradients to compute; the other one is returned empty.
    """

    z_a: Tensor
    z_b: Tensor
    statistics: Tensor
    matrices: tuple[Tensor, Tensor]
    grad_scale: Tensor
    coefficients: Coefficients
    precision: str
    need: tuple[bool, bool] = (True, True)


class ViewGradients(NamedTuple):
    """The arguments of `view_gradients`: V views, of which the first O get a gradient; the first M
    of those have a matrix.

    Attributes:
        views: V embeddings (N, D) of one dtype, any row strides.
        statistics: (V, 3, D) mean, rstd and shift of each view, in the accumulation type.
        matrices: (grams, centres) of `gram_from_tiles`, M of each; None for M = 0.
        products: (M,) float64, the factor of each matrix product.
        links: pairs (o, v): the gradient of view o has weights times view v. Of one o in sequence,
            o ascending.
        weights: (len(links), D) in the accumulation type.
        offsets: (O, D) in the accumulation type, added to every row; None for none. None where
            `projected`, whose norm would take them out again.
        grad_scale: one element, a factor of the results.
        dimensions: no element of a matrix exceeds N times this.
        eps: of the norm; read where `projected`.
        projected: whether the norm's backward is included.
        precision: see `KernelSet`.
        need: of each of the O gradients, whether to compute it; others are returned empty.
    """

    views: tuple[Tensor, ...]
    statistics: Tensor
    matrices: tuple[Tensor, Tensor] | None
    products: Tensor
    links: tuple[tuple[int, int], ...]
    weights: Tensor
    offsets: Tensor | None
    grad_scale: Tensor
    dimensions: int
    eps: float
    projected: bool
    precision: str
    need: tuple[bool, ...]


class KernelSet(Protocol):
    """The functions of a kernel set's module.

    `precision` is the operand type of the matrix products: 'fp64', 'fp32', 'tf32', 'bf16', 'fp16'.
    Accumulation and statistics are float64 for fp64 and float32 for all others (the *accumulation
    type*); moments and scalar sums are float64. Matrices
    are passed from a set's forward primitive to its own backward primitive only: `gram_layout` and
    `correlation_layout` return the shape and dtype that the set keeps them in.

    Ranks of a group call with some rows, or some columns, of a whole: one row has moments, and the
    Gram primitives take N > D as well.
    """

    def column_moments(self, z_a: Tensor, z_b: Tensor, precision: str) -> Tensor:
        """(5, D) float64: mean_a, mean_b, sum (z_a - mean_a)^2, sum (z_b - mean_b)^2 and the
        co-moment sum (z_a - mean_a)(z_b - mean_b).

        Taken in the wider of the inputs' and the accumulation type. Stable for means far larger
        than the deviations. Moments of row blocks merge exactly (Chan, Golub, LeVeque 1979).
        """
        ...

    def standardisation(
        self, moments: Tensor, count: int, eps: float, precision: str
    ) -> tuple[Tensor, Tensor]:
        """(statistics, sums).

        statistics (7, D) in the accumulation type: mean_a, rstd_a, shift_a, mean_b, rstd_b,
        shift_b, and the diagonal C_ii. sums (P, >= 2) float64 are parts, to be summed over the
        first axis: of sum_i (C_ii - 1)^2 in column 0, of sum_i C_ii^2 in column 1; further columns
        are the set's own.
        """
        ...

    def statistics(
        self, z_a: Tensor, z_b: Tensor, eps: float, precision: str
    ) -> tuple[Tensor, Tensor]:
        """`standardisation` of the `column_moments` of all rows."""
        ...

    def standardise(
        self, z: Tensor, mean: Tensor, rstd: Tensor, shift: Tensor, precision: str
    ) -> Tensor:
        """z_hat (N, D) in the operand type of `precision`; the vectors are (D,) rows of
        `statistics`."""
        ...

    def gram_layout(self, n: int, precision: str) -> Layout:
        """Shape and dtype of the `grams` that `gram_pair` returns for N = n."""
        ...

    def gram_pair(
        self, z_a: Tensor, z_b: Tensor, statistics: Tensor, sums: Tensor, precision: str
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(grams, centres, inner).

        grams: both matrices, grams[v, :, :N] = s (K_v - centres[v] I), where the set may choose
        what it takes out of the diagonal and a power of two s, and rounds to its layout's dtype.
        centres: (2,) in the accumulation type. inner: float64 parts whose sum is <K_a, K_b>.
        """
        ...

    def gram_terms(
        self, z_a: Tensor, z_b: Tensor, statistics: Tensor, sums: Tensor, lambd: float,
        precision: str,
    ) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor, Tensor]:  # fmt: skip
        """(terms, grams, centres): `terms` with the divisor N^2, the diagonal included, of the
        inner product that `gram_pair` returns with these grams and centres."""
        ...

    def gram_tiles(self, z: Tensor, statistics: Tensor, precision: str) -> Tensor:
        """(T, B, B) in the accumulation type: K = z_hat z_hat^T of one view by its tiles on and
        below the diagonal, laid out as in `tiles.py`; for sums over columns that other ranks hold.

        statistics: the view's (3, D) mean, rstd and shift.
        """
        ...

    def gram_from_tiles(
        self, packed: Tensor, centres: Tensor, n: int, d: int, precision: str
    ) -> tuple[Tensor, Tensor]:
        """(grams, centres) as `gram_pair` would have returned them, of M matrices instead of 2.

        packed: (M, T, B, B), any floating type, tiles of K_v - centres[v] I. centres: (M,) in the
        accumulation type. n: N. d: no element of K exceeds N times this: the columns of all ranks
        that K was summed over.
        """
        ...

    def gram_gradients(self, inputs: GradientInputs) -> tuple[Tensor, Tensor]:
        """dL/dz_a, dL/dz_b in the dtypes of z_a, z_b, contiguous.

        With `Coefficients` and the one-element tensor grad_scale

            G_a = product * K_b z_hat_a + w * z_hat_b
            G_b = product * K_a z_hat_b + w * z_hat_a
            dL/dz = rstd * (G - z_hat * mean_n(G * z_hat)) * grad_scale
        """
        ...

    def view_moments(self, views: Sequence[Tensor], precision: str) -> tuple[Tensor, Tensor]:
        """(means (V, D), comoments (V, V, D)), float64: comoments[v, u] = sum (z_v - mean_v)(z_u -
        mean_u). One read of V >= 1 views of one shape and dtype; accuracy as `column_moments`."""
        ...

    def view_gradients(self, inputs: ViewGradients) -> tuple[Tensor, ...]:
        """dL/dz of the first O views in their dtype, contiguous.

        With K_o the matrix of view o (none for o >= M)

            G_o = products[o] K_o z_hat_o + sum over links (o, v) of weights * z_hat_v + offsets[o]
            dL/dz_o = rstd_o * (G_o - z_hat_o * mean_n(G_o * z_hat_o)) * grad_scale

        and without the norm's backward dL/dz_o = rstd_o * G_o * grad_scale.
        """
        ...

    def correlation_layout(self, d: int, precision: str) -> Layout:
        """Shape and dtype of the matrix that `correlation` returns for D = d."""
        ...

    def correlation(
        self, z_a: Tensor, z_b: Tensor, statistics: Tensor, precision: str
    ) -> tuple[Tensor, Tensor]:
        """(matrix, squares): matrix[:, :D] = C = z_hat_a^T z_hat_b / N with its diagonal set to
        zero; squares (2, D) float64, the sums of C_ij^2 over each row and over each column."""
        ...

    def correlation_gradients(self, inputs: GradientInputs) -> tuple[Tensor, Tensor]:
        """dL/dz_a, dL/dz_b in the dtypes of z_a, z_b, contiguous.

        With `Coefficients`, the zeroed C and the one-element tensor grad_scale

            G_a = product * z_hat_b C^T + w * z_hat_b
            G_b = product * z_hat_a C + w * z_hat_a
            mean_n(G * z_hat) = product * squares + w * C_ii  (no reduction over rows needed)
            dL/dz = rstd * (G - z_hat * mean_n(G * z_hat)) * grad_scale
        """
        ...

    def terms(
        self, sums: Tensor, parts: Tensor, divisor: int, diagonal_included: bool, lambd: float,
        precision: str,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        """(loss, on_diagonal, off_diagonal): scalars in the accumulation type.

        on_diagonal is the sum of `sums[:, 0]`; off_diagonal is sum(parts) / divisor, less the sum
        of `sums[:, 1]` where the parts include the diagonal; loss = on + lambd * off.
        """
        ...

    def photometric(
        self, crops: Tensor, parameters: Tensor, mean: Tensor, std: Tensor, dtype: torch.dtype
    ) -> Tensor:
        """(B, C, H, W) of `dtype`, channels-last, from (B, H, W, C) uint8 and (B, PARAMETERS)
        float32: `photometry.py` defines each, their order and arithmetic."""
        ...

    def crop_resize(
        self, image: Tensor, window: Sequence[int], interpolation: str, out: Tensor
    ) -> None:
        """out (h, w, C) uint8 becomes the window (top, left, height, width) of image (H, W, C)
        uint8, C = 1 or 3, as Pillow's `image.crop(...).resize((w, h), ...)` has it, to the bit:
        `resizing.py` defines each value. interpolation: 'bicubic' or 'bilinear', antialiased.

        Rows of either may be any distance apart, their pixels are contiguous. Runs in the calling
        thread, without the interpreter's lock.

        A batch is (B, H, W, C) to (B, h, w, C) with 4 B numbers in `window`, and runs on torch's
        threads. Offered by `cpu` and `aten`.
        """
        ...
