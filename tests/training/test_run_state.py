"""What a run remembers: every part of its state comes back, and every number of its records is
counted as it says."""

from __future__ import annotations

import contextlib
import copy
import functools
import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from options import assert_covered
from runs import Recording, StopAt, assert_same
from torch import nn

from barlow_fast import __version__
from barlow_fast.checkpoints.state import PHASES
from barlow_fast.data import PRESETS as VIEWS
from barlow_fast.training import (
    PretrainConfig,
    Ranks,
    Trainer,
    TrainingDiverged,
    TrainingInterrupted,
    clock,
    load_checkpoint,
    loop,
    watching,
)
from barlow_fast.training.clock import StepClock
from barlow_fast.training.feeding import (
    choose_views,
    image_size,
    view_sizes,
    views_in_words,
    views_of_run,
)
from barlow_fast.training.schedule import learning_rate

CPU = torch.device("cpu")
OPTIMIZERS = ["adamw", "lars", "sgd", "muon"]


@pytest.fixture
def config(small_config: PretrainConfig) -> PretrainConfig:
    return replace(small_config, encoder_widths=(4, 8), projector=(16, 24), epochs=2)


class Dropping(Trainer):
    """A trainer whose network draws random numbers of its own."""

    def initial_model(self):
        model = super().initial_model()
        model.encoder.append(nn.Dropout(0.3))
        return model


def ready(config: PretrainConfig, data: Any, kind: type[Trainer] = Trainer) -> Trainer:
    trainer = kind(config, data)
    trainer.network.train()
    return trainer


def stopped(config: PretrainConfig, data: Any, step: int = 3) -> Trainer:
    """A trainer in the middle of its second epoch."""
    trainer = ready(config, data, Dropping)
    trainer.train_epoch()
    for _ in range(step):
        trainer.train_step()
    # As a run that is asked to stop counts its time.
    trainer.stop_requested = True
    with pytest.raises(TrainingInterrupted):
        trainer.train_epoch()
    return trainer


# What `load_state_dict` takes over: name in the state -> (another value, where it is then).
def _more(trainer: Trainer) -> dict[str, tuple[Any, Callable[[Trainer], Any]]]:
    state = copy.deepcopy(trainer.state_dict())
    model = {name: value + 1 for name, value in state["model"].items()}
    optimizer = copy.deepcopy(state["optimizer"])
    for values in optimizer["state"].values():
        for value in values.values():
            value += 1
    optimizer["param_groups"][1]["lr"] = 0.123
    return {
        "step": (state["step"] + 2, lambda t: t.step),
        "loader": ({**state["loader"], "epoch": 9, "batch": 1}, lambda t: t.loader.state_dict()),
        "model": (model, lambda t: dict(t.model.state_dict())),
        "optimizer": (optimizer, lambda t: t.optimizer.state_dict()),
        "totals": (state["totals"] + 5, lambda t: t._totals),
        "images": (77, lambda t: t._images),
        "seconds": (55.5, lambda t: t._seconds),
        "shares": ({**dict.fromkeys(PHASES, 0.25), "data": 0.5}, lambda t: t._shares),
        "history": ([*state["history"], {**state["history"][0], "epoch": 2}], lambda t: t.history),
        "before": ({"raw": 0.1, "before": 0.2, "correlation": None}, lambda t: t.before),
    }


# What it does not take over, and why.
REPORTED = {
    "config": "refused where weights depend on it: test_every_setting",
    "dataset": "refused where it differs: test_loop",
    "image": "follows from data and views",
    "versions": "of the program that wrote the file",
    "device": "of the process that wrote the file",
    "ranks": "of the run that wrote the file; the loader decides",
    "epoch": "follows from the step",
    "scaler": "test_the_scale_of_float16_is_restored",
}


# Measured times included.
assert_equal = functools.partial(assert_same, left_out=frozenset())


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_part_of_the_state_is_restored(config, small_digits, optimizer: str):
    config = replace(config, optimizer=optimizer)
    trainer = stopped(config, small_digits)
    state = copy.deepcopy(trainer.state_dict())
    changes = _more(trainer)
    assert_covered(list(state), changes, REPORTED)
    for name, (value, where) in changes.items():
        fresh = Dropping(config, small_digits)
        fresh.load_state_dict({**copy.deepcopy(state), name: value})
        assert_equal(where(fresh), value, name)
        for other, (_, elsewhere) in changes.items():
            if other != name:
                assert_equal(elsewhere(fresh), state[other], other)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("steps", [1, 6, 7, 9])
