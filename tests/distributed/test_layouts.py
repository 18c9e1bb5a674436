"""Loss, terms and gradients of every layout against one process with all samples, in float64."""

from __future__ import annotations

import contextlib

import pytest
import torch
from whole import computed, differentiated, joined, terms, views

from barlow_fast.distributed import autograd

# Samples of four ranks (the first W of them count) and D: both sides of N = D, columns that do not
# divide by W, fewer columns than ranks, one column, several tiles of K.
EQUAL = (((5, 5, 5, 5), 24), ((5, 5, 5, 5), 31), ((40, 40, 40, 40), 3), ((9, 9, 9, 9), 1))
UNEQUAL = (((2, 5, 9, 3), 130), ((7, 3, 2, 11), 2), ((70, 33, 65, 64), 129), ((30, 21, 9, 4), 17))
# One rank has a single row, or none; then statistics cannot be its own.
FEW = (((6, 1, 3, 4), 17), ((1, 30, 21, 9), 5), ((6, 0, 3, 4), 33), ((0, 40, 0, 9), 6))
BOUND = 1e-12


@contextlib.contextmanager
def sums_of_the_backend(wanted):
    with pytest.MonkeyPatch.context() as patch:
        if wanted:
            patch.setattr(autograd, "use_all_reduce", lambda *_: True)
        yield


def sequence(group, cases, options, all_reduce=False):
    with sums_of_the_backend(all_reduce):
        return [
            computed(group, *views("correlated", samples, d), samples, **options)
            for samples, d in cases
        ]


def assert_equal(found: list, samples: tuple[int, ...], d: int, statistics: str) -> None:
    """Of all ranks: the same loss and terms, and W times the gradient of their samples."""
    exact = differentiated(*views("correlated", samples, d), samples, statistics)
    for values in found:
        for name, got, want in zip(("loss", "on", "off"), values, exact, strict=False):
            # off_diagonal is what remains of two sums that are at most D each.
            error = abs(float(got) - float(want)) / max(float(want), d)
            assert error < BOUND, f"{name} for samples {samples}, D = {d}: {error:.3g}"
    for view, (got, want) in enumerate(zip(joined(found), exact[3:], strict=True)):
        error = float((got - want).norm() / want.norm())
        assert error < BOUND, f"gradient {view} for samples {samples}, D = {d}: {error:.3g}"


# Types of the embeddings and precisions, with what both round to.
ROUNDING = {
    torch.float64: {"fp32": 1e-5, "bf16": 2e-2, "fp16": 2e-3},
    torch.float32: {"fp64": 1e-6, "fp32": 1e-5, "bf16": 2e-2, "fp16": 2e-3},
    torch.bfloat16: {"fp64": 2e-2, "fp32": 2e-2, "bf16": 2e-2, "fp16": 2e-2},
    torch.float16: {"fp64": 2e-3, "fp32": 2e-3, "bf16": 2e-2, "fp16": 2e-3},
}
LESSER = [(dtype, *each) for dtype, bounds in ROUNDING.items() for each in bounds.items()]


def in_types(group, samples, d, options, all_reduce):
    """With every type and precision; and gradients of embeddings have their type."""
    found = []
    for dtype, precision, _ in LESSER:
        pair = views("random", samples, d, dtype=dtype)
        with sums_of_the_backend(all_reduce):
            values = computed(group, *pair, samples, precision=precision, **options)
        wide = torch.float64 if precision == "fp64" else torch.float32
        types = [value.dtype for value in values]
        found.append((types == [wide] * 3 + [dtype] * 2, values))
    return found


@pytest.mark.parametrize(
    ("samples", "d", "statistics"),
    [
        ((6, 0, 3), 50, "global"),
        ((0, 11, 1), 4, "global"),
        ((9, 5, 7), 50, "local"),
        ((9, 8, 21), 7, "local"),
    ],
)
@pytest.mark.parametrize("all_reduce", [False, True], ids=["direct", "all_reduce"])
def test_types_and_precisions(all_reduce, layout, samples, d, statistics, backend, pool):
    """Also of ranks that have one row, or none. The numerics gate is stricter."""
    options = {"layout": layout, "statistics": statistics, "backend": backend}
    by_rank = pool.run(in_types, 3, samples, d, options, all_reduce)
    for (dtype, precision, bound), *found in zip(LESSER, *by_rank, strict=True):
        exact = differentiated(*views("random", samples, d, dtype=dtype), samples, statistics)
        assert all(typed for typed, _ in found), (dtype, precision)
        loss = found[0][1][0]
        assert abs(float(loss) - float(exact[0])) < bound * float(exact[0]), (dtype, precision)
        wide = [[grad.double() for grad in values[3:]] for _, values in found]
        for got, want in zip(joined(wide), exact[3:], strict=True):
            error = float((got - want).norm() / want.norm())
            assert error < bound, (dtype, precision, error)


def with_weight(group, lambd, samples, d, options):
    return computed(group, *views("random", samples, d), samples, lambd, **options)


@pytest.mark.parametrize("lambd", [0.0, 1.0, -0.5])
def test_weights_of_the_off_diagonal_term(layout, statistics, lambd, pool):
    samples, d = (7, 4, 12), 15
    options = {"layout": layout, "statistics": statistics}
    a, b = (z.requires_grad_() for z in views("random", samples, d))
    loss, *_ = terms(a, b, samples, statistics, lambd)
    exact = torch.autograd.grad(loss, (a, b))
    found = pool.run(with_weight, 3, lambd, samples, d, options)
    assert abs(float(found[0][0]) - loss.item()) < BOUND * d
    for got, want in zip(joined(found), exact, strict=True):
        assert float((got - want).norm()) < BOUND * float(want.norm())


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_equals_one_process(layout, statistics, ranks, backend, pool):
    every = EQUAL + UNEQUAL + (FEW if statistics == "global" else ())
    cases = [(samples[:ranks], d) for samples, d in every]
    options = {"layout": layout, "statistics": statistics, "backend": backend}
    by_rank = pool.run(sequence, ranks, cases, options)
    for (samples, d), *found in zip(cases, *by_rank, strict=True):
        assert_equal(found, samples, d, statistics)


@pytest.mark.parametrize("ranks", [3, 4])
def test_with_sums_of_the_backend(layout, statistics, ranks, pool):
    """As between machines: all-reduces take the place of all-to-alls of parts."""
    every = UNEQUAL + (FEW if statistics == "global" else ())
    cases = [(samples[:ranks], d) for samples, d in every]
    options = {"layout": layout, "statistics": statistics}
    by_rank = pool.run(sequence, ranks, cases, options, all_reduce=True)
    for (samples, d), *found in zip(cases, *by_rank, strict=True):
        assert_equal(found, samples, d, statistics)
