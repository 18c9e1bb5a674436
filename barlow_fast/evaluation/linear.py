"""A linear classifier on frozen features: of the encoder's output, and of every stage in the same
pass over the images.

Sources: the protocol on augmented images is that of Zbontar et al., *Barlow Twins* (ICML 2021),
section 3.1 and appendix A, in the numbers of its official code; that of the stages is Goyal et
al.'s (ICCV 2019; `features`): batch norm without weights in front of each classifier, learning
rate 0.01, weight decay 1e-4.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..data import ViewSpecification
from .features import (
    AVERAGE_POOL,
    STAGE_DIMENSIONS,
    FindStages,
    StageFeatures,
    evaluating,
    stages_of,
)
from .images import (
    CROP_AND_FLIP,
    ImageFormat,
    Reading,
    pictures,
    training_crops,
)
from .logistic import ITERATIONS, PENALTIES, accuracy_of, fit_over_seeds
from .protocol import (
    augmentation_for,
    check_protocol,
    features_of_splits,
    result,
    seeds_of_run,
    subjects,
)
from .scores import PIXELS, Accuracy, Evaluation, Score, collected
from .splits import LabelledSplits

Features = Literal["auto", "cached", "augmented"]
FEATURES = get_args(Features)


@dataclass(frozen=True)
class LinearSettings:
    """Of the classifiers trained on augmented images: SGD, cosine from the learning rate to 0, one
    value per epoch.

    The learning rates are not scaled by the batch size.

    Raises:
        ValueError: a number out of its range.
    """

    epochs: int = 100
    batch_size: int = 256
    learning_rate: float = 0.3
    momentum: float = 0.9
    weight_decay: float = 1e-6
    # Of the classifiers behind batch norm: those of stages, and of raw pixels.
    stage_learning_rate: float = 0.01
    stage_weight_decay: float = 1e-4

    def __post_init__(self) -> None:
        check_training(self)


def check_training(settings: object) -> None:
    """Check the numbers of a training; the message names the setting.

    Raises:
        ValueError: as described.
    """
    for name, value in asdict(settings).items():
        if name in ("epochs", "batch_size"):
            accepted, words = value >= 1, "at least 1"
        elif name.endswith("learning_rate"):
            accepted, words = 0 < value < math.inf, "a number above 0"
        else:
            accepted, words = 0 <= value < math.inf, "a number, at least 0"
        if not accepted:
            raise ValueError(f"{name} must be {words}, got {value}")


class Standardised(nn.Sequential):
    """Batch norm without weights, then the linear classifier: (B, F) -> (B, K)."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__(nn.BatchNorm1d(features, affine=False), nn.Linear(features, classes))

    @property
    def classifier(self) -> nn.Linear:
        return self[1]


def linear_classifier(features: int, classes: int, seed: int, standardised: bool) -> nn.Module:
    """A classifier whose weights, normal with standard deviation 0.01, depend on `seed` alone; its
    bias starts at 0."""
    generator = torch.Generator().manual_seed(seed)
    module = Standardised(features, classes) if standardised else nn.Linear(features, classes)
    layer = module.classifier if standardised else module
    with torch.no_grad():
        layer.weight.copy_(0.01 * torch.randn(classes, features, generator=generator, device="cpu"))
        layer.bias.zero_()
    return module


def cosine(learning_rate: float, epoch: int, epochs: int) -> float:
    """From `learning_rate` in epoch 0 towards 0 after the last."""
    return 0.5 * learning_rate * (1 + math.cos(math.pi * epoch / epochs))