def test_a_resumed_run_ends_with_the_same_bits_dropout_included(
    config, small_digits, tmp_path, optimizer: str, steps: int
):
    """At the boundary of epochs (6) and inside of one, whatever the process drew before."""
    config = replace(config, optimizer=optimizer, weight_decay=0.1)
    whole = Dropping(config, small_digits)
    whole.run()
    path = tmp_path / "checkpoint.pt"
    with pytest.raises(TrainingInterrupted, match=f"step {steps} of 12"):
        Dropping(config, small_digits, checkpoint_path=path, hooks=[StopAt(steps)]).run()
    torch.manual_seed(steps)
    resumed = Dropping(config, small_digits, checkpoint_path=path)
    resumed.resume(path)
    assert resumed.step == steps
    resumed.run()
    assert_same(resumed.state_dict(), whole.state_dict())
    assert_same(load_checkpoint(path)["model"], dict(whole.model.state_dict()))


@pytest.mark.parametrize("done", [4, 12])  # steps: inside the first epoch, and a run at its end
def test_a_run_continues_for_more_epochs(config, small_digits, tmp_path, done: int):
    """With the rates of a run of the new length, and with the same bits however often it stops."""
    path, longer = tmp_path / "checkpoint.pt", replace(config, epochs=4)
    first = Trainer(config, small_digits, checkpoint_path=path, hooks=[StopAt(done)])
    with contextlib.suppress(TrainingInterrupted):
        first.run()
    assert (first.step, first.total_steps) == (done, 12)
    before = path.read_bytes()
    whole = Trainer(longer, small_digits)
    whole.resume(path)
    whole.run()
    parts = Trainer(longer, small_digits, checkpoint_path=path, hooks=[StopAt(17)])
    parts.resume(path)
    with pytest.raises(TrainingInterrupted):
        parts.run()
    parts = Trainer(longer, small_digits)
    parts.resume(path)
    parts.run()
    assert_equal(dict(parts.model.state_dict()), dict(whole.model.state_dict()))
    assert [record["epoch"] for record in whole.history] == [1, 2, 3, 4]
    last_steps = {6 * epoch - 1: record for epoch, record in enumerate(whole.history, 1)}
    for step, record in last_steps.items():
        total = 12 if step < done else 24
        expected = learning_rate(step, total, config.learning_rate, 6, config.final_learning_rate)
        assert record["learning_rate"] == expected
    path.write_bytes(before)
    refused = Trainer(replace(config, epochs=1, warmup_epochs=1), small_digits)
    if done > 6:
        with pytest.raises(ValueError, match="epochs must be at least 2, got 1"):
            refused.resume(path)
    else:
        refused.resume(path)


def test_the_scale_of_float16_is_restored(config, small_digits):
    def scaled(scale: float) -> Trainer:
        trainer = ready(config, small_digits)
        trainer.scaler = torch.amp.GradScaler("cpu", init_scale=scale, enabled=True)
        return trainer

    first = scaled(256.0)
    first.train_step()
    state = first.state_dict()
    assert state["scaler"]["scale"] == 256.0
    resumed = scaled(8.0)
    resumed.load_state_dict(state)
    assert resumed.scaler.get_scale() == 256.0
    assert resumed.scaler.state_dict() == state["scaler"]
    # A run in float32 has none, and a run in float16 that resumes from one keeps its own.
    plain = Trainer(config, small_digits)
    plain.load_state_dict(state)
    assert plain.state_dict()["scaler"] == {}
    other = scaled(8.0)
    other.load_state_dict(plain.state_dict())
    assert other.scaler.get_scale() == 8.0


