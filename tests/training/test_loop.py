"""The loop: it learns, keeps its history, and refuses what it cannot train; `test_run_state.py` has
stops and resumed runs."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from runs import SHARES, Recording

from barlow_fast.training import Hook, Trainer, TrainingDiverged, load_checkpoint


class PoisonAfter(Hook):
    """Puts a NaN into a weight once `steps` steps are done."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def stepped(self, trainer, step):
        if trainer.step == self.steps:
            with torch.no_grad():
                next(trainer.model.parameters()).view(-1)[0] = math.nan


def test_the_loss_falls_and_the_diagonal_rises(train):
    trainer = train(epochs=15)
    first, last = trainer.history[0], trainer.history[-1]
    assert last["loss"] < 0.6 * first["loss"]
    assert last["on_diagonal_mean"] < 0.5 * first["on_diagonal_mean"]
    before = trainer.before["correlation"].diagonal().mean()
    after = trainer.correlation().diagonal().mean()
    assert after > 0.6
    assert after > before


def test_history_has_every_epoch_and_adds_up(train):
    watch = Recording()
    trainer = train(watch)
    assert watch.moments == ["started", *(["stepped"] * 6 + ["epoch_ended"]) * 4, "ended"]
    assert all(map(math.isfinite, watch.values("loss")))
    assert [record["epoch"] for record in trainer.history] == [1, 2, 3, 4]
    assert [record["knn"] is not None for record in trainer.history] == [False, True, False, True]
    dimensions, lambd = 64, trainer.config.lambd
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


def test_a_checkpoint_of_other_images_is_refused(small_config, small_digits):
    state = Trainer(small_config, small_digits).state_dict()
    images = small_digits.train_images.clone()
    images[0, 0, 0, 0] += 1
    other = Trainer(small_config, replace(small_digits, train_images=images))
    with pytest.raises(ValueError, match=r"other images or views.*crc32"):
        other.load_state_dict(state)


def test_divergence_names_its_step_and_keeps_the_last_good_checkpoint(train, tmp_path):
    path = tmp_path / "checkpoint.pt"
    with pytest.raises(TrainingDiverged, match=r"step 15 of 24 \(epoch 3\).*checkpoint\.pt"):
        train(PoisonAfter(14), path=path)
    state = load_checkpoint(path)
    assert state["step"] == 12
    assert all(value.isfinite().all() for value in state["model"].values())


def test_a_weight_that_broke_in_the_last_step_is_not_saved(train, tmp_path):
    path = tmp_path / "checkpoint.pt"
    with pytest.raises(TrainingDiverged):
        train(PoisonAfter(24), path=path)
    assert load_checkpoint(path)["step"] == 12


def test_bad_combinations_are_refused_before_training(small_config, small_digits):
    with pytest.raises(ValueError, match=r"batch_size 201.*200 training images"):
        Trainer(replace(small_config, batch_size=201), small_digits)
    with pytest.raises(ValueError, match="no views"):
        Trainer(small_config, replace(small_digits, name="letters"))
    with pytest.raises(ValueError, match="backend"):
        Trainer(replace(small_config, backend="abacus"), small_digits)


def test_bf16_trains(train):
    trainer = train(precision="bf16", epochs=2)
    assert math.isfinite(trainer.history[-1]["loss"])
    assert next(trainer.model.parameters()).dtype == torch.float32
