"""Every option of every public function of evaluations is seen to have its effect.

The tables below are compared with the signatures: an option without a case fails.
"""

from __future__ import annotations

import inspect
import math
from dataclasses import replace
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pytest
import torch
from labelled import dataset, equal_states, stages, state_of, stem, write_classes
from options import Cases, assert_covered, names_of, record_calls
from torch import Tensor, nn

from barlow_fast import evaluation
from barlow_fast.data import ViewSpecification
from barlow_fast.data.faults import BadImageError
from barlow_fast.data.sources import ArraySource
from barlow_fast.evaluation import (
    AVERAGE_POOL,
    Evaluation,
    FinetuneSettings,
    ImageFormat,
    LabelledSplits,
    LinearSettings,
    Reading,
    StageFeatures,
    balanced_subset,
    dataset_splits,
    evaluate_finetune,
    evaluate_knn,
    evaluate_linear,
    evaluate_transfer,
    extract_features,
    features_of_source,
    finetune,
    fit_logistic,
    fit_with_chosen_penalty,
    folder_splits,
    images,
    knn,
    knn_accuracy,
    knn_predict,
    knn_scores,
    linear,
    logistic,
    random_weights,
    stratified,
    transfer,
)
from barlow_fast.evaluation import features as feature_module
from barlow_fast.evaluation import finetune as finetune_function
from barlow_fast.evaluation import protocol as protocol_module

finetune_module = inspect.getmodule(finetune_function)
FORM = ImageFormat(8, 1, 0.3, 0.25)
DATA = dataset(48, 24)
SPLITS = dataset_splits(DATA)
STAGES = ("Feature1", AVERAGE_POOL)

# {function or class: {option: its case}}
DATA_WORD = "what is computed on"
TABLE = Cases()
case, operands = TABLE.case, TABLE.operands


class Seen(nn.Module):
    """An encoder that keeps what it was given; its features are a stem's."""

    devices: ClassVar[list[Any]] = []  # that it or a copy was moved to

    def __init__(self) -> None:
        super().__init__()
        self.stem = stem()
        self.inputs: list[Tensor] = []

    def to(self, device: Any) -> Seen:
        self.devices.append(device)
        return super().to(device)

    def forward(self, pictures: Tensor) -> Tensor:
        self.inputs.append(pictures)
        return self.stem(pictures)

    @property
    def sizes(self) -> list[int]:
        return [len(pictures) for pictures in self.inputs]


class Mean(nn.Module):
    """An encoder without weights, on any device: the mean colour."""

    def forward(self, pictures: Tensor) -> Tensor:
        return pictures.mean((2, 3))


def clusters(count: int, seed: int, classes: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, 6, generator=torch.Generator().manual_seed(99))
    labels = torch.arange(count) % classes
    return centres[labels] + 1.5 * torch.randn(count, 6, generator=generator), labels


TRAIN, TEST = clusters(90, 0), clusters(60, 1)


# Neighbours.


def votes(test: Tensor, k: int, temperature: float) -> Tensor:
    """The definition, in float64."""
    train, labels = TRAIN
    similarity = nn.functional.normalize(test.double(), dim=1) @ (
        nn.functional.normalize(train.double(), dim=1).T
    )
    nearest, indices = similarity.topk(k, dim=1)
    weights = (nearest / temperature).exp()
    return torch.zeros(len(test), 4, dtype=torch.float64).scatter_add_(1, labels[indices], weights)


operands(knn_predict, "train_features", "train_labels", "test_features")
operands(knn_accuracy, "train_features", "train_labels", "test_features", "test_labels")
operands(knn_scores, "train_features", "train_labels", "test_features", "test_labels")


@case(knn_predict, "k", "temperature")
@case(knn_accuracy, "k", "temperature")
@case(knn_scores, "neighbours", "temperature")
def _(monkeypatch):
    """Predictions differ for every pair, and are those of the definition, defaults included."""
    found = set()
    for k, temperature in ((20, 0.07), (3, 0.07), (20, 5.0), (35, 0.3)):
        expected = votes(TEST[0], k, temperature).argmax(1)
        found.add(tuple(expected.tolist()))
        share = (expected == TEST[1]).double().mean().item()
        given = {"temperature": temperature} if temperature != 0.07 else {}
        predicted = {"k": k} if k != 20 else {}
        assert torch.equal(knn_predict(*TRAIN, TEST[0], **predicted, **given), expected)
        assert knn_accuracy(*TRAIN, *TEST, **predicted, **given) == pytest.approx(share)
        scores = knn_scores(*TRAIN, *TEST, neighbours=(k, 1), **given)
        assert scores[k].top1 == pytest.approx(share)
        assert list(scores) == [k, 1]
    assert len(found) == 4


@case(knn_predict, "chunk")
@case(knn_scores, "chunk")
def _(monkeypatch):
    calls = record_calls(monkeypatch, knn.functional, "normalize")
    for call, sizes in (
        (lambda: knn_predict(*TRAIN, TEST[0], chunk=25), [90, 25, 25, 10]),
        (lambda: knn_predict(*TRAIN, TEST[0]), [90, 60]),
        (lambda: knn_scores(*TRAIN, *TEST, (3,), chunk=40), [90, 40, 20]),
        (lambda: knn_scores(*TRAIN, *TEST, (3,)), [90, 60]),
    ):
        calls.clear()
        call()
        assert [len(passed["input"]) for passed in calls] == sizes
    # Of so many training images' similarities that 16 chunks of 4 fill the bound.
    monkeypatch.setattr(knn, "SIMILARITY_BYTES", 4 * 90 * 4)
    calls.clear()
    knn_scores(*TRAIN, *TEST, (3,))
    assert [len(passed["input"]) for passed in calls] == [90, *[4] * 15]


