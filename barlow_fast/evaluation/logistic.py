"""Multinomial logistic regression on features that have been computed once.

The objective is convex:

    mean_n cross_entropy(W x_n + b, y_n) + penalty / 2 * |W|^2

with features x standardised by the mean and standard deviation of the training features, and b
free. L-BFGS (Liu and Nocedal, *On the limited memory BFGS method*, 1989) with a strong Wolfe line
search minimises it from W = 0 over all samples at once, so the result depends on no seed.
scikit-learn's `LogisticRegression(C=1 / (N * penalty))` has the same objective.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ..models.finite import check_finite
from ..plan import without_autocast
from .scores import TOP, Accuracy
from .splits import stratified

# Strong ones first: each fit starts from the one before.
PENALTIES = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
HELD_OUT = 0.1
# Samples that the first round of fits learns from, at most: enough to choose among decades.
MOST_TO_CHOOSE = 20_000
ITERATIONS = 200
TOLERANCE = 1e-5

# Rows that are predicted at once.
CHUNK = 8192


@dataclass(frozen=True)
class LogisticRegression:
    """A fitted classifier."""

    weight: Tensor = field(repr=False)  # (K, F), of standardised features
    bias: Tensor = field(repr=False)  # (K,)
    mean: Tensor = field(repr=False)  # (F,), of the training features
    scale: Tensor = field(repr=False)  # (F,), one over their standard deviation
    penalty: float
    objective: float  # at the minimum that was found

    def logits(self, features: Tensor) -> Tensor:
        """(M, F) -> (M, K)."""
        with without_autocast(features.device.type):
            return ((features - self.mean) * self.scale) @ self.weight.T + self.bias

    def accuracy(self, features: Tensor, labels: Tensor) -> Accuracy:
        """On (M, F) features with (M,) labels."""
        return accuracy_of(
            (self.logits(part) for part in features.split(CHUNK)), labels.split(CHUNK)
        )


def accuracy_of(logits, labels) -> Accuracy:
    """Top-1, and top-5 where there are more than five classes.

    Args:
        logits: iterable of (B, K).
        labels: iterable of (B,) int64, batch for batch.

    Raises:
        ValueError: no samples.
        RuntimeError: logits that are not finite.
    """
    hits, top_hits, count, classes = 0, 0, 0, 0
    for values, truth in zip(logits, labels, strict=True):
        check_finite(values, "the classifier's outputs")
        classes = values.shape[1]
        best = values.topk(min(TOP, classes), dim=1).indices == truth[:, None]
        hits += best[:, 0].sum()
        top_hits += best.sum()
        count += len(truth)
    if not count:
        raise ValueError("there are no samples to score")
    return Accuracy(int(hits) / count, int(top_hits) / count if classes > TOP else None)


def fit_logistic(
    features: Tensor,
    labels: Tensor,
    classes: int,
    penalty: float,
    *,
    start: LogisticRegression | None = None,
    iterations: int = ITERATIONS,
    tolerance: float = TOLERANCE,
) -> LogisticRegression:
    """The classifier that minimises the objective above.

    Args:
        features: (N, F) floating point, on any device; float64 is computed in float64.
        labels: (N,) int64 in [0, classes).
        classes: K.
        penalty: of the squared weights, at least 0.
        start: a classifier of other penalty to start from.
        iterations: of L-BFGS, at most.
        tolerance: the largest component of the gradient at which it stops.

    Raises:
        ValueError: shapes that do not fit, a negative penalty.
        RuntimeError: features that are not finite.
    """
    mean, scale = _moments(features, labels)
    return _fit(
        (features - mean) * scale,
        labels,
        classes,
        penalty,
        (mean, scale),
        start,
        iterations,
        tolerance,
    )


def fit_with_chosen_penalty(
    features: Tensor,
    labels: Tensor,
    classes: int,
    seed: int,
    *,
    penalties: Sequence[float] = PENALTIES,
    iterations: int = ITERATIONS,
    tolerance: float = TOLERANCE,
) -> LogisticRegression:
    """`fit_logistic` on all samples, with the penalty that does best on a part of them that a first
    round of fits is not shown.

    `HELD_OUT` of each class, drawn by (seed, class), is held out; of the others at most
    `MOST_TO_CHOOSE` are fitted in that round. The highest accuracy on the held-out ones wins, the
    lower cross entropy among equals. No test image is used. Where no class can spare a
    sample, the middle penalty is taken.

    Raises:
        ValueError, RuntimeError: as `fit_logistic`; no penalties.
    """
    return fit_over_seeds(
        features,
        labels,
        classes,
        (seed,),
        penalties=penalties,
        iterations=iterations,
        tolerance=tolerance,
    )[0]


def fit_over_seeds(
    features: Tensor,
    labels: Tensor,
    classes: int,
    seeds: Sequence[int],
    *,
    penalties: Sequence[float] = PENALTIES,
    iterations: int = ITERATIONS,
    tolerance: float = TOLERANCE,
) -> list[LogisticRegression]:
    """`fit_with_chosen_penalty` for every seed. Seeds that choose the same penalty get the same
    classifier, which is fitted once."""
    if not penalties:
        raise ValueError("penalties must hold at least one number")
    ordered = sorted(set(penalties), reverse=True)
    moments = _moments(features, labels)
    standardised = (features - moments[0]) * moments[1]
    limits = (iterations, tolerance)
    fitted: dict[float, LogisticRegression] = {}
    found = []
    for seed in seeds:
        penalty = _best_penalty(standardised, labels, classes, seed, ordered, moments, limits)
        if penalty not in fitted:
            # From the beginning, so that it does not matter which seed came to it first.
            fitted[penalty] = _fit(standardised, labels, classes, penalty, moments, None, *limits)
        found.append(fitted[penalty])
    return found


def _best_penalty(
    features: Tensor,
    labels: Tensor,
    classes: int,
    seed: int,
    ordered: Sequence[float],
    moments: tuple[Tensor, Tensor],
    limits: tuple[int, float],
) -> float:
    """That of `ordered`, strong ones first, which does best on held-out samples."""
    parts = _held_out(labels, seed) if len(ordered) > 1 else None
    if parts is None:
        return ordered[len(ordered) // 2]
    learned, held = (torch.from_numpy(part).to(features.device) for part in parts)
    train, train_labels = features[learned], labels[learned]
    unseen, truth = features[held], labels[held]
    best, chosen, fit = None, ordered[0], None
    for penalty in ordered:
        fit = _fit(train, train_labels, classes, penalty, moments, fit, *limits)
        with without_autocast(unseen.device.type):
            logits = unseen @ fit.weight.T + fit.bias
        hits = (logits.argmax(1) == truth).sum().item()
        rank = (hits, -functional.cross_entropy(logits, truth).item())
        if best is None or rank > best:
            best, chosen = rank, penalty
    return chosen


def _moments(features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Mean of every column, and one over its standard deviation (0 for a constant one, which is
    then ignored)."""
    if features.dim() != 2 or labels.shape != features.shape[:1] or not len(labels):
        raise ValueError(
            f"features must be (N, F) with (N,) labels, got {tuple(features.shape)} "
            f"and {tuple(labels.shape)}"
        )
    variance, mean = torch.var_mean(features, dim=0, correction=0)
    check_finite(variance, "the features, or their variances,")
    # What is left of a constant column after rounding is noise, not a feature.
    floor = (torch.finfo(features.dtype).eps * 8 * mean.abs()).square()
    constant = (variance <= floor) | (variance == 0)
    scale = torch.where(constant, 0, variance.clamp_min(torch.finfo(features.dtype).tiny).rsqrt())
    return mean, scale


