"""An encoder on images of another kind than it was trained on: k-NN and linear, frozen, from
features that are computed once for both."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from .features import AVERAGE_POOL
from .images import ImageFormat, Reading
from .knn import TEMPERATURE, chosen_neighbours, knn_scores
from .logistic import ITERATIONS, PENALTIES, fit_over_seeds
from .protocol import check_protocol, features_of_splits, result, seeds_of_run, subjects
from .scores import Accuracy, Evaluation, Score, collected
from .splits import LabelledSplits


def evaluate_transfer(
    encoder: nn.Module,
    splits: LabelledSplits,
    form: ImageFormat,
    reading: Reading | None = None,
    *,
    neighbours: Sequence[int] | None = None,
    temperature: float = TEMPERATURE,
    penalties: Sequence[float] = PENALTIES,
    iterations: int = ITERATIONS,
    seeds: Sequence[int] = (0,),
    random: bool = False,
    baselines: bool = False,
) -> Evaluation:
    """k-NN and linear accuracy on labelled images of any size and colour: they are resized to the
    encoder's input, gray becomes RGB, and RGB the gray of an encoder that has one channel.

    Args:
        encoder, splits, form, reading, neighbours, temperature: as for `evaluate_knn`.
        penalties, iterations: of the logistic regression (`fit_with_chosen_penalty`).
        seeds: one run each of the images that choose its penalty, and of random weights.
        random, baselines: as for `evaluate_knn`.

    Raises:
        ValueError: files for an encoder without an input size, k out of its range, no seeds.
        RuntimeError: weights or features that are not finite.
        BadImageError: an image that cannot be read, under the policy 'error'.
    """
    reading = reading or Reading()
    check_protocol(splits, form, seeds, adapt=True)
    neighbours = chosen_neighbours(neighbours, splits)
    rows: list[Score] = []
    for kind, encoders in subjects(encoder, seeds, random, baselines):
        nearest: list[dict[int, Accuracy]] = []
        linear: list[Accuracy] = []
        for number, subject in enumerate(encoders):
            (train, labels), (test, truth) = features_of_splits(
                subject.to(reading.device), splits, form, reading, words=kind
            )
            learned, scored = train[AVERAGE_POOL], test[AVERAGE_POOL]
            nearest.append(knn_scores(learned, labels, scored, truth, neighbours, temperature))
            own = seeds_of_run(kind, number, seeds)
            limits = {"penalties": penalties, "iterations": iterations}
            fits = fit_over_seeds(learned, labels, splits.classes, own, **limits)
            linear += [fit.accuracy(scored, truth) for fit in fits]
        rows += [collected(kind, f"k = {k}", [run[k] for run in nearest]) for k in neighbours]
        rows.append(collected(kind, "linear", linear))
    return result(
        "transfer",
        splits,
        rows,
        reading,
        neighbours=list(neighbours),
        temperature=temperature,
        penalties=list(penalties),
        iterations=iterations,
        seeds=list(seeds),
    )
