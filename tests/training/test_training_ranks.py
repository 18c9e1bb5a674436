"""Two processes, as torchrun starts them, against one with the same global batch."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from commands import pretrain
from launched import LAUNCH, pretraining, stopped, torchrun
from scenarios import CONFIG, KINDS, SCENARIOS, digits, gradients
from torch import Tensor

from barlow_fast import mix_inputs
from barlow_fast.training import Trainer, load_checkpoint, network


def mixed_by_halves(
    x_a: Tensor, x_b: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor, float]:
    """`mix_inputs` of each half, with the same numbers, as two ranks do it."""
    state, half = generator.get_state(), len(x_a) // 2
    parts = []
    for part in (slice(0, half), slice(half, None)):
        generator.set_state(state)
        parts.append(mix_inputs(x_a[part], x_b[part], generator=generator))
    (first, permutation, alpha), (second, other, same) = parts
    assert alpha == same
    return torch.cat((first, second)), torch.cat((permutation, half + other)), alpha


@pytest.mark.parametrize("name", SCENARIOS)
def test_gradients_are_those_of_one_process_with_the_global_batch(
    two_ranks: Path, name: str, monkeypatch
):
    """Float32 sums in another order; the common error of peers would be a factor of two."""
    monkeypatch.setattr(network, "mix_inputs", mixed_by_halves)
    theirs = torch.load(two_ranks / f"{name}.pt", weights_only=True)
    with Trainer(replace(CONFIG, **SCENARIOS[name]), digits()) as trainer:
        ours = gradients(trainer)
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        error = (theirs[key].double() - value.double()).norm()
        assert error <= 2e-4 * value.double().norm() + 1e-6, (key, error, value.norm())


@pytest.mark.parametrize("kind", KINDS)
def test_one_process_continues_from_the_checkpoint_of_two(two_ranks: Path, kind: str, tmp_path):
    state = load_checkpoint(two_ranks / f"whole-{kind}.pt")
    assert state["ranks"] == 2
    config = replace(CONFIG, **KINDS[kind])
    with Trainer(config, digits()) as whole, Trainer(config, digits()) as resumed:
        whole.run()
        resumed.load_state_dict(state)
        assert resumed.step == state["step"] == whole.step == 8
        for name, value in whole.model.state_dict().items():
            error = (state["model"][name].double() - value.double()).norm()
            assert error <= 1e-2 * value.double().norm() + 1e-4, name
            assert torch.equal(resumed.model.state_dict()[name], state["model"][name]), name
        ours, theirs = whole.optimizer.state_dict(), state["optimizer"]
        assert ours["state"].keys() == theirs["state"].keys()
        for key, values in ours["state"].items():
            assert theirs["state"][key]["momentum_buffer"].shape == values["momentum_buffer"].shape
    for ours, theirs in zip(whole.history, state["history"], strict=True):
        assert theirs["loss"] == pytest.approx(ours["loss"], rel=1e-3)
        assert theirs["knn"] is not None


def test_ranks_continue_for_more_epochs(two_ranks: Path):
    state = load_checkpoint(two_ranks / "longer.pt")
    assert (state["step"], state["config"]["epochs"]) == (12, 3)
    with Trainer(replace(CONFIG, epochs=3), digits()) as alone:
        alone.resume(two_ranks / "whole-ddp.pt")
        alone.run()
    for ours, theirs in zip(alone.history, state["history"], strict=True):
        assert theirs["learning_rate"] == ours["learning_rate"]
        assert theirs["loss"] == pytest.approx(ours["loss"], rel=1e-3)


def test_a_stop_of_one_rank_stops_all(two_ranks: Path):
    assert [(two_ranks / f"stopped-{rank}").read_text() for rank in (0, 1)] == ["1", "1"]
    assert load_checkpoint(two_ranks / "stopped.pt")["step"] == 1


def test_what_ranks_keep_and_what_they_share(two_ranks: Path):
    first, second = (json.loads((two_ranks / f"state-{rank}.json").read_text()) for rank in (0, 1))
    for found in (first, second):
        assert found["agreed"] == [True, False]
        assert found["total"] == 3
        # Rates times seconds: the last digit depends on the seconds that were measured.
        assert found["images"] == pytest.approx([120, 120])
        assert found["resumed_totals"] == pytest.approx([120, 120])
        assert found["stopped"] == 2
        assert found["same_weights"]
        assert found["same_momentum"]
        assert found["same_losses"]
        assert len(set(found["seeds"])) == len(found["seeds"])
        assert [len(samples) for samples in found["samples"]] == [20, 20, 20]
    # The first rank alone is watched, scores, and counts what a checkpoint counted for all.
    epoch = ["stepped"] * 3 + ["epoch_ended"]
    assert (first["moments"], second["moments"]) == (["started", *epoch * 2, "ended"], [])
    assert (first["scored"], second["scored"]) == ([True, True], [False, False])
    assert (first["before"], second["before"]) == (["raw", "before", "correlation"], [])
    assert (first["resumed_images"], second["resumed_images"]) == (80, 0)
    # Every sample once, and other random numbers everywhere.
    for ours, theirs in zip(first["samples"], second["samples"], strict=True):
        assert not set(ours) & set(theirs)
    assert not set(first["seeds"]) & set(second["seeds"])


@pytest.mark.slow
def test_the_command_line_on_two_ranks(tmp_path: Path):
    done = torchrun(
        "-m", "barlow_fast", "pretrain", "--device", "cpu", "--epochs", 2, "--batch-size", 64,
        "--projector", "32-96", "--out", tmp_path / "out",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    # Only rank 0 prints and writes.
    assert done.stdout.count("results ") == 1
    assert "ranks     2 on 1 machine(s)" in done.stdout
    state = load_checkpoint(tmp_path / "out" / "checkpoint.pt")
    assert state["step"] == 2 * (1197 // 64)
    assert state["history"][-1]["knn"] > 0.5


@pytest.mark.slow
def test_an_error_of_the_ranks_ends_the_job_with_its_reason(tmp_path: Path):
    done = torchrun(
        "-m", "barlow_fast", "pretrain", "--device", "cpu", "--batch-size", 65, "--out", tmp_path
    )
    assert done.returncode != 0
    assert "2 ranks cannot share it equally" in done.stderr
    assert 'Traceback (most recent call last):\n  File "barlow' not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("to_all", [False, True])
def test_a_signal_to_torchrun_saves_where_all_ranks_are(tmp_path: Path, to_all: bool):
    """As a cluster ends a job: the launcher passes the signal on, all ranks stop at one step. Some
    send it to every process themselves, which then gets it twice."""
    out = tmp_path / "out"
    arguments = ["--device", "cpu", "--batch-size", 64, "--projector", "32-96", "epochs=400"]
    arguments += ["evaluate_every=400", "checkpoint_every=1"]
    with pretraining(out, *arguments, launcher=LAUNCH) as process:
        if to_all:
            os.killpg(process.pid, signal.SIGHUP)
        else:
            process.send_signal(signal.SIGTERM)
        stopped(process, out)
    assert process.returncode != 0
    state = load_checkpoint(out / "checkpoint.pt")
    assert state["ranks"] == 2
    assert 0 < state["step"] < 400 * (1197 // 64)
    if state["loader"]["batch"]:
        # An epoch that two ranks began is for two ranks to end.
        alone = pretrain("--resume", out / "checkpoint.pt", "--device", "cpu", code=2)
        assert "number of ranks changes between epochs only" in alone.stderr
