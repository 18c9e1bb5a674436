"""Ranks that were called differently, or wrongly: all of them raise, at once, in words."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from whole import LAYOUTS, computed, differentiated, joined, views

from barlow_fast import barlow_twins_loss
from barlow_fast.kernels import why_unusable

SAMPLES, D = (4, 6, 5), 12


def with_options(**options) -> Callable:
    return lambda a, b: (a, b, options)


# What one rank does differently, and what all ranks say: (change, words). A change takes (z_a, z_b)
# and returns them with the options of the call.
DIFFERENT: dict[str, tuple[Callable, str]] = {
    "d": (lambda a, b: (a[:, :-1], b[:, :-1], {}), "dimensions: .*11 on {who}"),
    "dtype": (lambda a, b: (a.double(), b.double(), {}), "dtype: .*'torch.float64' on {who}"),
    "lambd": (with_options(lambd=0.25), "lambd: .*0.25 on {who}"),
    "scale": (with_options(scale=3.0), "scale: .*3.0 on {who}"),
    "eps": (with_options(eps=1e-3), "eps: .*0.001 on {who}"),
    "precision": (with_options(precision="bf16"), "precision: .*'bf16' on {who}"),
    "form": (with_options(form="gram"), "form: .*'gram' on {who}"),
    "layout": (with_options(layout="rows"), "layout: .*'rows' on {who}"),
    "statistics": (with_options(statistics="local"), "statistics: .*'local' on {who}"),
    "gradient": (with_options(gradient="official"), "gradient: .*'official' on {who}"),
    "grad of z_a": (
        lambda a, b: (a.detach().requires_grad_(), b, {}), "z_a_requires_grad: .*True on {who}",
    ),
    "grad of z_b": (
        lambda a, b: (a, b.detach().requires_grad_(), {}), "z_b_requires_grad: .*True on {who}",
    ),
    "several": (
        with_options(lambd=0.25, eps=0.5), "lambd: .*0.25 on {who}.*; eps: .*0.5 on {who}",
    ),
}  # fmt: skip

# What one rank gets wrong, and what it says itself; the others say the same of it.
WRONG: dict[str, tuple[Callable, type[Exception], str]] = {
    "integers": (
        lambda a, b: (a.long(), b.long(), {}), TypeError,
        "z_a must be float64, float32, bfloat16 or float16, got torch.int64",
    ),
    "no tensor": (
        lambda a, b: (a, b.tolist(), {}), TypeError, "z_b must be a torch.Tensor, got list",
    ),
    "two shapes": (
        lambda a, b: (a, b[:-1], {}), ValueError,
        r"z_a and z_b must have the same shape, got \(\d, 12\) and \(\d, 12\)",
    ),
    "one axis": (lambda a, b: (a[0], b[0], {}), ValueError, r"must be \(N, D\)"),
    "no columns": (lambda a, b: (a[:, :0], b[:, :0], {}), ValueError, "D, the last size"),
    "lambd": (with_options(lambd=float("nan")), ValueError, "lambd must be finite, got nan"),
    "type of eps": (with_options(eps="1e-5"), TypeError, "eps must be a Python number, got str"),
    "layout": (with_options(layout="ring"), ValueError, "layout must be one of"),
    "layout of another form": (
        with_options(layout="rows", form="correlation"), ValueError,
        "layout='rows' computes the gram form",
    ),
    "backend": (
        with_options(backend="triton"), RuntimeError, "backend='triton' cannot be used here",
    ),
}  # fmt: skip


def attempt(group, change, offender, autocast=False):
    """(kind and text of the error, whether the group still works) of one rank."""
    rank = group.rank()
    z_a, z_b = (
        z.split(list(SAMPLES))[rank] for z in views("random", SAMPLES, D, dtype=torch.float32)
    )
    options = {}
    if rank == offender and change:
        table, name = change
        z_a, z_b, options = globals()[table][name][0](z_a, z_b)
    try:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast and rank == offender):
            barlow_twins_loss(z_a, z_b, process_group=group, **options)
    except Exception as error:
        kind, text = type(error).__name__, str(error)
    else:
        kind, text = "none", ""
    return kind, text, still_works(group)


def still_works(group):
    samples = SAMPLES[: group.size()]
    both = views("correlated", samples, D)
    found = computed(group, *both, samples)
    exact = differentiated(*both, samples, "global")
    return abs(float(found[0]) - float(exact[0])) < 1e-12 * float(exact[0])


def assert_reported(outcomes: list, kind: str) -> None:
    """All ranks raised this kind, which a wait in vain would not, and were of use afterwards."""
    for rank, (found, text, works) in enumerate(outcomes):
        assert found == kind, f"rank {rank}: {found} {text}"
        assert works


@pytest.mark.parametrize("name", DIFFERENT)
def test_different_calls(name, pool):
    offender = len(name) % 3
    outcomes = pool.run(attempt, 3, ("DIFFERENT", name), offender)
    assert_reported(outcomes, "ValueError")
    words = DIFFERENT[name][1].replace("{who}", f"rank {offender}")
    for _, text, *_ in outcomes:
        assert "the ranks of process_group were called differently: " in text
        assert text == outcomes[0][1]
        assert re.search(words, text), text


def test_autocast_on_one_rank(pool):
    outcomes = pool.run(attempt, 3, None, 2, autocast=True)
    assert_reported(outcomes, "ValueError")
    for _, text, *_ in outcomes:
        assert text.endswith("precision: 'fp32' on ranks 0, 1, 'bf16' on rank 2")


@pytest.mark.parametrize("name", WRONG)
def test_wrong_call_of_one_rank(name, pool):
    offender = len(name) % 3
    _, kind, words = WRONG[name]
    outcomes = pool.run(attempt, 3, ("WRONG", name), offender)
    assert_reported(outcomes, kind.__name__)
    for rank, (_, text, *_) in enumerate(outcomes):
        prefix = "" if rank == offender else f"rank {offender} of process_group: "
        assert re.match(prefix + ".*" + words, text, re.DOTALL), text
        assert rank != offender or "process_group" not in text


def both_wrong(group):
    z = torch.zeros(4, 3, dtype=torch.int64 if group.rank() else torch.float32)
    try:
        barlow_twins_loss(z, z, -1.0 if group.rank() else float("inf"), process_group=group)
    except (TypeError, ValueError) as error:
        return type(error).__name__, str(error)
    return None


def test_two_ranks_wrong_in_two_ways(pool):
    first, second, third = pool.run(both_wrong, 3)
    assert first == ("ValueError", "lambd must be finite, got inf")
    assert second[0] == "TypeError"
    assert second == third
    assert "int64" in second[1]


def refused(group, samples, statistics):
    z = torch.randn(samples[group.rank()], 7)
    try:
        barlow_twins_loss(z, z, process_group=group, statistics=statistics)
    except ValueError as error:
        return str(error), still_works(group)
    return None


@pytest.mark.parametrize(
    ("samples", "statistics", "words"),
    [
        ((0, 0, 0), "global", "at least 2 samples to standardise over, got 0 on all ranks"),
        ((0, 1, 0), "global", "at least 2 samples to standardise over, got 1 on all ranks"),
        ((5, 2, 1), "local", "needs at least 2 samples on each rank, got 1 on rank 2"),
        ((4, 0, 9), "local", "needs at least 2 samples on each rank, got 0 on rank 1"),
    ],
)
def test_too_few_samples(samples, statistics, words, pool):
    for text, works in pool.run(refused, 3, samples, statistics):
        assert words in text
        assert works


def mixed_sets(group):
    both = views("correlated", SAMPLES, D)
    backend = "aten" if group.rank() == 1 else "cpu"
    return [computed(group, *both, SAMPLES, layout=layout, backend=backend) for layout in LAYOUTS]


def test_ranks_may_use_different_kernels(pool):
    """Layouts exchange nothing that is a kernel set's own."""
    if why_unusable("cpu", torch.device("cpu")):
        pytest.skip(why_unusable("cpu", torch.device("cpu")))
    exact = differentiated(*views("correlated", SAMPLES, D), SAMPLES, "global")
    for found in zip(*pool.run(mixed_sets, 3), strict=True):
        for got, want in zip(joined(found), exact[3:], strict=True):
            assert float((got - want).norm() / want.norm()) < 1e-12
