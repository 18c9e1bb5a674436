"""The memory estimate against what autograd keeps, and its refusals."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from options import record_calls

from barlow_fast.data import load
from barlow_fast.models import build_twins
from barlow_fast.training import PRESETS, Trainer, configure, estimate
from barlow_fast.training.estimate import Memory, check_memory, estimate_memory
from barlow_fast.training.feeding import view_sizes

CPU = torch.device("cpu")
CONFIG = configure(
    "digits",
    loss="barlow-twins",
    batch_size=64,
    encoder_widths=(16, 32),
    projector=(128, 256),
    precision="fp32",
)


def kept_bytes(trainer: Trainer) -> int:
    """Of a real step: every storage that autograd keeps between forward and backward, once."""
    own = {t.untyped_storage().data_ptr() for t in trainer.model.state_dict().values()}
    found: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    views = trainer.next_batch().views
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        embeddings = trainer.network(*views)
    del embeddings
    return sum(found.values())


@pytest.mark.parametrize(
    "changes",
    [
        {}, {"one_pass": True}, {"checkpoint_activations": True}, {"view_count": 4},
        {"small_views": 3, "small_size": 4}, {"small_views": 3, "small_size": 4, "one_pass": True},
    ],
)  # fmt: skip
def test_activations_are_those_of_a_real_step(changes: dict):
    config, data = replace(CONFIG, **changes), load("digits")
    with Trainer(config, data) as trainer:
        trainer.network.train()
        real = kept_bytes(trainer)
        sizes = view_sizes(trainer.views, data)
    assert sizes == (8,) * (config.view_count or 2) + (4,) * config.small_views
    guess = estimate_memory(config, 1, sizes, CPU)
    assert guess.activations == pytest.approx(real, rel=0.1)
    assert guess.batch == 64 * 4 * (sum(size**2 for size in sizes) + 2 * 256 * len(sizes))


def test_mixed_images_take_the_place_of_a_view():
    mixed = estimate_memory(replace(CONFIG, loss="mixed-barlow-twins"), 1, (8, 8), CPU)
    three = estimate_memory(replace(CONFIG, view_count=3), 1, (8, 8, 8), CPU)
    assert (mixed.batch, mixed.activations) == (three.batch, three.activations)


def test_what_every_option_takes(monkeypatch):
    plain = estimate_memory(CONFIG, 1, (8, 8), CPU)
    model = build_twins(channels=1, image_size=8, encoder_widths=(16, 32), projector=(128, 256))
    weights = 4 * sum(p.numel() for p in model.parameters())
    assert plain.parameters == plain.gradients == weights
    assert plain.optimizer == 2 * weights
    views, embeddings = 2 * 64 * 8 * 8 * 4, 2 * 64 * 256 * 4
    assert plain.batch == views + 2 * embeddings

    def changed(ranks: int = 1, **changes) -> Memory:
        memory = estimate_memory(replace(CONFIG, **changes), 1, (8, 8), CPU, ranks)
        assert memory.total > memory.activations + memory.parameters
        return memory

    for optimizer in ("lars", "sgd"):
        assert changed(optimizer=optimizer).optimizer == weights
        assert changed(optimizer=optimizer, momentum=0.0).optimizer == 0
    convolutions = 4 * sum(p.numel() for p in model.encoder.parameters() if p.ndim > 1)
    assert changed(optimizer="muon").optimizer == 2 * weights - convolutions
    # Two numbers of 16 bits in the place of one.
    half = changed(precision="bf16")
    assert half.activations == pytest.approx(plain.activations / 2, abs=1)
    assert (half.batch, half.parameters) == (views + embeddings, weights)
    # A part of the batch on each rank; shards of the weights only where they are cut.
    shared, cut = changed(4), changed(4, parallel="fsdp")
    assert shared.activations == pytest.approx(plain.activations / 4, abs=1)
    assert (shared.batch, shared.parameters) == (plain.batch // 4, weights)
    assert (cut.parameters, cut.gradients, cut.optimizer) == (
        weights // 4, weights // 4, weights // 2,
    )  # fmt: skip
    assert changed(parallel="fsdp") == plain
    parts = changed(micro_batch_size=16)
    assert parts.activations == pytest.approx(plain.activations / 4, abs=1)
    assert parts.batch == plain.batch
    assert estimate_memory(CONFIG, 1, (16, 16), CPU).activations > 3 * plain.activations
    assert estimate_memory(CONFIG, 3, (8, 8), CPU).batch == 3 * views + 2 * embeddings
    assert estimate_memory(CONFIG, 3, (8, 8), CPU).parameters == weights + 4 * 2 * 16 * 9
    monkeypatch.setattr(estimate, "resolved_precision", lambda config, device: device)
    with pytest.raises(AttributeError):
        estimate_memory(CONFIG, 1, (8, 8), "the device")


def test_recomputation_keeps_less_of_a_resnet():
    config = replace(PRESETS["imagenet100"], batch_size=64)
    whole = estimate_memory(config, 3, (64, 64), CPU)
    again = estimate_memory(replace(config, checkpoint_activations=True), 3, (64, 64), CPU)
    assert again.activations < 0.6 * whole.activations
    model = build_twins("resnet18", image_size=64, projector=config.projector)
    assert whole.parameters == 4 * sum(p.numel() for p in model.parameters())


def test_the_loss_is_planned_as_it_runs(monkeypatch):
    received = record_calls(monkeypatch, estimate, "explain", lambda *a, **k: None)
    estimate.plan_loss(
        replace(CONFIG, backend="aten", precision="bf16", loss="vicreg"), 5, CPU, 4, 2
    )
    (call,) = received
    assert (call["loss"], call["views"]) == ("vicreg", 5)
    assert list(call.values())[:4] == [64, 256, torch.bfloat16, CPU]
    assert (call["backend"], call["world_size"], call["nodes"]) == ("aten", 4, 2)


def test_what_is_free_decides(monkeypatch):
    memory, free, asked = Memory(100, 100, 150, 650, 0, 0), [1150], []
    assert memory.total == 1150
    monkeypatch.setattr(
        estimate, "available_memory", lambda device: asked.append(device) or free[0]
    )
    check_memory(memory, CONFIG, CPU)
    assert asked == [CPU]
    free[0] = 1149
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


def test_what_does_not_fit_is_refused_with_what_helps(monkeypatch):
    monkeypatch.setattr(estimate, "available_memory", lambda device: 2**30)
    config = PRESETS["imagenet-1000ep"]
    memory = estimate_memory(config, 3, (224, 224), CPU)
    with pytest.raises(ValueError, match=r"(?s)does not fit.*--micro-batch-size 512.*--batch-size"):
        check_memory(memory, config, CPU)
    small = estimate_memory(CONFIG, 1, (8, 8), CPU)
    check_memory(small, CONFIG, CPU)
    monkeypatch.setattr(estimate, "available_memory", lambda device: None)
    check_memory(memory, config, CPU)


def test_this_machine_reports_its_memory():
    available = estimate.available_memory(CPU)
    assert available is None or 2**26 < available < 2**50


def test_float16_is_for_gpus():
    with pytest.raises(ValueError, match="fp16 is for GPUs"):
        estimate.resolved_precision(replace(CONFIG, precision="fp16"), CPU)
    assert estimate.resolved_precision(CONFIG, CPU) == torch.float32
    auto = estimate.resolved_precision(replace(CONFIG, precision="auto"), CPU)
    assert auto in (torch.float32, torch.bfloat16)
    assert estimate.resolved_precision(replace(CONFIG, precision="bf16"), CPU) == torch.bfloat16


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("flags\t\t: fpu avx512f avx512_bf16 amx_tile", torch.bfloat16),
        ("flags\t\t: fpu avx512f amx_bf16", torch.bfloat16),
        ("flags\t\t: fpu avx2 avx512f", torch.float32),
        ("Features\t: fp asimd bf16 i8mm", torch.float32),
        ("Features\t: fp asimd", torch.float32),
    ],
)
def test_automatic_precision_of_a_cpu(line, expected, monkeypatch, tmp_path):
    information = tmp_path / "cpuinfo"
    information.write_text(f"processor\t: 0\n{line}\n")
    monkeypatch.setattr(estimate, "Path", {"/proc/cpuinfo": information}.__getitem__)
    assert estimate.resolved_precision(replace(CONFIG, precision="auto"), CPU) == expected
