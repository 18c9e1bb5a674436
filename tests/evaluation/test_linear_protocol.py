"""Linear classifiers on frozen features: on every stage at once, cached and augmented."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from labelled import (
    FLIPS,
    FORM,
    SPLITS,
    dataset,
    equal_states,
    patterns,
    stages,
    state_of,
    stem,
    write_classes,
)
from torch import nn

from barlow_fast.data import ImageDataset
from barlow_fast.evaluation import (
    AVERAGE_POOL,
    ImageFormat,
    LinearSettings,
    Reading,
    StageFeatures,
    dataset_splits,
    evaluate_linear,
    evaluate_transfer,
    features_of_source,
    fit_with_chosen_penalty,
    folder_splits,
)
from barlow_fast.evaluation.baselines import random_weights
from barlow_fast.evaluation.features import pooled
from barlow_fast.evaluation.linear import cosine, score_heads, train_heads

NAMES = ("Feature1", "Feature2", AVERAGE_POOL)
SHORT = LinearSettings(epochs=3, batch_size=32)


@pytest.mark.parametrize(
    ("channels", "side", "grid"),
    [(64, 56, 12), (256, 56, 6), (512, 28, 4), (1024, 14, 3), (2048, 7, 2), (64, 5, 5)],
)
def test_maps_keep_about_9000_numbers(channels: int, side: int, grid: int):
    """Grids of a ResNet-50 as MMSelfSup and VISSL have them."""
    images = torch.rand(2, channels, side, side)
    features = pooled(images)
    assert features.shape == (2, channels * grid**2)
    mean = features.view(2, channels, grid * grid).mean(2)
    if side % grid == 0:
        torch.testing.assert_close(mean, images.mean((2, 3)))


def test_tokens_are_averaged_and_other_shapes_refused():
    tokens = torch.rand(2, 5, 3)
    torch.testing.assert_close(pooled(tokens), tokens.mean(1))
    with pytest.raises(ValueError, match="a stage gives"):
        pooled(torch.rand(3))


def test_stages_are_what_their_modules_give():
    encoder = stem().eval()
    images = torch.randn(4, 1, 8, 8)
    with StageFeatures(encoder, NAMES, 128, stages) as extract:
        found = extract(images)
        again = extract(images)
    assert list(found) == list(NAMES)
    parts = list(encoder)
    with torch.no_grad():
        first = nn.Sequential(*parts[:3])(images)
        second = nn.Sequential(*parts[3:6])(first)
    for name, output, grid in (("Feature1", first, 4), ("Feature2", second, 3)):
        expected = nn.functional.adaptive_avg_pool2d(output, grid).flatten(1)
        torch.testing.assert_close(found[name], expected)
    torch.testing.assert_close(found[AVERAGE_POOL], encoder(images))
    assert all(torch.equal(found[name], again[name]) for name in NAMES)
    assert not any(value.requires_grad for value in found.values())
    assert not any(module._forward_hooks for module in encoder.modules())


def test_stages_of_the_librarys_encoders():
    from barlow_fast.models import build_encoder

    encoder = build_encoder("resnet18", image_size=32)
    names = [f"Feature{number}" for number in range(1, 6)]
    with StageFeatures(encoder.eval(), (*names, AVERAGE_POOL)) as extract:
        widths = [value.shape[1] for value in extract(torch.rand(1, 3, 32, 32)).values()]
    assert widths == [64 * 12**2, 64 * 12**2, 128 * 8**2, 256 * 6**2, 512 * 4**2, 512]


def test_an_unknown_stage_is_named():
    with pytest.raises(ValueError, match="no stage 'Feature9'; there are Feature1, Feature2"):
        evaluate_linear(stem(), SPLITS, FORM, names=("Feature9",), stages=stages)


@pytest.mark.parametrize("features", ["cached", "augmented"])
def test_one_pass_over_all_stages_equals_separate_passes(features: str):
    arguments = {"features": features, "settings": SHORT, "stages": stages, "dimensions": 64}
    together = evaluate_linear(stem(), SPLITS, FORM, names=None, **arguments)
    rows = ["linear on Feature1", "linear on Feature2", "linear"]
    assert [row.classifier for row in together.scores] == rows
    for name, row in zip(NAMES, together.scores, strict=True):
        alone = evaluate_linear(stem(), SPLITS, FORM, names=(name,), **arguments)
        assert alone.scores == (row,)


def test_heads_trained_together_are_those_trained_alone():
    encoder = stem()
    arguments = {"stages": stages, "dimensions": 64}
    together = train_heads(encoder, SPLITS, FORM, Reading(), SHORT, 3, NAMES, **arguments)
    for name in NAMES:
        alone = train_heads(encoder, SPLITS, FORM, Reading(), SHORT, 3, (name,), **arguments)
        assert equal_states(state_of(alone[name]), state_of(together[name]))


@pytest.mark.parametrize("features", ["cached", "augmented"])
def test_the_encoder_stays_as_it_is_to_the_bit(features: str):
    encoder = stem().train()
    encoder[1].eval()
    before = state_of(encoder)
    options = {"names": None, "stages": stages, "settings": SHORT, "baselines": True}
    evaluate_linear(encoder, SPLITS, FORM, features=features, **options)
    assert equal_states(before, state_of(encoder))
    assert encoder.training
    assert not encoder[1].training
    assert all(p.grad is None and p.requires_grad for p in encoder.parameters())


def test_the_first_epoch_equals_the_formula_of_sgd():
    """One step of momentum SGD from the seeded weights, by autograd on the same batch."""
    from barlow_fast.evaluation.images import CROP_AND_FLIP, training_crops
    from barlow_fast.evaluation.linear import linear_classifier

    splits, encoder = dataset_splits(dataset(train=32)), stem().eval()
    settings = LinearSettings(epochs=1, batch_size=32, weight_decay=0.1)
    head = train_heads(encoder, splits, FORM, Reading(), settings, 5)[AVERAGE_POOL]
    with training_crops(splits.train, FORM, Reading(), 32, 5, CROP_AND_FLIP) as loader:
        ((images,), _, labels) = next(iter(loader))
    start = linear_classifier(16, 4, 5, standardised=False)
    nn.functional.cross_entropy(start(encoder(images).detach()), labels).backward()
    expected = start.weight - 0.3 * (start.weight.grad + 0.1 * start.weight)
    torch.testing.assert_close(head.weight, expected)


def test_the_learning_rate_falls_as_a_cosine():
    rates = [cosine(0.3, epoch, 4) for epoch in range(4)]
    expected = []
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 4)
    for _ in range(4):
        expected.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx(expected)


@pytest.mark.parametrize("features", ["cached", "augmented"])
def test_separated_classes_reach_everything(features: str):
    """Raw rows of different brightness, as the encoder's features."""

    class Rows(nn.Module):
        def forward(self, images):
            return images.mean((1, 3))

    settings = LinearSettings(epochs=10, batch_size=16)
    view = None if features == "cached" else FLIPS
    options = {"features": features, "augmentation": view, "settings": settings}
    result = evaluate_linear(Rows(), SPLITS, FORM, **options)
    assert result.scores[0].top1 == (1.0,)


