"""Finetuning on a part of the labels, and the results that all protocols give."""

from __future__ import annotations

import json

import pytest
import torch
from labelled import FLIPS, FORM, SPLITS, dataset, equal_states, state_of, stem

from barlow_fast.evaluation import (
    FinetuneSettings,
    Reading,
    dataset_splits,
    evaluate_finetune,
    evaluate_knn,
    finetune,
    merged,
)

SHORT = FinetuneSettings(epochs=3, batch_size=16)


def test_all_weights_and_statistics_change():
    encoder = stem().eval()
    encoder[0].weight.requires_grad_(False)
    before = state_of(encoder)
    classifier = finetune(encoder, SPLITS, FORM, Reading(), SHORT, seed=0)
    after = state_of(encoder)
    # A bias in front of batch norm has no gradient, but for rounding.
    moved = [name for name in before if name not in ("0.bias", "3.bias")]
    assert len(moved) == len(before) - 2
    assert not any(torch.equal(before[name], after[name]) for name in moved)
    assert not encoder[0].weight.requires_grad
    assert not any(module.training for module in encoder.modules())
    assert classifier.weight.shape == (4, 16)


def test_runs_are_the_same_for_the_same_seed():
    encoders = [stem() for _ in range(3)]
    heads = [
        finetune(encoder, SPLITS, FORM, Reading(), SHORT, seed)
        for encoder, seed in zip(encoders, (0, 0, 1), strict=True)
    ]
    assert equal_states(state_of(encoders[0]), state_of(encoders[1]))
    assert equal_states(state_of(heads[0]), state_of(heads[1]))
    assert not equal_states(state_of(encoders[0]), state_of(encoders[2]))


def test_the_protocol_trains_copies_on_a_part_of_the_labels():
    encoder = stem().eval()
    before = state_of(encoder)
    splits, options = dataset_splits(dataset(train=200)), {"settings": SHORT, "seeds": (0, 1)}
    result = evaluate_finetune(encoder, splits, FORM, fraction=0.1, baselines=True, **options)
    assert equal_states(before, state_of(encoder))
    assert not encoder.training
    assert (result.train_images, result.test_images) == (20, 40)
    found = [(row.features, len(row.top1)) for row in result.scores]
    assert found == [("encoder", 2), ("random weights", 2)]
    assert result.scores[0].classifier == "finetune, 10 % of labels"


def test_classes_are_learned_from_all_labels():
    splits = dataset_splits(dataset(train=160))
    settings = FinetuneSettings(epochs=30, batch_size=16, backbone_learning_rate=0.05)
    options = {"settings": settings, "augmentation": FLIPS}
    result = evaluate_finetune(stem(), splits, FORM, fraction=1, **options)
    # An average over the image cannot distinguish rows; the zero padding at its borders can.
    assert result.scores[0].mean > 0.45
    assert result.scores[0].classifier == "finetune"


def test_a_fraction_without_samples_is_refused():
    with pytest.raises(ValueError, match=r"leaves class 0 and the others without a sample"):
        evaluate_finetune(stem(), SPLITS, FORM, fraction=0.01)


def test_a_training_that_diverges_is_reported():
    settings = FinetuneSettings(epochs=20, classifier_learning_rate=1e30)
    with pytest.raises(RuntimeError, match=r"diverged in epoch \d"):
        evaluate_finetune(stem(), SPLITS, FORM, fraction=1, settings=settings)


def test_results_are_plain_values_with_mean_and_deviation():
    result = evaluate_knn(stem(), SPLITS, FORM, neighbours=(1,), seeds=(0, 1, 2), baselines=True)
    content = json.loads(json.dumps(result.to_dict()))
    row = next(row for row in content["scores"] if row["features"] == "random weights")
    runs = torch.tensor(row["top1"]["runs"], dtype=torch.float64)
    assert len(runs) == 3
    assert row["top1"]["mean"] == pytest.approx(runs.mean().item())
    assert row["top1"]["std"] == pytest.approx(runs.std().item())
    assert content["scores"][0]["top1"]["std"] is None
    assert content["settings"]["seeds"] == [0, 1, 2]
    with pytest.raises(KeyError, match="no score 'k = 9'"):
        result.score("k = 9")


def test_several_encoders_are_runs_of_one_row():
    first = evaluate_knn(stem(0), SPLITS, FORM, neighbours=(1,), baselines=True)
    second = evaluate_knn(stem(1), SPLITS, FORM, neighbours=(1,))
    both = merged([first, second])
    assert both.score("k = 1").top1 == (*first.scores[0].top1, *second.scores[0].top1)
    assert both.scores[1:] == first.scores[1:]
    other = evaluate_knn(stem(1), SPLITS, FORM, neighbours=(2,))
    with pytest.raises(ValueError, match="evaluations differ"):
        merged([first, other])
    with pytest.raises(ValueError, match="no evaluations"):
        merged([])
