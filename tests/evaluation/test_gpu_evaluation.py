"""What a CUDA device must show of the evaluations: the CPU's scores; selected by `make gpu`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from labelled import FORM, SPLITS, stages, stem, write_classes

from barlow_fast.evaluation import (
    FinetuneSettings,
    ImageFormat,
    LinearSettings,
    Reading,
    evaluate_finetune,
    evaluate_knn,
    evaluate_linear,
    evaluate_transfer,
    folder_splits,
    random_weights,
)

pytestmark = pytest.mark.gpu

# A sample or two at a class's border may fall on the other side.
CLOSE = 2.5 / 40


@pytest.mark.parametrize(
    ("protocol", "choices"),
    [
        (evaluate_knn, {"neighbours": (5, 20), "baselines": True}),
        (evaluate_linear, {"names": None, "stages": stages, "baselines": True}),
        (evaluate_linear, {"features": "augmented", "settings": LinearSettings(2, batch_size=32)}),
        (evaluate_finetune, {"fraction": 1, "settings": FinetuneSettings(epochs=2)}),
        (evaluate_transfer, {"neighbours": (5,)}),
    ],
)
def test_scores_are_the_cpus(protocol, choices: dict):
    ours = protocol(stem(), SPLITS, FORM, Reading("cuda"), **choices)
    theirs = protocol(stem(), SPLITS, FORM, Reading("cpu"), **choices)
    for here, there in zip(ours.scores, theirs.scores, strict=True):
        assert (here.features, here.classifier) == (there.features, there.classifier)
        assert here.top1 == pytest.approx(there.top1, abs=CLOSE)


def test_random_weights_are_the_cpus():
    ours = random_weights(stem().cuda(), 3).state_dict()
    theirs = random_weights(stem(), 3).state_dict()
    for name, value in ours.items():
        assert value.is_cuda
        assert torch.equal(value.cpu(), theirs[name])


def test_files_are_learned_from(tmp_path: Path):
    write_classes(tmp_path / "train", {"a": 20, "b": 20}, kind="jpg", size=40)
    write_classes(tmp_path / "val", {"a": 5, "b": 5}, seed=1, kind="jpg", size=40)
    result = evaluate_linear(
        stem(channels=3),
        folder_splits(tmp_path),
        ImageFormat(32, 3, 0.4, 0.3),
        Reading("cuda", workers=0),
        settings=LinearSettings(epochs=2, batch_size=8),
    )
    assert result.test_images == 10
    assert result.settings["features"] == "augmented"