def train_heads(
    encoder: nn.Module,
    splits: LabelledSplits,
    form: ImageFormat,
    reading: Reading,
    settings: LinearSettings,
    seed: int,
    names: Sequence[str] = (AVERAGE_POOL,),
    *,
    standardised: bool = False,
    augmentation: ViewSpecification = CROP_AND_FLIP,
    dimensions: int = STAGE_DIMENSIONS,
    stages: FindStages | None = None,
    words: str = "linear",
) -> dict[str, nn.Module]:
    """Trains one classifier per stage, all from the same forward passes, each with an optimiser of
    its own: each gives the same result as if it had been trained alone.

    Args:
        encoder: on the device of `reading`; frozen and in evaluation mode, left as it was.
        splits: whose training images are learned from.
        form, reading: what the encoder takes, how images are read.
        settings: of the training.
        seed: of the classifiers' weights, of the order and of the crops.
        names: of the stages; `AVERAGE_POOL` is the encoder's output.
        standardised: whether the output's classifier too has batch norm in front.
        augmentation: of the training images.
        dimensions, stages: as for `StageFeatures`.
        words: for the progress.

    Returns:
        {name: the classifier, in evaluation mode}.

    Raises:
        RuntimeError: features or a loss that are not finite; the message names stage and epoch.
        BadImageError: an image that cannot be read, under the policy 'error'.
    """
    heads: dict[str, nn.Module] = {}
    optimizers: dict[str, torch.optim.SGD] = {}
    with (
        evaluating(encoder),
        StageFeatures(encoder, names, dimensions, stages) as extract,
        training_crops(
            splits.train, form, reading, settings.batch_size, seed, augmentation
        ) as loader,
    ):
        total, done = settings.epochs * len(loader), 0
        for epoch in range(settings.epochs):
            losses: dict[str, Tensor] = {}
            for (images,), _, labels in loader:
                features = extract(images)
                if not heads:
                    for name, values in features.items():
                        behind_norm = standardised or name != AVERAGE_POOL
                        heads[name] = linear_classifier(
                            values.shape[1], splits.classes, seed, behind_norm
                        ).to(values.device)
                        optimizers[name] = _optimizer(heads[name], settings, behind_norm)
                if done % len(loader) == 0:
                    for optimizer in optimizers.values():
                        for group in optimizer.param_groups:
                            group["lr"] = cosine(group["peak"], epoch, settings.epochs)
                for name, values in features.items():
                    optimizers[name].zero_grad()
                    losses[name] = functional.cross_entropy(heads[name](values), labels)
                    losses[name].backward()
                    optimizers[name].step()
                done += 1
                reading.progress(words, done, total)
            for name, loss in losses.items():
                if not torch.isfinite(loss):
                    raise RuntimeError(
                        f"the classifier on {name} diverged in epoch {epoch}: its loss is "
                        f"{loss.item()}; lower the learning rate"
                    )
    return {name: head.eval() for name, head in heads.items()}


def score_heads(
    encoder: nn.Module,
    heads: dict[str, nn.Module],
    splits: LabelledSplits,
    form: ImageFormat,
    reading: Reading,
    *,
    dimensions: int = STAGE_DIMENSIONS,
    stages: FindStages | None = None,
    words: str = "test",
) -> dict[str, Accuracy]:
    """Accuracy of classifiers on the test images as they are, in one pass over them."""
    logits: dict[str, list[Tensor]] = {name: [] for name in heads}
    labels = []
    with (
        evaluating(encoder),
        StageFeatures(encoder, tuple(heads), dimensions, stages) as extract,
        contextlib.closing(pictures(splits.test, form, reading, words)) as parts,
        torch.no_grad(),
    ):
        for images, truth in parts:
            features = extract(form.normalised(images.to(reading.device)))
            for name, head in heads.items():
                logits[name].append(head(features[name]))
            labels.append(truth.to(reading.device))
    return {name: accuracy_of(values, labels) for name, values in logits.items()}


