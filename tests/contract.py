"""Checks of one primitive of one kernel set against the plain-torch set.

Each set's backward primitive is fed what its own forward primitive made: sets keep matrices in
layouts of their own. `BOUND` is what rounding in the accumulation type may differ by when sums run
in another order, relative to the result; a set that stores matrices in the operand type is allowed
that rounding too.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import ModuleType
from typing import NamedTuple

import pytest
import torch
from embeddings import draw
from torch import Tensor

from barlow_fast.kernels import (
    Coefficients,
    GradientInputs,
    ViewGradients,
    aten,
    cpu,
    tiles,
    why_unusable,
)
from barlow_fast.kernels.precision import OPERAND_DTYPE, accumulation_dtype

EPS = 1e-5
# TF32 operands keep ten bits, the native set's two pieces sixteen; on a CPU the plain-torch set
# computes tf32 as fp32.
BOUND = {"fp64": 1e-12, "fp32": 1e-5, "tf32": 1e-3, "bf16": 1e-5, "fp16": 1e-5}
PIECES = 2.0**-15
PROBLEM = why_unusable("cpu", torch.device("cpu"))
native = pytest.mark.skipif(PROBLEM is not None, reason=str(PROBLEM))


class Case(NamedTuple):
    z_a: Tensor
    z_b: Tensor
    moments: Tensor
    statistics: Tensor
    sums: Tensor


def prepared(
    shape: tuple[int, int],
    precision: str,
    dtype: torch.dtype | None = None,
    seed: int | None = None,
) -> Case:
    """Two correlated views and what the plain-torch set computes of their columns."""
    dtype = dtype or (torch.float64 if precision == "fp64" else torch.float32)
    z_a, z_b = draw("random", *shape, seed=sum(shape) if seed is None else seed, dtype=dtype)
    z_b = (z_b + z_a).to(dtype)
    moments = aten.column_moments(z_a, z_b, precision)
    return Case(z_a, z_b, moments, *aten.standardisation(moments, shape[0], EPS, precision))


@contextlib.contextmanager
def using(instruction_set: str) -> Iterator[ModuleType]:
    """The native set on one instruction set; skips the test where this CPU does not have it."""
    if PROBLEM is not None:
        pytest.skip(PROBLEM)
    before = cpu.instruction_set()
    try:
        cpu.use_instruction_set(instruction_set)
    except ValueError as error:
        pytest.skip(str(error))
    try:
        yield cpu
    finally:
        cpu.use_instruction_set(before)


def assert_close(got: Tensor, want: Tensor, bound: float) -> None:
    """Same shape and type, and |got - want| <= bound |want| in the 2-norm."""
    assert got.shape == want.shape
    assert got.dtype == want.dtype
    error = float((got.double() - want.double()).norm())
    assert error <= bound * max(float(want.double().norm()), 1e-30)


def bound_of(kernels: ModuleType, precision: str, z: Tensor) -> float:
    """`BOUND`; on devices that have TF32, both operands may be rounded to it or cut off,
    and squares double that."""
    if precision != "tf32":
        return BOUND[precision]
    if kernels is cpu:
        return PIECES if cpu.multiplies_tf32() else BOUND["fp32"]
    return 2.0**-8 if z.is_cuda else BOUND["tf32"]


def assert_symmetric(matrix: Tensor, precision: str) -> None:
    """Equal bits in the mirror image; on a device, three products of split operands (fp32) add up
    in another order there."""
    if precision == "fp32" and matrix.is_cuda:
        assert_close(matrix, matrix.T, BOUND["fp32"])
    else:
        assert torch.equal(matrix, matrix.T)


def summed(size: int) -> int:
    """Where sums over a padded dimension end: padding up to here must be zero."""
    return -(-size // 64) * 64


def check_moments(kernels: ModuleType, case: Case, precision: str) -> None:
    """column_moments, standardisation, statistics and standardise."""
    bound, n = BOUND[precision], case.z_a.shape[0]
    moments = kernels.column_moments(case.z_a, case.z_b, precision)
    assert_close(moments, case.moments, bound)
    for statistics, sums in (
        kernels.standardisation(case.moments, n, EPS, precision),
        kernels.statistics(case.z_a, case.z_b, EPS, precision),
    ):
        assert_close(statistics, case.statistics, bound)
        assert_close(sums[:, :2].sum(0), case.sums.sum(0), bound)
    rows = case.statistics[0:3]
    assert_close(
        kernels.standardise(case.z_a, *rows, precision),
        aten.standardise(case.z_a, *rows, precision),
        max(bound, float(torch.finfo(OPERAND_DTYPE[precision]).eps) / 8),
    )


def check_stored(
    kernels: ModuleType,
    kept: tuple[Tensor, Tensor],
    want: Tensor,
    precision: str,
    scale: float,
    bound: float,
) -> float:
    """K as the set keeps it: the layout, the whole matrices, and zeros in the padding. Returns what
    rounding to the stored type may differ by."""
    n = want.shape[1]
    grams, centres = kept
    shape, dtype = kernels.gram_layout(n, precision)
    assert grams.shape == shape
    assert grams.dtype == dtype
    stored = float(torch.finfo(dtype).eps) if dtype != want.dtype else 0.0
    for gram, centre, whole in zip(grams, centres, want, strict=True):
        found = gram[:, :n].double() / scale + centre * torch.eye(n, device=gram.device)
        assert_close(found, whole.double(), max(bound, stored))
        assert not gram[:, n : summed(n)].any()
    return stored


def check_gram(kernels: ModuleType, case: Case, precision: str, scale: float = 1.0) -> None:
    """gram_pair, gram_gradients and terms; `scale` is the factor that the set stores K with."""
    z_a, z_b, _, statistics, _ = case
    n = z_a.shape[0]
    bound = bound_of(kernels, precision, z_a)
    # The same statistics for both: operands round alike. The sums have the set's own columns.
    sums = kernels.statistics(z_a, z_b, EPS, precision)[1]
    grams, centres, inner = kernels.gram_pair(z_a, z_b, statistics, sums, precision)
    want, no_centres, want_inner = aten.gram_pair(z_a, z_b, case.statistics, case.sums, precision)
    assert centres.dtype == statistics.dtype
    stored = check_stored(kernels, (grams, centres), want, precision, scale, bound)
    for gram in grams:
        assert_symmetric(gram[:, :n], precision)
    # Roundings of stored elements are independent: of N^2 of them little remains in the sum.
    assert_close(inner.sum(), want_inner.sum(), max(bound, stored / 256))
    mine = kernels.terms(sums, inner, n * n, True, 0.01, precision)
    theirs = aten.terms(sums, want_inner, n * n, True, 0.01, precision)
    at_once, *again = kernels.gram_terms(z_a, z_b, statistics, sums, 0.01, precision)
    # The off-diagonal term is what remains of two nearly equal sums.
    size = float(want_inner.sum()) / n**2
    for some in (mine, at_once):
        for x, y in zip(some, theirs, strict=True):
            assert x.dtype == y.dtype
            assert abs(float(x) - float(y)) <= max(bound, stored / 256) * max(size, abs(float(y)))
    assert all(torch.equal(x, y) for x, y in zip(again, (grams, centres), strict=True))
    coefficients = Coefficients(0.01 / n, 0.2, -0.3, EPS)
    options = (statistics.new_tensor(1.7), coefficients, precision)
    compare_gradients(
        kernels,
        "gram_gradients",
        GradientInputs(z_a, z_b, statistics, (grams, centres), *options),
        GradientInputs(z_a, z_b, case.statistics, (want, no_centres), *options),
    )


def check_tiles(kernels: ModuleType, case: Case, precision: str, scale: float = 1.0) -> None:
    """gram_tiles, gram_from_tiles, and gram_gradients of what comes back, for some of the columns
    as a rank of a group has them; `scale` as in `check_gram`."""
    z_a, z_b, _, statistics, _ = case
    n, d = z_a.shape
    # An operand at the border of two half-precision numbers may round either way: a row of K.
    operand = float(torch.finfo(OPERAND_DTYPE[precision]).eps)
    bound = max(bound_of(kernels, precision, z_a), operand / max(d, 16))
    rows = (statistics[0:3], statistics[3:6])
    packed = torch.stack(
        [kernels.gram_tiles(z, s, precision) for z, s in zip((z_a, z_b), rows, strict=True)]
    )
    want = torch.stack(
        [aten.gram_tiles(z, s, precision) for z, s in zip((z_a, z_b), rows, strict=True)]
    )
    side = tiles.side(n, precision)
    assert packed.shape == (2, tiles.count(n, precision), side, side)
    for mine, theirs in zip(packed, want, strict=True):
        assert_close(mine, theirs, bound)
        assert torch.equal(mine, tiles.pack(tiles.unpack(mine, n), precision))  # zeros beyond N
    # What two ranks have adds up; columns of a wider matrix, as a rank may hold them.
    cut = (d + 1) // 2
    parts = [slice(0, cut), slice(cut, d)] if d > 1 else [slice(0, d)]
    added = sum(kernels.gram_tiles(z_a[:, part], rows[0][:, part], precision) for part in parts)
    assert_close(added, want[0], bound)

    diagonals = torch.stack([tiles.unpack(view, n).diagonal() for view in packed])
    centres = diagonals.double().mean(1).to(statistics.dtype)
    eye = tiles.pack(torch.eye(n, dtype=packed.dtype, device=z_a.device), precision)
    centred = packed - centres[:, None, None, None] * eye
    wires = [accumulation_dtype(precision), torch.bfloat16, torch.float16]
    # What one sample far from all others makes of K does not fit into float16.
    for wire in wires if float(centred.abs().max()) < 65504 else wires[:-1]:
        sent = centred.to(wire)
        grams, taken = kernels.gram_from_tiles(sent, centres, n, d, precision)
        whole, no_centres = aten.gram_from_tiles(sent, centres, n, d, precision)
        assert taken.dtype == statistics.dtype
        check_stored(kernels, (grams, taken), whole, precision, scale, bound)
        assert all(torch.equal(gram[:, :n], gram[:, :n].T) for gram in grams)
        if wire == wires[0]:
            kept = (grams, taken, whole, no_centres)

    grams, taken, whole, no_centres = kept
    last = parts[-1]
    views = (z_a[:, last], z_b[:, last], statistics[:, last].contiguous())
    for projected in (True, False):
        coefficients = Coefficients(0.01 / n, 0.2, -0.3, EPS, dimensions=d, projected=projected)
        options = (statistics.new_tensor(1.7), coefficients, precision)
        compare_gradients(
            kernels,
            "gram_gradients",
            GradientInputs(*views, (grams, taken), *options),
            GradientInputs(*views, (whole, no_centres), *options),
        )


def check_one_row(
    kernels: ModuleType,
    d: int,
    dtype: torch.dtype,
    precision: str,
    device: torch.device | str = "cpu",
) -> None:
    """Moments of one row: the row itself, and no squares; as ranks with one sample merge them."""
    case = Case(*(tensor.to(device) for tensor in prepared((1, d), precision, dtype)))
    moments = kernels.column_moments(case.z_a, case.z_b, precision)
    assert torch.equal(moments[0], case.z_a[0].double())
    assert torch.equal(moments[1], case.z_b[0].double())
    assert not moments[2:].any()
    assert_close(
        kernels.standardise(case.z_a, *2 * case.statistics[0:3], precision),
        aten.standardise(case.z_a, *2 * case.statistics[0:3], precision),
        max(BOUND[precision], float(torch.finfo(OPERAND_DTYPE[precision]).eps) / 8),
    )
    check_moments(kernels, case, precision)


def check_dominating_sample(
    kernels: ModuleType, precision: str, device: torch.device | str = "cpu"
) -> None:
    """One sample far from all others makes an element of K nearly N times the columns it was
    summed over: beyond float16, whatever the few columns of a rank would suggest."""
    n, d = 64, 1200
    z = torch.randn(n, d, generator=torch.Generator().manual_seed(0))
    z[0] += 1000
    z_a, z_b = z.to(device), (z + torch.linspace(0, 0.1, n)[:, None]).to(device)
    statistics, _ = aten.statistics(z_a, z_b, EPS, "fp32")
    packed = torch.stack(
        [
            kernels.gram_tiles(v, rows, precision)
            for v, rows in zip((z_a, z_b), (statistics[0:3], statistics[3:6]), strict=True)
        ]
    )
    assert packed.max() > 65504
    centres = statistics.new_full((2,), float(d))
    packed -= d * tiles.pack(torch.eye(n, device=device), precision)
    few = (z_a[:, :10], z_b[:, :10], statistics[:, :10].contiguous())
    one = statistics.new_ones(())
    coefficients = Coefficients(0.01 / n, 0.2, -0.3, EPS, dimensions=d, projected=False)
    wide = [x.double() for x in few]
    whole = aten.gram_from_tiles(packed.double(), centres.double(), n, d, "fp64")
    exact = aten.gram_gradients(GradientInputs(*wide, whole, one, coefficients, "fp64"))
    kept = kernels.gram_from_tiles(packed, centres, n, d, precision)
    grads = kernels.gram_gradients(GradientInputs(*few, kept, one, coefficients, precision))
    for x, y in zip(grads, exact, strict=True):
        assert_close(x.double(), y, max(1e-5, float(torch.finfo(OPERAND_DTYPE[precision]).eps)))


def prepared_views(
    shape: tuple[int, int], precision: str, views: int, dtype: torch.dtype | None = None
) -> tuple[tuple[Tensor, ...], Tensor]:
    """(Correlated views, (V, 3, D) statistics), as the plain-torch set computes them."""
    case = prepared(shape, precision, dtype)
    drawn = [(case.z_a * (0.5 + v) + case.z_b.roll(v, 0)).to(case.z_a.dtype) for v in range(views)]
    rows = [aten.statistics(z, z, EPS, precision)[0][:3] for z in drawn]
    return tuple(drawn), torch.stack(rows)


def check_view_moments(kernels: ModuleType, views: tuple[Tensor, ...], precision: str) -> None:
    """view_moments; comoments equal in both orders of two views."""
    means, comoments = kernels.view_moments(views, precision)
    want_means, want = aten.view_moments(views, precision)
    assert_close(means, want_means, BOUND[precision])
    assert_close(comoments, want, BOUND[precision])
    assert torch.equal(comoments, comoments.transpose(0, 1))


def check_view_gradients(
    kernels: ModuleType, views: tuple[Tensor, ...], statistics: Tensor, precision: str
) -> None:
    """view_gradients: of all views with matrices and all links; of some, with matrices of fewer;
    without any matrix; with and without the norm's backward."""
    (n, d), count = views[0].shape, len(views)
    generator = torch.Generator().manual_seed(n + d)

    def random(*size: int) -> Tensor:
        drawn = torch.randn(*size, generator=generator, dtype=torch.float64)
        return drawn.to(views[0].device, statistics.dtype)

    every = tuple((o, v) for o in range(count) for v in range(count))
    few = tuple(link for link in every if link[0] < max(count - 1, 1) and sum(link) % 2 == 0)
    for matrices, outputs, links, projected in (
        (count, count, every, True),
        (count, count, every, False),
        (1, max(count - 1, 1), few, True),
        (0, count, every, True),
        (0, 1, few[:1], False),
        (1, 1, (), False),
    ):
        kept = whole = None
        if matrices:
            pairs = zip(views[:matrices], statistics[:matrices], strict=True)
            packed = torch.stack([kernels.gram_tiles(z, rows, precision) for z, rows in pairs])
            if matrices > 1:  # a matrix that is no view's own, within twice N D
                packed[0] -= packed[1]
            centres = tiles.take_centres(packed, n, precision)
            kept, whole = (
                k.gram_from_tiles(packed, centres, n, 2 * d, precision) for k in (kernels, aten)
            )
        need = tuple(o != 1 for o in range(outputs))
        for wanted in {need, (True,) * outputs}:
            products = torch.linspace(0.01, 0.02, matrices, dtype=torch.float64) / n
            shared = (
                products.to(views[0].device), links, 0.3 * random(len(links), d),
                None if projected else random(outputs, d), statistics.new_tensor(1.7), 2 * d, EPS,
                projected, precision, wanted,
            )  # fmt: skip
            got = kernels.view_gradients(ViewGradients(views, statistics, kept, *shared))
            want = aten.view_gradients(ViewGradients(views, statistics, whole, *shared))
            assert len(got) == outputs
            typical = float(statistics[0, 1].double().norm()) * n**0.5 * 0.1
            compare_each(kernels, got, want, precision, typical)