def _fit(
    features: Tensor,
    labels: Tensor,
    classes: int,
    penalty: float,
    moments: tuple[Tensor, Tensor],
    start: LogisticRegression | None,
    iterations: int,
    tolerance: float,
) -> LogisticRegression:
    """`fit_logistic` on standardised features."""
    if penalty < 0:
        raise ValueError(f"penalty must be at least 0, got {penalty}")
    if labels.min() < 0 or labels.max() >= classes:
        raise ValueError(f"labels must be in [0, {classes}), got {int(labels.max())}")
    count, width = features.shape
    # Weights and bias in one tensor, so that the line search moves them together.
    both = features.new_zeros(classes, width + 1)
    if start is not None:
        both[:, :width], both[:, width] = start.weight, start.bias
    both.grad = torch.zeros_like(both)
    target = functional.one_hot(labels, classes).to(features.dtype)
    optimizer = torch.optim.LBFGS(
        [both],
        max_iter=iterations,
        max_eval=2 * iterations,
        tolerance_grad=tolerance,
        tolerance_change=0.0 if features.dtype == torch.float64 else 1e-9,
        history_size=10,
        line_search_fn="strong_wolfe",
    )

    @torch.no_grad()
    def objective() -> Tensor:
        weight, bias = both[:, :width], both[:, width]
        logs = functional.log_softmax(torch.addmm(bias, features, weight.T), dim=1)
        value = -(logs * target).sum() / count + penalty / 2 * weight.square().sum()
        # The gradient of the cross entropy by hand: autograd would keep more and do the same.
        error = logs.exp_().sub_(target).div_(count)
        torch.mm(error.T, features, out=both.grad[:, :width])
        both.grad[:, :width].add_(weight, alpha=penalty)
        both.grad[:, width] = error.sum(0)
        return value

    # In the features' own type, whatever autocast is on for the encoder.
    with without_autocast(features.device.type):
        optimizer.step(objective)
        value = objective().item()
    weight, bias = both[:, :width].clone(), both[:, width].clone()
    return LogisticRegression(weight, bias, *moments, penalty, value)


def _held_out(labels: Tensor, seed: int) -> tuple[np.ndarray, np.ndarray] | None:
    """(samples to fit, samples held out); None where every class has one sample."""
    numbers = labels.cpu().numpy()
    _, inverse, counts = np.unique(numbers, return_inverse=True, return_counts=True)
    spare = np.flatnonzero(counts[inverse] > 1)
    if not len(spare):
        return None
    _, held = stratified(numbers[spare], HELD_OUT, seed)
    held = spare[held]
    learned = np.setdiff1d(np.arange(len(numbers)), held)
    if len(learned) > MOST_TO_CHOOSE:
        learned = np.sort(np.random.default_rng(seed).permutation(learned)[:MOST_TO_CHOOSE])
    return learned, held
