"""k nearest neighbours on features: an exact score that trains nothing.

Source: Wu, Xiong, Yu, Lin, *Unsupervised Feature Learning via Non-Parametric Instance
Discrimination* (CVPR 2018), section 3.4: the k training samples of the highest cosine similarity s
vote for their class with weight exp(s / temperature).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..models.finite import check_finite
from ..plan import without_autocast
from .features import AVERAGE_POOL
from .images import ImageFormat, Reading
from .protocol import check_protocol, features_of_splits, result, subjects
from .scores import TOP, Accuracy, Evaluation, Score, collected
from .splits import LabelledSplits

# As MMSelfSup reports.
NEIGHBOURS = (10, 20, 100, 200)
TEMPERATURE = 0.07

# Of the similarities of one chunk.
SIMILARITY_BYTES = 2**28


@torch.inference_mode()
def knn_predict(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    k: int = 20,
    temperature: float = TEMPERATURE,
    chunk: int = 512,
) -> Tensor:
    """The predicted class of each test sample.

    Args:
        train_features: (N, F) floating point; need not be normalised.
        train_labels: (N,) integers from 0.
        test_features: (M, F), on the same device.
        k: neighbours that vote; at most N of them do.
        temperature: the lower, the more the nearest decide.
        chunk: test samples compared at once; bounds the memory to chunk x N similarities, does not
            change the result.

    Returns:
        (M,) int64.

    Raises:
        ValueError: shapes that do not fit, no training samples, a negative label, k < 1 or
            temperature <= 0.
        RuntimeError: features that are not finite, or whose norms are not.
    """
    _check(train_features, train_labels, test_features, (k,), temperature)
    k = min(k, len(train_features))
    present, labels = train_labels.to(torch.int64).unique(return_inverse=True)
    predictions = [
        present[votes[0].argmax(dim=1)]
        for votes in _votes(train_features, labels, test_features, (k,), temperature, chunk)
    ]
    return torch.cat(predictions) if predictions else present.new_empty(0)


def knn_accuracy(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    k: int = 20,
    temperature: float = TEMPERATURE,
) -> float:
    """The share of test samples, in [0, 1], whose class `knn_predict` gets right.

    Raises:
        ValueError: as `knn_predict`; no test samples, or not as many test labels.
    """
    if test_labels.shape != test_features.shape[:1] or not len(test_labels):
        raise ValueError(f"{len(test_features)} test features, {len(test_labels)} labels")
    predictions = knn_predict(train_features, train_labels, test_features, k, temperature)
    return (predictions == test_labels).double().mean().item()


@torch.inference_mode()
def knn_scores(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    neighbours: Sequence[int] = NEIGHBOURS,
    temperature: float = TEMPERATURE,
    chunk: int | None = None,
) -> dict[int, Accuracy]:
    """Accuracy for several k from one pass over the similarities.

    A class is among the best five only if one of the neighbours voted for it.

    Args:
        train_features, train_labels, test_features: as for `knn_predict`.
        test_labels: (M,) integers.
        neighbours: values of k.
        temperature: as for `knn_predict`.
        chunk: test samples compared at once; None for as many as 256 MiB of similarities hold, at
            most 512.

    Returns:
        {k: accuracy}, in the order of `neighbours`.

    Raises:
        ValueError: as `knn_predict`; a k above the number of training samples, no test samples.
    """
    _check(train_features, train_labels, test_features, neighbours, temperature)
    if test_labels.shape != test_features.shape[:1] or not len(test_labels):
        raise ValueError(f"{len(test_features)} test features, {len(test_labels)} labels")
    count = len(train_features)
    if max(neighbours) > count:
        raise ValueError(f"k = {max(neighbours)} neighbours of {count} training images")
    if chunk is None:
        chunk = min(max(SIMILARITY_BYTES // (4 * count), 1), 512)
    hits = dict.fromkeys(neighbours, 0)
    top_hits = dict(hits)
    present, labels = train_labels.to(torch.int64).unique(return_inverse=True)
    parts = _votes(train_features, labels, test_features, neighbours, temperature, chunk)
    classes = int(present[-1]) + 1
    for truth, votes_of_part in zip(test_labels.split(chunk), parts, strict=True):
        for k, votes in zip(neighbours, votes_of_part, strict=True):
            hits[k] += (present[votes.argmax(dim=1)] == truth).sum()
            most, best = votes.topk(min(TOP, len(present)), dim=1)
            top_hits[k] += ((present[best] == truth[:, None]) & (most > 0)).sum()
    total = len(test_labels)
    return {
        k: Accuracy(int(hits[k]) / total, int(top_hits[k]) / total if classes > TOP else None)
        for k in neighbours
    }


def evaluate_knn(
    encoder: nn.Module,
    splits: LabelledSplits,
    form: ImageFormat,
    reading: Reading | None = None,
    *,
    neighbours: Sequence[int] | None = None,
    temperature: float = TEMPERATURE,
    seeds: Sequence[int] = (0,),
    random: bool = False,
    baselines: bool = False,
    adapt: bool = False,
) -> Evaluation:
    """k-NN accuracy of an encoder's features.

    Args:
        encoder: maps (B, C, H, W) float32 to (B, F); moved to the device of `reading`; its weights
            and buffers stay as they are, to the bit.
        splits: of the images.
        form: what the encoder takes.
        reading: device, workers, policy for bad images, progress; None for the defaults.
        neighbours: values of k; None for those of 10, 20, 100, 200 that the training images allow.
        temperature: of the votes.
        seeds: of random weights, one run each. The encoder itself has one run: nothing here is
            random.
        random: whether random weights take the encoder's place.
        baselines: whether rows of random weights and of raw pixels are added.
        adapt: whether images in memory may be resized and change their channels.

    Raises:
        ValueError: images that do not fit the encoder, k out of its range, no seeds.
        RuntimeError: weights or features that are not finite.
        BadImageError: an image that cannot be read, under the policy 'error'.
    """
    reading = reading or Reading()
    check_protocol(splits, form, seeds, adapt)
    neighbours = chosen_neighbours(neighbours, splits)
    rows: list[Score] = []
    for kind, encoders in subjects(encoder, seeds, random, baselines):
        runs = []
        for subject in encoders:
            (train, labels), (test, truth) = features_of_splits(
                subject.to(reading.device), splits, form, reading, words=kind
            )
            learned, scored = train[AVERAGE_POOL], test[AVERAGE_POOL]
            runs.append(knn_scores(learned, labels, scored, truth, neighbours, temperature))
        rows += [collected(kind, f"k = {k}", [run[k] for run in runs]) for k in neighbours]
    return result(
        "knn",
        splits,
        rows,
        reading,
        neighbours=list(neighbours),
        temperature=temperature,
        seeds=list(seeds),
    )


def chosen_neighbours(neighbours: Sequence[int] | None, splits: LabelledSplits) -> tuple[int, ...]:
    """The values of k, each once; for None those of `NEIGHBOURS` that the training images allow.

    Raises:
        ValueError: no k, or one out of its range; before hours of features rather than after them.
    """
    count = len(splits.train)
    if neighbours is None:
        neighbours = [k for k in NEIGHBOURS if k <= count] or [count]
    if not neighbours or min(neighbours) < 1 or max(neighbours) > count:
        raise ValueError(
            f"k must be between 1 and the {count} training images, "
            f"got {', '.join(map(str, neighbours)) or 'none'}"
        )
    return tuple(dict.fromkeys(neighbours))


def _check(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    neighbours: Sequence[int],
    temperature: float,
) -> None:
    if train_features.dim() != 2 or test_features.dim() != 2:
        raise ValueError(
            "features must be (N, F), "
            f"got {tuple(train_features.shape)} and {tuple(test_features.shape)}"
        )
    if train_features.shape[1] != test_features.shape[1]:
        raise ValueError(
            f"training features have {train_features.shape[1]} dimensions, "
            f"test features {test_features.shape[1]}"
        )
    if train_labels.shape != train_features.shape[:1] or not len(train_labels):
        raise ValueError(f"{len(train_features)} training features, {len(train_labels)} labels")
    if int(train_labels.min()) < 0:
        raise ValueError(f"labels must be at least 0, got {int(train_labels.min())}")
    if not neighbours or min(neighbours) < 1 or not temperature > 0:
        raise ValueError(
            "k must be at least 1 and temperature above 0, "
            f"got k={', '.join(map(str, neighbours))}, temperature={temperature}"
        )


def _votes(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    neighbours: Sequence[int],
    temperature: float,
    chunk: int,
) -> Iterator[list[Tensor]]:
    """For each chunk of test samples, one (chunk, classes) tensor of votes per k, with a column for
    each class that a training sample has: labels in [0, classes) without a gap."""
    for part, words in ((train_features, "training"), (test_features, "test")):
        # A norm beyond float32 would make every similarity 0.
        norms = torch.linalg.vector_norm(part.float(), dim=1)
        check_finite(norms[:, None], f"the norms of the {words} features")
    classes = int(train_labels.max()) + 1
    train = functional.normalize(train_features.float(), dim=1)
    for part in test_features.split(chunk):
        # An autocast that is on for the encoder would round the similarities to 16 bits.
        with without_autocast(train.device.type):
            similarities = functional.normalize(part.float(), dim=1) @ train.T
        nearest, indices = similarities.topk(max(neighbours), dim=1)
        # Relative to the nearest, so that a low temperature cannot overflow; the order of the
        # votes is the same.
        weights = ((nearest - nearest[:, :1]) / temperature).exp()
        named = train_labels[indices]
        yield [
            weights.new_zeros(len(part), classes).scatter_add_(1, named[:, :k], weights[:, :k])
            for k in neighbours
        ]
