"""Whether a peer computes what it states. Speed of one that does not is never printed.

Two checks: before anything is timed, on small shapes, against the definition of the peer's
mathematics in float64 (`barlow_fast.reference` where that is the paper's); and at each timed shape,
on the inputs that are timed, against float64 without a D x D matrix where N < D. Nothing is timed
unchecked, what is not exact included.

With z_hat the standardised views (bench/peers/peer.py), K = z_hat z_hat^T and
C = z_hat_a^T z_hat_b / N, for a factor of 1:

    L = sum_i (C_ii - 1)^2 + lambda (||C||^2 - sum_i C_ii^2),       ||C||^2 = <K_a, K_b> / N^2

and for the FFT relaxation, with A and B the transforms of the groups p and q of the columns,

    s_pq = irfft(sum_n conj(A_np) B_nq) / N,      L_2 = lambda sum s_pq[k]^2 less s_pp[0]

tests/bench/test_truth.py compares these with autograd through the definitions.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bench.inputs import FP64, Pair, Variant, random_pair
from bench.peers import Loss, Peer
from bench.peers.peer import PAPER, Mathematics

SMALL_SHAPES = ((24, 72), (56, 24))  # one for each form
# Peers that round C itself to bfloat16 lose more than the definition, which also does so, but not
# several times more. Nor do those whose formula is ill-conditioned, such as the variance as
# E[x^2] - E[x]^2: the columns of `random_pair` have a mean near 0, at which nothing cancels.
SLACK = 4.0
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Outcome:
    """A loss and its two gradients, these times `scale`."""

    loss: Tensor
    gradients: tuple[Tensor, ...]
    scale: float = 1.0


@dataclass(frozen=True)
class Errors:
    """Relative errors of the loss and of the gradients (Euclidean norm over both)."""

    loss: float
    gradient: float

    def within(self, loss: float, gradient: float) -> bool:
        """False also for NaN."""
        return self.loss <= loss and self.gradient <= gradient

    def most(self, other: Errors) -> Errors:
        """The larger of both."""
        return Errors(max(self.loss, other.loss), max(self.gradient, other.gradient))


def forward(loss: Loss, pair: Pair, variant: Variant) -> Tensor:
    """The loss, under the autocast of the variant."""
    with variant.context(pair[0].device.type):
        return loss(*pair)


def backward(value: Tensor, pair: Pair, variant: Variant) -> Outcome:
    """Its gradients, scaled as a GradScaler would."""
    if variant.loss_scale == 1.0:
        return Outcome(value.detach(), torch.autograd.grad(value, pair))
    scale = torch.full_like(value, variant.loss_scale)  # autograd itself would make a tensor of 1
    return Outcome(value.detach(), torch.autograd.grad(value, pair, scale), variant.loss_scale)


def run(loss: Loss, pair: Pair, variant: Variant) -> Outcome:
    """One forward and backward pass."""
    return backward(forward(loss, pair, variant), pair, variant)


def built(peer: Peer, n: int, d: int, variant: Variant, device: torch.device) -> Loss:
    """The peer's loss with whatever state it has on `device`."""
    with device:
        return peer.build(n, d, variant.dtype)


def truth(pair: Pair, mathematics: Mathematics = PAPER) -> Outcome:
    """float64 results at any shape, on the device of the inputs."""
    n, d = pair[0].shape
    pair = in_double(pair)
    if mathematics.circular_groups:
        value = _circular(mathematics, *pair)
    else:
        value = mathematics.loss(*pair) if n >= d else _gram(mathematics, *pair)
    return Outcome(value.detach(), torch.autograd.grad(value, pair))


def in_double(pair: Pair) -> Pair:
    """The same numbers in float64."""
    z_a, z_b = (z.detach().double().requires_grad_() for z in pair)
    return z_a, z_b


def _gram(m: Mathematics, z_a: Tensor, z_b: Tensor) -> Tensor:
    hat_a, hat_b = m.standardised(z_a, z_b)
    diagonal = (hat_a * hat_b).mean(0)
    square = ((hat_a @ hat_a.T) * (hat_b @ hat_b.T)).sum() / len(z_a) ** 2
    redundancy = square - diagonal.square().sum()
    return m.factor * ((diagonal - 1).square().sum() + m.lambd * redundancy)


