"""Steps in parts, recomputed, compiled, with LARS: what must not change the result."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest
import torch

from barlow_fast.training import Trainer


def state_after(config, data, steps: int = 3) -> tuple[dict, list[float]]:
    with Trainer(config, data) as trainer:
        trainer.network.train()
        losses = [float(trainer.train_step()["loss"]) for _ in range(steps)]
        found = {name: p.grad.clone() for name, p in trainer.model.named_parameters()}
        return found, losses


@pytest.mark.parametrize("changes", [{"checkpoint_activations": True}, {"micro_batch_size": 32}])
def test_what_only_saves_memory_changes_no_bit(small_config, small_digits, changes):
    """A micro-batch as large as the batch is the plain step."""
    plain, losses = state_after(small_config, small_digits)
    other, theirs = state_after(replace(small_config, **changes), small_digits)
    assert losses == theirs
    assert all(torch.equal(plain[name], other[name]) for name in plain)


def test_micro_batches_have_the_loss_of_the_whole_batch(small_config, small_digits):
    """Batch norm receives a micro-batch, so the loss differs a little; it would differ by much if
    it were the mean of the losses of parts, whose off-diagonal noise grows with 1/N."""
    config = replace(small_config, batch_size=128)
    _, losses = state_after(config, small_digits, 1)
    _, parts = state_after(replace(config, micro_batch_size=64), small_digits, 1)
    _, of_part = state_after(replace(config, batch_size=64), small_digits, 1)
    assert parts[0] == pytest.approx(losses[0], rel=0.05)
    assert abs(parts[0] - losses[0]) < 0.5 * abs(of_part[0] - losses[0])


def test_a_run_in_micro_batches_learns_and_reports_its_time(train):
    trainer = train(micro_batch_size=16, epochs=3, evaluate_every=3)
    record = trainer.history[-1]
    assert record["loss"] < trainer.history[0]["loss"]
    assert 0 < record["loss_share"] < 1
    assert 0 < record["data_wait_share"] < 1


def test_lars_trains(train):
    trainer = train(
        optimizer="lars", learning_rate=0.5, bias_learning_rate=0.01, epochs=6,
        reference_batch_size=32, weight_decay=1e-6,
    )  # fmt: skip
    rates = [group["lr"] for group in trainer.optimizer.param_groups]
    assert trainer.history[-1]["loss"] < 0.8 * trainer.history[0]["loss"]
    assert rates[0] == pytest.approx(50 * rates[1])


def test_a_network_that_does_not_compile_runs_without(small_config, small_digits, caplog):
    _, losses = state_after(small_config, small_digits)
    config = replace(small_config, compile="default")
    with Trainer(config, small_digits) as trainer, caplog.at_level(logging.WARNING):
        trainer.network.train()

        def refuse(*_):
            raise RuntimeError("no compiler here")

        assert trainer.network._compiled_call_impl is not None
        trainer.network._compiled_call_impl = refuse
        ours = [float(trainer.train_step()["loss"]) for _ in range(3)]
    assert ours == losses
    assert "torch.compile failed, continuing without it: no compiler here" in caplog.text


@pytest.mark.slow
def test_a_compiled_network_learns_the_same(small_config, small_digits):
    _, losses = state_after(small_config, small_digits)
    config = replace(small_config, compile="default")
    with Trainer(config, small_digits) as trainer:
        trainer.network.train()
        ours = [float(trainer.train_step()["loss"]) for _ in range(3)]
        compiled = trainer.network._compiled_call_impl is not None
    if not compiled:
        pytest.skip("torch.compile does not work here")
    assert ours == pytest.approx(losses, rel=1e-3)
