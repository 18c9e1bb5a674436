"""What all protocols share: the encoders that are judged, their features, and the result."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from torch import Tensor, nn

from ..models.finite import check_weights
from .baselines import random_weights, raw_pixels
from .features import AVERAGE_POOL, features_of_source
from .images import AUGMENTATIONS, CROP_AND_FLIP, ImageFormat, Reading, check_fits
from .scores import ENCODER, PIXELS, RANDOM, Evaluation, Score
from .splits import LabelledSplits

if TYPE_CHECKING:
    from ..data import ViewSpecification


def check_protocol(
    splits: LabelledSplits, form: ImageFormat, seeds: Sequence[int], adapt: bool
) -> None:
    """Check what every protocol is given, before any image is read.

    Raises:
        ValueError: images that do not fit the encoder, no seeds, or a negative one.
    """
    if not seeds or min(seeds) < 0:
        raise ValueError(f"seeds must be at least one whole number from 0, got {tuple(seeds)}")
    for source in (splits.train, splits.test):
        check_fits(source, form, adapt)


def subjects(
    encoder: nn.Module,
    seeds: Sequence[int],
    random: bool,
    baselines: bool,
    pixels: bool = True,
) -> Iterator[tuple[str, Iterator[nn.Module]]]:
    """(kind of features, the encoders of its runs): of the encoder one, of random weights one per
    seed, of raw pixels one.

    Raises:
        RuntimeError: the encoder's weights are not finite.
    """
    if not random:
        check_weights(encoder)
        yield ENCODER, iter([encoder])
    if random or baselines:
        # One at a time: each is a copy.
        yield RANDOM, (random_weights(encoder, seed) for seed in seeds)
    if baselines and pixels:
        yield PIXELS, iter([raw_pixels()])


def seeds_of_run(kind: str, number: int, seeds: Sequence[int]) -> Sequence[int]:
    """The seeds of a subject: random weights have one of their own, others a run for each."""
    return seeds[number : number + 1] if kind == RANDOM else seeds


def features_of_splits(
    encoder: nn.Module,
    splits: LabelledSplits,
    form: ImageFormat,
    reading: Reading,
    names: Sequence[str] = (AVERAGE_POOL,),
    *,
    words: str,
    **stages: object,
) -> list[tuple[dict[str, Tensor], Tensor]]:
    """`features_of_source` of the training images and of the test images.

    Args:
        words: for the progress.
        stages: `dimensions` and `stages`, as for `features_of_source`.
    """
    return [
        features_of_source(
            encoder, source, form, reading, names, words=f"{words}, {part}", **stages
        )
        for source, part in ((splits.train, "train"), (splits.test, "test"))
    ]


def augmentation_for(
    splits: LabelledSplits, augmentation: ViewSpecification | None
) -> ViewSpecification:
    """The given augmentation of training images; for None crops and mirrors as suit them."""
    return augmentation or AUGMENTATIONS.get(splits.name, CROP_AND_FLIP)


def result(
    protocol: str,
    splits: LabelledSplits,
    scores: Sequence[Score],
    reading: Reading,
    train_images: int | None = None,
    **settings: object,
) -> Evaluation:
    """The evaluation that a protocol returns.

    Args:
        train_images: how many were used; None for all.
        settings: what the scores were measured with; the notes of `splits` are added.
    """
    return Evaluation(
        protocol,
        splits.name,
        len(splits.train) if train_images is None else train_images,
        len(splits.test),
        splits.classes,
        tuple(scores),
        len(reading.bad),
        settings | splits.notes,
    )
