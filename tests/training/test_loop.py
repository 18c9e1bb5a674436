"""The loop: it learns, keeps its history, and refuses what it cannot train; steps in parts,
recomputed, compiled. `test_run_state.py` has stops and resumed runs."""

from __future__ import annotations

import logging
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


def test_an_epoch_visits_no_sample_twice(start):
    trainer = start()
    visited = [trainer.next_batch().index for _ in range(trainer.steps_per_epoch)]
    assert len(torch.cat(visited).unique()) == 192
    assert not torch.equal(trainer.next_batch().index, visited[0])


def test_a_checkpoint_of_other_images_is_refused(start, small_config, small_digits):
    state = start().state_dict()
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


# What must not change the result.


def losses_of(trainer: Trainer, steps: int = 3) -> list[float]:
    return [float(trainer.train_step()["loss"]) for _ in range(steps)]


@pytest.mark.parametrize("changes", [{"checkpoint_activations": True}, {"micro_batch_size": 32}])
def test_what_only_saves_memory_changes_no_bit(start, changes):
    """A micro-batch as large as the batch is the plain step."""
    plain, other = start(), start(**changes)
    assert losses_of(plain) == losses_of(other)
    for ours, theirs in zip(plain.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad)


def test_micro_batches_have_the_loss_of_the_whole_batch(start):
    """Batch norm receives a micro-batch, so the loss differs a little; it would differ by much if
    it were the mean of the losses of parts, whose off-diagonal noise grows with 1/N."""
    (whole,) = losses_of(start(batch_size=128), 1)
    (parts,) = losses_of(start(batch_size=128, micro_batch_size=64), 1)
    (of_part,) = losses_of(start(batch_size=64), 1)
    assert parts == pytest.approx(whole, rel=0.05)
    assert abs(parts - whole) < 0.5 * abs(of_part - whole)


def test_a_run_in_micro_batches_learns_and_reports_its_time(train):
    first, *_, last = train(micro_batch_size=16, epochs=3, evaluate_every=3).history
    assert last["loss"] < first["loss"]
    assert 0 < last["loss_share"] < 1
    assert 0 < last["data_wait_share"] < 1


def test_lars_trains(train):
    trainer = train(
        optimizer="lars", learning_rate=0.5, bias_learning_rate=0.01, epochs=6,
        reference_batch_size=32, weight_decay=1e-6,
    )  # fmt: skip
    weights, biases = (group["lr"] for group in trainer.optimizer.param_groups)
    assert trainer.history[-1]["loss"] < 0.8 * trainer.history[0]["loss"]
    assert weights == pytest.approx(50 * biases)


def test_a_network_that_does_not_compile_runs_without(start, caplog):
    def refuse(*_):
        raise RuntimeError("no compiler here")

    trainer = start(compile="default")
    assert trainer.network._compiled_call_impl is not None
    trainer.network._compiled_call_impl = refuse
    with caplog.at_level(logging.WARNING):
        assert losses_of(trainer) == losses_of(start())
    assert "torch.compile failed, continuing without it: no compiler here" in caplog.text


@pytest.mark.slow
def test_a_compiled_network_learns_the_same(start):
    trainer = start(compile="default")
    found = losses_of(trainer)
    if trainer.network._compiled_call_impl is None:
        pytest.skip("torch.compile does not work here")
    assert found == pytest.approx(losses_of(start()), rel=1e-3)
