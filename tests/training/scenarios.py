"""Runs that must be the same on one process and on two."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from barlow_fast.data import ImageDataset, load
from barlow_fast.training import Trainer, configure

CONFIG = configure(
    "digits", loss="barlow-twins",
    epochs=2, batch_size=32, encoder_widths=(8, 16), projector=(32, 64), warmup_epochs=0,
    evaluate_every=1, optimizer="lars", learning_rate=0.2, precision="fp32",
)  # fmt: skip

# On two ranks; alone, `parallel` has no meaning.
SCENARIOS = {
    "ddp": {},
    "fsdp": {"parallel": "fsdp"},
    "one pass": {"one_pass": True},
    "recomputed": {"checkpoint_activations": True},
    "sharded resnet": {"encoder": "resnet18", "parallel": "fsdp"},
    "views of two sizes": {"view_count": 3, "small_views": 2, "one_pass": True},
    "vicreg": {"loss": "vicreg", "view_count": 3},
    "frossl": {"loss": "frossl", "parallel": "fsdp"},
    "mixed": {"loss": "mixed-barlow-twins"},
}
# Whole runs on two ranks.
KINDS = {
    "ddp": {},
    "fsdp": {"parallel": "fsdp"},
    "sgd": {"parallel": "fsdp", "optimizer": "sgd", "learning_rate": 0.01},
}


def part_of(data: ImageDataset, train: int, test: int) -> ImageDataset:
    """The first images."""
    return replace(
        data, train_images=data.train_images[:train], train_labels=data.train_labels[:train],
        test_images=data.test_images[:test], test_labels=data.test_labels[:test],
    )  # fmt: skip


def digits() -> ImageDataset:
    """128 training and 60 test images."""
    return part_of(load("digits"), 128, 60)


def gradients(trainer: Trainer) -> dict[str, Tensor]:
    """Of the first step, whole, with the loss and the buffers after it."""
    trainer.network.train()
    loss = trainer.train_step()["loss"]
    found = {}
    for name, parameter in trainer.model.named_parameters():
        gradient = parameter.grad
        found[name] = gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient
    for name, buffer in trainer.model.named_buffers():
        found[name] = buffer
    return {name: value.detach().clone() for name, value in found.items()} | {
        "loss": loss.clone() if isinstance(loss, Tensor) else torch.tensor(loss)
    }