def test_a_scaled_step_is_the_plain_one_and_overflow_is_left_out(config, small_digits):
    """Powers of two change no bit; a step whose gradients overflow changes no weight."""
    plain, scaled = (ready(config, small_digits) for _ in range(2))
    scaled.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, enabled=True)
    for trainer in (plain, scaled):
        trainer.train_step()
    for ours, theirs in zip(plain.model.parameters(), scaled.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
        assert torch.equal(ours.grad, theirs.grad)
    before = [p.clone() for p in scaled.model.parameters()]
    scaled.model.projector[0].weight.register_hook(lambda gradient: gradient * math.inf)
    loss = scaled.train_step()["loss"]
    assert loss.isfinite()
    assert all(torch.equal(a, b) for a, b in zip(before, scaled.model.parameters(), strict=True))
    assert scaled.scaler.get_scale() == 2.0**9


def test_a_refused_state_leaves_everything_as_it_was(config, small_digits):
    state = stopped(config, small_digits).state_dict()
    trainer = Dropping(config, small_digits)
    before = copy.deepcopy(trainer.state_dict())
    with pytest.raises(ValueError, match=r"other settings.*seed"):
        trainer.load_state_dict({**state, "config": {**state["config"], "seed": 5}})
    assert_equal(trainer.state_dict(), before)
    wrong = {name: value for name, value in state["model"].items() if "running" not in name}
    with pytest.raises(ValueError, match="does not fit the model"):
        trainer.load_state_dict({**state, "model": wrong})
    assert_equal(trainer.loader.state_dict(), before["loader"])
    assert trainer.step == 0


# What a step draws.


def seeds_of_steps(config, data, **changes: Any) -> list[int]:
    trainer = ready(replace(config, **changes), data)
    found = []
    trainer.network.register_forward_pre_hook(lambda *_: found.append(torch.initial_seed()))
    for _ in range(3):
        trainer.train_step()
    return found


def test_every_seed_step_and_rank_draws_its_own_numbers(config, small_digits):
    ours = seeds_of_steps(config, small_digits)
    assert ours == seeds_of_steps(config, small_digits)
    theirs = seeds_of_steps(config, small_digits, seed=1)
    ranks = []
    for rank in (0, 1):
        stand_in = SimpleNamespace(config=config, step=0, ranks=Ranks(CPU, rank, 2))
        Trainer._seed_generators(stand_in)
        ranks.append(torch.initial_seed())
    assert ranks[0] == ours[0]
    assert len({*ours, *theirs, *ranks}) == 7
    # All 64 bits of a seed count.
    assert seeds_of_steps(config, small_digits, seed=2**63)[0] != ours[0]


# What is reported of an epoch.


def test_a_record_is_of_its_epoch_alone(config, small_digits, monkeypatch):
    # A clock that advances by one second whenever it is looked at.
    ticks = itertools.count(1.0)
    stand_in = SimpleNamespace(perf_counter=lambda: next(ticks), monotonic=lambda: 0.0)
    monkeypatch.setattr(loop, "time", stand_in)
    monkeypatch.setattr(clock, "time", stand_in)
    watch = Recording()
    config = replace(config, batch_size=48)
    trainer = Trainer(config, small_digits, hooks=[watch])
    trainer.run()
    assert watch.records == trainer.history
    for epoch, record in enumerate(watch.records):
        for name in ("loss", "on_diagonal_mean", "off_diagonal_mean"):
            mean = sum(watch.values(name)[4 * epoch : 4 * epoch + 4]) / 4
            assert record[name] == pytest.approx(mean, rel=1e-6)
        assert (record["epoch"], record["step"]) == (epoch + 1, 4 * epoch + 4)
        assert record["learning_rate"] == trainer.config.learning_rate or epoch
        # A step looks at the clock six times: at its start and after each of five phases.
        assert record["seconds"] == 4 * 6 + 1
        assert record["images_per_second"] == pytest.approx(4 * 48 / 25)
        for name in ("data_wait", "forward", "loss", "backward", "update"):
            assert record[f"{name}_share"] == pytest.approx(1 / 5)


def test_the_clock_gives_every_phase_its_time(monkeypatch):
    now = SimpleNamespace(value=100.0)
    monkeypatch.setattr(clock, "time", SimpleNamespace(perf_counter=lambda: now.value))
    steps = StepClock(CPU)
    for extra in (0, 1000):
        now.value += extra  # between two steps
        steps.start()
        for seconds, phase in enumerate(PHASES, 1):
            now.value += seconds
            steps.mark(phase)
    assert steps.read() == {phase: 2.0 * seconds for seconds, phase in enumerate(PHASES, 1)}
    assert steps.read() == dict.fromkeys(PHASES, 0.0)


def test_where_a_run_came_from_is_reported(config, small_digits):
    recorded = Trainer(config, small_digits).provenance()
    assert recorded["config"] == config.to_dict()
    assert recorded["image"] == {"channels": 1, "size": 8, "mean": [0.3064], "std": [0.3753]}
    assert recorded["versions"]["barlow_fast"] == __version__
    assert recorded["versions"]["torch"] == torch.__version__
    assert recorded["versions"]["numpy"] == np.__version__
    assert recorded["device"].startswith("cpu (")
    assert recorded["ranks"] == 1


def test_what_differs_is_reported_with_whose_it_is():
    found = loop.different_settings({"a": 1, "b": 2, "c": 3}, {"a": 1, "b": 5, "d": 4})
    assert "; ".join(found) == "b (5 there, 2 here); c (None there, 3 here); d (4 there, None here)"


# Stops and refusals.


def test_a_batch_of_which_one_image_is_left_is_refused(config, small_digits):
    trainer = Trainer(config, small_digits)
    batch = trainer.next_batch()
    one = batch._replace(views=tuple(v[:1] for v in batch.views), index=batch.index[:1])
    two = batch._replace(views=tuple(v[:2] for v in batch.views), index=batch.index[:2])
    trainer.step = 4
    trainer.next_batch = lambda: one
    with pytest.raises(RuntimeError, match=r"step 5: of 32 images only 1 can be read"):
        trainer.train_step()
    trainer.next_batch = lambda: two
    trainer.train_step()
    assert trainer._images == 2


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("wanted", [True, False])
@pytest.mark.parametrize("step", [0, 1, 15, 16, 17, 32])
def test_all_ranks_are_requested_a_stop_at_every_step(step: int, wanted: bool, device: str):
    """A message between hosts: no GPU waits for it."""
    asked = []
    ranks = SimpleNamespace(alone=False, agree=lambda flag: asked.append(flag) or True)
    trainer = SimpleNamespace(
        ranks=ranks, stop_requested=wanted, device=torch.device(device), step=step
    )
    assert Trainer._stops(trainer) is True
    assert asked == [wanted]
    trainer.ranks = Ranks(CPU)
    assert Trainer._stops(trainer) is wanted


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("step", [15, 16, 17])
def test_the_first_rank_reports_when_to_save(monkeypatch, first: bool, step: int):
    asked = []
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: 1000.0))
    trainer = SimpleNamespace(
        checkpoint_path="there", step=step, steps_per_epoch=100, _saved_at=0.0,
        config=SimpleNamespace(checkpoint_minutes=15.0),
        ranks=SimpleNamespace(
            alone=False, first=first, agree=lambda flag: asked.append(flag) or flag
        ),
    )  # fmt: skip
    due = Trainer._save_is_due(trainer)
    # Every rank asks, at the same steps, whatever its own clock says.
    assert asked == ([first] if step == 16 else [])
    assert due is (first and step == 16)
    trainer.ranks.alone = True
    assert Trainer._save_is_due(trainer) is True
    trainer._saved_at = 100.0
    assert Trainer._save_is_due(trainer) is False
    trainer._saved_at, trainer.checkpoint_path = 0.0, None
    assert Trainer._save_is_due(trainer) is False


