"""Semi-supervised learning: all weights trained on a small labelled part of the images.

Source: Zbontar et al., *Barlow Twins* (ICML 2021), section 3.2 and appendix A, in the numbers of
its official code: 1 % or 10 % of ImageNet labels, 20 epochs, one learning rate for the encoder and
one for the classifier, no weight decay.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from torch import nn
from torch.nn import functional

from ..data import ViewSpecification
from ..models.finite import check_weights
from .features import AVERAGE_POOL, StageFeatures, evaluating
from .images import CROP_AND_FLIP, ImageFormat, Reading, training_crops
from .linear import check_training, cosine, linear_classifier, score_heads
from .protocol import augmentation_for, check_protocol, result, subjects
from .scores import RANDOM, Evaluation, collected
from .splits import LabelledSplits, balanced_subset, with_training_images


@dataclass(frozen=True)
class FinetuneSettings:
    """SGD on all weights, cosine from the learning rates to 0, one value per epoch.

    Raises:
        ValueError: a number out of its range.
    """

    epochs: int = 20
    batch_size: int = 256
    backbone_learning_rate: float = 0.005
    classifier_learning_rate: float = 0.5
    momentum: float = 0.9
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        check_training(self)


def finetune(
    encoder: nn.Module,
    splits: LabelledSplits,
    form: ImageFormat,
    reading: Reading,
    settings: FinetuneSettings,
    seed: int,
    *,
    augmentation: ViewSpecification = CROP_AND_FLIP,
    words: str = "finetune",
) -> nn.Module:
    """Trains an encoder, in place, with a linear classifier on its output.

    Args:
        encoder: on the device of `reading`; all its weights are trained, batch norm uses the
            statistics of the batch. It comes back in the mode that it had.
        splits: whose training images are learned from, all of them.
        form, reading: what the encoder takes, how images are read.
        settings: of the training.
        seed: of the classifier's weights, of the order and of the crops.
        augmentation: of the training images.
        words: for the progress.

    Returns:
        The classifier, in evaluation mode.

    Raises:
        RuntimeError: weights, features or a loss that are not finite; with the loss's epoch.
        BadImageError: an image that cannot be read, under the policy 'error'.
    """
    check_weights(encoder)
    modes = [(module, module.training) for module in encoder.modules()]
    frozen = [parameter for parameter in encoder.parameters() if not parameter.requires_grad]
    classifier, optimizer = None, None
    try:
        for parameter in frozen:
            parameter.requires_grad_(True)
        with training_crops(
            splits.train, form, reading, settings.batch_size, seed, augmentation
        ) as loader:
            total, done = settings.epochs * len(loader), 0
            for epoch in range(settings.epochs):
                for (images,), _, labels in loader:
                    if classifier is None:
                        classifier, optimizer = _begin(encoder, images, splits, settings, seed)
                        encoder.train()
                    if done % len(loader) == 0:
                        for group in optimizer.param_groups:
                            group["lr"] = cosine(group["peak"], epoch, settings.epochs)
                    optimizer.zero_grad()
                    logits = classifier(encoder(images).flatten(1).float())
                    loss = functional.cross_entropy(logits, labels)
                    loss.backward()
                    optimizer.step()
                    done += 1
                    reading.progress(words, done, total)
                if not torch.isfinite(loss):
                    raise RuntimeError(
                        f"the training diverged in epoch {epoch}: its loss is {loss.item()}; "
                        "lower the learning rates"
                    )
    finally:
        for module, mode in modes:
            module.training = mode
        for parameter in frozen:
            parameter.requires_grad_(False)
    return classifier.eval()


def evaluate_finetune(
    encoder: nn.Module,
    splits: LabelledSplits,
    form: ImageFormat,
    reading: Reading | None = None,
    *,
    fraction: float = 0.01,
    subset_seed: int = 0,
    settings: FinetuneSettings | None = None,
    augmentation: ViewSpecification | None = None,
    seeds: Sequence[int] = (0,),
    adapt: bool = False,
    random: bool = False,
    baselines: bool = False,
) -> Evaluation:
    """Accuracy on the test images after training on a part of the labels.

    Args:
        encoder: maps (B, C, H, W) float32 to (B, F); every run trains a copy of it.
        splits, form, reading: as for `evaluate_knn`.
        fraction: of the training images, in (0, 1] (`balanced_subset`).
        subset_seed: which images these are; the same ones in all runs, as in the protocol.
        settings: of the training; None for the official ones.
        augmentation: None for crops and mirrors as suit the images.
        seeds: one run each: of the classifier's weights, the order, the crops, and random weights.
        random, adapt: as for `evaluate_knn`.
        baselines: whether a row of random weights is added: learning from these labels alone.

    Raises:
        ValueError: images that do not fit the encoder, a fraction that leaves a class without a
            sample, no seeds.
        RuntimeError: weights or features that are not finite, or the training diverged.
        BadImageError: an image that cannot be read, under the policy 'error'.
    """
    reading = reading or Reading()
    settings = settings or FinetuneSettings()
    check_protocol(splits, form, seeds, adapt)
    chosen = balanced_subset(splits.train.labels, fraction, subset_seed, splits.class_names)
    part = splits if len(chosen) == len(splits.train) else with_training_images(splits, chosen)
    augmentation = augmentation_for(splits, augmentation)
    name = f"finetune, {100 * fraction:.3g} % of labels" if fraction < 1 else "finetune"
    rows = []
    for kind, encoders in subjects(encoder, seeds, random, baselines, pixels=False):
        # The encoder itself starts every run; random weights have drawn their own.
        starts = encoders if kind == RANDOM else (encoder for _ in seeds)
        runs = []
        for seed, start in zip(seeds, starts, strict=True):
            subject = copy.deepcopy(start).to(reading.device)
            classifier = finetune(
                subject,
                part,
                form,
                reading,
                settings,
                seed,
                augmentation=augmentation,
                words=f"{kind}, seed {seed}",
            )
            heads = {AVERAGE_POOL: classifier}
            scores = score_heads(subject, heads, splits, form, reading, words=f"{kind}, test")
            runs.append(scores[AVERAGE_POOL])
        rows.append(collected(kind, name, runs))
    return result(
        "finetune",
        splits,
        rows,
        reading,
        len(part.train),
        fraction=fraction,
        subset_seed=subset_seed,
        seeds=list(seeds),
        **asdict(settings),
    )


def _begin(
    encoder: nn.Module,
    images: torch.Tensor,
    splits: LabelledSplits,
    settings: FinetuneSettings,
    seed: int,
) -> tuple[nn.Module, torch.optim.SGD]:
    """Classifier and optimiser, for as many features as the encoder has."""
    with evaluating(encoder), StageFeatures(encoder) as extract:
        width = extract(images[:1])[AVERAGE_POOL].shape[1]
    classifier = linear_classifier(width, splits.classes, seed, standardised=False)
    classifier = classifier.to(images.device)
    groups = [
        {"params": list(encoder.parameters()), "peak": settings.backbone_learning_rate},
        {"params": list(classifier.parameters()), "peak": settings.classifier_learning_rate},
    ]
    # An encoder without weights, such as raw pixels.
    groups = [group for group in groups if group["params"]]
    optimizer = torch.optim.SGD(
        groups,
        lr=settings.classifier_learning_rate,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
    )
    return classifier, optimizer
