"""Whether a peer computes the loss at all. Speed of one that does not is never printed.

Two checks: before anything is timed, on small shapes, against `barlow_fast.reference` in float64;
and at each timed shape, on the inputs that are timed, against float64 in the cheaper form (itself
checked on the small shapes).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from barlow_fast import reference
from bench import truth as truth_of
from bench.inputs import FP64, Pair, Variant, random_pair
from bench.peers import LAMBD, Loss, Peer
from bench.peers.gram_plain import gram_loss

SMALL_SHAPES = ((24, 72), (56, 24))  # one for each form
# Peers that round C itself to bfloat16 lose more than the reference, which also does so, but not
# several times more.
SLACK = 4.0
NOISE = {
    "fp64": 1e-11,
    "fp32": 1e-6,
    "tf32": 1e-3,
    "bf16-autocast": 1e-2,
    "bf16-inputs": 1e-2,
    "fp16-inputs": 1e-2,
}
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


def run(loss: Loss, pair: Pair, variant: Variant) -> Outcome:
    """One forward and backward pass."""
    with variant.context(pair[0].device.type):
        value = loss(*pair)
    if variant.loss_scale == 1.0:
        return Outcome(value.detach(), torch.autograd.grad(value, pair))
    scale = torch.full_like(value, variant.loss_scale)  # autograd itself would make a tensor of 1
    return Outcome(value.detach(), torch.autograd.grad(value, pair, scale), variant.loss_scale)


def built(peer: Peer, n: int, d: int, variant: Variant, device: torch.device) -> Loss:
    """The peer's loss with whatever state it has on `device`."""
    with device:
        return peer.build(n, d, variant.dtype)


def in_double(pair: Pair) -> Pair:
    """The same numbers in float64."""
    z_a, z_b = (z.detach().double().requires_grad_() for z in pair)
    return z_a, z_b


def reference_loss(z_a: Tensor, z_b: Tensor) -> Tensor:
    """The oracle with the lambda of this bench."""
    return reference.barlow_twins_loss(z_a, z_b, LAMBD)


def truth(pair: Pair) -> Outcome:
    """float64 results at any shape, by the form that is affordable there."""
    n, d = pair[0].shape
    return run(gram_loss if n < d else reference_loss, in_double(pair), FP64)


def exact_truth(pair: Pair) -> Outcome:
    """float64 results in closed form, in blocks: for shapes too large for autograd in float64."""
    return Outcome(*truth_of.exact(pair, LAMBD))


def errors(outcome: Outcome, true: Outcome) -> Errors:
    """Relative errors of `outcome`; infinite where a shape or a finite value is missing."""
    difference = norm = 0.0
    for gradient, expected in zip(outcome.gradients, true.gradients, strict=True):
        if gradient.shape != expected.shape:
            return Errors(math.inf, math.inf)
        difference += (gradient.double() / outcome.scale - expected).square().sum().item()
        norm += expected.square().sum().item()
    loss = abs(outcome.loss.double() - true.loss).item() / abs(true.loss.item())
    return Errors(loss, math.sqrt(difference / norm) if math.isfinite(difference) else math.inf)


def check_small(peer: Peer, variants: list[Variant], device: torch.device = CPU) -> str | None:
    """None if the peer agrees with the reference on small shapes in float64 and in `variants`, else
    what it got wrong; on `device`.

    One that compiles is checked here in float64 alone, to save half a minute of compilation; like
    all others it is checked again in every variant at the timed shapes.
    """
    if not peer.exact:
        return None
    if peer.double:
        variants = [FP64] if peer.compiles else [FP64, *variants]
    for n, d in SMALL_SHAPES:
        for variant in variants:
            pair = random_pair(n, d, variant.dtype, torch.Generator(device).manual_seed(n))
            with variant.products():
                true = run(reference_loss, in_double(pair), FP64)
                own = errors(run(reference_loss, pair, variant), true)
                noise = NOISE[variant.name]
                allowed = (SLACK * own.loss + noise, SLACK * own.gradient + noise)
                problem = _problem(peer, pair, variant, true, *allowed)
            if problem is not None:
                return problem
    return None


def check_timed(outcome: Outcome, true: Outcome, variant: Variant) -> str | None:
    """None if a result at a timed shape is right, else what is wrong with it."""
    found = errors(outcome, true)
    if found.within(variant.tolerance, variant.tolerance):
        return None
    return describe(variant.name, outcome, found, variant.tolerance, variant.tolerance)


def _problem(
    peer: Peer, pair: Pair, variant: Variant, true: Outcome, loss: float, gradient: float
) -> str | None:
    n, d = pair[0].shape
    try:
        outcome = run(built(peer, n, d, variant, pair[0].device), pair, variant)
    except Exception as error:  # whatever a peer raises, the others are still to be timed
        return f"{n} x {d} {variant.name}: raises {type(error).__name__}: {error}"
    found = errors(outcome, true)
    if found.within(loss, gradient):
        return None
    return f"{n} x {d} " + describe(variant.name, outcome, found, loss, gradient)


def describe(name: str, outcome: Outcome, found: Errors, loss: float, gradient: float) -> str:
    """What is wrong with an outcome, in words."""
    return (
        f"{name}: loss {outcome.loss.item():.6g} is off by {found.loss:.2g} (allowed {loss:.2g}), "
        f"gradients by {found.gradient:.2g} (allowed {gradient:.2g})"
    )