def test_no_test_samples_have_no_predictions_and_no_score():
    train, labels = TRAIN
    found = knn_predict(train, labels.int(), train[:0])
    assert (found.shape, found.dtype) == ((0,), torch.int64)
    assert knn_predict(train, labels.int(), train[:3]).dtype == torch.int64
    for score in (knn_accuracy, knn_scores):
        with pytest.raises(ValueError, match="0 test features, 0 labels"):
            score(train, labels, train[:0], labels[:0])
        with pytest.raises(ValueError, match="3 test features, 2 labels"):
            score(train, labels, train[:3], labels[:2])
    # As many neighbours as there are samples, and not one more.
    assert list(knn_scores(train, labels, train, labels, (90,))) == [90]
    with pytest.raises(ValueError, match="k = 91 neighbours of 90"):
        knn_scores(train, labels, train, labels, (91,))


# Features.

operands(extract_features, "encoder", "images")


@case(extract_features, "mean", "std", "chunk")
def _(monkeypatch):
    encoder = Seen()
    extract_features(encoder, DATA.test_images, 0.2, 0.5, chunk=9)
    assert encoder.sizes == [9, 9, 6]
    expected = (DATA.test_images[:9].float() / 255 - 0.2) / 0.5
    torch.testing.assert_close(encoder.inputs[0], expected)


@case(extract_features, "device")
def _(monkeypatch):
    assert extract_features(Mean(), DATA.test_images, 0.2, 0.5, "meta").device.type == "meta"


operands(StageFeatures, "encoder")
operands(features_of_source, "encoder", "source")


@case(StageFeatures, "names", "dimensions", "stages")
def _(monkeypatch):
    encoder, pictures = stem().eval(), torch.rand(3, 1, 8, 8)
    with StageFeatures(encoder) as extract:
        assert list(extract(pictures)) == [AVERAGE_POOL]
    for dimensions, width in ((8, 8), (40, 32), (10_000, 512)):
        with StageFeatures(encoder, STAGES, dimensions, stages) as extract:
            assert {name: v.shape[1] for name, v in extract(pictures).items()} == {
                "Feature1": width,
                AVERAGE_POOL: 16,
            }


@case(features_of_source, "names", "dimensions", "stages", "words", "form", "reading")
def _(monkeypatch):
    encoder, passed = Seen(), []
    found, labels = features_of_source(
        encoder,
        SPLITS.test,
        replace(FORM, mean=0.1),
        Reading(chunk=10, progress=lambda *a: passed.append(a)),
        ("Feature2",),
        dimensions=70,
        stages=lambda module: stages(module.stem),
        words="here",
    )
    assert {name: value.shape for name, value in found.items()} == {"Feature2": (24, 64)}
    assert torch.equal(labels, DATA.test_labels)
    assert passed == [("here", 10, 24), ("here", 20, 24), ("here", 24, 24)]
    assert encoder.sizes == [10, 10, 4]
    expected = (DATA.test_images[:10].float() / 255 - 0.1) / 0.25
    torch.testing.assert_close(encoder.inputs[0], expected)


# What an encoder takes, and how images are read.


def seen_by_the_encoder(form: ImageFormat, source: Any = None, **reading: Any) -> list[Tensor]:
    inputs: list[Tensor] = []

    class Keep(nn.Module):
        def forward(self, pictures: Tensor) -> Tensor:
            inputs.append(pictures)
            return pictures.flatten(1)

    features_of_source(Keep(), source or SPLITS.test, form, Reading(**reading))
    return inputs


@case(ImageFormat, "size", "channels", "mean", "std")
def _(monkeypatch):
    plain = torch.cat(seen_by_the_encoder(ImageFormat(None, 1)))
    torch.testing.assert_close(plain, DATA.test_images.float() / 255)
    assert seen_by_the_encoder(ImageFormat(5, 1))[0].shape[1:] == (1, 5, 5)
    assert seen_by_the_encoder(ImageFormat((4, 6), 1))[0].shape[1:] == (1, 4, 6)
    assert seen_by_the_encoder(ImageFormat(8, 3))[0].shape[1:] == (3, 8, 8)
    assert seen_by_the_encoder(ImageFormat(8))[0].shape[1:] == (3, 8, 8)
    moved = seen_by_the_encoder(ImageFormat(8, 3, (0.1, 0.2, 0.3), (1.0, 2.0, 4.0)))[0]
    for channel, (mean, std) in enumerate(((0.1, 1.0), (0.2, 2.0), (0.3, 4.0))):
        torch.testing.assert_close(moved[:, channel], (plain[:, 0] - mean) / std)


@case(Reading, "device")
def _(monkeypatch):
    found = features_of_source(Mean(), SPLITS.test, FORM, Reading("meta"))
    assert (found[0][AVERAGE_POOL].device.type, found[1].device.type) == ("meta", "meta")
    crops = record_calls(monkeypatch, images, "ViewLoader", lambda *a, **k: None)
    images.training_crops(SPLITS.train, FORM, Reading("meta"), 8, 0)
    assert crops[0]["device"] == "meta"