def test_labels_that_mean_nothing_reach_chance():
    images, labels = patterns(800, 3)
    shuffled = labels[torch.randperm(800, generator=torch.Generator().manual_seed(0))]
    data = ImageDataset(
        "patterns", "", images[:400], shuffled[:400], images[400:], shuffled[400:], 4
    )
    result = evaluate_linear(stem(), dataset_splits(data), FORM)
    assert abs(result.scores[0].mean - 1 / 4) < 4 * (1 / 4 * 3 / 4 / 400) ** 0.5


def test_cached_equals_features_and_regression_by_hand():
    encoder = stem()
    result = evaluate_linear(encoder, SPLITS, FORM, seeds=(4, 5))
    sources = (SPLITS.train, SPLITS.test)
    (train, labels), (test, truth) = (
        features_of_source(encoder, source, FORM, Reading()) for source in sources
    )
    for run, seed in enumerate((4, 5)):
        fit = fit_with_chosen_penalty(train[AVERAGE_POOL], labels, 4, seed)
        assert result.scores[0].top1[run] == fit.accuracy(test[AVERAGE_POOL], truth).top1
    assert result.settings["features"] == "cached"


def test_files_are_augmented_by_default_and_bad_ones_counted(tmp_path: Path):
    write_classes(tmp_path / "train", {"a": 9, "b": 9, "c": 9})
    write_classes(tmp_path / "test", {"a": 3, "b": 3, "c": 3}, seed=1)
    (tmp_path / "train" / "a" / "003.png").write_bytes(b"no picture")
    (tmp_path / "test" / "b" / "001.png").write_bytes(b"no picture")
    reading = Reading(workers=0, on_bad_image="skip")
    form, settings = ImageFormat(12, 3, 0.4, 0.3), LinearSettings(epochs=2, batch_size=8)
    splits = folder_splits(tmp_path)
    result = evaluate_linear(stem(channels=3), splits, form, reading, settings=settings)
    assert result.settings["features"] == "augmented"
    assert result.skipped == 2
    assert result.scores[0].top1[0] * 8 == pytest.approx(round(result.scores[0].top1[0] * 8))


