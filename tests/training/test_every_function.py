"""Every option of the parts of training, of micro-batches and of checkpoints is seen to have its
effect. The settings of a run are in `test_every_setting.py`."""

from __future__ import annotations

import inspect
import math
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from options import Cases, assert_covered, record_calls
from torch import nn

from barlow_fast import checkpoints, training
from barlow_fast.checkpoints import (
    export,
    load_encoder,
    load_official,
    load_projector,
    save_official,
    to_official,
)
from barlow_fast.microbatch import backward_in_microbatches
from barlow_fast.models import build_encoder, build_twins
from barlow_fast.training import (
    LARS,
    PRESETS,
    JsonLinesLog,
    PretrainConfig,
    Ranks,
    TensorBoardLog,
    configure,
    estimate,
    joined,
    learning_rate,
    load_checkpoint,
    newest_checkpoint,
    override,
    parameter_groups,
    ranks,
    save_checkpoint,
)
from barlow_fast.training.estimate import Memory, check_memory, estimate_memory, plan_loss

CPU = torch.device("cpu")
TABLE = Cases()
case, operands = TABLE.case, TABLE.operands


# The learning rate and LARS.


@case(learning_rate, "step", "steps", "peak", "warmup", "final")
def _():
    def by_hand(step: int, steps: int, peak: float, warmup: int, final: float) -> float:
        if step < warmup:
            return peak * (step + 1) / warmup
        done = (step - warmup) / (steps - warmup)
        return peak * final + peak * (1 - final) * (1 + math.cos(math.pi * done)) / 2

    for steps, peak, warmup, final in ((10, 2.0, 3, 0.1), (7, 0.5, 0, 0.0), (9, 1.0, 8, 0.9)):
        for step in range(steps):
            found = learning_rate(step, steps, peak, warmup, final)
            assert found == pytest.approx(by_hand(step, steps, peak, warmup, final), rel=1e-12)
    assert learning_rate(9, 10, 2.0, 3) == pytest.approx(by_hand(9, 10, 2.0, 3, 0.001))
    # All of a run may be warm-up, and what lies behind the end stays at the end.
    assert [learning_rate(step, 4, 1.0, 4) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert learning_rate(99, 10, 2.0, 3, 0.1) == pytest.approx(0.2)
    for warmup in (-1, 11):
        with pytest.raises(ValueError, match=f"warm-up of {warmup} steps"):
            learning_rate(0, 10, 1.0, warmup)
    learning_rate(0, 10, 1.0, 10)


operands(parameter_groups, "model")
operands(LARS, "params")


@case(parameter_groups, "weights_lr", "biases_lr", "weight_decay")
def _():
    weights, biases = parameter_groups(
        nn.Linear(3, 4), weights_lr=0.3, biases_lr=0.2, weight_decay=0.1
    )
    assert [p.shape for p in weights["params"]] == [(4, 3)]
    assert [p.shape for p in biases["params"]] == [(4,)]
    assert (weights["lr"], weights["weight_decay"]) == (0.3, 0.1)
    assert (biases["lr"], biases["weight_decay"]) == (0.2, 0.0)


@case(
    LARS, "lr", "weight_decay", "momentum", "trust_coefficient", "weight_decay_filter",
    "lars_adaptation_filter",
)  # fmt: skip
def _():
    """One value of each that is not the default, for a matrix and a vector, against the text."""
    plain = {
        "lr": 0.5, "weight_decay": 0.0, "momentum": 0.9, "trust_coefficient": 0.001,
        "weight_decay_filter": True, "lars_adaptation_filter": True,
    }  # fmt: skip
    others = {
        "lr": 0.25, "weight_decay": 0.3, "momentum": 0.5, "trust_coefficient": 0.1,
        "weight_decay_filter": False, "lars_adaptation_filter": False,
    }  # fmt: skip
    for name, value in others.items():
        # With decay, or its filter has nothing to leave out.
        settings = {**plain, "weight_decay": 0.2, name: value}
        given = {key: v for key, v in settings.items() if v != plain[key] or key == "lr"}
        generator = torch.Generator().manual_seed(0)
        parameters = [
            nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64))
            for shape in ((4, 3), (5,))
        ]
        optimizer = LARS(parameters, **given)
        momenta = [torch.zeros_like(p) for p in parameters]
        for _ in range(2):
            expected = []
            for p, momentum in zip(parameters, momenta, strict=True):
                p.grad = torch.randn(p.shape, generator=generator, dtype=torch.float64)
                d = p.grad.clone()
                if p.ndim > 1 or not settings["weight_decay_filter"]:
                    d += settings["weight_decay"] * p.detach()
                if p.ndim > 1 or not settings["lars_adaptation_filter"]:
                    d *= settings["trust_coefficient"] * p.detach().norm() / d.norm()
                momentum.mul_(settings["momentum"]).add_(d)
                expected.append(p.detach() - settings["lr"] * momentum)
            optimizer.step()
            for p, wanted in zip(parameters, expected, strict=True):
                torch.testing.assert_close(p.detach(), wanted, rtol=1e-12, atol=1e-15)