@case(Reading, "chunk")
def _(monkeypatch):
    assert [len(part) for part in seen_by_the_encoder(FORM, chunk=11)] == [11, 11, 2]
    assert [len(part) for part in seen_by_the_encoder(FORM, chunk=1)] == [1] * 24


@case(Reading, "workers", "on_bad_image")
def _(monkeypatch, tmp_path):
    source = folder_splits(write_classes(tmp_path / "images", {"a": 4, "b": 4})).train
    order = record_calls(monkeypatch, images, "in_order", lambda source, task, workers: [
        task(index) for index in range(len(source))
    ])  # fmt: skip
    crops = record_calls(monkeypatch, images, "ViewLoader", lambda *a, **k: None)
    form = ImageFormat(8)
    for given in ({}, {"workers": 3, "on_bad_image": "skip"}):
        seen_by_the_encoder(form, source, **given)
        images.training_crops(source, form, Reading(**given), 4, 0)
    assert [passed["workers"] for passed in order] == [None, 3]
    assert [passed["workers"] for passed in crops] == [None, 3]
    assert [passed["on_bad_image"].policy for passed in crops] == ["error", "skip"]
    damaged = tmp_path / "images" / "a" / source.identity(0).rpartition("/")[2]
    damaged.write_bytes(b"no picture")
    with pytest.raises(BadImageError):
        seen_by_the_encoder(form, source)
    (seen,) = seen_by_the_encoder(form, source, on_bad_image="skip")
    assert len(seen) == len(source) - 1


@case(Reading, "reduced_decoding")
def _(monkeypatch, tmp_path):
    source = folder_splits(write_classes(tmp_path / "images", {"a": 4, "b": 4})).train
    read = record_calls(monkeypatch, images, "CentreCrop")
    crops = record_calls(monkeypatch, images, "ViewLoader", lambda *a, **k: None)
    form = ImageFormat(8)
    for given in (False, True):
        seen_by_the_encoder(form, source, reduced_decoding=given, workers=0)
        images.training_crops(source, form, Reading(reduced_decoding=given), 4, 0)
        assert read[-1]["reduced_decoding"] is given
        assert crops[-1]["views"].reduced_decoding is given
    # Images in memory are not decoded.
    data = ArraySource(np.zeros((4, 8, 8, 3), np.uint8), [0, 1, 0, 1])
    images.training_crops(data, form, Reading(reduced_decoding=True), 4, 0)
    assert crops[-1]["views"].reduced_decoding is False


@case(Reading, "progress")
def _(monkeypatch):
    passed: list[tuple] = []
    seen_by_the_encoder(FORM, chunk=20, progress=lambda *a: passed.append(a))
    assert passed == [("features", 20, 24), ("features", 24, 24)]


def test_crops_get_every_argument(monkeypatch):
    """`training_crops` is what both kinds of training read through."""
    crops = record_calls(monkeypatch, images, "ViewLoader", lambda *a, **k: None)
    view = ViewSpecification(crop_area=(0.5, 0.6))
    form = ImageFormat((7, 9), 1, 0.3, 0.25)
    images.training_crops(SPLITS.train, form, Reading(), 10, 77, view)
    passed = crops[0]
    assert passed["views"].views == (replace(view, size=(7, 9)),)
    assert (passed["views"].mean, passed["views"].std) == ((0.3,), (0.25,))
    assert (passed["batch_size"], passed["seed"], passed["drop_last"]) == (10, 77, False)
    # One image alone has no batch statistics; a set smaller than a batch is one batch.
    for size, batch, dropped in ((47, 47, True), (48, 48, False), (99, 48, False), (12, 12, False)):
        images.training_crops(SPLITS.train, form, Reading(), size, 0)
        assert (crops[-1]["batch_size"], crops[-1]["drop_last"]) == (batch, dropped)
    images.training_crops(SPLITS.train, ImageFormat(None, 1), Reading(), 10, 0)
    assert crops[-1]["views"].views[0].size == (8, 8)


# Training of classifiers and of everything.


