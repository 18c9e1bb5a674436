"""The numerics gate of tests/gate.py for two ranks: no layout may lose more than twice what plain
torch, with all samples in one process, loses in the same form and precision.

What layouts round for the wire is judged with everything else. Terms are single numbers, whose
errors vary by more than they differ between two correct evaluations: hence the many draws.
"""

from __future__ import annotations

import functools
import itertools
import math

import pytest
import torch
from embeddings import KINDS
from gate import FLOOR, LAMBDA, Result, plain, relative_error, truth
from whole import computed, joined, standardise_by_rank, views

from barlow_fast import reference
from barlow_fast.kernels import why_unusable
from barlow_fast.kernels.precision import accumulation_dtype

SEEDS = 16
BACKENDS = [name for name in ("cpu", "aten") if why_unusable(name, torch.device("cpu")) is None]
LAYOUTS = {"gram": ("features", "rows"), "correlation": ("correlation",)}
# Samples of both ranks and D: each form on its own side of N = D, and a little beyond; the first
# with equal samples.
SHAPES = {
    "gram": (((32, 32), 256), ((28, 9), 211), ((40, 56), 96)),
    "correlation": (((128, 128), 64), ((60, 151), 37), ((56, 40), 96)),
}
HALF_KINDS = ("random", "correlated", "constant_columns")  # others are beyond half inputs
LOCAL_KINDS = ("random", "correlated", "badly_scaled")
INPUTS = [
    ("fp64", torch.float64, KINDS),
    ("fp32", torch.float32, KINDS),
    ("bf16", torch.float32, KINDS),
    ("fp16", torch.float32, KINDS),
    ("bf16", torch.bfloat16, HALF_KINDS),
    ("fp16", torch.float16, HALF_KINDS),
]
SLOW_INPUTS = INPUTS[3:]


def draws(group, kind, samples, d, dtype, options):
    return [
        computed(group, *views(kind, samples, d, seed, dtype), samples, LAMBDA, **options)
        for seed in range(SEEDS)
    ]


def result_of(by_rank: list) -> Result:
    """The loss and its terms as every rank has them; gradients of all samples, as their mean over
    ranks scales them."""
    return Result(*by_rank[0][:3], *joined(by_rank))


def squared_errors(results: list[Result], exact: list[Result]) -> dict[str, float]:
    return {
        name: sum(
            relative_error(getattr(result, name), getattr(true, name)) ** 2
            for result, true in zip(results, exact, strict=True)
        )
        for name in Result._fields
    }


def allowed_errors(drawn: list, exact: list, precision: str, form: str) -> dict[str, float]:
    """Twice what plain torch loses, in the types that the loss returns, and the floor."""
    wide, dtype = accumulation_dtype(precision), drawn[0][0].dtype
    results = []
    for pair in drawn:
        *terms, grad_a, grad_b = plain(*pair, precision, form)
        terms = (term.to(wide) for term in terms)
        results.append(Result(*terms, grad_a.to(dtype), grad_b.to(dtype)))
    squares = squared_errors(results, exact)
    return {
        name: 2 * math.sqrt(square / SEEDS) + FLOOR[precision] for name, square in squares.items()
    }


@pytest.mark.parametrize("statistics", ["global", pytest.param("local", marks=pytest.mark.slow)])
@pytest.mark.parametrize("form", ["gram", "correlation"])
@pytest.mark.parametrize(
    ("precision", "dtype", "kinds"),
    [pytest.param(*i, marks=pytest.mark.slow) if i in SLOW_INPUTS else i for i in INPUTS],
    ids=[f"{p}-{str(t)[6:]}" for p, t, _ in INPUTS],
)
def test_gate(precision, dtype, kinds, form, statistics, monkeypatch, pool):
    for kind in kinds if statistics == "global" else [k for k in kinds if k in LOCAL_KINDS]:
        # Every shape and every kind of input meets every layout; not all at once.
        every = kind == "random"
        for samples, d in SHAPES[form] if every else SHAPES[form][:1]:
            drawn = [views(kind, samples, d, seed, dtype) for seed in range(SEEDS)]
            with monkeypatch.context() as patch:
                if statistics == "local":  # for the truth and plain torch alike
                    by_rank = functools.partial(standardise_by_rank, samples)
                    patch.setattr(reference, "standardise", by_rank)
                exact = [truth(*pair) for pair in drawn]
                allowed = allowed_errors(drawn, exact, precision, form)
            for layout, backend in itertools.product(
                LAYOUTS[form], BACKENDS if every else BACKENDS[:1]
            ):
                options = {"layout": layout, "statistics": statistics}
                options |= {"precision": precision, "backend": backend}
                by_rank = pool.run(draws, 2, kind, samples, d, dtype, options)
                found = [result_of(values) for values in zip(*by_rank, strict=True)]
                for name, square in squared_errors(found, exact).items():
                    error = math.sqrt(square / SEEDS)
                    assert error <= allowed[name], (
                        f"{name}: {error:.3g} > {allowed[name]:.3g} "
                        f"({layout}, {backend}, {kind}, samples {samples}, D = {d})"
                    )
