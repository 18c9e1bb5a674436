"""The loop: it learns, it stops and resumes as if it had not, and it refuses to resume with
nonsense."""

from __future__ import annotations

import json
import math
from collections.abc import Set
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from barlow_fast.training import (
    Hook,
    JsonLinesLog,
    Trainer,
    TrainingDiverged,
    TrainingInterrupted,
    load_checkpoint,
)

SHARES = {f"{phase}_share" for phase in ("data_wait", "forward", "loss", "backward", "update")}
MEASURED_TIMES = {"seconds", "images_per_second", "shares"} | SHARES


class StopAfter(Hook):
    """Requests a stop once `steps` steps are done."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def stepped(self, trainer, step):
        trainer.stop_requested = trainer.step == self.steps


class PoisonAfter(Hook):
    """Puts a NaN into a weight once `steps` steps are done."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def stepped(self, trainer, step):
        if trainer.step == self.steps:
            with torch.no_grad():
                next(trainer.model.parameters()).view(-1)[0] = math.nan


class Watch(Hook):
    """Counts the moments."""

    def __init__(self) -> None:
        self.moments: list[str] = []

    def started(self, trainer):
        self.moments.append("started")

    def stepped(self, trainer, step):
        assert step["loss"].isfinite()
        self.moments.append("stepped")

    def epoch_ended(self, trainer, record):
        self.moments.append("epoch_ended")

    def ended(self, trainer):
        self.moments.append("ended")


def assert_same_state(a: Any, b: Any, path: str = "", left_out: Set[str] = MEASURED_TIMES) -> None:
    """Bitwise equality of nested containers, without the keys in `left_out`."""
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), path
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), path
        for key in a.keys() - left_out:
            assert_same_state(a[key], b[key], f"{path}/{key}", left_out)
    elif isinstance(a, list):
        assert len(a) == len(b), path
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same_state(x, y, f"{path}/{i}", left_out)
    else:
        assert a == b, path


def test_the_loss_falls_and_the_diagonal_rises(small_config, small_digits):
    trainer = Trainer(replace(small_config, epochs=15), small_digits)
    trainer.run()
    first, last = trainer.history[0], trainer.history[-1]
    assert last["loss"] < 0.6 * first["loss"]
    assert last["on_diagonal_mean"] < 0.5 * first["on_diagonal_mean"]
    before = trainer.before["correlation"].diagonal().mean()
    after = trainer.correlation().diagonal().mean()
    assert after > 0.6
    assert after > before


def test_history_has_every_epoch_and_adds_up(small_config, small_digits):
    watch = Watch()
    trainer = Trainer(small_config, small_digits, hooks=[watch])
    trainer.run()
    assert watch.moments == ["started", *(["stepped"] * 6 + ["epoch_ended"]) * 4, "ended"]
    assert [record["epoch"] for record in trainer.history] == [1, 2, 3, 4]
    assert [record["knn"] is not None for record in trainer.history] == [False, True, False, True]
    dimensions, lambd = 64, small_config.lambd
    for record in trainer.history:
        on = record["on_diagonal_mean"] * dimensions
        off = record["off_diagonal_mean"] * dimensions * (dimensions - 1)
        assert record["loss"] == pytest.approx(on + lambd * off, rel=1e-4)
        assert record["images_per_second"] == pytest.approx(192 / record["seconds"])
        assert sum(record[name] for name in SHARES) == pytest.approx(1)


def test_an_epoch_visits_no_sample_twice(small_config, small_digits):
    trainer = Trainer(small_config, small_digits)
    visited = [trainer.next_batch().index for _ in range(trainer.steps_per_epoch)]
    assert len(torch.cat(visited).unique()) == 192
    assert not torch.equal(trainer.next_batch().index, visited[0])


def test_the_measured_matrix_leaves_the_model_alone(small_config, small_digits):
    trainer = Trainer(small_config, small_digits)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    matrix = trainer.correlation()
    assert matrix.shape == (64, 64)
    assert 0.05 < matrix.abs().mean() <= 1
    assert_same_state(before, trainer.model.state_dict())


@pytest.mark.parametrize("stop", [1, 6, 12, 15])
def test_a_resumed_run_ends_with_the_same_bits(small_config, small_digits, tmp_path, stop):
    """At a boundary of epochs (6, 12) and in the middle of one."""
    whole = Trainer(small_config, small_digits)
    whole.run()

    path = tmp_path / "checkpoint.pt"
    stopped = Trainer(small_config, small_digits, checkpoint_path=path, hooks=[StopAfter(stop)])
    with pytest.raises(TrainingInterrupted, match=f"step {stop} of 24"):
        stopped.run()

    torch.manual_seed(stop)  # whatever the new process did before must not matter
    resumed = Trainer(small_config, small_digits, checkpoint_path=path)
    resumed.resume(path)
    assert resumed.step == stop
    resumed.run()

    ours, theirs = resumed.state_dict(), whole.state_dict()
    assert_same_state(ours, theirs)
    assert_same_state(load_checkpoint(path)["model"], dict(whole.model.state_dict()))


