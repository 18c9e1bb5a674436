"""NaN and infinity in weights and features: every function and command of evaluation and export
says so; none gives a score."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from labelled import SPLITS, stages, stem
from test_evaluate_commands import checkpoint
from torch import Tensor, nn
from typer.testing import CliRunner

from barlow_fast import evaluation
from barlow_fast.checkpoints import export, load_encoder
from barlow_fast.cli.app import app
from barlow_fast.evaluation import ImageFormat, Reading
from barlow_fast.evaluation.finetune import finetune
from barlow_fast.evaluation.linear import score_heads, train_heads
from barlow_fast.models.finite import check_weights

FORM = ImageFormat(channels=1)
ONE_EPOCH = evaluation.LinearSettings(epochs=1)
PROTOCOLS = {
    "knn": evaluation.evaluate_knn,
    "linear": evaluation.evaluate_linear,
    "linear, augmented": partial(
        evaluation.evaluate_linear, features="augmented", settings=ONE_EPOCH
    ),
    "linear, stages": partial(evaluation.evaluate_linear, names=None, stages=stages),
    "finetune": partial(evaluation.evaluate_finetune, fraction=0.5),
    "transfer": evaluation.evaluate_transfer,
    "features": lambda e, s, f: evaluation.features_of_source(e, s.train, f, Reading()),
    "extract": lambda e, s, f: evaluation.extract_features(
        e, s.train.images.permute(0, 3, 1, 2), 0.0, 1.0
    ),
    "heads": lambda e, s, f: train_heads(e, s, f, Reading(), ONE_EPOCH, 0),
    "finetune itself": lambda e, s, f: finetune(
        e, s, f, Reading(), evaluation.FinetuneSettings(epochs=1), 0
    ),
}


class Enlarged(nn.Module):
    """Finite weights whose features are not."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = stem()

    def forward(self, images: Tensor) -> Tensor:
        return self.encoder(images) * 1e38 * 1e38


def spoilt(place: str, value: float) -> nn.Module:
    encoder = stem()
    with torch.no_grad():
        encoder.state_dict()[place].view(-1)[-1] = value
    return encoder


@pytest.mark.parametrize("name", list(PROTOCOLS))
@pytest.mark.parametrize(
    "encoder",
    [partial(spoilt, "3.weight", torch.nan), partial(spoilt, "4.running_var", torch.inf), Enlarged],
    ids=["weight", "buffer", "features"],
)
def test_protocols_refuse_what_is_not_finite(name: str, encoder):
    if name == "linear, stages" and encoder is Enlarged:
        pytest.skip("its stages are finite")
    network = encoder()
    # A variance that is infinite divides all it has to nothing: only the weights show it.
    if name in ("features", "extract", "heads") and encoder is not Enlarged:
        network = spoilt("3.weight", torch.nan)
    with pytest.raises(RuntimeError, match=r"(weights|features).*not finite"):
        PROTOCOLS[name](network, SPLITS, FORM)


def test_random_weights_do_not_need_the_encoders():
    found = evaluation.evaluate_knn(spoilt("3.weight", torch.nan), SPLITS, FORM, random=True)
    assert [row.features for row in found.scores] == ["random weights"] * len(found.scores)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 1e30])
@pytest.mark.parametrize("part", ["train", "test"])
def test_neighbours_refuse_features_that_are_not_finite(part: str, value: float):
    train, test, labels = torch.randn(30, 4), torch.randn(9, 4), torch.arange(30) % 3
    {"train": train, "test": test}[part][7, 2] = value
    for call in (
        lambda: evaluation.knn_predict(train, labels, test, 5),
        lambda: evaluation.knn_accuracy(train, labels, test, labels[:9], 5),
        lambda: evaluation.knn_scores(train, labels, test, labels[:9], (5,)),
    ):
        with pytest.raises(RuntimeError, match=rf"{part}.* not finite.*row 7"):
            call()


def test_classifiers_refuse_features_that_are_not_finite():
    features, labels = torch.randn(40, 4), torch.arange(40) % 3
    fitted = evaluation.fit_logistic(features, labels, 3, 0.1)
    features[11, 1] = torch.nan
    with pytest.raises(RuntimeError, match="dimension 1 first"):
        evaluation.fit_with_chosen_penalty(features, labels, 3, 0)
    with pytest.raises(RuntimeError, match=r"outputs are not finite.*row 11"):
        fitted.accuracy(features, labels)
    heads = {"average pool": nn.Linear(16, 4)}
    nn.init.constant_(heads["average pool"].weight, torch.nan)
    with pytest.raises(RuntimeError, match="outputs are not finite"):
        score_heads(stem(), heads, SPLITS, FORM, Reading())


def test_labels_decide_no_allocation():
    features, labels = torch.randn(50, 4), torch.arange(50) % 7 * 300_000_000
    # A column for each of 1.8e9 classes would take 360 GB.
    predicted = evaluation.knn_predict(features, labels, features, 1)
    scores = evaluation.knn_scores(features, labels, features, labels, (1, 5))
    assert predicted.tolist() == labels.tolist()
    assert scores[1] == (1.0, 1.0)
    with pytest.raises(ValueError, match="temperature above 0, got k=1, temperature=nan"):
        evaluation.knn_predict(features, labels, features, 1, torch.nan)
    with pytest.raises(ValueError, match="at least 0, got -1"):
        evaluation.knn_predict(features, labels - 1, features, 1)


@pytest.mark.parametrize(
    "command",
    [
        *(f"evaluate {name} FILE --dataset digits --device cpu"
          for name in ("knn", "linear", "finetune", "transfer")),
        "export FILE OUT.safetensors",
        "export FILE OUT.onnx",
    ],
)  # fmt: skip
def test_commands_refuse_weights_that_are_not_finite(tmp_path: Path, command: str):
    file = checkpoint(tmp_path / "checkpoint.pt")
    content = torch.load(file, weights_only=True)
    content["model"][next(iter(content["model"]))].view(-1)[0] = torch.nan
    torch.save(content, file)
    places = {"FILE": str(file), "OUT": str(tmp_path / "out")}
    words = [re.sub("FILE|OUT", lambda m: places[m[0]], word) for word in command.split()]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 1, result.output
    assert "weights are not finite" in result.output
    assert not list(tmp_path.glob("out*"))


def test_export_refuses_features_that_are_not_finite(tmp_path: Path):
    pytest.importorskip("safetensors")
    loaded = load_encoder(checkpoint(tmp_path / "checkpoint.pt"))
    with torch.no_grad():
        for parameter in loaded.encoder.parameters():
            parameter.mul_(1e30)
    check_weights(loaded.encoder)
    with pytest.raises(RuntimeError, match="features of random images are not finite"):
        export(replace(loaded), tmp_path / "out.safetensors", "safetensors")
    assert not (tmp_path / "out.safetensors").exists()
