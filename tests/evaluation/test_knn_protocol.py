"""k-NN for several k, and as a protocol with baselines."""

from __future__ import annotations

import labelled
import pytest
import torch
from labelled import FORM, SPLITS, equal_states, state_of, stem
from torch import nn

from barlow_fast.evaluation import (
    Reading,
    evaluate_knn,
    extract_features,
    knn_accuracy,
    knn_scores,
    random_weights,
)


def clusters(count: int, seed: int, classes: int = 8, spread: float = 1.0):
    return labelled.clusters(count, seed, classes, spread)


@pytest.mark.parametrize("chunk", [None, 1, 13])
def test_several_k_equal_separate_calls(chunk: int | None):
    train, test = clusters(300, 0), clusters(100, 1)
    neighbours = (10, 1, 300, 20)
    scores = knn_scores(*train, *test, neighbours, chunk=chunk)
    assert tuple(scores) == neighbours
    for k, score in scores.items():
        assert score.top1 == knn_accuracy(*train, *test, k)
    assert len({score.top1 for score in scores.values()}) > 1


def test_top_5_against_the_definition():
    (train, labels), (test, truth) = clusters(200, 2, spread=3.0), clusters(60, 3, spread=3.0)
    score = knn_scores(train, labels, test, truth, (15,), 0.5)[15]
    hits = 0
    for sample, label in zip(test.double(), truth.tolist(), strict=True):
        similarity = torch.cosine_similarity(sample, train.double())
        votes: dict[int, float] = {}
        for i in similarity.argsort(descending=True)[:15].tolist():
            voted = int(labels[i])
            votes[voted] = votes.get(voted, 0.0) + float((similarity[i] / 0.5).exp())
        hits += label in sorted(votes, key=lambda voted: -votes[voted])[:5]
    assert score.top5 == pytest.approx(hits / 60)
    assert score.top1 < score.top5 < 1


def test_classes_without_a_vote_are_not_among_the_best():
    train, labels = torch.eye(8), torch.arange(8)
    assert knn_scores(train, labels, train, labels.roll(1), (1,))[1].top5 == 0


def test_no_top_5_of_five_classes():
    train, labels = clusters(50, 4, classes=5)
    assert knn_scores(train, labels, train, labels, (3,))[3].top5 is None


def test_separated_features_reach_everything_and_shuffled_labels_reach_chance():
    train, labels = clusters(400, 5, spread=0.01)
    test, truth = clusters(400, 6, spread=0.01)
    assert knn_scores(train, labels, test, truth, (10,))[10] == (1.0, 1.0)
    shuffled = labels[torch.randperm(400, generator=torch.Generator().manual_seed(0))]
    noise, unseen = (clusters(400, seed, spread=100.0)[0] for seed in (7, 8))
    top1 = knn_scores(noise, shuffled, unseen, truth, (10,))[10].top1
    # Four standard deviations of a binomial with p = 1/8.
    assert abs(top1 - 1 / 8) < 4 * (1 / 8 * 7 / 8 / 400) ** 0.5


@pytest.mark.parametrize("neighbours", [(), (0,), (10, 51)])
def test_k_out_of_its_range(neighbours: tuple[int, ...]):
    train, labels = clusters(50, 8)
    with pytest.raises(ValueError, match="k "):
        knn_scores(train, labels, train, labels, neighbours)
    with pytest.raises(ValueError, match="k must be between 1 and the 80 training images"):
        evaluate_knn(stem(), SPLITS, FORM, neighbours=(*neighbours, 0, 81))


def test_the_protocol_equals_features_and_neighbours_by_hand():
    encoder = stem()
    before, encoder_mode = state_of(encoder), encoder.training
    result = evaluate_knn(encoder, SPLITS, FORM, Reading(chunk=17), neighbours=(3, 10))
    for k in (3, 10):
        expected = accuracy_by_hand(encoder, k)
        assert result.score(f"k = {k}").top1 == (pytest.approx(expected),)
    assert equal_states(before, state_of(encoder))
    assert encoder.training == encoder_mode


def accuracy_by_hand(encoder: nn.Module, k: int) -> float:
    data, parts = labelled.dataset(), []
    for part in ("train", "test"):
        images = getattr(data, f"{part}_images")
        features = extract_features(encoder, images, 0.3, 0.25)
        parts += [features, getattr(data, f"{part}_labels")]
    return knn_accuracy(*parts, k)


def test_default_k_are_those_that_the_images_allow():
    result = evaluate_knn(stem(), SPLITS, FORM)
    assert result.settings["neighbours"] == [10, 20]


def test_baselines_and_random_weights():
    arguments = {"neighbours": (5,), "seeds": (0, 1, 2)}
    result = evaluate_knn(stem(), SPLITS, FORM, baselines=True, **arguments)
    rows = {row.features: len(row.top1) for row in result.scores}
    assert rows == {"encoder": 1, "random weights": 3, "raw pixels": 1}
    alone = evaluate_knn(stem(), SPLITS, FORM, random=True, **arguments)
    assert [row.features for row in alone.scores] == ["random weights"]
    assert alone.scores[0] == result.score("k = 5", "random weights")
    expected = accuracy_by_hand(nn.Flatten(), 5)
    assert result.score("k = 5", "raw pixels").top1 == (pytest.approx(expected),)


def test_random_weights_depend_on_their_seed_alone():
    from barlow_fast.models import SmallEncoder, build_encoder

    encoder = stem(3)
    before = state_of(encoder)
    torch.manual_seed(0)
    expected_next = torch.rand(1)
    torch.manual_seed(0)
    first = state_of(random_weights(encoder, 5))
    assert torch.equal(torch.rand(1), expected_next)
    assert equal_states(before, state_of(encoder))
    assert equal_states(first, state_of(random_weights(stem(4), 5)))
    assert not equal_states(first, state_of(random_weights(encoder, 6)))
    # As they are constructed, statistics of batch norm included.
    for build in (lambda: SmallEncoder(1, (4, 8)), lambda: build_encoder(widths=(4, 8))):
        torch.manual_seed(7)
        encoder = build()
        built = state_of(encoder)
        encoder(torch.randn(4, encoder[0].in_channels, 8, 8))
        assert equal_states(built, state_of(random_weights(encoder, 7)))


def test_no_seeds_are_refused():
    with pytest.raises(ValueError, match="seeds must be"):
        evaluate_knn(stem(), SPLITS, FORM, seeds=())