def test_another_seed_is_another_run(small_config, small_digits):
    a = Trainer(small_config, small_digits)
    b = Trainer(replace(small_config, seed=1), small_digits)
    assert not torch.equal(*(next(t.model.parameters()) for t in (a, b)))
    assert not torch.equal(a.next_batch().index, b.next_batch().index)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"projector": (32, 128)}, "projector"),
        ({"encoder_widths": (8, 8)}, "encoder_widths"),
        ({"seed": 5}, "seed"),
        ({"warmup_epochs": 2}, "warmup_epochs"),
        ({"batch_size": 16}, "batch_size"),
    ],
)
def test_a_checkpoint_of_other_settings_is_refused(small_config, small_digits, change, name):
    state = Trainer(small_config, small_digits).state_dict()
    other = Trainer(replace(small_config, **change), small_digits)
    before = {key: value.clone() for key, value in other.model.state_dict().items()}
    with pytest.raises(ValueError, match=rf"other settings.*{name}"):
        other.load_state_dict(state)
    assert_same_state(before, dict(other.model.state_dict()))


def test_a_checkpoint_of_other_images_is_refused(small_config, small_digits):
    state = Trainer(small_config, small_digits).state_dict()
    images = small_digits.train_images.clone()
    images[0, 0, 0, 0] += 1
    other = Trainer(small_config, replace(small_digits, train_images=images))
    with pytest.raises(ValueError, match=r"other images or views.*crc32"):
        other.load_state_dict(state)


def test_divergence_names_its_step_and_keeps_the_last_good_checkpoint(
    small_config, small_digits, tmp_path
):
    path = tmp_path / "checkpoint.pt"
    trainer = Trainer(small_config, small_digits, checkpoint_path=path, hooks=[PoisonAfter(14)])
    with pytest.raises(TrainingDiverged, match=r"step 15 of 24 \(epoch 3\).*checkpoint\.pt"):
        trainer.run()
    state = load_checkpoint(path)
    assert state["step"] == 12
    assert all(value.isfinite().all() for value in state["model"].values())


def test_a_weight_that_broke_in_the_last_step_is_not_saved(small_config, small_digits, tmp_path):
    path = tmp_path / "checkpoint.pt"
    trainer = Trainer(small_config, small_digits, checkpoint_path=path, hooks=[PoisonAfter(24)])
    with pytest.raises(TrainingDiverged):
        trainer.run()
    assert load_checkpoint(path)["step"] == 12


def test_bad_combinations_are_refused_before_training(small_config, small_digits):
    with pytest.raises(ValueError, match=r"batch_size 201.*200 training images"):
        Trainer(replace(small_config, batch_size=201), small_digits)
    with pytest.raises(ValueError, match="no views"):
        Trainer(small_config, replace(small_digits, name="letters"))
    with pytest.raises(ValueError, match="backend"):
        Trainer(replace(small_config, backend="abacus"), small_digits)


def test_bf16_trains(small_config, small_digits):
    trainer = Trainer(replace(small_config, precision="bf16", epochs=2), small_digits)
    trainer.run()
    assert math.isfinite(trainer.history[-1]["loss"])
    assert next(trainer.model.parameters()).dtype == torch.float32


def test_the_log_is_one_json_object_per_line_without_repeats(small_config, small_digits, tmp_path):
    log, path = tmp_path / "log.jsonl", tmp_path / "checkpoint.pt"

    class Killed(Hook):
        def stepped(self, trainer, step):
            if trainer.step == 20:
                raise KeyboardInterrupt

    trainer = Trainer(small_config, small_digits, "cpu", path, [JsonLinesLog(log), Killed()])
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    # The third epoch was logged after the last checkpoint; a half-written line is what a power cut
    # leaves.
    with open(log, "a") as stream:
        stream.write('{"event": "epo')
    resumed = Trainer(small_config, small_digits, "cpu", path, [JsonLinesLog(log)])
    resumed.resume(path)
    resumed.run()
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["event"] for line in lines] == [
        "started", "epoch", "epoch", "resumed", "epoch", "epoch",
    ]  # fmt: skip
    assert [line["epoch"] for line in lines if line["event"] == "epoch"] == [1, 2, 3, 4]
    assert lines[0]["config"]["seed"] == 0
    assert lines[0]["versions"]["torch"] == torch.__version__


def test_a_new_run_starts_a_new_log(small_config, small_digits, tmp_path: Path):
    log = tmp_path / "log.jsonl"
    for _ in range(2):
        Trainer(replace(small_config, epochs=1), small_digits, hooks=[JsonLinesLog(log)]).run()
    assert len(log.read_text().splitlines()) == 2
