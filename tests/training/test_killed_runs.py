"""`barlow-fast pretrain` killed, and requested to stop: what resumes is the same run."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ended import SECONDS, group_gone, running, until
from PIL import Image
from typer.testing import CliRunner

from barlow_fast.cli.app import app
from barlow_fast.data import PRESETS
from barlow_fast.training import load_checkpoint, reporting
from barlow_fast.training.reporting.finishing import Report

pytestmark = pytest.mark.usefixtures("undrawn")
SETTINGS = [
    "--epochs", "4", "--batch-size", "128", "--projector", "32-96", "evaluate_every=4",
    "checkpoint_every=1", "checkpoint_minutes=1e-9",
]  # fmt: skip


def pretrain(*arguments: object):
    return CliRunner().invoke(app, ["pretrain", *map(str, arguments)])


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict:
    """The state at the end of a run that nobody disturbed."""
    folder = tmp_path_factory.mktemp("whole") / "out"
    with pytest.MonkeyPatch.context() as patched:  # a fixture of one test is not there yet
        patched.setattr(reporting, "report_run", lambda *_: Report())
        result = pretrain(*SETTINGS, "--out", folder)
    assert result.exit_code == 0, result.output
    return load_checkpoint(folder / "checkpoint.pt")


# It dies when it is about to write a checkpoint of a step beyond the given one.
KILLED = """
import os, signal, sys
from barlow_fast import cli
from barlow_fast.training import loop

last, save = int(sys.argv.pop(1)), loop.save_checkpoint

def save_or_die(path, state, keep):
    if state["step"] > last:
        os.kill(os.getpid(), signal.SIGKILL)
    save(path, state, keep)

