"""k nearest neighbours on features: an exact score that trains nothing.

Source: Wu, Xiong, Yu, Lin, *Unsupervised Feature Learning via Non-Parametric Instance
Discrimination* (CVPR 2018), section 3.4: the k training samples of the highest cosine similarity s
vote for their class with weight exp(s / temperature).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


@torch.inference_mode()
def knn_predict(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    k: int = 20,
    temperature: float = 0.07,
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
        ValueError: shapes that do not fit, no training samples, k < 1 or temperature <= 0.
    """
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
    if k < 1 or temperature <= 0:
        raise ValueError(
            f"k must be at least 1 and temperature above 0, got k={k}, temperature={temperature}"
        )
    k = min(k, len(train_features))
    classes = int(train_labels.max()) + 1
    train = functional.normalize(train_features.float(), dim=1)
    labels = train_labels.to(torch.int64)
    predictions = []
    for part in test_features.split(chunk):
        similarities = functional.normalize(part.float(), dim=1) @ train.T
        nearest, indices = similarities.topk(k, dim=1)
        # Relative to the nearest, so that a low temperature cannot overflow; the order of the
        # votes is the same.
        weights = ((nearest - nearest[:, :1]) / temperature).exp()
        votes = weights.new_zeros(len(part), classes).scatter_add_(1, labels[indices], weights)
        predictions.append(votes.argmax(dim=1))
    return torch.cat(predictions) if predictions else labels.new_empty(0)


def knn_accuracy(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    k: int = 20,
    temperature: float = 0.07,
) -> float:
    """The share of test samples, in [0, 1], whose class `knn_predict` gets right.

    Raises:
        ValueError: as `knn_predict`; no test samples, or not as many test labels.
    """
    if test_labels.shape != test_features.shape[:1] or not len(test_labels):
        raise ValueError(f"{len(test_features)} test features, {len(test_labels)} labels")
    predictions = knn_predict(train_features, train_labels, test_features, k, temperature)
    return (predictions == test_labels).double().mean().item()