def check_correlation(kernels: ModuleType, case: Case, precision: str) -> None:
    """correlation, correlation_gradients and terms."""
    z_a, z_b, _, statistics, _ = case
    d = z_a.shape[1]
    sums = kernels.statistics(z_a, z_b, EPS, precision)[1]
    bound = bound_of(kernels, precision, z_a)
    matrix, squares = kernels.correlation(z_a, z_b, statistics, precision)
    want, want_squares = aten.correlation(z_a, z_b, statistics, precision)
    shape, dtype = kernels.correlation_layout(d, precision)
    assert matrix.shape == shape
    assert matrix.dtype == dtype
    stored = float(torch.finfo(dtype).eps) if dtype != want.dtype else 0.0
    assert_close(matrix[:, :d].double(), want.double(), max(bound, stored))
    assert not matrix[:, :d].diagonal().any()
    assert not matrix[:, d : summed(d)].any()
    assert_close(squares, want_squares, bound)
    mine = kernels.terms(sums, squares[0], 1, False, 0.01, precision)
    theirs = aten.terms(sums, want_squares[0], 1, False, 0.01, precision)
    for x, y in zip(mine, theirs, strict=True):
        assert_close(x, y, bound)
    coefficients = Coefficients(0.01, 0.2, -0.3)
    options = (statistics.new_tensor(1.7), coefficients, precision)
    compare_gradients(
        kernels,
        "correlation_gradients",
        GradientInputs(z_a, z_b, statistics, (matrix, squares), *options),
        GradientInputs(z_a, z_b, statistics, (want, want_squares), *options),
    )