def test_only_the_first_rank_counts_images_of_a_checkpoint(config, small_digits):
    """They were counted for all."""
    state = stopped(config, small_digits).state_dict()
    for rank, images in ((0, 96), (1, 0)):
        trainer = Dropping(config, small_digits)
        trainer.ranks = Ranks(CPU, rank, 1)
        trainer.load_state_dict(state)
        assert trainer._images == images


def test_ranks_other_than_the_first_write_and_call_nothing(config, small_digits, tmp_path):
    watch = Recording()
    path = tmp_path / "checkpoint.pt"
    trainer = Trainer(config, small_digits, checkpoint_path=path, hooks=[watch])
    trainer.ranks = Ranks(CPU, 1, 1)
    trainer.run()
    assert not path.exists()
    assert (watch.moments, watch.records, trainer.before) == ([], [], {})
    assert (trainer.score(), trainer.correlation()) == (None, None)
    assert [record["knn"] for record in trainer.history] == [None, None]


def test_one_process_is_its_own_group():
    ranks = Ranks(CPU)
    assert (ranks.first, ranks.alone) == (True, True)
    assert (Ranks(CPU, 1, 2).first, Ranks(CPU, 0, 2).alone) == (False, False)
    assert (ranks.agree(True), ranks.agree(False), ranks.total(7)) == (True, False, 7)
    ranks.barrier()