def _circular(m: Mathematics, z_a: Tensor, z_b: Tensor) -> Tensor:
    n, d = z_a.shape
    size = m.group_size(d)
    hats = m.standardised(z_a, z_b)
    a, b = (torch.fft.rfft(hat.unflatten(1, (-1, size))) for hat in hats)
    sums = torch.fft.irfft(torch.einsum("npf,nqf->pqf", a.conj(), b), size) / n
    off_diagonal = sums.square().sum() - sums[..., 0].diagonal().square().sum()
    on_diagonal = ((hats[0] * hats[1]).mean(0) - 1).square().sum()
    return m.factor * (on_diagonal + m.lambd * off_diagonal)


class Truths:
    """The truths of one pair. That of the paper is kept; any other is evaluated anew, and given
    back with its caller's last reference: the memory is the peers' to be measured in."""

    def __init__(self, pair: Pair) -> None:
        self._pair = pair
        self._paper: Outcome | None = None

    def of(self, mathematics: Mathematics) -> Outcome:
        """The results that a peer of this mathematics should have; factors of the paper's share
        one evaluation."""
        factor = mathematics.factor
        if replace(mathematics, factor=1.0) != PAPER:
            return truth(self._pair, mathematics)
        self._paper = self._paper or truth(self._pair, PAPER)
        return Outcome(factor * self._paper.loss, self._paper.gradients, 1 / factor)


def errors(outcome: Outcome, true: Outcome) -> Errors:
    """Relative errors of `outcome`; infinite where a shape or a finite value is missing."""
    difference = norm = 0.0
    for gradient, expected in zip(outcome.gradients, true.gradients, strict=True):
        if gradient.shape != expected.shape:
            return Errors(math.inf, math.inf)
        if true.scale != 1.0:
            expected = expected / true.scale
        difference += (gradient.double() / outcome.scale - expected).square().sum().item()
        norm += expected.square().sum().item()
    loss = abs(outcome.loss.double() - true.loss).item() / abs(true.loss.item())
    gradient = math.sqrt(difference / norm) if math.isfinite(difference) else math.inf
    return Errors(loss if math.isfinite(loss) else math.inf, gradient)


def check_small(peer: Peer, variants: list[Variant], device: torch.device = CPU) -> str | None:
    """None if the peer agrees with its mathematics on small shapes in float64 and in `variants`,
    else what it got wrong; on `device`.

    One that compiles is checked here on one shape in float64 alone, to save minutes of compilation,
    and not at all where it takes no float64; like all others it is checked again in every variant
    at the timed shapes.
    """
    shapes = SMALL_SHAPES
    if peer.compiles:
        shapes, variants = SMALL_SHAPES[:1], []
    if peer.double:
        variants = [FP64, *variants]
    for pair, variant, true, allowed in small_cases(peer.mathematics, variants, shapes, device):
        try:
            loss = built(peer, *pair[0].shape, variant, device)
            reason = problem(run(loss, pair, variant), true, variant, allowed)
        except Exception as error:  # whatever a peer raises, the others are still to be timed
            reason = f"{variant.name}: raises {type(error).__name__}: {error}"
        if reason is not None:
            return f"{pair[0].shape[0]} x {pair[0].shape[1]} {reason}"
    return None


def small_cases(
    mathematics: Mathematics,
    variants: Iterable[Variant],
    shapes: Iterable[tuple[int, int]] = SMALL_SHAPES,
    device: torch.device = CPU,
) -> Iterator[tuple[Pair, Variant, Outcome, Errors]]:
    """(pair, variant, its truth, the errors that a peer may have) of every shape and variant, each
    under the matmul precision of the variant."""
    for (n, d), variant in itertools.product(shapes, variants):
        pair = random_pair(n, d, variant.dtype, torch.Generator(device).manual_seed(n))
        with variant.products():
            true = run(mathematics.loss, in_double(pair), FP64)
            own = errors(run(mathematics.loss, pair, variant), true)
            loss, gradient = (SLACK * each + variant.noise for each in (own.loss, own.gradient))
            yield pair, variant, true, Errors(loss, gradient)


def check_timed(outcome: Outcome, true: Outcome, variant: Variant) -> str | None:
    """None if a result at a timed shape is right, else what is wrong with it.

    `true` is the truth of the peer's own mathematics, exact or not.
    """
    return problem(outcome, true, variant, Errors(variant.tolerance, variant.tolerance))


def problem(outcome: Outcome, true: Outcome, variant: Variant, allowed: Errors) -> str | None:
    """None if an outcome has no larger errors than `allowed`, else what is wrong with it."""
    found = errors(outcome, true)
    if found.within(allowed.loss, allowed.gradient):
        return None
    return (
        f"{variant.name}: loss {outcome.loss.item():.6g} is off by {found.loss:.2g} (allowed "
        f"{allowed.loss:.2g}), gradients by {found.gradient:.2g} (allowed {allowed.gradient:.2g})"
    )