def evaluate_linear(
    encoder: nn.Module,
    splits: LabelledSplits,
    form: ImageFormat,
    reading: Reading | None = None,
    *,
    features: Features = "auto",
    names: Sequence[str] | None = (AVERAGE_POOL,),
    settings: LinearSettings | None = None,
    augmentation: ViewSpecification | None = None,
    penalties: Sequence[float] = PENALTIES,
    iterations: int = ITERATIONS,
    dimensions: int = STAGE_DIMENSIONS,
    stages: FindStages | None = None,
    seeds: Sequence[int] = (0,),
    random: bool = False,
    baselines: bool = False,
    adapt: bool = False,
) -> Evaluation:
    """Accuracy of linear classifiers on frozen features.

    Args:
        encoder, splits, form, reading: as for `evaluate_knn`.
        features: 'augmented': the official protocol, SGD on randomly cropped and mirrored images;
            'cached': logistic regression on the features of the images as they are, computed once
            (`logistic`), in seconds; 'auto': cached for images in memory, augmented for files.
        names: of the stages to be judged; None for all that the encoder has and its output.
        settings: of 'augmented'; None for the official ones.
        augmentation: of 'augmented'; None for crops and mirrors as suit the images.
        penalties, iterations: of 'cached' (`fit_with_chosen_penalty`).
        dimensions: numbers that are kept of a stage's map, about.
        stages: finds the encoder's stages; None for `barlow_fast.models.stages`.
        seeds: one run each: of the classifier's weights, the order and the crops, or in 'cached' of
            the images that choose the penalty; and of random weights.
        random, baselines, adapt: as for `evaluate_knn`.

    Raises:
        ValueError: images that do not fit the encoder, unknown stages, features too large for the
            memory, no seeds.
        RuntimeError: weights or features that are not finite, or a classifier diverged.
        BadImageError: an image that cannot be read, under the policy 'error'.
    """
    reading = reading or Reading()
    settings = settings or LinearSettings()
    check_protocol(splits, form, seeds, adapt)
    features = chosen_features(features, splits)
    if names is None:
        names = (*stages_of(encoder, stages), AVERAGE_POOL)
    names = tuple(dict.fromkeys(names))
    # Names that are wrong are found before any image is read.
    StageFeatures(encoder, names, dimensions, stages)
    augmentation = augmentation_for(splits, augmentation)
    limits = {"penalties": penalties, "iterations": iterations}
    found = {"dimensions": dimensions, "stages": stages}
    rows: list[Score] = []
    for kind, encoders in subjects(encoder, seeds, random, baselines):
        wanted = (AVERAGE_POOL,) if kind == PIXELS else names
        runs: list[dict[str, Accuracy]] = []
        for number, subject in enumerate(encoders):
            subject = subject.to(reading.device)
            given = (splits, form, reading)
            own = seeds_of_run(kind, number, seeds)
            if features == "cached":
                runs += cached_runs(subject, *given, wanted, own, **limits, **found, words=kind)
                continue
            for seed in own:
                heads = train_heads(
                    subject,
                    *given,
                    settings,
                    seed,
                    wanted,
                    standardised=kind == PIXELS,
                    augmentation=augmentation,
                    words=f"{kind}, seed {seed}",
                    **found,
                )
                runs.append(score_heads(subject, heads, *given, words=f"{kind}, test", **found))
        rows += [
            collected(kind, row_name(name, kind), [run[name] for run in runs]) for name in wanted
        ]
    used = {"features": features, "stage_dimensions": dimensions, "seeds": list(seeds)}
    if features == "cached":
        used |= {"penalties": list(penalties), "iterations": iterations}
    else:
        used |= asdict(settings) | {"augmentation": _changed(augmentation)}
    return result("linear", splits, rows, reading, **used)


def chosen_features(features: str, splits: LabelledSplits) -> str:
    """'cached' or 'augmented'.

    Raises:
        ValueError: another value.
    """
    if features not in FEATURES:
        raise ValueError(f"features must be one of {', '.join(FEATURES)}, got {features!r}")
    if features == "auto":
        return "cached" if splits.in_memory else "augmented"
    return features


def row_name(name: str, kind: str) -> str:
    """Of a classifier in a table."""
    if kind == PIXELS or name == AVERAGE_POOL:
        return "linear"
    return f"linear on {name}"


def cached_runs(
    encoder: nn.Module,
    splits: LabelledSplits,
    form: ImageFormat,
    reading: Reading,
    names: Sequence[str],
    seeds: Sequence[int],
    *,
    penalties: Sequence[float] = PENALTIES,
    iterations: int = ITERATIONS,
    dimensions: int = STAGE_DIMENSIONS,
    stages: FindStages | None = None,
    words: str = "features",
) -> list[dict[str, Accuracy]]:
    """Logistic regression on features computed once: for each seed {name: accuracy}."""
    found = {"dimensions": dimensions, "stages": stages}
    (train, train_labels), (test, test_labels) = features_of_splits(
        encoder, splits, form, reading, names, words=words, **found
    )
    runs: list[dict[str, Accuracy]] = [{} for _ in seeds]
    # A stage at a time, given up when it is done: together they may fill the memory.
    for done, name in enumerate(names, 1):
        learned, scored = train.pop(name), test.pop(name)
        limits = {"penalties": penalties, "iterations": iterations}
        fits = fit_over_seeds(learned, train_labels, splits.classes, seeds, **limits)
        for run, fit in zip(runs, fits, strict=True):
            run[name] = fit.accuracy(scored, test_labels)
        reading.progress(f"{words}, classifiers", done, len(names))
    return runs


def _optimizer(head: nn.Module, settings: LinearSettings, behind_norm: bool) -> torch.optim.SGD:
    rate = settings.stage_learning_rate if behind_norm else settings.learning_rate
    decay = settings.stage_weight_decay if behind_norm else settings.weight_decay
    group = {"params": list(head.parameters()), "peak": rate}
    return torch.optim.SGD([group], lr=rate, momentum=settings.momentum, weight_decay=decay)


def _changed(view: ViewSpecification) -> dict[str, object]:
    """What a view does, less what it leaves alone."""
    nothing = asdict(ViewSpecification())
    return {name: value for name, value in asdict(view).items() if value != nothing[name]}