def compare_gradients(
    kernels: ModuleType, name: str, mine: GradientInputs, theirs: GradientInputs
) -> None:
    """Both gradients, and each of them alone."""
    got, want = getattr(kernels, name)(mine), getattr(aten, name)(theirs)
    precision = theirs.precision
    # Where the exact gradient nearly vanishes (N = 2), what is compared is rounding in terms of
    # this size.
    typical = float(theirs.statistics[1].double().norm()) * float(theirs.z_a.shape[0]) ** 0.5 * 0.1
    compare_each(kernels, got, want, precision, typical)
    for need in ((True, False), (False, True), (False, False)):
        some = getattr(kernels, name)(mine._replace(need=need))
        for x, y, wanted in zip(some, got, need, strict=True):
            assert torch.equal(x, y) if wanted else x.numel() == 0


def compare_each(
    kernels: ModuleType,
    got: tuple[Tensor, ...],
    want: tuple[Tensor, ...],
    precision: str,
    typical: float,
) -> None:
    """Gradients of the set against those of the plain-torch set."""
    # Operands at the border of two half-precision numbers may round either way, and each set takes
    # another multiple of the identity out of K before it rounds.
    operand = float(torch.finfo(OPERAND_DTYPE[precision]).eps) / 16
    for x, y in zip(got, want, strict=True):
        assert x.dtype == y.dtype
        assert x.shape == y.shape
        bound = max(bound_of(kernels, precision, x), operand, 2 * torch.finfo(y.dtype).eps)
        size = max(float(y.double().norm()), typical)
        assert float((x.double() - y.double()).norm()) <= bound * size