# Checkpoints of runs, presets, logs.

operands(newest_checkpoint, "path")
operands(load_checkpoint, "path")
operands(save_checkpoint, "path", "state")
operands(override, "base")


@case(save_checkpoint, "keep")
def _(tmp_path):
    for keep, names in (
        (1, {"c.pt"}), (2, {"c.pt", "c-1.pt"}), (3, {"c.pt", "c-1.pt", "c-2.pt"})
    ):  # fmt: skip
        folder = tmp_path / str(keep)
        folder.mkdir()
        for step in range(5):
            save_checkpoint(folder / "c.pt", {"step": step}, keep)
        assert {path.name for path in folder.iterdir()} == names
        found = newest_checkpoint(folder / "c.pt")
        assert load_checkpoint(found[0])["step"] == 4


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs /proc")
def test_saving_leaves_no_file_open(tmp_path):
    save_checkpoint(tmp_path / "c.pt", {"step": 1})
    before = len(os.listdir("/proc/self/fd"))
    for step in range(3):
        save_checkpoint(tmp_path / "c.pt", {"step": step}, keep=2)
        load_checkpoint(tmp_path / "c.pt")
    assert len(os.listdir("/proc/self/fd")) == before


@case(configure, "preset", "choices")
def _():
    assert configure("cifar10") == PRESETS["cifar10"]
    changed = configure("digits", seed=3, epochs=4, lambd=None)
    assert changed == replace(PRESETS["digits"], seed=3, epochs=4, warmup_epochs=4)
    assert configure("digits", epochs=4, warmup_epochs=2).warmup_epochs == 2
    assert configure("digits", epochs=50).warmup_epochs == PRESETS["digits"].warmup_epochs


@case(override, "file", "assignments")
def _(tmp_path):
    base, file = PretrainConfig(), tmp_path / "settings.yaml"
    file.write_text("preset: cifar10\nseed: 3\nepochs: 2\nprojector: [4, 5]\n")
    found, named = override(base, file)
    assert found == replace(base, seed=3, epochs=2, warmup_epochs=2, projector=(4, 5))
    assert named == {"seed": 3, "epochs": 2, "projector": [4, 5]}
    found, named = override(base, file, ["seed=4", "scale=2"])
    assert (found.seed, found.scale, found.epochs) == (4, 2.0, 2)
    assert named["seed"] == 4
    assert override(base) == (base, {})


@case(JsonLinesLog, "path", "every")
def _(small_config, small_digits, tmp_path):
    import json

    config = replace(small_config, epochs=1)
    for every, steps in ((None, []), (2, [2, 4, 6]), (4, [4])):
        path = tmp_path / f"{every}.jsonl"
        training.Trainer(config, small_digits, hooks=[JsonLinesLog(path, every)]).run()
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        assert [line["step"] for line in lines if line["event"] == "step"] == steps


@case(TensorBoardLog, "folder", "every")
def _(tmp_path, monkeypatch):
    from barlow_fast.training.reporting import tensorboard_log

    received = record_calls(monkeypatch, tensorboard_log, "StepReadings", lambda every: None)
    assert TensorBoardLog(tmp_path, 3).folder == tmp_path
    TensorBoardLog(str(tmp_path))
    assert [call["every"] for call in received] == [3, 10]


