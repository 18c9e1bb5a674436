"""What a run writes while it trains: lines, TensorBoard's events, the bar and its pace."""

from __future__ import annotations

import io
import json
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console
from runs import KillAt, Recording, lines_of

from barlow_fast.training import Hook, JsonLinesLog, TensorBoardLog
from barlow_fast.training.reporting import progress, readings, tensorboard_log, why_no_tensorboard
from barlow_fast.training.reporting.pace import Pace, duration
from barlow_fast.training.reporting.progress import ProgressReport
from barlow_fast.training.reporting.readings import StepReadings
from barlow_fast.training.reporting.tensorboard_log import heat_map

VALUES = ("loss", "on_diagonal_mean", "off_diagonal_mean")


@pytest.fixture
def killed_and_resumed(train, tmp_path):
    """A run that `hook()` observes until a step, and another `hook()` from the checkpoint on.
    Returns the second part and its values."""

    def run(kill_at: int, hook: Callable[[], Hook], meanwhile: Callable[[], object] = lambda: None):
        path, steps = tmp_path / "c.pt", Recording()
        with pytest.raises(KeyboardInterrupt):
            train(hook(), KillAt(kill_at), path=path)
        meanwhile()
        return train(hook(), steps, path=path, resume=path), steps

    return run


# Lines.


def test_lines_of_steps_hold_what_the_steps_gave(train, tmp_path, monkeypatch):
    monkeypatch.setattr(readings, "MOST_WAITING", 3)
    steps, log = Recording(), tmp_path / "log.jsonl"
    train(JsonLinesLog(log, every=2), steps)
    found = lines_of(log, "step")
    assert [line["step"] for line in found] == list(range(2, 25, 2))
    for line in found:
        assert {name: line[name] for name in VALUES} == steps.steps[line["step"]]
        assert line["learning_rate"] > 0
    everything = lines_of(log)
    assert [line["step"] for line in everything] == sorted(line["step"] for line in everything)


def test_no_lines_of_steps_unless_requested(train, tmp_path):
    """Nor any of the run before in the same file."""
    log = tmp_path / "log.jsonl"
    for _ in range(2):
        train(JsonLinesLog(log))
    started, *others = lines_of(log)
    assert [line["event"] for line in (started, *others)] == ["started"] + ["epoch"] * 4
    assert started["config"]["seed"] == 0
    assert started["versions"]["torch"] == torch.__version__


def test_resuming_repeats_no_step(killed_and_resumed, tmp_path):
    """Checkpoints are at steps 12 and 24; the steps to 20 are done twice."""
    log = tmp_path / "log.jsonl"
    killed_and_resumed(20, lambda: JsonLinesLog(log, every=4))
    assert [(line["event"], line["step"]) for line in lines_of(log)] == [
        ("started", 0), ("step", 4), ("epoch", 6), ("step", 8), ("step", 12), ("epoch", 12),
        ("resumed", 12), ("step", 16), ("epoch", 18), ("step", 20), ("step", 24), ("epoch", 24),
    ]  # fmt: skip
    assert [line["epoch"] for line in lines_of(log, "epoch")] == [1, 2, 3, 4]


FOREIGN = b'[1]\n{"step": "x", "event": "epoch"}\n\xff\xfe\n{"event": "epo'


@pytest.mark.parametrize("damage", ["no file", "no epoch of the checkpoint", "foreign lines"])
def test_a_log_that_is_not_as_it_was(killed_and_resumed, tmp_path, damage):
    """Lost epochs come from the checkpoint; foreign and half-written lines are left out."""
    log = tmp_path / "log.jsonl"

    def meanwhile() -> None:
        lines = log.read_bytes().splitlines(keepends=True)
        if damage == "no file":
            log.unlink()
        elif damage == "foreign lines":
            log.write_bytes(b"".join(lines) + FOREIGN)
        else:
            log.write_bytes(b"".join(line for line in lines if b'"epoch": 2,' not in line))

    resumed, _ = killed_and_resumed(13, lambda: JsonLinesLog(log), meanwhile)
    epochs = lines_of(log, "epoch")
    assert [{k: v for k, v in line.items() if k != "event"} for line in epochs] == resumed.history
    if damage == "foreign lines":
        assert [line["step"] for line in lines_of(log)] == [0, 6, 12, 12, 18, 24]


