"""k-NN against a loop over samples and against scikit-learn."""

from __future__ import annotations

import math

import pytest
import torch
from labelled import clusters
from torch import nn

from barlow_fast.evaluation import extract_features, knn_accuracy, knn_predict


def by_hand(train, labels, test, k, temperature):
    """The definition, one test sample and one neighbour at a time, in float64."""
    predictions = []
    for sample in test.double():
        similarity = [
            float(sample @ other / (sample.norm() * other.norm())) for other in train.double()
        ]
        nearest = sorted(range(len(train)), key=lambda i: -similarity[i])[:k]
        votes: dict[int, float] = {}
        for i in nearest:
            label = int(labels[i])
            votes[label] = votes.get(label, 0.0) + math.exp(similarity[i] / temperature)
        predictions.append(max(votes, key=votes.__getitem__))
    return torch.tensor(predictions)


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (5, 0.07), (20, 0.5), (60, 0.1)])
def test_against_the_definition(k: int, temperature: float):
    train, labels = clusters(60, 0)
    test, _ = clusters(40, 1)
    expected = by_hand(train, labels, test, k, temperature)
    assert len(expected.unique()) > 1
    torch.testing.assert_close(knn_predict(train, labels, test, k, temperature), expected)


def test_against_scikit_learn():
    neighbors = pytest.importorskip("sklearn.neighbors")
    import numpy as np

    train, labels = clusters(300, 2)
    test, test_labels = clusters(200, 3)
    classifier = neighbors.KNeighborsClassifier(
        7, metric="cosine", weights=lambda distance: np.exp((1 - distance) / 0.1)
    ).fit(train.numpy(), labels.numpy())
    predictions = knn_predict(train, labels, test, 7, 0.1)
    assert predictions.tolist() == classifier.predict(test.numpy()).tolist()
    accuracy = knn_accuracy(train, labels, test, test_labels, 7, 0.1)
    assert accuracy == pytest.approx(classifier.score(test.numpy(), test_labels.numpy()))
    assert 0.3 < accuracy < 1


@pytest.mark.parametrize("chunk", [1, 7, 40, 1000])
def test_chunks_do_not_change_the_result(chunk: int):
    train, labels = clusters(80, 4)
    test, _ = clusters(40, 5)
    torch.testing.assert_close(
        knn_predict(train, labels, test, 5, chunk=chunk), knn_predict(train, labels, test, 5)
    )


def test_length_does_not_matter_and_weights_do():
    # Two far neighbours of class 1 outvote one near neighbour of class 0 only when the temperature
    # lets them.
    train = torch.tensor([[10.0, 0.0], [0.5, 0.5], [3.0, 3.0]])
    labels = torch.tensor([0, 1, 1])
    test = torch.tensor([[0.01, 0.001]])
    assert knn_predict(train, labels, test, 3, 0.05).tolist() == [0]
    assert knn_predict(train, labels, test, 3, 10.0).tolist() == [1]


def test_a_low_temperature_does_not_overflow():
    train, labels = clusters(50, 6)
    assert knn_accuracy(train, labels, train, labels, k=5, temperature=1e-4) == 1


def test_more_neighbours_than_samples():
    train, labels = clusters(5, 7)
    assert knn_predict(train, labels, train, k=100).shape == (5,)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 0}, "k must be"),
        ({"temperature": 0.0}, "temperature"),
        ({"test_features": torch.rand(3, 5)}, "dimensions"),
        ({"train_labels": torch.zeros(4, dtype=torch.int64)}, "labels"),
        ({"train_features": torch.rand(5)}, r"\(N, F\)"),
    ],
)
def test_bad_arguments_are_named(change: dict, message: str):
    train, labels = clusters(5, 8)
    arguments = {"train_features": train, "train_labels": labels, "test_features": train}
    with pytest.raises(ValueError, match=message):
        knn_predict(**{**arguments, **change})


def test_features_are_those_of_evaluation_mode_and_the_mode_is_kept():
    encoder = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(16)).train()
    before = encoder[1].running_mean.clone()
    images = torch.randint(0, 256, (10, 1, 4, 4), dtype=torch.uint8)
    features = extract_features(encoder, images, 0.5, 0.25, chunk=3)
    expected = ((images / 255).flatten(1) - 0.5) / 0.25 / math.sqrt(1 + 1e-5)
    torch.testing.assert_close(features, expected)
    assert encoder.training
    torch.testing.assert_close(encoder[1].running_mean, before)