loop.save_checkpoint = save_or_die
cli.main()
"""


@pytest.mark.slow
def test_a_run_that_was_killed_twice_ends_with_the_same_bits(tmp_path: Path, whole: dict):
    """The checkpoint is written at every step, so that it falls in the middle of an epoch."""
    out = tmp_path / "out"
    steps = (5, 22)
    for step in steps:
        command = [sys.executable, "-c", KILLED, step, "pretrain", *SETTINGS, "--out", out]
        command += ["--resume", "auto"]
        killed = subprocess.run([*map(str, command)], capture_output=True, text=True)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        assert load_checkpoint(out / "checkpoint.pt")["step"] == step
    result = pretrain("--resume", "auto", "--out", out)
    assert result.exit_code == 0, result.output
    assert f"resuming  after step {steps[1]} of {whole['step']}" in result.output
    state = load_checkpoint(out / "checkpoint.pt")
    assert state["step"] == whole["step"]
    for name, value in whole["model"].items():
        assert torch.equal(state["model"][name], value), name
    for ours, theirs in zip(state["history"], whole["history"], strict=True):
        assert ours["loss"] == theirs["loss"]
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines if line["event"] == "epoch"] == [1, 2, 3, 4]


@dataclass(frozen=True)
class Kills:
    """Runs that are killed again and again; see killed_again.py."""

    arguments: list[str]
    kills: int
    most: int  # operations from which the moment is drawn
    ranks: int = 1


def photographs(folder: Path) -> list[str]:
    """Arguments for a folder of images and views of it."""
    images = folder / "images"
    images.mkdir()
    generator = np.random.default_rng(0)
    for number in range(24):
        pixels = generator.integers(0, 256, (24, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(images / f"{number:02d}.png")
    view = replace(PRESETS["cifar"].views[0], size=16)
    views = folder / "small.yaml"
    views.write_text(replace(PRESETS["cifar"], name="small", views=(view, view)).to_yaml())
    return ["--data", str(images), "--views", str(views), "--workers", "1", "--loader", "pil"]


LONG = 5 * SECONDS  # of many runs on a busy machine
TINY = ["--projector", "8-12", "encoder_widths=[4]", "precision=fp32", "--no-tensorboard"]
EVERY_STEP = ["checkpoint_every=1", "checkpoint_minutes=1e-9"]
KILLS = {
    "single process": Kills(
        ["--batch-size", "128", "--epochs", "12", "evaluate_every=6", *EVERY_STEP, *TINY], 20, 150
    ),
    # Within an epoch ranks save at every 16th step.
    "two ranks": Kills(
        ["--device", "cpu", "--batch-size", "64", "--epochs", "8", "evaluate_every=8",
         *EVERY_STEP, *TINY], 8, 400, ranks=2,
    ),
    "folder": Kills(
        ["--batch-size", "4", "--epochs", "8", "evaluate_every=8", *EVERY_STEP, *TINY], 4, 150
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", KILLS)
def test_killed_at_any_moment_it_ends_with_the_same_bits_and_leaves_nothing(
    tmp_path: Path, name: str
):
    case = KILLS[name]
    arguments = [*(photographs(tmp_path) if name == "folder" else []), *case.arguments]
    outputs = []
    for folder, kills in (("whole", 0), ("killed", case.kills)):
        out = tmp_path / folder
        command = [
            sys.executable, Path(__file__).with_name("killed_again.py"), 1, kills, case.most,
            case.ranks, *arguments, "--out", out, "--resume", "auto",
        ]  # fmt: skip
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        with running(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
        ) as process:
            printed, errors = process.communicate(timeout=LONG)
            assert group_gone(process.pid)
        assert process.returncode == 0, errors
        assert "Traceback" not in errors, errors
        ends = [line for line in printed.splitlines() if re.fullmatch(r"[-\d ]+", line)]
        assert len(ends) == kills + 1
        # Killed each time, or the run would be too short for so many kills.
        assert all(str(-signal.SIGKILL) in line.split() for line in ends[:-1]), ends
        assert set(ends[-1].split()) == {"0"}, errors
        outputs.append(out)
    whole, killed = (load_checkpoint(out / "checkpoint.pt") for out in outputs)
    for part in ("model", "optimizer", "totals"):
        assert_same(killed[part], whole[part], part)
    for ours, theirs in zip(killed["history"], whole["history"], strict=True):
        assert [ours[n] for n in EXACT] == [theirs[n] for n in EXACT]
    names = [sorted(path.name for path in out.iterdir()) for out in outputs]
    kept = ["checkpoint-1.pt", "checkpoint.pt", "config.yaml", "log.jsonl"]
    assert names[0] == names[1] == kept
    lines = [json.loads(line) for line in (outputs[1] / "log.jsonl").read_text().splitlines()]
    epochs = [line["epoch"] for line in lines if line["event"] == "epoch"]
    assert epochs == [record["epoch"] for record in whole["history"]]


EXACT = ("epoch", "step", "loss", "on_diagonal_mean", "off_diagonal_mean", "knn")


def assert_same(ours: Any, theirs: Any, place: str) -> None:
    """Equality to the bit of nested containers."""
    if isinstance(theirs, torch.Tensor):
        assert torch.equal(ours, theirs), place
    elif isinstance(theirs, dict):
        assert ours.keys() == theirs.keys(), place
        for key, value in theirs.items():
            assert_same(ours[key], value, f"{place}/{key}")
    elif isinstance(theirs, (list, tuple)):
        assert len(ours) == len(theirs), place
        for number, (left, right) in enumerate(zip(ours, theirs, strict=True)):
            assert_same(left, right, f"{place}/{number}")
    else:
        assert ours == theirs, place


@pytest.mark.slow
def test_sigterm_saves_and_exits_as_terminated(tmp_path: Path):
    out = tmp_path / "out"
    command = [sys.executable, "-m", "barlow_fast", "pretrain", *SETTINGS, "epochs=5000"]
    with running(
        [*command, "--out", out], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as process:
        assert until((out / "checkpoint.pt").exists)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=SECONDS)
    assert process.returncode == 143
    assert f"--resume {out / 'checkpoint.pt'}" in errors
    assert "Traceback" not in errors


@pytest.mark.slow
def test_a_signal_to_the_run_and_its_workers_saves_too(tmp_path: Path):
    """As when a terminal is closed, or a batch system ends a step."""
    out = tmp_path / "out"
    command = [sys.executable, "-m", "barlow_fast", "pretrain", *photographs(tmp_path), *TINY,
               "--batch-size", "8", "epochs=50000", "evaluate_every=50000"]  # fmt: skip
    with running(
        [*command, *EVERY_STEP, "--out", out], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as process:
        assert until((out / "checkpoint.pt").exists)
        os.killpg(process.pid, signal.SIGHUP)
        _, errors = process.communicate(timeout=SECONDS)
        assert group_gone(process.pid)
    assert process.returncode == 128 + signal.SIGHUP, errors
    assert f"--resume {out / 'checkpoint.pt'}" in errors
    assert len(errors.strip().splitlines()) == 1
    assert sorted(path.name for path in out.iterdir() if path.name.startswith(".")) == []


@pytest.mark.slow
def test_a_terminal_that_is_closed_loses_no_step(tmp_path: Path):
    """Every write to it fails from then on, before the signal comes."""
    out = tmp_path / "out"
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "barlow_fast", "pretrain", *TINY, "epochs=50000",
               "evaluate_every=1", *EVERY_STEP, "--out", out]  # fmt: skip
    with running(command, stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        assert until((out / "checkpoint.pt").exists)
        os.close(ours)
        steps = load_checkpoint(out / "checkpoint.pt")["step"]
        assert until(lambda: load_checkpoint(out / "checkpoint.pt")["step"] > steps + 18)
        process.send_signal(signal.SIGHUP)
        process.wait(timeout=SECONDS)
    assert process.returncode in (128 + signal.SIGHUP, 120)  # 120: Python could not flush
    assert not [path.name for path in out.iterdir() if path.name.startswith(".")]


def test_auto_starts_anew_where_nothing_is(tmp_path: Path):
    result = pretrain("--resume", "auto", "--out", tmp_path / "new", *SETTINGS[:6], "epochs=1")
    assert result.exit_code == 0, result.output
    assert "resuming" not in result.output
    refused = pretrain("--resume", "auto")
    assert refused.exit_code == 2
    assert "give that folder" in refused.stderr


def test_what_may_change_may_be_changed_on_resuming(tmp_path: Path):
    out = tmp_path / "out"
    assert pretrain(*SETTINGS[:6], "epochs=1", "--out", out).exit_code == 0
    resumed = pretrain("--resume", out / "checkpoint.pt", "keep_checkpoints=5", "--backend", "aten")
    assert resumed.exit_code == 0, resumed.output
    for wrong, message in (("lambd=0.1", "lambd is 0.0051 there"), ("seed=3", "seed is 0")):
        result = pretrain("--resume", out / "checkpoint.pt", wrong)
        assert result.exit_code == 2
        assert message in result.stderr


def test_a_dry_run_prints_a_plan_and_settings_that_read_back(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plan = ("--dry-run", "--ignore-memory")
    result = pretrain("--preset", "imagenet-1000ep", *plan, "lambd=0.02")
    assert result.exit_code == 0, result.output
    for part in ("625000 in all", "weights 1.6", "about", "GiB", "form       gram", "lambd: 0.02"):
        assert part in result.output, part
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "run.yaml").write_text(result.stdout)
    again = pretrain("--config", "run.yaml", *plan)

    def planned(output: str) -> str:  # the rest of the machine changes what is free meanwhile
        text, found = re.subn(r"(has )[\d.]+( GiB)", r"\1...\2", output)
        assert found == 1
        return text

    assert planned(again.output) == planned(result.output)


def test_what_does_not_fit_is_refused_before_the_first_step(tmp_path: Path):
    result = pretrain("--dim", 2**19, "--projector", f"{2**17}-{2**19}", "--out", tmp_path / "out")
    assert result.exit_code == 2
    result = pretrain("projector=[131072,131072,131072]", "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "the run does not fit" in result.stderr
    assert "a narrower --projector" in result.stderr
    assert not (tmp_path / "out").exists()