def test_an_epoch_whose_mean_is_no_number_ends_the_run(config, small_digits):
    """On a GPU the answer of the last step may come after it."""
    trainer = Trainer(config, small_digits)
    trainer.step = 6
    trainer._seconds = 1.0
    trainer._totals[0] = math.inf
    with pytest.raises(TrainingDiverged, match="in epoch 1: its mean loss is not finite"):
        trainer.close_epoch(0)
    assert not trainer.history


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("squares", {}, "--views must be one of .* or a number of views, got 'squares'"),
        ("", {"name": "letters"}, "no views are specified for 'letters'"),
        ("imagenet", {}, "views 'imagenet' have 3 channels, digits has 1"),
        ("1.yaml", {}, "the loss compares two views, '1' has 1: --views 2, or another number"),
    ],
)
def test_views_that_do_not_fit_are_refused(
    small_digits, tmp_path, monkeypatch, name: str, changes: dict, message: str
):
    monkeypatch.chdir(tmp_path)
    one = VIEWS["digits"]
    for count in (1, 3):
        views = replace(one, name=str(count), views=one.views[:1] * count)
        (tmp_path / f"{count}.yaml").write_text(views.to_yaml())
    with pytest.raises(ValueError, match=message):
        views_of_run(PretrainConfig(views=name), replace(small_digits, **changes))
    three = PretrainConfig(views="3.yaml")
    assert len(views_of_run(three, small_digits).views) == 3
    with pytest.raises(ValueError, match="mixed-barlow-twins takes 2 views, '3' has 3"):
        views_of_run(replace(three, loss="mixed-barlow-twins"), small_digits)
    with pytest.raises(ValueError, match=r"at least 3 \('3' specifies 3\), got 2"):
        views_of_run(replace(three, view_count=2), small_digits)
    four = views_of_run(PretrainConfig(views="1.yaml", view_count=4), small_digits)
    assert four.views == one.views[:1] * 4
    # Files have any colours.
    assert choose_views("imagenet", SimpleNamespace(name="folder")).name == "imagenet"
    assert choose_views("", small_digits) is one


def test_views_are_as_large_as_they_say_or_as_the_images(small_digits):
    assert image_size(VIEWS["digits"], small_digits) == 8
    assert image_size(VIEWS["imagenet"], SimpleNamespace()) == 224
    tall = replace(small_digits, train_images=small_digits.train_images[:, :, :5])
    assert image_size(VIEWS["digits"], tall) == 8


def test_views_in_numbers_and_in_words(small_digits):
    for changes, words, sizes in (
        ({}, "2 views", (8, 8)),
        ({"view_count": 3}, "3 views", (8, 8, 8)),
        ({"small_views": 2, "small_size": 4}, "2 views and 2 of 4 pixels", (8, 8, 4, 4)),
        ({"small_views": 1, "view_count": 4}, "4 views and 1 of 3 pixels", (8,) * 4 + (3,)),
    ):
        views = views_of_run(PretrainConfig(**changes), small_digits)
        assert (views_in_words(views), view_sizes(views, small_digits)) == (words, sizes)


# What is measured.


def test_measuring_leaves_the_model_and_the_run_alone(config, small_digits):
    watched, plain = (ready(config, small_digits) for _ in range(2))
    for trainer in (watched, plain):
        trainer.train_step()
        if trainer is watched:
            trainer.score()
            matrix = trainer.correlation()
            assert matrix.shape == (24, 24)
            assert 0.05 < matrix.abs().mean() <= 1
            trainer.watcher.portrait(trainer.plain_model(copied=True))
            assert trainer.model.training
        trainer.train_step()
    assert_equal(dict(watched.model.state_dict()), dict(plain.model.state_dict()))


def test_portraits_show_test_images_as_evaluation_shows_them(config, small_digits, monkeypatch):
    trainer = ready(config, small_digits)
    trainer.train_step()
    monkeypatch.setattr(watching, "MAPPED_IMAGES", 34)
    found = trainer.watcher.portrait(trainer.plain_model(copied=True))
    chosen = [3 * k for k in range(34)]
    assert torch.equal(found.labels, small_digits.test_labels[chosen])
    mean, std = trainer.views.mean[0], trainer.views.std[0]
    images = (small_digits.test_images[chosen].float() / 255 - mean) / std
    with torch.no_grad():
        features = trainer.plain_model(copied=True).encoder.eval()(images)
    torch.testing.assert_close(found.features, features, rtol=1e-4, atol=1e-5)
    assert found.correlation.shape == (24, 24)
    assert found.singular_values.shape == (24,)
    z_a, z_b = trainer.watcher.embeddings(trainer.plain_model(copied=True))
    assert len(z_a) == len(z_b) == 100
    assert not torch.equal(z_a, z_b)
    assert z_a.dtype == torch.float32


def test_few_images_are_spread_and_many_are_thinned():
    assert watching._spread(5, 9).tolist() == [0, 1, 2, 3, 4]
    assert watching._spread(9, 3).tolist() == [0, 4, 8]
    assert watching._spread(1, 3).tolist() == [0]


@pytest.mark.parametrize("missing", ["train_labels", "test_labels"])
def test_nothing_is_scored_without_labels(config, small_digits, missing: str):
    trainer = Trainer(config, replace(small_digits, **{missing: None}))
    assert not trainer.scores
    assert trainer.score() is None
    portrait = trainer.watcher.portrait(trainer.plain_model(copied=True))
    assert (portrait.labels is None) == (missing == "test_labels")
