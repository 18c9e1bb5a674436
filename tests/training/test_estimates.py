"""The memory estimate against what autograd keeps, and its refusals."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from barlow_fast.data import load
from barlow_fast.models import build_twins
from barlow_fast.training import PRESETS, Trainer, configure, estimate

CPU = torch.device("cpu")
CONFIG = configure(
    "digits", batch_size=64, encoder_widths=(16, 32), projector=(128, 256), precision="fp32"
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


@pytest.mark.parametrize("changes", [{}, {"one_pass": True}, {"checkpoint_activations": True}])
def test_activations_are_those_of_a_real_step(changes: dict):
    config = replace(CONFIG, **changes)
    with Trainer(config, load("digits")) as trainer:
        trainer.network.train()
        real = kept_bytes(trainer)
    guess = estimate.estimate_memory(config, 1, 8, CPU)
    assert guess.activations == pytest.approx(real, rel=0.1)


def test_what_is_kept_shrinks_with_micro_batches_recomputation_and_shards():
    config = replace(PRESETS["imagenet100"], batch_size=64)
    whole = estimate.estimate_memory(config, 3, 64, CPU)
    parts = estimate.estimate_memory(replace(config, micro_batch_size=16), 3, 64, CPU)
    again = estimate.estimate_memory(replace(config, checkpoint_activations=True), 3, 64, CPU)
    shards = estimate.estimate_memory(replace(config, parallel="fsdp"), 3, 64, CPU, ranks=4)
    assert parts.activations == pytest.approx(whole.activations / 4, rel=0.01)
    assert again.activations < 0.6 * whole.activations
    assert shards.parameters == whole.parameters // 4
    model = build_twins("resnet18", image_size=64, projector=config.projector)
    assert whole.parameters == 4 * sum(p.numel() for p in model.parameters())
    for memory in (whole, parts, again, shards):
        assert memory.total > memory.activations + memory.parameters


def test_what_does_not_fit_is_refused_with_what_helps(monkeypatch):
    monkeypatch.setattr(estimate, "available_memory", lambda device: 2**30)
    config = PRESETS["imagenet-1000ep"]
    memory = estimate.estimate_memory(config, 3, 224, CPU)
    with pytest.raises(ValueError, match=r"(?s)does not fit.*--micro-batch-size 512.*--batch-size"):
        estimate.check_memory(memory, config, CPU)
    small = estimate.estimate_memory(CONFIG, 1, 8, CPU)
    estimate.check_memory(small, CONFIG, CPU)
    monkeypatch.setattr(estimate, "available_memory", lambda device: None)
    estimate.check_memory(memory, config, CPU)


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
