"""`barlow-fast pretrain` killed, and requested to stop: what resumes is the same run."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from commands import pretrain
from ended import SECONDS, group_gone, running, until
from launched import ENVIRONMENT, EVERY_STEP, TINY, pretraining, stopped
from runs import assert_same, lines_of
from sources import write_images

from barlow_fast.data import PRESETS
from barlow_fast.training import load_checkpoint

pytestmark = pytest.mark.usefixtures("undrawn")


@dataclass(frozen=True)
class Kills:
    """Runs that are killed again and again; see killed_again.py."""

    arguments: list[str]
    kills: int
    most: int  # operations from which the moment is drawn
    ranks: int = 1


def photographs(folder: Path) -> list[str]:
    """Arguments for a folder of images and views of it."""
    images = write_images(folder / "images", 24)
    view = replace(PRESETS["cifar"].views[0], size=16)
    views = folder / "small.yaml"
    views.write_text(replace(PRESETS["cifar"], name="small", views=(view, view)).to_yaml())
    return ["--data", str(images), "--views", str(views), "--workers", "1", "--loader", "pil"]


LONG = 5 * SECONDS  # of many runs on a busy machine
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
        with running(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT
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
    for part in ("model", "optimizer", "totals", "history"):
        assert_same(killed[part], whole[part], part)
    names = [sorted(path.name for path in out.iterdir()) for out in outputs]
    kept = ["checkpoint-1.pt", "checkpoint.pt", "config.yaml", "log.jsonl"]
    assert names[0] == names[1] == kept
    epochs = [line["epoch"] for line in lines_of(outputs[1] / "log.jsonl", "epoch")]
    assert epochs == [record["epoch"] for record in whole["history"]]


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_is_the_status(tmp_path: Path, number: int, code: int):
    out = tmp_path / "out"
    arguments = ["--projector", "32-96", "epochs=5000", "evaluate_every=1", *EVERY_STEP]
    with pretraining(out, *arguments, stdout=subprocess.PIPE) as process:
        # A line of a scored epoch is the first that is printed.
        assert any(line.startswith("epoch") for line in process.stdout)
        process.send_signal(number)
        assert "Traceback" not in stopped(process, out)
    assert process.returncode == code
    assert load_checkpoint(out / "checkpoint.pt")["step"] > 0


@pytest.mark.slow
def test_a_signal_to_the_run_and_its_workers_saves_too(tmp_path: Path):
    """As when a terminal is closed, or a batch system ends a step."""
    out = tmp_path / "out"
    arguments = [*photographs(tmp_path), *TINY, "--batch-size", "8", "epochs=50000"]
    with pretraining(out, *arguments, "evaluate_every=50000", *EVERY_STEP) as process:
        os.killpg(process.pid, signal.SIGHUP)
        assert len(stopped(process, out).strip().splitlines()) == 1
        assert group_gone(process.pid)
    assert process.returncode == 128 + signal.SIGHUP
    assert not [path.name for path in out.iterdir() if path.name.startswith(".")]


@pytest.mark.slow
def test_a_terminal_that_is_closed_loses_no_step(tmp_path: Path):
    """Every write to it fails from then on, before the signal comes."""
    out = tmp_path / "out"
    ours, theirs = pty.openpty()
    terminal = dict.fromkeys(("stdin", "stdout", "stderr"), theirs)
    arguments = [*TINY, "epochs=50000", "evaluate_every=1", *EVERY_STEP]
    with pretraining(out, *arguments, **terminal) as process:
        os.close(theirs)
        os.close(ours)
        steps = load_checkpoint(out / "checkpoint.pt")["step"]
        assert until(lambda: load_checkpoint(out / "checkpoint.pt")["step"] > steps + 18)
        process.send_signal(signal.SIGHUP)
        process.wait(timeout=SECONDS)
    assert process.returncode in (128 + signal.SIGHUP, 120)  # 120: Python could not flush
    assert not [path.name for path in out.iterdir() if path.name.startswith(".")]


def test_auto_starts_anew_where_nothing_is_and_continues(tmp_path: Path):
    """What may change is changed."""
    out, checkpoint = tmp_path / "new", tmp_path / "new" / "checkpoint.pt"
    small = ["--batch-size", 128, "--projector", "32-96", "epochs=1"]
    begun = pretrain("--resume", "auto", "--out", out, *small)
    assert "resuming" not in begun.output
    resumed = pretrain("--resume", checkpoint, "keep_checkpoints=5", "--backend", "aten")
    assert "resuming  after step 9 of 9" in resumed.output
    for wrong, message in (("invariance=2", "invariance is None there"), ("seed=3", "seed is 0")):
        assert message in pretrain("--resume", checkpoint, wrong, code=2).stderr