def test_a_number_that_is_none_is_null(tmp_path):
    log = JsonLinesLog(tmp_path / "log.jsonl")
    log.epoch_ended(None, {"step": 1, "rank": math.nan, "deep": [math.inf, {"x": -math.inf}]})
    text = log.path.read_text()
    expected = {"event": "epoch", "step": 1, "rank": None, "deep": [None, {"x": None}]}
    assert json.loads(text) == expected


def test_a_step_is_the_least_distance_of_readings():
    with pytest.raises(ValueError, match="every must be at least 1 step, got 0"):
        StepReadings(0)


def at(step: int) -> SimpleNamespace:
    """Stands in for a trainer."""
    return SimpleNamespace(step=step, optimizer=SimpleNamespace(param_groups=[{"lr": 0.5}]))


def test_readings_wait_on_the_device_until_there_are_many(monkeypatch):
    monkeypatch.setattr(readings, "MOST_WAITING", 4)
    read = StepReadings(1)
    for step in range(1, 4):
        assert read.add(at(step), {"loss": torch.tensor(float(step))}) == []
    assert read.add(at(4), {"loss": torch.tensor(4.0)}) == [
        {"step": step, "learning_rate": 0.5, "loss": float(step)} for step in range(1, 5)
    ]
    assert read.read() == []


def test_a_broken_device_does_not_hide_its_error(monkeypatch):
    read = StepReadings(1)
    read.add(at(1), {"loss": torch.tensor(1.0)})

    def broken(_):
        raise RuntimeError("an illegal memory access was encountered")

    monkeypatch.setattr(readings.torch, "stack", broken)
    assert read.read_last() == []


# TensorBoard.


def events_of(folder):
    accumulators = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="needs tensorboard"
    )
    accumulator = accumulators.EventAccumulator(
        str(folder), size_guidance={"scalars": 0, "images": 0, "tensors": 0}
    )
    return accumulator.Reload()


def test_tensorboard_has_the_steps_the_epochs_and_the_matrix(train, tmp_path):
    pytest.importorskip("tensorboard", reason="needs tensorboard")
    steps = Recording()
    trainer = train(TensorBoardLog(tmp_path, every=5), steps)
    events = events_of(tmp_path)
    for name in VALUES:
        found = {e.step: e.value for e in events.Scalars(f"step/{name}")}
        assert list(found) == [5, 10, 15, 20]
        for step, value in found.items():
            assert value == pytest.approx(steps.steps[step][name])
    scores = {e.step: e.value for e in events.Scalars("epoch/knn")}
    assert scores == pytest.approx(
        {0: trainer.before["before"], 12: trainer.history[1]["knn"], 24: trainer.history[3]["knn"]}
    )
    assert [e.step for e in events.Scalars("epoch/effective_rank")] == [12, 24]
    assert [e.step for e in events.Scalars("epoch/loss")] == [6, 12, 18, 24]
    images = events.Images("C")
    assert [e.step for e in images] == [0, 12, 24]
    assert images[0].width == images[0].height == 4 * 64
    assert "settings/text_summary" in events.Tags()["tensors"]


@pytest.mark.parametrize("folder_kept", [True, False])
def test_curves_of_a_resumed_run_do_not_double(killed_and_resumed, tmp_path, folder_kept):
    pytest.importorskip("tensorboard", reason="needs tensorboard")
    folders = iter([tmp_path / "a", tmp_path / "a" if folder_kept else tmp_path / "b"])
    used = []

    def hook() -> TensorBoardLog:
        used.append(next(folders))
        return TensorBoardLog(used[-1], every=4)

    _, steps = killed_and_resumed(20, hook)
    events = events_of(used[-1])
    found = {e.step: e.value for e in events.Scalars("step/loss")}
    assert list(found) == ([4, 8, 12, 16, 20, 24] if folder_kept else [16, 20, 24])
    assert found[16] == pytest.approx(steps.steps[16]["loss"])
    assert [e.step for e in events.Scalars("epoch/loss")] == [6, 12, 18, 24]
    assert [e.step for e in events.Scalars("epoch/knn")] == [0, 12, 24]


def test_without_tensorboard_the_reason_is_said(monkeypatch):
    monkeypatch.setattr(tensorboard_log.importlib.util, "find_spec", lambda _: None)
    assert "pip install tensorboard" in why_no_tensorboard()