class Steps:
    """What every optimizer was set to in each of its steps, by its parameters' shapes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: list[list[dict[str, Any]]] = []
        plain, seen = torch.optim.SGD.step, self.seen

        def step(optimizer: torch.optim.SGD, *arguments: Any) -> None:
            seen.append([dict(group) for group in optimizer.param_groups])
            plain(optimizer, *arguments)

        monkeypatch.setattr(torch.optim.SGD, "step", step)

    def of(self, width: int, name: str) -> list[float]:
        """A setting of the groups that hold a classifier of `width` features, step by step."""
        return [
            group[name]
            for groups in self.seen
            for group in groups
            if group["params"][0].shape == (4, width)
        ]


def heads(monkeypatch, **settings: Any) -> tuple[Steps, dict[str, nn.Module]]:
    steps = Steps(monkeypatch)
    given = LinearSettings(**{"epochs": 2, "batch_size": 24, **settings})
    found = linear.train_heads(
        stem(), SPLITS, FORM, Reading(), given, 0, STAGES, dimensions=8, stages=stages
    )
    return steps, found


@case(LinearSettings, "epochs", "batch_size")
def _(monkeypatch):
    steps, _ = heads(monkeypatch, epochs=3, batch_size=16, learning_rate=0.2)
    rates = [0.1 * (1 + math.cos(math.pi * epoch / 3)) for epoch in (0, 1, 2) for _ in range(3)]
    assert steps.of(16, "lr") == pytest.approx(rates)


@case(LinearSettings, "learning_rate", "weight_decay", "stage_learning_rate", "stage_weight_decay")
def _(monkeypatch):
    steps, changed = heads(
        monkeypatch,
        learning_rate=0.7,
        weight_decay=0.11,
        stage_learning_rate=0.05,
        stage_weight_decay=0.22,
    )
    for width, rate, decay in ((16, 0.7, 0.11), (8, 0.05, 0.22)):
        assert steps.of(width, "lr") == pytest.approx([rate, rate, rate / 2, rate / 2])
        assert steps.of(width, "weight_decay") == [decay] * 4
    assert isinstance(changed["Feature1"], linear.Standardised)
    assert isinstance(changed[AVERAGE_POOL], nn.Linear)


@case(LinearSettings, "momentum")
def _(monkeypatch):
    steps, _ = heads(monkeypatch, momentum=0.3)
    assert steps.of(16, "momentum") == steps.of(8, "momentum") == [0.3] * 4


def test_classifiers_of_pixels_are_standardised(monkeypatch):
    steps = Steps(monkeypatch)
    settings = LinearSettings(epochs=1, stage_learning_rate=0.02, stage_weight_decay=0.3)
    encoder = nn.Flatten()
    (head,) = linear.train_heads(
        encoder, SPLITS, FORM, Reading(), settings, 3, standardised=True
    ).values()
    assert isinstance(head, linear.Standardised)
    assert steps.of(64, "lr") == [0.02]
    assert steps.of(64, "weight_decay") == [0.3]


def test_the_settings_of_heads_reach_what_they_are_for(monkeypatch):
    """`train_heads` and `score_heads`, behind `evaluate_linear`."""
    view, passed = ViewSpecification(crop_area=(0.4, 0.5)), []
    crops = record_calls(monkeypatch, linear, "training_crops")
    weights = record_calls(monkeypatch, linear, "linear_classifier")
    reading = Reading(chunk=10, progress=lambda *a: passed.append(a))
    settings = LinearSettings(epochs=1, batch_size=24)
    found = linear.train_heads(
        stem(), SPLITS, FORM, reading, settings, 5, STAGES,
        augmentation=view, dimensions=8, stages=stages, words="training",
    )  # fmt: skip
    assert (crops[0]["seed"], crops[0]["augmentation"], crops[0]["batch_size"]) == (5, view, 24)
    assert [(t["features"], t["classes"], t["seed"]) for t in weights] == [(8, 4, 5), (16, 4, 5)]
    assert passed == [("training", 1, 2), ("training", 2, 2)]
    passed.clear()
    linear.score_heads(
        stem(), found, SPLITS, FORM, reading, dimensions=8, stages=stages, words="scoring"
    )
    assert passed == [("scoring", 10, 24), ("scoring", 20, 24), ("scoring", 24, 24)]


def test_first_weights_depend_on_the_seed():
    first, same, other = (
        linear.linear_classifier(200, 10, seed, standardised)
        for seed, standardised in ((1, False), (1, True), (2, False))
    )
    assert torch.equal(first.weight, same.classifier.weight)
    assert not torch.equal(first.weight, other.weight)
    assert first.weight.std().item() == pytest.approx(0.01, rel=0.1)
    assert not first.bias.any()


def tuned(monkeypatch, **settings: Any) -> tuple[Steps, list[list[dict[str, Any]]]]:
    steps = Steps(monkeypatch)
    given = FinetuneSettings(**{"epochs": 2, "batch_size": 24, **settings})
    finetune(stem(), SPLITS, FORM, Reading(), given, 0)
    return steps, steps.seen


@case(FinetuneSettings, "epochs", "batch_size")
def _(monkeypatch):
    _, seen = tuned(monkeypatch, epochs=4, batch_size=48, classifier_learning_rate=0.4)
    rates = [0.2 * (1 + math.cos(math.pi * epoch / 4)) for epoch in range(4)]
    assert [groups[1]["lr"] for groups in seen] == pytest.approx(rates)


@case(FinetuneSettings, "backbone_learning_rate", "classifier_learning_rate")
def _(monkeypatch):
    _, seen = tuned(monkeypatch, backbone_learning_rate=0.03, classifier_learning_rate=0.2)
    for groups, part in zip(seen, (1, 1, 0.5, 0.5), strict=True):
        assert [group["lr"] for group in groups] == pytest.approx([0.03 * part, 0.2 * part])
        # The encoder's, then the classifier's.
        assert [len(group["params"]) for group in groups] == [8, 2]


@case(FinetuneSettings, "momentum", "weight_decay")
def _(monkeypatch):
    _, seen = tuned(monkeypatch, momentum=0.4, weight_decay=0.12)
    for groups in seen:
        assert [(g["momentum"], g["weight_decay"]) for g in groups] == [(0.4, 0.12)] * 2


operands(finetune, "encoder", "splits", "form", "reading")


@case(finetune, "settings", "seed", "augmentation", "words")
def _(monkeypatch):
    view, passed = ViewSpecification(crop_area=(0.4, 0.5)), []
    crops = record_calls(monkeypatch, finetune_module, "training_crops")
    weights = record_calls(monkeypatch, finetune_module, "linear_classifier")
    encoder = stem().train()
    encoder[1].eval()
    encoder[0].weight.requires_grad_(False)
    before = state_of(encoder)
    classifier = finetune(
        encoder,
        SPLITS,
        FORM,
        Reading(progress=lambda *a: passed.append(a)),
        FinetuneSettings(epochs=1, batch_size=12),
        7,
        augmentation=view,
        words="all of it",
    )
    assert (crops[0]["seed"], crops[0]["augmentation"], crops[0]["batch_size"]) == (7, view, 12)
    assert crops[0]["source"] is SPLITS.train
    assert [(t["features"], t["classes"], t["seed"]) for t in weights] == [(16, 4, 7)]
    assert passed == [("all of it", done, 4) for done in (1, 2, 3, 4)]
    # Trained as a whole, frozen weights too; and left in the modes that it had.
    after = state_of(encoder)
    # (A bias in front of batch norm has no gradient.)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert {n for n in before if n.endswith((".weight", "_mean", "_var"))} <= moved
    assert [m.training for m in encoder] == [True, False, *[True] * 6]
    assert not encoder[0].weight.requires_grad
    assert encoder[3].weight.requires_grad
    assert not classifier.training


# Logistic regression.

operands(fit_logistic, "features", "labels", "classes")
operands(fit_with_chosen_penalty, "features", "labels", "classes")


@case(fit_logistic, "penalty", "start", "iterations", "tolerance")
@case(fit_with_chosen_penalty, "penalties", "iterations", "tolerance")
def _(monkeypatch):
    features, labels = (t.double() if t.is_floating_point() else t for t in TRAIN)
    fit = fit_logistic(features, labels, 4, 1e-2)
    chosen = fit_with_chosen_penalty(features, labels, 4, 0, penalties=(1e-2,))
    assert torch.equal(fit.weight, chosen.weight)
    assert (fit.penalty, chosen.penalty) == (1e-2, 1e-2)
    strong = fit_logistic(features, labels, 4, 1.0)
    assert strong.weight.norm() < 0.5 * fit.weight.norm()
    assert fit_with_chosen_penalty(features, labels, 4, 0, penalties=(1.0,)).penalty == 1.0
    # The objective of the text, at the minimum that was found.
    logits = fit.logits(features)
    value = nn.functional.cross_entropy(logits, labels) + 1e-2 / 2 * fit.weight.square().sum()
    assert fit.objective == pytest.approx(value.item(), rel=1e-12)
    short = fit_logistic(features, labels, 4, 1e-2, iterations=1)
    assert short.objective > fit.objective + 1e-4
    assert torch.equal(
        short.weight,
        fit_with_chosen_penalty(features, labels, 4, 0, penalties=(1e-2,), iterations=1).weight,
    )
    assert fit_logistic(features, labels, 4, 1e-2, iterations=1, start=fit).objective == (
        pytest.approx(fit.objective, rel=1e-6)
    )
    for still in (
        fit_logistic(features, labels, 4, 1e-2, tolerance=1e9),
        fit_with_chosen_penalty(features, labels, 4, 0, penalties=(1e-2,), tolerance=1e9),
    ):
        assert not still.weight.any()
        assert still.objective == pytest.approx(math.log(4))


@case(fit_with_chosen_penalty, "seed")
def _(monkeypatch):
    calls = record_calls(monkeypatch, logistic, "stratified")
    fit_with_chosen_penalty(*TRAIN, 4, 9)
    assert [(passed["seed"], passed["fraction"]) for passed in calls] == [(9, 0.1)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_scores_do_not_depend_on_an_autocast_around_them(dtype: torch.dtype):
    """It is for the encoder; similarities and classifiers keep their type."""
    (train, labels), (test, truth) = ((x.to(dtype), y) for x, y in (TRAIN, TEST))

    def found() -> list[Any]:
        fit = fit_with_chosen_penalty(train, labels, 4, 0, penalties=(1e-1, 1e-3), iterations=20)
        return [
            knn_predict(train, labels, test, 35, 0.3),
            fit.weight,
            fit.logits(test),
            torch.tensor(fit.objective),
            torch.tensor(knn_scores(train, labels, test, truth, (3,))[3].top1),
        ]

    plain = found()
    with torch.autocast("cpu", torch.bfloat16):
        inside = found()
    assert plain[1].dtype == plain[2].dtype == dtype
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(plain, inside, strict=True))


# Parts of labelled images.

operands(stratified, "labels")
operands(balanced_subset, "labels")
operands(dataset_splits, "dataset")
operands(folder_splits, "folder")
LABELS = np.arange(60) % 3


@case(stratified, "fraction", "seed")
def _(monkeypatch):
    for fraction, count in ((0.2, 4), (0.5, 10), (0.001, 1), (0.999, 19), (0.13, 3)):
        first, second = stratified(LABELS, fraction, 0)
        assert [(LABELS[second] == c).sum() for c in range(3)] == [count] * 3
        assert sorted([*first, *second]) == list(range(60))
    assert set(stratified(LABELS, 0.5, 0)[1]) != set(stratified(LABELS, 0.5, 1)[1])


@case(stratified, "class_names")
def _(monkeypatch):
    with pytest.raises(ValueError, match="class rare has one image"):
        stratified(np.array([0, 0, 1]), 0.5, 0, ["common", "rare"])


@case(balanced_subset, "fraction", "seed", "class_names")
def _(monkeypatch):
    for fraction, count in ((0.5, 10), (0.1, 2), (0.04, 1)):
        chosen = balanced_subset(LABELS, fraction, 0)
        assert [(LABELS[chosen] == c).sum() for c in range(3)] == [count] * 3
    assert set(balanced_subset(LABELS, 0.5, 0)) != set(balanced_subset(LABELS, 0.5, 1))
    with pytest.raises(ValueError, match=r"class ape and the others.*at least 0\.05"):
        balanced_subset(LABELS, 0.02, 0, ("ape", "bee", "cat"))


@case(folder_splits, "test_fraction", "seed")
def _(monkeypatch, tmp_path):
    folder = write_classes(tmp_path / "images", {"a": 10, "b": 10})
    plain = folder_splits(folder)
    assert len(plain.test) == 4
    half = folder_splits(folder, test_fraction=0.5, seed=3)
    assert len(half.test) == 10
    assert half.notes == {"split": "drawn here", "test_fraction": 0.5, "split_seed": 3}
    expected = stratified(folder_splits(folder, test_fraction=0.5).train.source.labels, 0.5, 3)[1]
    assert half.test.indices.tolist() == expected.tolist()


@case(folder_splits, "allow_symlinks")
def _(monkeypatch, tmp_path):
    outside = write_classes(tmp_path / "outside", {"a": 4, "b": 4})
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for folder in (whole, parts / "train", parts / "val"):
        folder.mkdir(parents=True)
        for name in ("a", "b"):
            (folder / name).symlink_to(outside / name)
    for folder, count in ((whole, 6), (parts, 8)):
        with pytest.raises(ValueError, match=r"--allow-symlinks|link|no images"):
            folder_splits(folder)
        assert len(folder_splits(folder, allow_symlinks=True).train) == count


@case(random_weights, "seed")
def _(monkeypatch):
    first, again, other = (state_of(random_weights(stem(), seed)) for seed in (1, 1, 2))
    assert equal_states(first, again)
    assert not torch.equal(first["0.weight"], other["0.weight"])


operands(random_weights, "encoder")
operands(evaluation.raw_pixels)
operands(evaluation.merged, "evaluations")


@case(LabelledSplits, "name", "train", "test", "classes", "notes")
def _(monkeypatch):
    train = evaluation.splits.subset(SPLITS.train, np.arange(40))
    test = evaluation.splits.subset(SPLITS.test, np.arange(20))
    splits = LabelledSplits("mine", train, test, 6, None, {"split": "by hand"})
    found = evaluate_knn(stem(), splits, FORM)
    assert (found.data, found.classes) == ("mine", 6)
    assert (found.train_images, found.test_images) == (40, 20)
    assert found.settings["split"] == "by hand"
    assert splits.called(1) == "1"


@case(LabelledSplits, "class_names")
def _(monkeypatch):
    splits = replace(SPLITS, class_names=("ape", "bee", "cat", "dog"))
    assert splits.called(1) == "bee"
    with pytest.raises(ValueError, match="class ape and the others"):
        evaluate_finetune(stem(), splits, FORM, fraction=1e-3)


# The protocols.

VIEW = ViewSpecification(crop_area=(0.4, 0.5))
QUICK = LinearSettings(epochs=1, batch_size=24)
TUNING = FinetuneSettings(epochs=1, batch_size=24)
READING = Reading(chunk=13)
OTHER = ImageFormat(8, 1, 0.1, 0.2)
FULL: dict[str, Any] = {"fraction": 1.0, "settings": TUNING}


class Reaches(NamedTuple):
    """The value of an option, and the functions that get it as `argument` (None: by the option's
    name), as `passed` (None: as it is)."""

    value: Any
    functions: list[tuple[Any, str]]
    argument: str | None = None
    passed: Any = None


FEATURES, CHECK = (protocol_module, "features_of_source"), (protocol_module, "check_fits")
TRAINS, SCORE = (linear, "train_heads"), (linear, "score_heads")
TUNE, SCORE_TUNED = (finetune_module, "finetune"), (finetune_module, "score_heads")
SUBSET = (finetune_module, "balanced_subset")


def neighbours_of(module: Any) -> dict[str, Reaches]:
    return {
        "form": Reaches(OTHER, [FEATURES]),
        "reading": Reaches(READING, [FEATURES]),
        "neighbours": Reaches((7, 3), [(module, "knn_scores")]),
        "temperature": Reaches(0.5, [(module, "knn_scores")]),
    }


def penalties_of(module: Any) -> dict[str, Reaches]:
    return {
        "penalties": Reaches((0.3,), [(module, "fit_over_seeds")]),
        "iterations": Reaches(3, [(module, "fit_over_seeds")]),
    }


PROTOCOLS: dict[Any, dict[str, Reaches]] = {
    evaluate_knn: {**neighbours_of(knn), "adapt": Reaches(True, [CHECK])},
    evaluate_transfer: {**neighbours_of(transfer), **penalties_of(transfer)},
    evaluate_linear: {
        "form": Reaches(OTHER, [TRAINS, SCORE]),
        "reading": Reaches(READING, [TRAINS, SCORE]),
        "features": Reaches("augmented", [TRAINS], "standardised", False),
        "names": Reaches(["Feature1"], [FEATURES], None, ("Feature1",)),
        "settings": Reaches(QUICK, [TRAINS]),
        "augmentation": Reaches(VIEW, [TRAINS]),
        **penalties_of(linear),
        "adapt": Reaches(True, [CHECK]),
    },
    evaluate_finetune: {
        "form": Reaches(OTHER, [TUNE, SCORE_TUNED]),
        "reading": Reaches(READING, [TUNE, SCORE_TUNED]),
        "fraction": Reaches(0.5, [SUBSET]),
        "subset_seed": Reaches(9, [SUBSET], "seed"),
        "settings": Reaches(TUNING, [TUNE]),
        "augmentation": Reaches(VIEW, [TUNE]),
        "adapt": Reaches(True, [CHECK]),
    },
}
AUGMENTED = ("form", "reading", "features", "settings", "augmentation")


def choices_beside(function: Any, option: str) -> dict[str, Any]:
    """What else is passed, so that the option matters."""
    if function is evaluate_linear and option in AUGMENTED:
        return {"features": "augmented", "settings": QUICK}
    if function is evaluate_finetune:
        return {**FULL, "fraction": 0.5} if option == "subset_seed" else FULL
    return {"stages": stages} if option == "names" else {}


def evaluated(protocol: Any, **choices: Any) -> Evaluation:
    form = choices.pop("form", FORM)
    return protocol(choices.pop("encoder", stem()), choices.pop("splits", SPLITS), form, **choices)


@pytest.mark.parametrize(
    ("protocol", "option"),
    [
        pytest.param(protocol, option, id=f"{protocol.__name__}-{option}")
        for protocol, options in PROTOCOLS.items()
        for option in options
    ],
)
def test_every_option_of_a_protocol_reaches_what_it_is_for(protocol, option: str, monkeypatch):
    value, functions, argument, passed = PROTOCOLS[protocol][option]
    calls = [record_calls(monkeypatch, owner, name) for owner, name in functions]
    found = evaluated(protocol, **{**choices_beside(protocol, option), option: value})
    for recorded, (_, name) in zip(calls, functions, strict=True):
        assert recorded, name
        for call in recorded:
            assert call[argument or option] == (value if passed is None else passed), name
    # And it is written down with the result, where it is a plain value.
    if option == "augmentation":
        value = {"crop_area": VIEW.crop_area}
    if option in found.settings:
        assert found.settings[option] == (list(value) if isinstance(value, tuple) else value)


SHARED = {
    "seeds": "test_seeds_random_weights_and_baselines",
    "random": "test_seeds_random_weights_and_baselines",
    "baselines": "test_seeds_random_weights_and_baselines",
    "encoder": DATA_WORD,
    "splits": DATA_WORD,
    "dimensions": "test_stages_are_kept_as_small_as_requested",
    "stages": "test_stages_are_kept_as_small_as_requested",
}
CHOICES = {
    evaluate_knn: {"neighbours": (3,)},
    evaluate_transfer: {"neighbours": (3,), "iterations": 5},
    evaluate_linear: {"features": "augmented", "settings": QUICK},
    evaluate_finetune: FULL,
}


@pytest.mark.parametrize("protocol", CHOICES, ids=lambda protocol: protocol.__name__)
def test_seeds_random_weights_and_baselines(protocol, monkeypatch):
    weights = record_calls(monkeypatch, protocol_module, "random_weights")
    choices = {**CHOICES[protocol], "seeds": (4, 2)}
    kinds = {
        (): {"encoder"},
        ("random",): {"random weights"},
        ("baselines",): {"encoder", "random weights", "raw pixels"},
        ("random", "baselines"): {"random weights", "raw pixels"},
    }
    for flags, expected in kinds.items():
        weights.clear()
        found = evaluated(protocol, **choices, **dict.fromkeys(flags, True))
        if protocol is evaluate_finetune:
            expected = expected - {"raw pixels"}
        assert {row.features for row in found.scores} == expected
        assert [passed["seed"] for passed in weights] == ([4, 2] if flags else [])
        assert found.settings["seeds"] == [4, 2]
        for row in found.scores:
            drawn = row.features == "random weights"
            learned = row.classifier.startswith(("linear", "finetune"))
            assert len(row.top1) == (2 if drawn or learned else 1)


def test_seeds_reach_what_they_seed(monkeypatch):
    trained = record_calls(monkeypatch, linear, "train_heads")
    evaluated(evaluate_linear, **CHOICES[evaluate_linear], seeds=(4, 2), baselines=True)
    # The encoder's runs, those of random weights with their own, those of pixels.
    assert [passed["seed"] for passed in trained] == [4, 2, 4, 2, 4, 2]
    assert [passed["standardised"] for passed in trained] == [False] * 4 + [True] * 2
    for module, protocol, choices in (
        (linear, evaluate_linear, {"features": "cached"}),
        (transfer, evaluate_transfer, {}),
    ):
        fitted = record_calls(monkeypatch, module, "fit_over_seeds")
        evaluated(protocol, **choices, iterations=3, seeds=(4, 2), baselines=True)
        assert [passed["seeds"] for passed in fitted] == [(4, 2), (4,), (2,), (4, 2)]
    tuned = record_calls(monkeypatch, finetune_module, "finetune")
    evaluated(evaluate_finetune, **FULL, seeds=(4, 2), baselines=True)
    assert [passed["seed"] for passed in tuned] == [4, 2, 4, 2]


@pytest.mark.parametrize("features", ["cached", "augmented"])
def test_stages_are_kept_as_small_as_requested(monkeypatch, features: str):
    made = record_calls(monkeypatch, feature_module, "pooled")
    found = evaluated(
        evaluate_linear, names=None, stages=stages, dimensions=77, features=features,
        settings=QUICK, iterations=3,
    )  # fmt: skip
    assert [row.classifier for row in found.scores] == [
        "linear on Feature1", "linear on Feature2", "linear"
    ]  # fmt: skip
    assert made
    assert {passed["dimensions"] for passed in made} == {77}
    assert found.settings["stage_dimensions"] == 77


def test_crops_suit_the_images(monkeypatch):
    """Unless others are requested: mirrored digits are other characters."""
    for protocol, module, name in (
        (evaluate_linear, linear, "train_heads"),
        (evaluate_finetune, finetune_module, "finetune"),
    ):
        calls = record_calls(monkeypatch, module, name)
        for data, view in (
            ("patterns", images.CROP_AND_FLIP),
            ("digits", images.AUGMENTATIONS["digits"]),
        ):
            evaluated(protocol, **CHOICES[protocol], splits=replace(SPLITS, name=data))
            assert calls[-1]["augmentation"] == view


def test_every_protocol_computes_on_the_device_of_its_reading():
    for protocol, choices in CHOICES.items():
        Seen.devices.clear()
        with pytest.raises((RuntimeError, NotImplementedError)):
            # What is computed there has no numbers; that it is there is seen.
            evaluated(protocol, encoder=Seen(), reading=Reading("meta"), **choices)
        assert set(Seen.devices) == {"meta"}


def test_other_images_than_the_encoder_takes_are_adapted_only_if_asked():
    small = dataset_splits(dataset(48, 24, size=6))
    for protocol, choices in CHOICES.items():
        if protocol is evaluate_transfer:
            evaluated(protocol, splits=small, **choices)
            continue
        with pytest.raises(ValueError, match="6 x 6 pixels"):
            evaluated(protocol, splits=small, **choices)
        evaluated(protocol, splits=small, adapt=True, **choices)


def test_the_numbers_of_the_protocols():
    """Numbers that make scores comparable; no other test passes them."""
    assert LinearSettings() == LinearSettings(100, 256, 0.3, 0.9, 1e-6, 0.01, 1e-4)
    assert FinetuneSettings() == FinetuneSettings(20, 256, 0.005, 0.5, 0.9, 0.0)
    assert knn.NEIGHBOURS == (10, 20, 100, 200)
    assert knn.TEMPERATURE == 0.07
    assert logistic.PENALTIES == (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
    assert (logistic.HELD_OUT, logistic.ITERATIONS, logistic.TOLERANCE) == (0.1, 200, 1e-5)
    assert logistic.MOST_TO_CHOOSE == 20_000
    assert feature_module.STAGE_DIMENSIONS == 9000
    assert (images.MARGIN, images.SMALL) == (256 / 224, 64)
    ratio = (3 / 4, 4 / 3)
    plain = ViewSpecification(crop_area=(0.08, 1.0), crop_ratio=ratio, flip=0.5)
    assert replace(plain, interpolation="bilinear") == images.CROP_AND_FLIP
    assert {
        "digits": ViewSpecification(crop_area=(0.6, 1.0), crop_ratio=ratio),
        "fashion-mnist": ViewSpecification(crop_area=(0.3, 1.0), crop_ratio=ratio, flip=0.5),
    } == images.AUGMENTATIONS
    assert inspect.signature(evaluate_finetune).parameters["fraction"].default == 0.01
    assert inspect.signature(knn_predict).parameters["k"].default == 20
    assert inspect.signature(folder_splits).parameters["test_fraction"].default == 0.2


@pytest.mark.parametrize(
    ("settings", "accepted", "refused"),
    [
        (LinearSettings, {"epochs": 1, "batch_size": 1}, {"epochs": 0, "batch_size": 0}),
        (
            LinearSettings,
            {"learning_rate": 1e-9, "stage_learning_rate": 1e-9, "momentum": 0.0},
            {"learning_rate": 0.0, "stage_learning_rate": math.inf, "momentum": -1e-9},
        ),
        (
            LinearSettings,
            {"weight_decay": 0.0, "stage_weight_decay": 0.0},
            {"weight_decay": -1e-9, "stage_weight_decay": math.inf, "momentum": math.nan},
        ),
        (
            FinetuneSettings,
            {"epochs": 1, "batch_size": 1, "weight_decay": 0.0, "momentum": 0.0},
            {"epochs": 0, "batch_size": 0, "weight_decay": -1e-9, "momentum": math.inf},
        ),
        (
            FinetuneSettings,
            {"backbone_learning_rate": 1e-9, "classifier_learning_rate": 1e-9},
            {"backbone_learning_rate": 0.0, "classifier_learning_rate": math.nan},
        ),
    ],
)
def test_limits_of_the_settings_of_classifiers(settings, accepted: dict, refused: dict):
    settings(**accepted)
    for name, value in refused.items():
        with pytest.raises(ValueError, match=name):
            settings(**{name: value})


# The tables, against the signatures.


@pytest.mark.parametrize("shows", TABLE.shown())
def test_every_option_has_its_effect(shows, request):
    wanted = inspect.signature(shows).parameters
    shows(**{name: request.getfixturevalue(name) for name in wanted})


RESULTS = {"Accuracy", "Evaluation", "LogisticRegression", "Score"}


@pytest.mark.parametrize("name", sorted(set(evaluation.__all__) - RESULTS - {"AVERAGE_POOL"}))
def test_every_public_function_has_all_its_cases(name: str):
    entry = getattr(evaluation, name)
    if entry in PROTOCOLS:
        theirs = names_of(entry)
        shared = {option: why for option, why in SHARED.items() if option in theirs}
        assert_covered(entry, PROTOCOLS[entry], shared)
    else:
        assert_covered(entry, TABLE.table.get(entry, ()), TABLE.exempt.get(entry))
