"""What defines a pretraining run: plain values, checked once, stored with every checkpoint."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

PRECISIONS = ("auto", "fp32", "bf16")


@dataclass(frozen=True)
class PretrainConfig:
    """Everything that the resulting weights depend on, besides the data, the device and the
    software.

    Raises:
        ValueError: a value out of its range; the message names it.
    """

    dataset: str = "digits"  # a name, or the path of files
    views: str = ""  # a preset's name, or a YAML file; empty: those of the data set
    epochs: int = 100
    batch_size: int = 128
    encoder_widths: tuple[int, ...] = (32, 64, 128)
    encoder_grid: int = 2
    projector: tuple[int, ...] = (512, 512, 1024)
    lambd: float = 0.0051
    learning_rate: float = 2e-3  # peak, of AdamW
    weight_decay: float = 1e-4  # of weights; biases and norms have none
    warmup_epochs: int = 5
    seed: int = 0
    precision: str = "auto"  # of encoder, projector and loss: fp32, or bf16 by autocast
    backend: str = "auto"  # of the loss
    evaluate_every: int = 10  # epochs between k-NN scores; the last epoch always has one
    neighbours: int = 5
    neighbour_images: int = 10_000  # the first so many training images are the candidates

    def __post_init__(self) -> None:
        for name in ("epochs", "encoder_grid", "evaluate_every", "neighbours", "neighbour_images"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.batch_size < 2:
            raise ValueError(
                f"batch_size must be at least 2, got {self.batch_size}: "
                "the loss standardises over the batch"
            )
        for name in ("encoder_widths", "projector"):
            widths = getattr(self, name)
            if not widths or min(widths) < 1:
                raise ValueError(f"{name} must be positive widths, got {widths}")
        for name, open_end in (("learning_rate", True), ("lambd", False), ("weight_decay", False)):
            value = getattr(self, name)
            if not math.isfinite(value) or value < 0 or (open_end and value == 0):
                raise ValueError(
                    f"{name} must be {'positive' if open_end else 'at least 0'}, got {value}"
                )
        if not 0 <= self.warmup_epochs <= self.epochs:
            raise ValueError(
                f"warmup_epochs must be in [0, epochs = {self.epochs}], got {self.warmup_epochs}"
            )
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"seed must be in [0, 2**64), got {self.seed}")
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {PRECISIONS}, got {self.precision!r}")

    def to_dict(self) -> dict[str, Any]:
        """Plain containers only, so that a checkpoint loads without running code."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> PretrainConfig:
        """The inverse of `to_dict`.

        Raises:
            ValueError: missing or unknown names, or a value out of its range.
        """
        names = {field.name for field in fields(cls)}
        if set(values) != names:
            raise ValueError(
                f"settings that differ from this version's: {sorted(set(values) ^ names)}"
            )
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


PRESETS: dict[str, PretrainConfig] = {
    "digits": PretrainConfig(),
    "fashion-mnist": PretrainConfig(
        dataset="fashion-mnist",
        epochs=5,
        batch_size=256,
        encoder_widths=(16, 32, 64, 128),
        warmup_epochs=1,
        evaluate_every=1,
        neighbours=20,
    ),
    **{
        name: PretrainConfig(
            dataset=name,
            epochs=20,
            batch_size=256,
            encoder_widths=(32, 64, 128, 256),
            warmup_epochs=2,
            evaluate_every=5,
            neighbours=20,
        )
        for name in ("cifar10", "cifar100", "stl10")
    },
}

# For photographs: the encoder has a stage for each halving from 224 pixels down to 14.
FILES = PretrainConfig(
    dataset="files",
    epochs=20,
    batch_size=64,
    encoder_widths=(16, 32, 64, 128, 256),
    warmup_epochs=2,
    evaluate_every=1,
)


def configure(preset: str, **choices: Any) -> PretrainConfig:
    """The preset of a data set, or 'files', with some values replaced; a choice of None keeps the
    preset's.

    A run shorter than the preset's warm-up has a warm-up as long as itself.

    Raises:
        ValueError: no preset of that name, or a value out of its range.
    """
    if preset != FILES.dataset and preset not in PRESETS:
        raise ValueError(f"unknown data set {preset!r}; there are {', '.join(PRESETS)}")
    base = PRESETS.get(preset, FILES)
    chosen = {name: value for name, value in choices.items() if value is not None}
    if "warmup_epochs" not in chosen and chosen.get("epochs", base.epochs) >= 1:
        chosen["warmup_epochs"] = min(base.warmup_epochs, chosen.get("epochs", base.epochs))
    return replace(base, **chosen)