@case(training.Tracker, "folder", "every")
@case(training.WandbLog, "folder", "every")
@case(training.MlflowLog, "folder", "every")
def _(tmp_path, monkeypatch):
    from barlow_fast.training.reporting import trackers

    received = record_calls(monkeypatch, trackers, "StepReadings", lambda every: None)
    for tracker in (training.Tracker, training.WandbLog, training.MlflowLog):
        assert tracker(str(tmp_path), 3).folder == tmp_path
        tracker(tmp_path)
    assert [call["every"] for call in received] == 3 * [3, 10]


# Processes.


@case(Ranks, "device", "rank", "size", "nodes")
def _():
    assert Ranks(CPU, 1, 4, 2) == Ranks(device=CPU, rank=1, size=4, nodes=2)
    assert not Ranks(CPU, 1, 4).first
    assert not Ranks(CPU, 0, 4).alone


@case(joined, "device")
def _(monkeypatch):
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    chosen = record_calls(monkeypatch, ranks, "choose_device", lambda *_: CPU)
    with joined("cuda") as alone:
        assert alone == Ranks(CPU)
    monkeypatch.setenv("LOCAL_RANK", "3")
    with joined("auto"):
        pass
    assert chosen == [{"name": "cuda", "local_rank": 0}, {"name": "auto", "local_rank": 3}]


@pytest.mark.parametrize(("size", "here", "nodes"), [(8, "4", 2), (8, "", 1), (2, "4", 1)])
def test_machines_are_counted(monkeypatch, size: int, here: str, nodes: int):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", here)
    assert ranks._nodes(size) == nodes


def test_processes_that_are_not_reported_everything_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ValueError, match="MASTER_ADDR, MASTER_PORT is not set"), joined("cpu"):
        pass
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(ValueError, match=r"WORLD_SIZE must be a whole .* got 'two'"), joined("cpu"):
        pass


@pytest.mark.parametrize(("count", "local", "refused"), [(2, 1, False), (2, 2, True), (0, 0, True)])
def test_a_process_needs_a_gpu_of_its_own(monkeypatch, count: int, local: int, refused: bool):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    if refused:
        with pytest.raises(ValueError, match=r"no GPU of its own|no CUDA device"):
            ranks.choose_device("cuda", local)
    else:
        assert ranks.choose_device("cuda", local) == torch.device("cuda", local)
        assert ranks.choose_device("auto", local) == torch.device("cuda", local)
    assert ranks.choose_device("cpu", local) == CPU


# Memory.

CONFIG = configure(
    "digits", batch_size=64, encoder_widths=(16, 32), projector=(128, 256), precision="fp32"
)
operands(check_memory, "memory", "config")
operands(Memory)


