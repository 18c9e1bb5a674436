"""The numerics gate: no path may lose more than twice what plain torch loses in the same form and
precision.

Errors are against the float64 truth of `barlow_fast.reference` on the very same (rounded) inputs,
and are root mean
squares over several seeds: a single draw of a rounding error can be luckily small on either side.
The floor covers what two correct evaluations in the accumulation type may differ by; it is never
the working tolerance.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from barlow_fast import barlow_twins_loss, reference

LAMBDA = 0.0051
EPS = 1e-5

# Relative to the size of the result: a few units in the last place of the accumulation type, times
# the condition of sums that nearly cancel (on_diagonal when the views agree).
FLOOR = {"fp64": 5e-13, "fp32": 2e-6, "tf32": 2e-6, "bf16": 2e-6, "fp16": 2e-6}
OPERAND = {
    "fp64": torch.float64,
    "fp32": torch.float32,
    "tf32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}


class Result(NamedTuple):
    loss: Tensor
    on_diagonal: Tensor
    off_diagonal: Tensor
    grad_a: Tensor
    grad_b: Tensor


def _differentiated(terms: tuple[Tensor, Tensor, Tensor], inputs: tuple[Tensor, Tensor]) -> Result:
    grads = torch.autograd.grad(terms[0], inputs)
    return Result(*(t.detach() for t in terms), *grads)


def truth(z_a: Tensor, z_b: Tensor) -> Result:
    """The reference in float64."""
    a, b = (z.detach().double().requires_grad_() for z in (z_a, z_b))
    return _differentiated(reference.barlow_twins_terms(a, b, LAMBDA, EPS), (a, b))


@contextlib.contextmanager
def _float32_products(setting: str) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(setting)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def plain(z_a: Tensor, z_b: Tensor, precision: str, form: str) -> Result:
    """Plain torch under autograd: what a careful user would write today in this form and precision.

    Statistics and sums are taken in the accumulation type, the matrix product in the operand type,
    which also rounds its result, as autocast does.
    """
    with _float32_products("high" if precision == "tf32" and z_a.is_cuda else "highest"):
        return _plain(z_a, z_b, precision, form)


def _rounded_to_tf32(x: Tensor) -> Tensor:
    """To the nearest number with ten bits of mantissa: the operands of devices that have TF32."""
    bits = x.detach().view(torch.int32)
    return x + (((bits + 0x1000) & ~0x1FFF).view(torch.float32) - x.detach())


def _plain(z_a: Tensor, z_b: Tensor, precision: str, form: str) -> Result:
    wide = torch.float64 if precision == "fp64" else torch.float32
    a, b = (z.detach().to(wide).requires_grad_() for z in (z_a, z_b))
    n = a.shape[0]
    hat_a, hat_b = (reference.standardise(z, EPS).to(OPERAND[precision]) for z in (a, b))

    def product(x: Tensor, y: Tensor) -> Tensor:
        if (
            precision == "fp16"
        ):  # torch's own half product takes minutes on a CPU: same operands, same rounding
            return (x.float() @ y.float()).half().to(wide)
        if precision == "tf32" and not x.is_cuda:
            x, y = _rounded_to_tf32(x), _rounded_to_tf32(y)
        return (x @ y).to(wide)

    if form == "correlation":
        c = product(hat_a.T, hat_b) / n
        diagonal = c.diagonal()
        off_diagonal = (c - torch.diag(diagonal)).square().sum()
    else:
        diagonal = (hat_a.to(wide) * hat_b.to(wide)).mean(0)
        inner = (product(hat_a, hat_a.T) * product(hat_b, hat_b.T)).sum()
        off_diagonal = inner / n**2 - diagonal.square().sum()
    on_diagonal = (diagonal - 1).square().sum()
    return _differentiated((on_diagonal + LAMBDA * off_diagonal, on_diagonal, off_diagonal), (a, b))


def ours(z_a: Tensor, z_b: Tensor, **options: str) -> Result:
    a, b = (z.detach().clone().requires_grad_() for z in (z_a, z_b))
    loss, terms = barlow_twins_loss(a, b, LAMBDA, eps=EPS, return_terms=True, **options)
    return _differentiated((loss, terms.on_diagonal, terms.off_diagonal), (a, b))


def relative_error(value: Tensor, exact: Tensor) -> float:
    """|value - exact| / |exact| in the 2-norm; infinite where value is not finite."""
    size = exact.norm().clamp_min(torch.finfo(torch.float64).tiny)
    error = float((value.double() - exact).norm() / size)
    return error if math.isfinite(error) else math.inf


def assert_within_gate(
    draw: Callable[[int], tuple[Tensor, Tensor]],
    precision: str,
    form: str,
    backend: str,
    seeds: int = 5,
    exact: Callable[[Tensor, Tensor], Result] = truth,
    fields: Sequence[str] = Result._fields,
) -> None:
    """Asserts rms error(ours) <= 2 * rms error(plain torch) + floor for the loss, both terms and
    both gradients.

    `draw(seed)` yields the two views. `exact`: another float64 truth, where D x D is too large.
    `fields`: which results are judged.
    """
    squares = {name: [0.0, 0.0] for name in fields}
    for seed in range(seeds):
        z_a, z_b = draw(seed)
        results = (
            ours(z_a, z_b, precision=precision, form=form, backend=backend),
            plain(z_a, z_b, precision, form),
            exact(z_a, z_b),
        )
        for name in fields:
            value, base, true = (getattr(result, name) for result in results)
            squares[name][0] += relative_error(value, true) ** 2
            squares[name][1] += relative_error(base.to(value.dtype), true) ** 2
    for name, (mine, theirs) in squares.items():
        error, allowed = math.sqrt(mine / seeds), 2 * math.sqrt(theirs / seeds) + FLOOR[precision]
        assert error <= allowed, (
            f"{name}: {error:.3g} > {allowed:.3g} ({precision}, {form}, {backend})"
        )