def test_the_heat_map_is_red_white_and_blue():
    picture = heat_map(torch.tensor([[1.0, 0.0], [-1.0, math.nan]]))
    beyond = heat_map(torch.tensor([[7.0, 0.0], [-7.0, math.nan]]))
    assert torch.equal(beyond, picture)
    assert picture.shape == (3, 8, 8)
    red, white, blue, gray = [255, 0, 0], [255, 255, 255], [0, 0, 255], [128, 128, 128]
    corners = [[picture[:, y, x].tolist() for x in (2, 6)] for y in (1, 5)]
    assert corners == [[red, white], [blue, gray]]


# The bar.


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_the_pace_is_that_of_the_recent_past():
    clock = Clock()
    pace = Pace(window=10, clock=clock)
    assert pace.images_per_second == 0
    assert pace.seconds_left(5, 1) is None
    clock.now += 0.5
    pace.step(32)
    assert pace.images_per_second == pytest.approx(64)
    for seconds in [4.0] * 10 + [1.0] * 20:
        clock.now += seconds
        pace.step(32)
    assert pace.images_per_second == pytest.approx(32)
    assert pace.seconds_left(7, 0) == pytest.approx(7)


def test_pauses_slow_no_step_and_count_for_the_time_left():
    clock = Clock()
    pace = Pace(window=10, clock=clock)
    for _ in range(3):
        clock.now += 2
        pace.step(10)
    clock.now += 30
    pace.resume(scored=True)
    clock.now += 2
    pace.step(10)
    assert pace.images_per_second == pytest.approx(5)
    assert pace.seconds_left(4, 2) == pytest.approx(4 * 2 + 2 * 30)
    # The end of an epoch without a score contains nothing about scores.
    pace.resume()
    assert pace.seconds_left(0, 1) == pytest.approx(30)


def test_a_step_longer_than_the_window_has_a_pace():
    clock = Clock()
    pace = Pace(window=1, clock=clock)
    clock.now += 50
    pace.step(100)
    assert pace.images_per_second == pytest.approx(2)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"), (59.6, "1 min 00 s"), (200, "3 min 20 s"), (3599.7, "1 h 00 min"),
        (18420, "5 h 07 min"), (187200, "2 d 04 h"),
    ],
)  # fmt: skip
def test_durations_are_short(seconds: float, text: str):
    assert duration(seconds) == text


@pytest.fixture
def output(train) -> Callable[..., str]:
    """What a run prints."""

    def run(resume: Path | None = None, **console: Any) -> str:
        stream = io.StringIO()
        train(ProgressReport(Console(file=stream, **console)), resume=resume)
        return stream.getvalue()

    return run


def test_a_log_file_has_one_line_per_score(output):
    lines = output(width=60).splitlines()
    assert [line[:13] for line in lines] == ["epoch    2/4 ", "epoch    4/4 "]
    for line in lines:
        for part in ("loss ", "on ", "off ", "k-NN ", "rank ", " images/s", "data wait ", " left"):
            assert part in line, (part, line)
    assert lines[-1].endswith(" 0 s left")


def test_a_log_file_continues_after_resuming(output, train, tmp_path):
    path = tmp_path / "c.pt"
    with pytest.raises(KeyboardInterrupt):
        train(KillAt(13), path=path)
    assert [line[:13] for line in output(resume=path).splitlines()] == ["epoch    4/4 "]


def test_long_epochs_leave_lines_too(output, monkeypatch):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    lines = output().splitlines()
    assert len(lines) == 4 * 6 + 2
    assert "k-NN" not in lines[0]


def test_a_terminal_has_a_bar(output, monkeypatch):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_READINGS", 0.0)
    text = output(force_terminal=True, width=140, legacy_windows=False)
    for part in ("epoch 1/4", "images/s", " left", "data wait", "off 0."):
        assert part in text, part


def test_a_quiet_console_stays_so(output):
    assert output(quiet=True, force_terminal=True) == ""


class Gone(io.StringIO):
    """A terminal that was closed, or a pipe that nobody reads any more."""

    def __init__(self, error: OSError) -> None:
        super().__init__()
        self.error = error

    def write(self, text: str) -> int:
        raise self.error

    def fileno(self) -> int:
        raise io.UnsupportedOperation


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), BrokenPipeError(32, "Broken")])
def test_output_that_nobody_reads_does_not_end_the_run(
    train, monkeypatch, error: OSError, terminal: bool
):
    console = Console(file=Gone(error), force_terminal=terminal)
    with open(os.devnull, "w") as null:
        monkeypatch.setattr(sys, "stdout", null)  # which rich redirects when a pipe breaks
        trainer = train(ProgressReport(console))
    assert trainer.step == trainer.total_steps
