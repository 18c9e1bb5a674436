"""Results of an evaluation: numbers of every run, and what they were measured with."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

# What a row's features are.
ENCODER, RANDOM, PIXELS = "encoder", "random weights", "raw pixels"

# Top-5 says nothing where there are no more than five classes.
TOP = 5


class Accuracy(NamedTuple):
    """Shares of test images in [0, 1]; `top5` is None where there are at most five classes."""

    top1: float
    top5: float | None


@dataclass(frozen=True)
class Score:
    """One row of a table: a classifier on certain features, in one or more runs."""

    features: str  # ENCODER, RANDOM or PIXELS
    classifier: str  # such as 'k = 20', 'linear on Feature3'
    top1: tuple[float, ...]  # of every run, in [0, 1]
    top5: tuple[float, ...] | None = None

    @property
    def mean(self) -> float:
        """Of top-1."""
        return statistics.fmean(self.top1)

    @property
    def std(self) -> float | None:
        """Standard deviation of top-1 between the runs (n - 1); None for a single run."""
        return statistics.stdev(self.top1) if len(self.top1) > 1 else None

    def to_dict(self) -> dict[str, Any]:
        """Plain values: the runs, and their mean and standard deviation."""
        content: dict[str, Any] = {"features": self.features, "classifier": self.classifier}
        for name in ("top1", "top5"):
            values = getattr(self, name)
            content[name] = None if values is None else summary(values)
        return content


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate_knn`, `evaluate_linear`, `evaluate_finetune` and `evaluate_transfer` find."""

    protocol: str  # knn, linear, finetune or transfer
    data: str  # name of the images
    train_images: int
    test_images: int
    classes: int
    scores: tuple[Score, ...]
    skipped: int = 0  # images that could not be read
    settings: dict[str, Any] = field(default_factory=dict)

    def score(self, classifier: str, features: str = ENCODER) -> Score:
        """One row.

        Raises:
            KeyError: there is none of that name.
        """
        for row in self.scores:
            if (row.features, row.classifier) == (features, classifier):
                return row
        there = ", ".join(f"{row.classifier} ({row.features})" for row in self.scores)
        raise KeyError(f"no score {classifier!r} of {features!r}; there are {there}")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        content = dict(vars(self))
        content["scores"] = [row.to_dict() for row in self.scores]
        content["settings"] = dict(self.settings)
        return content


def summary(values: Sequence[float]) -> dict[str, Any]:
    """Mean, standard deviation (n - 1, None for one value) and the values themselves."""
    return {
        "mean": statistics.fmean(values),
        "std": statistics.stdev(values) if len(values) > 1 else None,
        "runs": list(values),
    }


def collected(features: str, classifier: str, runs: Sequence[Accuracy]) -> Score:
    """The row of several runs."""
    top5 = tuple(run.top5 for run in runs)
    return Score(
        features, classifier, tuple(run.top1 for run in runs), None if None in top5 else top5
    )


def merged(evaluations: Sequence[Evaluation]) -> Evaluation:
    """Evaluations of several encoders of one architecture, such as those of several pretraining
    seeds, as one whose runs are all of theirs. Rows of baselines do not depend on what an encoder
    has learned: they are taken from the first, and the others need none.

    Raises:
        ValueError: none, or evaluations of different protocols, data or rows.
    """
    if not evaluations:
        raise ValueError("no evaluations to merge")
    first = evaluations[0]
    rows = []
    for row in first.scores:
        parts = [row]
        if row.features == ENCODER:
            parts += [_row_of(evaluation, row, first) for evaluation in evaluations[1:]]
        top5 = None if row.top5 is None else tuple(v for part in parts for v in part.top5 or ())
        top1 = tuple(value for part in parts for value in part.top1)
        rows.append(Score(row.features, row.classifier, top1, top5))
    skipped = max(evaluation.skipped for evaluation in evaluations)
    return replace(first, scores=tuple(rows), skipped=skipped)


def _row_of(evaluation: Evaluation, row: Score, first: Evaluation) -> Score:
    if (evaluation.protocol, evaluation.data) == (first.protocol, first.data):
        with contextlib.suppress(KeyError):
            return evaluation.score(row.classifier, row.features)
    raise ValueError(
        f"evaluations differ: {first.protocol} on {first.data} has {row.classifier}, "
        f"{evaluation.protocol} on {evaluation.data} has not"
    )
