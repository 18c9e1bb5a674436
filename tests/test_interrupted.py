"""Ctrl-C at any time: one line, exit status 130, no traceback of this process or of another."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ended import SECONDS, group_gone, running
from PIL import Image
from typer.testing import CliRunner

from barlow_fast import checkpoints, cli, training
from barlow_fast.cli import pretrain as pretrain_commands
from barlow_fast.cli import tune
from barlow_fast.cli.app import app
from barlow_fast.data import check, pack, show, sources
from barlow_fast.data.rendering.threads import ThreadRenderer
from barlow_fast.models import build_encoder
from barlow_fast.training import images as run_images
from barlow_fast.training import run_folder, settings
from barlow_fast.training.reporting import description

# Python runs this before all else: Ctrl-C, as a terminal sends it to all processes of a command,
# in the first moment of the first process that is started for `purpose`.
AT_ITS_START = """
import os, signal, sys
if {purpose!r} in " ".join(sys.orig_argv):
    os.killpg(os.getpgid(0), signal.SIGINT)
"""
SMALL = "--epochs 1 --batch-size 4 --projector 8-8 --loader pil --workers 2 --no-tensorboard"


@pytest.fixture
def images(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    for number in range(24):
        folder = tmp_path / "images" / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = random.integers(0, 255, (9, 9, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return tmp_path / "images"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "purpose"),
    [
        ("data check images --workers 2", "spawn_main"),
        ("data pack images packed --workers 2", "resource_tracker"),
        ("evaluate knn encoder.pth --data images --k 1 --workers 2", "spawn_main"),
    ],
)
def test_while_workers_start(tmp_path: Path, images: Path, command: str, purpose: str):
    (tmp_path / "sitecustomize.py").write_text(AT_ITS_START.format(purpose=purpose))
    encoder = build_encoder("resnet18", channels=3, image_size=8)
    torch.save(encoder.state_dict(), tmp_path / "encoder.pth")
    call = [sys.executable, "-m", "barlow_fast", *command.split()]
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{Path.cwd()}"}
    with running(
        call, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        _, printed = process.communicate(timeout=SECONDS)
    assert process.returncode == 130, printed
    lines = printed.splitlines()
    assert len(lines) == 1, printed
    assert lines[0].startswith("barlow-fast: ")
    assert group_gone(process.pid)
    assert not (tmp_path / "packed").exists()


def test_while_threads_read(tmp_path: Path, images: Path, monkeypatch):
    """The first batch is waited for in vain; the threads end, and nothing is lost."""
    views = tmp_path / "views.yaml"
    views.write_text(
        "name: small\nmean: [0, 0, 0]\nstd: [1, 1, 1]\nviews: [{size: 8}, {size: 8}]\n"
    )
    monkeypatch.setattr(ThreadRenderer, "_wait", interrupt)
    options = ["--data", images, "--out", tmp_path / "out", "--views", views, *SMALL.split()]
    result = CliRunner().invoke(app, ["pretrain", *map(str, options)])
    assert result.exit_code == 130
    assert result.stderr.startswith("barlow-fast: ")
    assert len(result.stderr.splitlines()) == 1
    assert not [t for t in threading.enumerate() if t.name.startswith("barlow_fast data")]


def interrupt(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("command", "owner", "function"),
    [
        ("pretrain --dry-run", settings, "configuration"),
        ("pretrain --dry-run", description, "choose_views"),
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
    result = CliRunner().invoke(app, command.split())
    assert (result.exit_code, result.stderr) == (130, "barlow-fast: interrupted\n")
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