def test_transfer_resizes_gray_images_for_an_encoder_of_colour():
    form = ImageFormat(12, 3, 0.3, 0.25)
    with pytest.raises(ValueError, match="channels"):
        evaluate_linear(stem(channels=3), SPLITS, form)
    options = {"neighbours": (5,), "seeds": (0, 1), "baselines": True}
    result = evaluate_transfer(stem(channels=3), SPLITS, form, **options)
    assert {(row.features, row.classifier): len(row.top1) for row in result.scores} == {
        ("encoder", "k = 5"): 1, ("encoder", "linear"): 2,
        ("random weights", "k = 5"): 2, ("random weights", "linear"): 2,
        ("raw pixels", "k = 5"): 1, ("raw pixels", "linear"): 2,
    }  # fmt: skip
    # Rows of different brightness are seen even by pixels alone.
    assert result.score("linear", "raw pixels").mean > 0.9


def test_features_that_do_not_fit_into_memory_are_refused(monkeypatch: pytest.MonkeyPatch):
    from barlow_fast.evaluation import features

    monkeypatch.setattr(features, "_free_memory", lambda device: 10_000)
    with pytest.raises(ValueError, match="--features augmented"):
        evaluate_linear(stem(), SPLITS, FORM)


def test_a_classifier_that_diverges_is_reported():
    settings = LinearSettings(epochs=30, learning_rate=1e30)
    with pytest.raises(RuntimeError, match=r"average pool diverged in epoch \d"):
        evaluate_linear(stem(), SPLITS, FORM, features="augmented", settings=settings)


def test_unknown_features_are_refused():
    with pytest.raises(ValueError, match="features must be one of auto, cached, augmented"):
        evaluate_linear(stem(), SPLITS, FORM, features="some")


def test_scores_of_heads_use_the_statistics_of_training():
    encoder = stem()
    options = {"dimensions": 64, "stages": stages}
    heads = train_heads(encoder, SPLITS, FORM, Reading(), SHORT, 0, ("Feature1",), **options)
    readings = (Reading(chunk=chunk) for chunk in (1, 40))
    scores = [score_heads(encoder, heads, SPLITS, FORM, each, **options) for each in readings]
    assert scores[0] == scores[1]


class Embedded(nn.Module):
    """Parameters of its own, and no reset_parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.full((40, 50), 9.0))
        self.scale = nn.Parameter(torch.full((30,), 9.0))
        self.linear = nn.Linear(3, 4)


def test_random_weights_of_parameters_without_a_module_of_their_own():
    encoder = Embedded()
    fresh = random_weights(encoder, seed=3).requires_grad_(False)
    assert fresh.position.std() == pytest.approx(0.02, rel=0.1)
    assert fresh.position.mean().abs() < 0.002
    assert not fresh.scale.any()
    assert not torch.equal(fresh.linear.weight, encoder.linear.weight)
    assert (encoder.position == 9).all()
    again = random_weights(encoder, seed=3)
    assert torch.equal(fresh.position, again.position)
    assert not torch.equal(fresh.position, random_weights(encoder, seed=4).position)