@case(estimate_memory, "config", "channels", "image_size", "device", "ranks")
def _(monkeypatch):
    plain = estimate_memory(CONFIG, 1, 8, CPU)
    model = build_twins(channels=1, image_size=8, encoder_widths=(16, 32), projector=(128, 256))
    weights = 4 * sum(p.numel() for p in model.parameters())
    assert plain.parameters == plain.gradients == weights
    assert plain.optimizer == 2 * weights
    views, embeddings = 2 * 64 * 8 * 8 * 4, 2 * 64 * 256 * 4
    assert plain.batch == views + 2 * embeddings
    for optimizer in ("lars", "sgd"):
        kept = replace(CONFIG, optimizer=optimizer)
        assert estimate_memory(kept, 1, 8, CPU).optimizer == weights
        assert estimate_memory(replace(kept, momentum=0.0), 1, 8, CPU).optimizer == 0
    # Two numbers of 16 bits in the place of one.
    half = estimate_memory(replace(CONFIG, precision="bf16"), 1, 8, CPU)
    assert half.activations == pytest.approx(plain.activations / 2, abs=1)
    assert half.batch == views + embeddings
    assert half.parameters == weights
    # A part of the batch on each rank; shards of the weights only where they are cut.
    shared = estimate_memory(CONFIG, 1, 8, CPU, 4)
    assert shared.activations == pytest.approx(plain.activations / 4, abs=1)
    assert shared.batch == plain.batch // 4
    assert shared.parameters == weights
    cut = estimate_memory(replace(CONFIG, parallel="fsdp"), 1, 8, CPU, 4)
    assert (cut.parameters, cut.gradients) == (weights // 4, weights // 4)
    assert cut.optimizer == weights // 2
    assert estimate_memory(replace(CONFIG, parallel="fsdp"), 1, 8, CPU) == plain
    parts = estimate_memory(replace(CONFIG, micro_batch_size=16), 1, 8, CPU)
    assert parts.activations == pytest.approx(plain.activations / 4, abs=1)
    assert parts.batch == plain.batch
    larger = estimate_memory(CONFIG, 1, 16, CPU)
    assert larger.activations > 3 * plain.activations
    assert estimate_memory(CONFIG, 3, 8, CPU).batch == 3 * views + 2 * embeddings
    assert estimate_memory(CONFIG, 3, 8, CPU).parameters == weights + 4 * 2 * 16 * 9
    monkeypatch.setattr(estimate, "resolved_precision", lambda config, device: device)
    with pytest.raises(AttributeError):
        estimate_memory(CONFIG, 1, 8, "the device")


@case(plan_loss, "config", "device", "ranks", "nodes")
def _(monkeypatch):
    received = record_calls(monkeypatch, estimate, "explain", lambda *a, **k: None)
    plan_loss(replace(CONFIG, backend="aten", precision="bf16"), CPU, 4, 2)
    (call,) = received
    values = list(call.values())
    assert values[:4] == [64, 256, torch.bfloat16, CPU]
    assert (call["backend"], call["world_size"], call["nodes"]) == ("aten", 4, 2)


@case(check_memory, "device")
def _(monkeypatch):
    memory = Memory(100, 100, 150, 650, 0, 0)
    assert memory.total == 1150
    asked = []
    room = SimpleNamespace(value=1150)
    monkeypatch.setattr(
        estimate, "available_memory", lambda device: asked.append(device) or room.value
    )
    check_memory(memory, CONFIG, CPU)
    assert asked == [CPU]
    room.value = 1149
    with pytest.raises(ValueError, match=r"--micro-batch-size 16 .*checkpoint_activations=true"):
        check_memory(memory, CONFIG, CPU)
    recomputed = replace(CONFIG, checkpoint_activations=True, micro_batch_size=32)
    with pytest.raises(ValueError, match=r"--micro-batch-size 8 \(") as refused:
        check_memory(memory, recomputed, CPU)
    assert "checkpoint_activations" not in str(refused.value)
    assert "narrower" not in str(refused.value)
    with pytest.raises(ValueError, match="narrower --projector") as refused:
        check_memory(Memory(300, 300, 600, 0, 0, 0), CONFIG, CPU)
    assert "micro-batch" not in str(refused.value)


# Micro-batches.

operands(backward_in_microbatches, "model", "views", "criterion")


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(4, 3)


def squares(*embeddings: torch.Tensor) -> torch.Tensor:
    return sum(z.square().sum() for z in embeddings)


@case(backward_in_microbatches, "micro_batch_size", "call", "autocast", "scaler")
def _():
    views = torch.randn(10, 4), torch.randn(10, 4)
    sizes: list[int] = []
    seen: list[torch.dtype] = []

    def call(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        sizes.append(len(a))
        z_a, z_b = model(a), model(b)
        seen.append(z_a.dtype)
        return z_a, 2 * z_b

    model = network()
    loss = squares(model(views[0]), 2 * model(views[1]))
    (expected,) = torch.autograd.grad(loss, [model.weight])
    for micro, passes in ((4, [4, 3, 3] * 2), (9, [5, 5] * 2), (10, [10]), (11, [10])):
        sizes.clear()
        model.zero_grad()
        found = backward_in_microbatches(model, views, squares, micro, call=call)
        assert sizes == passes
        torch.testing.assert_close(model.weight.grad, expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(found, loss.detach())
    for micro in (4, 10):
        for autocast in (
            torch.autocast("cpu", torch.bfloat16), lambda: torch.autocast("cpu", torch.bfloat16)
        ):  # fmt: skip
            seen.clear()
            backward_in_microbatches(model, views, squares, micro, call=call, autocast=autocast)
            assert set(seen) == {torch.bfloat16}
        model.zero_grad()
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0, enabled=True)
        found = backward_in_microbatches(model, views, squares, micro, call=call, scaler=scaler)
        torch.testing.assert_close(model.weight.grad, 8 * expected, rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(found, loss.detach())


def test_micro_batches_keep_float64_under_autocast():
    model = network().double()
    views = (torch.randn(10, 4, dtype=torch.float64),)
    with torch.autocast("cpu", torch.bfloat16):
        expected = torch.autograd.grad(squares(model(*views)), [model.weight])[0]
        for micro in (4, 10):
            model.zero_grad()
            loss = backward_in_microbatches(model, views, squares, micro)
            assert loss.dtype == model.weight.grad.dtype == torch.float64
            torch.testing.assert_close(model.weight.grad, expected, rtol=1e-13, atol=1e-13)


# Networks.


@case(build_encoder, "name", "channels", "image_size", "stem", "widths", "grid")
def _():
    small = build_encoder("small", channels=3, image_size=16, widths=(5, 6), grid=3)
    assert small(torch.zeros(2, 3, 16, 16)).shape == (2, 6 * 9)
    assert small.features == 54
    assert small[0].weight.shape == (5, 3, 3, 3)
    halved, whole = (build_encoder("small", image_size=8, stem=s)[0] for s in ("imagenet", "small"))
    assert (halved.stride, whole.stride) == ((2, 2), (1, 1))
    large, little = (build_encoder("resnet18", image_size=size) for size in (224, 32))
    assert (large.conv1.kernel_size, little.conv1.kernel_size) == ((7, 7), (3, 3))
    assert build_encoder("resnet18", channels=1, image_size=32).conv1.in_channels == 1


@case(
    build_twins, "encoder", "channels", "image_size", "stem", "encoder_widths", "encoder_grid",
    "projector", "seed", "one_pass",
)  # fmt: skip
def _(monkeypatch):
    from barlow_fast.models import twins

    received = record_calls(monkeypatch, twins, "build_encoder")
    settings = {
        "encoder": "small", "channels": 1, "image_size": 16, "stem": "imagenet",
        "encoder_widths": (5, 6), "encoder_grid": 3,
    }  # fmt: skip
    state = torch.get_rng_state()
    found = [
        build_twins(**settings, projector=(7, 9), seed=seed, one_pass=seed == 1)
        for seed in (0, 1, 0)
    ]
    assert torch.equal(torch.get_rng_state(), state)
    assert received[0] == {
        "name": "small", "channels": 1, "image_size": 16, "stem": "imagenet",
        "widths": (5, 6), "grid": 3,
    }  # fmt: skip
    weights = [model.encoder[0].weight for model in found]
    assert torch.equal(weights[0], weights[2])
    assert not torch.equal(weights[0], weights[1])
    assert [model.one_pass for model in found] == [False, True, False]
    z_a, z_b = found[0](*torch.zeros(2, 4, 1, 16, 16))
    assert z_a.shape == z_b.shape == (4, 9)


# Checkpoints of encoders.

operands(export, "pretrained", "path")
operands(load_encoder, "path")
operands(load_projector, "path")
operands(to_official, "model")
operands(save_official, "path", "model")
operands(load_official, "path", "model")


def small_file(path: Path, **image: Any) -> Path:
    state = build_encoder("small", channels=1, image_size=8, widths=(4, 8)).state_dict()
    content = {
        "format": "barlow_fast.pretrain",
        "version": 1,
        "config": {"encoder": "small", "encoder_widths": [4, 8], "encoder_grid": 2},
        "image": {"channels": 1, "size": 8, "mean": [0.3], "std": [0.2], **image},
        "model": {f"encoder.{name}": value for name, value in state.items()},
    }
    torch.save(content, path)
    return path


@case(load_encoder, "encoder", "channels", "image_size")
@case(load_projector, "encoder")
def _(tmp_path):
    path = small_file(tmp_path / "small.pt")
    received = load_encoder(path)
    assert (received.name, received.channels, received.image_size) == ("small", 1, 8)
    assert (received.mean, received.std, received.metadata["assumed"]) == ((0.3,), (0.2,), [])
    assert load_encoder(path, image_size=40).image_size == 40
    load_encoder(path, encoder="small", channels=1)
    with pytest.raises(ValueError, match="holds a 'small', not a 'resnet18'"):
        load_encoder(path, encoder="resnet18")
    with pytest.raises(ValueError, match="holds a 'small', not a 'resnet18'"):
        load_projector(path, encoder="resnet18")
    with pytest.raises(ValueError, match="1 channels, not 3"):
        load_encoder(path, channels=3)
    state = build_encoder("resnet18", channels=1, image_size=32).state_dict()
    torch.save(state, tmp_path / "resnet.pt")
    guessed = load_encoder(tmp_path / "resnet.pt")
    assert (guessed.image_size, guessed.channels, guessed.mean) == (32, 1, (0.0,))
    assert guessed.metadata["assumed"] == ["image_size", "mean", "std"]
    assert load_encoder(tmp_path / "resnet.pt", image_size=48).metadata["assumed"] == [
        "mean", "std"
    ]  # fmt: skip


@case(export, "format")
def _(tmp_path):
    pytest.importorskip("safetensors")
    loaded = load_encoder(small_file(tmp_path / "small.pt"))
    export(loaded, tmp_path / "out", "safetensors")
    assert load_encoder(tmp_path / "out").format == "safetensors"
    for refused, message in (("torchvision", "has no 'small'|stem"), ("zip", "format must be")):
        with pytest.raises(ValueError, match=message):
            export(loaded, tmp_path / "other", refused)
        assert not (tmp_path / "other").exists()


@case(to_official, "epoch", "optimizer")
@case(save_official, "epoch", "optimizer")
@case(load_official, "optimizer")
def _(tmp_path):
    model = build_twins("resnet18", image_size=32, projector=(6, 6, 5))
    optimizer = LARS(parameter_groups(model, weights_lr=0.2, biases_lr=0.1, weight_decay=0.01), 0.2)
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    optimizer.step()
    assert "optimizer" not in to_official(model, epoch=3)
    content = to_official(model, epoch=7, optimizer=optimizer)
    assert content["epoch"] == 7
    assert [g["lr"] for g in content["optimizer"]["param_groups"]] == [0.2, 0.1]
    path = tmp_path / "official.pth"
    save_official(path, model, epoch=4, optimizer=optimizer)
    other = build_twins("resnet18", image_size=32, projector=(6, 6, 5), seed=1)
    fresh = LARS(parameter_groups(other, weights_lr=0.2, biases_lr=0.1, weight_decay=0.01), 0.2)
    assert load_official(path, other) == 4
    assert not fresh.state
    assert load_official(path, other, fresh) == 4
    for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(ours, theirs)
        momenta = optimizer.state[ours], fresh.state[theirs]
        assert torch.equal(*(state["momentum_buffer"] for state in momenta))
    save_official(path, model, epoch=5)
    with pytest.raises(ValueError):  # noqa: PT011 - whichever of its words
        load_official(path, other, fresh)
    assert load_official(path, other) == 5


# The tables, against the signatures.


@pytest.mark.parametrize("shows", TABLE.shown())
def test_every_option_has_its_effect(shows, request):
    wanted = inspect.signature(shows).parameters
    shows(**{name: request.getfixturevalue(name) for name in wanted})


# With tables of their own in `test_every_setting.py`, or without options.
ELSEWHERE = {
    "PRESETS", "Feeding", "Hook", "PretrainConfig", "Trainer", "TrainingDiverged",
    "TrainingInterrupted",
}  # fmt: skip
BESIDES = (
    estimate_memory, plan_loss, check_memory, backward_in_microbatches, build_encoder, build_twins,
    *(getattr(checkpoints, name) for name in set(checkpoints.__all__) - {"FORMATS", "Pretrained"}),
)  # fmt: skip


@pytest.mark.parametrize(
    "entry",
    [*(getattr(training, name) for name in sorted(set(training.__all__) - ELSEWHERE)), *BESIDES],
    ids=lambda entry: entry.__name__,
)
def test_every_public_function_has_all_its_cases(entry):
    cases = dict(TABLE.table.get(entry, ()))
    cases.pop("choices", None)  # any setting by its name
    assert_covered(entry, cases, TABLE.exempt.get(entry))
