"""`barlow-fast evaluate`, as a user meets it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from labelled import write_classes
from typer.testing import CliRunner

from barlow_fast.cli.evaluate import evaluate
from barlow_fast.data import load
from barlow_fast.evaluation import ImageFormat, dataset_splits, evaluate_knn, evaluate_linear
from barlow_fast.models import build_encoder

WIDTHS, MEAN, STD = (4, 8), 0.3064, 0.3753
DIGITS, FORM = dataset_splits(load("digits")), ImageFormat(8, 1, MEAN, STD)
ON_DIGITS = ("--dataset", "digits", "--device", "cpu")


def encoder(seed: int = 0, channels: int = 1, size: int = 8) -> torch.nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_encoder("small", channels=channels, image_size=size, widths=WIDTHS)


def checkpoint(path: Path, seed: int = 0, channels: int = 1, size: int = 8) -> Path:
    """In the layout of `barlow-fast pretrain`."""
    state = encoder(seed, channels, size).state_dict()
    image = {"channels": channels, "size": size, "mean": [MEAN] * channels, "std": [STD] * channels}
    content = {
        "format": "barlow_fast.pretrain",
        "version": 1,
        "config": {"encoder": "small", "encoder_widths": list(WIDTHS), "encoder_grid": 2},
        "image": image,
        "model": {f"encoder.{name}": value for name, value in state.items()},
    }
    torch.save(content, path)
    return path


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return checkpoint(tmp_path / "checkpoint.pt")


def run(*arguments: object):
    return CliRunner().invoke(evaluate, list(map(str, arguments)))


def test_knn_prints_a_table_and_writes_everything(small: Path, tmp_path: Path):
    target = tmp_path / "scores.json"
    result = run(
        "knn", small, *ON_DIGITS, "--json", target, "--k", "5,20", "--seeds", "0,1", "--baselines"
    )
    assert result.exit_code == 0, result.output
    written = json.loads(target.read_text())
    options = {"neighbours": (5, 20), "seeds": (0, 1), "baselines": True}
    expected = evaluate_knn(encoder(), DIGITS, FORM, **options)
    assert written["scores"] == expected.to_dict()["scores"]
    digest = hashlib.sha256(small.read_bytes()).hexdigest()
    names = {"path": str(small), "sha256": digest, "name": "small", "assumed": []}
    assert written["encoders"] == [names]
    assert written["input"] == {"size": [8, 8], "channels": 1, "mean": [MEAN], "std": [STD]}
    assert written["versions"]["torch"] == torch.__version__
    assert (written["train_images"], written["test_images"]) == (1197, 600)
    row = expected.score("k = 20", "random weights")
    assert f"{100 * row.mean:.2f} ± {100 * row.std:.2f}" in result.output
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith(".part")] == []


def test_linear_on_every_stage_of_several_checkpoints(tmp_path: Path):
    files = [checkpoint(tmp_path / f"{seed}.pt", seed) for seed in (0, 1)]
    target = tmp_path / "scores.json"
    arguments = (*files, *ON_DIGITS, "--stages", "--stage-dimensions", 64, "--json", target)
    result = run("linear", *arguments)
    assert result.exit_code == 0, result.output
    scores = json.loads(target.read_text())["scores"]
    names = ["linear on Feature1", "linear on Feature2", "linear"]
    assert [row["classifier"] for row in scores] == names
    for seed in (0, 1):
        alone = evaluate_linear(encoder(seed), DIGITS, FORM)
        assert scores[2]["top1"]["runs"][seed] == alone.scores[0].top1[0]


def test_finetune(small: Path):
    result = run("finetune", small, *ON_DIGITS, "--fraction", 0.1, "--epochs", 1)
    assert result.exit_code == 0, result.output
    assert "finetune, 10 % of labels" in result.output


def test_transfer_to_a_folder_of_classes(tmp_path: Path):
    path = checkpoint(tmp_path / "colour.pt", channels=3, size=16)
    folder = write_classes(tmp_path / "images", {"a": 8, "b": 8, "c": 8})
    (folder / "a" / "004.png").write_bytes(b"no picture")
    arguments = ("transfer", path, "--data", folder, "--workers", 0, "--device", "cpu")
    refused = run(*arguments)
    assert refused.exit_code == 1
    assert "004.png" in refused.output
    assert "--on-bad-image skip" in refused.output
    result = run(*arguments, "--on-bad-image", "skip")
    assert result.exit_code == 0, result.output
    assert "skipped   1 images" in result.output
    assert "k = 10" in result.output


def test_random_weights_of_the_same_architecture(small: Path):
    arguments = ("knn", small, *ON_DIGITS, "--k", 5, "--random")
    result = run(*arguments, "--seeds", "0,1")
    assert result.exit_code == 0, result.output
    assert "random weights" in result.output
    assert "encoder   k" not in result.output
    refused = run(*arguments, small)
    assert refused.exit_code == 2
    assert "--random needs the architecture alone" in refused.output


def test_what_a_file_does_not_state_is_reported(tmp_path: Path):
    path = checkpoint(tmp_path / "old.pt")
    content = torch.load(path, weights_only=True)
    del content["image"]
    torch.save(content, path)
    result = run("knn", path, *ON_DIGITS, "--k", 5)
    assert result.exit_code == 0, result.output
    assert "assumed   mean" in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("knn",), "give either --dataset NAME or --data FOLDER"),
        (("knn", "--dataset", "digits", "--data", "x"), "give either"),
        (("knn", "--data", "x", "--data-dir", "y"), "--data-dir belongs to --dataset"),
        (("knn", "--data", "absent"), "absent does not exist"),
        (("knn", "--dataset", "nothing"), "unknown data set 'nothing'"),
        (("knn", "--dataset", "digits", "--k", "5000"), "1197 training images, got 5000"),
        (("knn", "--dataset", "digits", "--k", "five"), "--k takes whole numbers"),
        (("knn", "--dataset", "digits", "--seeds", "-1"), "--seeds takes whole numbers"),
        (("knn", "--dataset", "digits", "--device", "tpu"), "--device must be"),
        (("knn", "--dataset", "digits", "--json", "absent/x.json"), "no folder absent for x.json"),
        (("knn", "--dataset", "digits", "--on-bad-image", "x"), "on_bad_image must be one of"),
        (("knn", "--dataset", "digits", "--image-size", "9"), "trained on 9 x 9"),
        (("linear", "--dataset", "digits", "--features", "x"), "features must be one of"),
        (("linear", "--dataset", "digits", "--lr", "0"), "learning_rate"),
        (("finetune", "--dataset", "digits", "--fraction", "0.001"), "without a sample"),
        (("linear", "--dataset", "digits", "--batch-size", "0"), "--batch-size"),
        (("finetune", "--dataset", "digits", "--batch-size", "0"), "--batch-size"),
    ],
)
def test_requests_that_are_refused(small: Path, arguments: tuple[str, ...], message: str):
    command, *options = arguments
    result = run(command, small, *options)
    assert result.exit_code == 2, result.output
    assert message in result.output


def test_a_checkpoint_that_is_none(tmp_path: Path):
    result = run("knn", tmp_path / "absent.pt", "--dataset", "digits")
    assert result.exit_code == 2
    assert "absent.pt" in result.output


def test_several_architectures_are_refused(small: Path, tmp_path: Path):
    other = tmp_path / "resnet.pt"
    torch.save(build_encoder("resnet18", channels=1, image_size=8).state_dict(), other)
    result = run("knn", small, other, *ON_DIGITS, "--k", 5)
    assert result.exit_code == 2, result.output
    assert "evaluate encoders of one architecture together" in result.output
