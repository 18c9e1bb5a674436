"""Settings of whole runs, by name, and how they are changed: YAML files and `name=value`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from ..data.views import shown
from ..inputs import parse_yaml, read_yaml
from ..losses.catalogue import FROSSL, MIXED, VICREG
from ..terminal import printable
from .config import MUON, PretrainConfig, check_type

# Of settings whose option of the command has another name.
OPTIONS = {"lr": "learning_rate", "dim": "projector"}
ANNOTATIONS = {field.name: field.type for field in fields(PretrainConfig)}

# The paper's: section 2.2 and appendix A of Zbontar et al. (ICML 2021), and the authors' code for
# what the paper leaves out (learning rates are per 256 images).
_PAPER = PretrainConfig(
    dataset="files",
    views="imagenet",
    encoder="resnet50",
    projector=(8192, 8192, 8192),
    epochs=1000,
    batch_size=2048,
    optimizer="lars",
    learning_rate=0.2,
    bias_learning_rate=0.0048,
    reference_batch_size=256,
    weight_decay=1e-6,
    warmup_epochs=10,
    evaluate_every=10,
    neighbours=20,
    checkpoint_every=1,
)

# Of small colour images, after solo-learn's settings for CIFAR; the learning rates are the paper's.
_SMALL_IMAGES = replace(
    _PAPER,
    views="",
    encoder="resnet18",
    projector=(2048, 2048, 2048),
    epochs=1000,
    batch_size=256,
    weight_decay=1e-4,
)

# Bardes, Ponce, LeCun, *VICReg* (ICLR 2022), and the authors' code and commands: biases and norms
# have the rate of the weights, which is another one for 100 epochs.
_VICREG = replace(_PAPER, loss=VICREG, bias_learning_rate=None)
# In solo-learn's sizes; the learning rates are the paper's.
_SMALL_VICREG = replace(
    _VICREG, views="", encoder="resnet18", projector=(2048, 2048, 2048), batch_size=256,
    weight_decay=1e-4,
)  # fmt: skip

# Bandara, De Melo, Patel, *Guarding Barlow Twins Against Overfitting with Mixed Samples* (2023),
# and the authors' scripts of ResNet-18, where it is Adam and embeddings have unit length. On
# ImageNet their code halves the weight, and lets it rise over the warm-up.
_MIXED = PretrainConfig(
    dataset="cifar10",
    encoder="resnet18",
    projector=(512, 1024),
    loss=MIXED,
    lambd=0.0078125,
    mixing=4.0,
    epochs=2000,
    batch_size=256,
    learning_rate=0.01,
    reference_batch_size=256,
    weight_decay=1e-6,
    warmup_epochs=10,
    neighbours=20,
    checkpoint_every=1,
)

# Skean et al., *FroSSL* (ECCV 2024), in the sizes and with the weights of solo-learn's settings for
# it; the learning rates are those of the Barlow Twins paper, since solo-learn's LARS is another.
_FROSSL = replace(
    _SMALL_IMAGES, dataset="cifar10", projector=(2048, 2048, 1024), loss=FROSSL, invariance=1.4
)

PRESETS: dict[str, PretrainConfig] = {
    # FroSSL by cross-validation on the training images: 98.5 % by k-NN, Barlow Twins 97.7.
    "digits": PretrainConfig(loss=FROSSL),
    # By the experiments of `python -m bench speedrun`.
    "fashion-mnist": PretrainConfig(
        dataset="fashion-mnist",
        loss=FROSSL,
        epochs=4,
        batch_size=256,
        optimizer=MUON,
        momentum=0.95,
        learning_rate=8e-3,
        stem="small",
        encoder_widths=(16, 32, 64, 128),
        encoder_grid=4,
        warmup_epochs=1,
        evaluate_every=2,
        neighbours=20,
    ),
    "cifar10": replace(_SMALL_IMAGES, dataset="cifar10"),
    "cifar100": replace(_SMALL_IMAGES, dataset="cifar100"),
    "stl10": replace(_SMALL_IMAGES, dataset="stl10", epochs=400, weight_decay=1e-5),
    "imagenet100": replace(
        _PAPER, encoder="resnet18", projector=(2048, 2048, 2048), epochs=400, batch_size=256
    ),
    # 256 images are what one large GPU holds.
    "imagenet-100ep": replace(_PAPER, epochs=100, batch_size=256, weight_decay=1.5e-6),
    "imagenet-1000ep": _PAPER,
    # A first look at any folder of photographs, on a CPU too: an encoder with a stage for each
    # halving from 224 pixels down to 14.
    "files": PretrainConfig(
        dataset="files",
        views="imagenet",
        epochs=20,
        batch_size=64,
        encoder_widths=(16, 32, 64, 128, 256),
        warmup_epochs=2,
        evaluate_every=1,
    ),
    "vicreg-cifar10": replace(_SMALL_VICREG, dataset="cifar10"),
    "vicreg-cifar100": replace(_SMALL_VICREG, dataset="cifar100"),
    "vicreg-imagenet100": replace(
        _SMALL_VICREG, dataset="files", views="imagenet", epochs=400, weight_decay=1e-6
    ),
    "vicreg-imagenet-100ep": replace(_VICREG, epochs=100, batch_size=512, learning_rate=0.3),
    "vicreg-imagenet-1000ep": _VICREG,
    "mixed-barlow-twins-cifar10": _MIXED,
    "mixed-barlow-twins-cifar100": replace(_MIXED, dataset="cifar100", projector=(512, 2048)),
    "mixed-barlow-twins-stl10": replace(_MIXED, dataset="stl10", mixing=2.0),
    "mixed-barlow-twins-imagenet-300ep": replace(
        _PAPER, loss=MIXED, mixing=0.5, epochs=300, batch_size=1024
    ),
    "frossl-cifar10": _FROSSL,
    "frossl-cifar100": replace(_FROSSL, dataset="cifar100"),
    # In the authors' own settings.
    "frossl-stl10": replace(_FROSSL, dataset="stl10", invariance=1.0, epochs=500),
    "frossl-imagenet100": replace(
        _FROSSL, dataset="files", views="imagenet", invariance=1.0, epochs=400, batch_size=512
    ),
}


def preset_of(dataset: str) -> str:
    """The default preset of a data set."""
    if dataset in PRESETS and PRESETS[dataset].dataset == dataset:
        return dataset
    known = [name for name, preset in PRESETS.items() if preset.dataset == name != "files"]
    raise ValueError(f"unknown data set {dataset!r}; there are {', '.join(known)}")


def configure(preset: str, **choices: Any) -> PretrainConfig:
    """A preset with some values replaced; a choice of None keeps the preset's.

    A run shorter than the preset's warm-up has a warm-up as long as itself.

    Raises:
        ValueError: no preset or no setting of that name, a value of the wrong type or out of its
            range.
    """
    base = find(preset)
    chosen = {name: _typed(name, value) for name, value in choices.items() if value is not None}
    return replace(base, **fitting(base, chosen))


def override(
    base: PretrainConfig, file: Path | None = None, assignments: Sequence[str] = ()
) -> tuple[PretrainConfig, dict[str, Any]]:
    """`base` with the values of a YAML file, then with those of `name=value` texts.

    Args:
        base: the settings to start from.
        file: a mapping of names of `PretrainConfig` to values; unnamed ones stay as they are.
        assignments: such as `epochs=20` or `projector=[2048,2048,2048]`.

    Returns:
        The settings, and the values that were named, as plain containers.

    Raises:
        ImportError: PyYAML is not installed.
        OSError: the file cannot be read.
        ValueError: not YAML, an unknown name, a value of the wrong type or out of its range.
    """
    parts = [] if file is None else [(printable(str(file)), lambda: _settings_in(file))]
    parts += [(repr(text), partial(_assigned, text)) for text in assignments]
    named: dict[str, Any] = {}
    for place, read in parts:
        try:
            values = read()
            values.pop("preset", None)
            named |= {name: _typed(name, value) for name, value in values.items()}
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from None
    return replace(base, **fitting(base, named)), named


def preset_in(file: Path) -> str | None:
    """The preset that a YAML file of settings builds on, if it names one.

    Raises:
        OSError: the file cannot be read.
        ValueError: not YAML, or something else than a name.
    """
    try:
        preset = _settings_in(file).get("preset")
        if preset is not None and not isinstance(preset, str):
            raise ValueError(f"preset must be a name, got {shown(preset)}")
    except ValueError as error:
        raise ValueError(f"{printable(str(file))}: {error}") from None
    return preset


def _settings_in(file: Path) -> dict[str, Any]:
    values = read_yaml(file)
    if values is not None and not isinstance(values, dict):
        raise ValueError(f"must be a mapping of settings to values, got {shown(values)}")
    return values or {}


def _assigned(text: str) -> dict[str, Any]:
    """The setting of `name=value`."""
    name, equals, given = text.partition("=")
    if not equals:
        raise ValueError("settings are given as name=value, such as epochs=20")
    value = parse_yaml(given)
    # YAML takes a bare off, null or 18 for something else than text.
    as_text = ANNOTATIONS.get(name) == "str" and not isinstance(value, str)
    return {name: given if as_text else value}


def _typed(name: object, value: Any) -> Any:
    """The value of a setting, of its type; whole numbers do where others are expected."""
    if name not in ANNOTATIONS:
        raise ValueError(_unknown(name))
    check_type(name, value, ANNOTATIONS[name])
    if "float" in ANNOTATIONS[name] and isinstance(value, int):
        if abs(value) > sys.float_info.max:
            raise ValueError(f"{name} is too large a number")
        return float(value)
    return value


def find(preset: str) -> PretrainConfig:
    """The preset of that name; ValueError with all names where there is none."""
    if preset not in PRESETS:
        raise ValueError(f"unknown preset {preset!r}; there are {', '.join(PRESETS)}")
    return PRESETS[preset]


def fitting(base: PretrainConfig, chosen: dict[str, Any]) -> dict[str, Any]:
    """The values chosen, and a warm-up that is no longer than the run."""
    epochs = chosen.get("epochs", base.epochs)
    if "warmup_epochs" in chosen or epochs < 1:
        return chosen
    return chosen | {"warmup_epochs": min(base.warmup_epochs, epochs)}


def _unknown(name: object) -> str:
    from difflib import get_close_matches

    word = OPTIONS.get(name, name[:80]) if isinstance(name, str) else ""
    close = get_close_matches(word, ANNOTATIONS, n=1)
    hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(ANNOTATIONS)}"
    return f"unknown setting {shown(name)}; {hint}"
