"""An encoder on images of another kind than it was trained on: k-NN and linear, frozen, from
features that are computed once for both."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from .features import AVERAGE_POOL, features_of_source
from .images import ImageFormat, Reading, check_fits
from .knn import TEMPERATURE, check_seeds, chosen_neighbours, knn_scores, subjects
from .logistic import ITERATIONS, PENALTIES, fit_over_seeds
from .scores import RANDOM, Accuracy, Evaluation, Score, collected
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
        encoder: maps (B, C, H, W) float32 to (B, F); moved to the device of `reading`; its weights
            and buffers stay as they are, to the bit.
        splits: of the images.
        form: what the encoder takes.
        reading: device, workers, policy for bad images, progress; None for the defaults.
        neighbours, temperature: of k-NN, as for `evaluate_knn`.
        penalties, iterations: of the logistic regression (`fit_with_chosen_penalty`).
        seeds: one run each of the images that choose its penalty, and of random weights.
        random: whether random weights take the encoder's place.
        baselines: whether rows of random weights and of raw pixels are added.

    Raises:
        ValueError: files for an encoder without an input size, k out of its range, no seeds.
        RuntimeError: weights or features that are not finite.
        BadImageError: an image that cannot be read, under the policy 'error'.
    """
    reading = reading or Reading()
    check_seeds(seeds)
    neighbours = chosen_neighbours(neighbours, splits)
    for source in (splits.train, splits.test):
        check_fits(source, form, adapt=True)
    rows: list[Score] = []
    for kind, encoders in subjects(encoder, seeds, random, baselines):
        nearest: list[dict[int, Accuracy]] = []
        linear: list[Accuracy] = []
        for number, subject in enumerate(encoders):
            (train, labels), (test, truth) = (
                features_of_source(
                    subject.to(reading.device), source, form, reading, words=f"{kind}, {part}"
                )
                for source, part in ((splits.train, "train"), (splits.test, "test"))
            )
            learned, scored = train[AVERAGE_POOL], test[AVERAGE_POOL]
            nearest.append(knn_scores(learned, labels, scored, truth, neighbours, temperature))
            own = seeds[number : number + 1] if kind == RANDOM else seeds
            fits = fit_over_seeds(
                learned,
                labels,
                splits.classes,
                own,
                penalties=penalties,
                iterations=iterations,
            )
            linear += [fit.accuracy(scored, truth) for fit in fits]
        rows += [collected(kind, f"k = {k}", [run[k] for run in nearest]) for k in neighbours]
        rows.append(collected(kind, "linear", linear))
    return Evaluation(
        "transfer",
        splits.name,
        len(splits.train),
        len(splits.test),
        splits.classes,
        tuple(rows),
        len(reading.bad),
        {
            "neighbours": list(neighbours),
            "temperature": temperature,
            "penalties": list(penalties),
            "iterations": iterations,
            "seeds": list(seeds),
            **splits.notes,
        },
    )
