"""Ctrl-C at any time: one line, exit status 130, no traceback of this process or of another."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import invoke
from sources import write_images

from barlow_fast import checkpoints, cli, training
from barlow_fast.cli import pretrain as pretrain_commands
from barlow_fast.cli import tune
from barlow_fast.data import check, pack, parallel, show, sources
from barlow_fast.data.rendering.threads import ThreadRenderer
from barlow_fast.models import build_encoder
from barlow_fast.training import images as run_images
from barlow_fast.training import run_folder, settings
from barlow_fast.training.reporting import description

SMALL = "--epochs 1 --batch-size 4 --projector 8-8 --loader pil --workers 2 --no-tensorboard"


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for name in "ab":
        write_images(tmp_path / "images" / name, 12, 9)
    return tmp_path / "images"


@pytest.mark.parametrize(
    "command",
    [
        "data check images --workers 2",
        "data pack images packed --workers 2",
        "evaluate knn encoder.pth --data images --k 1 --workers 2",
    ],
)
def test_while_files_are_read(tmp_path: Path, images: Path, monkeypatch, command: str):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(parallel, "wait", interrupt)
    encoder = build_encoder("resnet18", channels=3, image_size=8)
    torch.save(encoder.state_dict(), tmp_path / "encoder.pth")
    result = invoke(*command.split(), code=130)
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith("barlow-fast: ")
    assert not reading_threads()
    assert not (tmp_path / "packed").exists()


def test_while_threads_read(tmp_path: Path, images: Path, monkeypatch):
    """The first batch is waited for in vain; the threads end, and nothing is lost."""
    views = tmp_path / "views.yaml"
    views.write_text(
        "name: small\nmean: [0, 0, 0]\nstd: [1, 1, 1]\nviews: [{size: 8}, {size: 8}]\n"
    )
    monkeypatch.setattr(ThreadRenderer, "_wait", interrupt)
    options = ["--data", images, "--out", tmp_path / "out", "--views", views, *SMALL.split()]
    result = invoke("pretrain", *options, code=130)
    assert result.stderr.startswith("barlow-fast: ")
    assert len(result.stderr.splitlines()) == 1
    assert not reading_threads()


def reading_threads() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name.startswith("barlow_fast data")]


def interrupt(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("command", "owner", "function"),
    [
        ("pretrain --dry-run", settings, "configuration"),
        ("pretrain --dry-run", description, "views_of_run"),
        ("pretrain --out out", run_images, "load_images"),
        ("pretrain --out out", run_images, "check_memory_of"),
        ("pretrain --out out", training, "Trainer"),
        ("pretrain --out out", run_folder, "output_folder"),
        ("pretrain --out out", pretrain_commands, "_train"),
        ("data check images", sources, "open_source"),
        ("data check images --json bad.json", check, "bad_images"),
        ("data pack images packed", pack, "pack"),
        ("data show images --preset imagenet", show, "sheet"),
        ("evaluate knn x --dataset digits", checkpoints, "load_encoder"),
        ("export x x.pth", checkpoints, "load_encoder"),
        ("tune", tune, "tune"),
    ],
)
def test_in_every_part_of_a_command(
    tmp_path: Path, images: Path, monkeypatch, command: str, owner: Any, function: str
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(owner, function, interrupt)
    assert invoke(*command.split(), code=130).stderr == "barlow-fast: interrupted\n"
    left = {path.name for path in tmp_path.iterdir()} - {"images", "out"}
    assert not left


def test_before_a_command_runs(monkeypatch, capsys):
    ignored = []
    monkeypatch.setattr(cli, "run", interrupt)
    monkeypatch.setattr(cli.signal, "signal", lambda *arguments: ignored.append(arguments))
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert left.value.code == 130
    assert capsys.readouterr().err == "barlow-fast: interrupted\n"
    assert ignored == [(cli.signal.SIGINT, cli.signal.SIG_IGN)]
