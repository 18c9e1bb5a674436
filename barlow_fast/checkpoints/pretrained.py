"""Pretrained encoders, from the files of this and other libraries."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..models import Architecture, Projector, build_encoder
from ..models.encoders import SMALL_IMAGE
from .layouts import (
    COUNTERS,
    Parts,
    first_few,
    infer_resnet,
    take_apart,
    unwrapped,
    without_shared_prefix,
)
from .reading import DIGEST, check_tensors, read_checkpoint

LARGEST_SIDE = 2**15  # of images and grids that a file may describe, in pixels or positions
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Pretrained:
    """An encoder with weights, and what its images must look like.

    Where the file does not say, `mean` and `std` are ImageNet's for 3 channels and 0 and 1
    otherwise, and `image_size` is 32 for ResNets with a small stem and 224 otherwise;
    `metadata["assumed"]` lists which of them were.
    """

    encoder: nn.Module  # in eval mode, on the CPU
    name: str  # as build_encoder takes it
    features: int
    channels: int
    image_size: int  # pixels a side
    mean: tuple[float, ...]  # of values in [0, 1], by channel
    std: tuple[float, ...]
    format: str  # the layout that was recognised; see `layouts`
    projector: nn.Module | None  # in eval mode; None where the file has none that is known
    metadata: dict[str, Any]  # plain values that the file holds beside the weights
    path: Path | None = None  # of the file; None where there is none

    @property
    def architecture(self) -> Architecture:
        """How to build another encoder of this shape."""
        return self.encoder.architecture


def load_encoder(
    path: Path | str,
    *,
    encoder: str | None = None,
    channels: int | None = None,
    image_size: int | None = None,
) -> Pretrained:
    """The encoder of a checkpoint or weights file.

    Read are checkpoints of `barlow-fast pretrain`, of the official code (`checkpoint.pth` and
    `resnet50.pth`), solo-learn, lightly, mmselfsup and mmpretrain, and VISSL; state dicts of
    torchvision and timm; safetensors. Nothing in a file is run.

    Args:
        path: of the file.
        encoder: the architecture, as `build_encoder` takes it. Needed where the file does not
            state it: ResNets are recognised by their shapes. With it, any prefix that all keys of
            the file share is dropped; names of wrappers (DDP, torch.compile, FSDP) are always.
        channels: of the images, if they must be so many.
        image_size: pixels a side, where the file does not state it.

    Raises:
        FileNotFoundError: no such file.
        ValueError: damaged; objects whose loading would run code; a layout or architecture that is
            not known; another architecture than `encoder`; keys missing or too many (the first
            are listed), or of other shapes.
        ModuleNotFoundError: a library that the file or the architecture needs is not installed.
    """
    content, attached = read_checkpoint(path)
    parts = take_apart(content, path)
    if encoder is not None and parts.format == "torchvision":
        with torch.random.fork_rng(devices=[]):
            # Keys depend on no size.
            hollow = _hollow(Architecture(encoder, 3, image_size or 224, "imagenet"))
        parts = without_shared_prefix(parts, hollow.state_dict())
    if attached is not None:
        parts = replace(parts, format="safetensors", details=_attached(attached, path))
    architecture, assumed = _architecture(parts, path, encoder, image_size)
    network, architecture = _filled(architecture, parts, path, channels)
    mean, std, unknown = _normalization(parts, architecture.channels, path)
    projector = _projector(int(network.features), parts.projector, path)
    return Pretrained(
        encoder=network,
        name=architecture.name,
        features=int(network.features),
        channels=architecture.channels,
        image_size=architecture.image_size,
        mean=mean,
        std=std,
        format="timm" if _is_timm(architecture, parts) else parts.format,
        projector=projector,
        metadata={**parts.details, "assumed": assumed + unknown},
        path=Path(path),
    )


def load_projector(path: Path | str, *, encoder: str | None = None) -> nn.Module:
    """The projector of a checkpoint, in eval mode: (B, features) -> (B, D).

    A `Projector` where no layer has a bias; lightly's and solo-learn's have some and come as a
    sequence of the same layers.

    Raises:
        ValueError: there is none, or one of another layout; and as `load_encoder`.
        FileNotFoundError, ModuleNotFoundError: as `load_encoder`.
    """
    loaded = load_encoder(path, encoder=encoder)
    if loaded.projector is None:
        raise ValueError(f"{path} ({loaded.format}) holds no projector of a known layout")
    return loaded.projector


def _is_timm(architecture: Architecture, parts: Parts) -> bool:
    return parts.format == "torchvision" and architecture.name.startswith("timm:")


def _architecture(
    parts: Parts, path: Path | str, encoder: str | None, image_size: int | None
) -> tuple[Architecture, list[str]]:
    """What to build, and which of it is a guess. Channels 0: to be found out."""
    stated = _stated(parts, path)
    if stated is not None:
        if encoder not in (None, stated.name):
            raise ValueError(f"{path} holds a {stated.name!r}, not a {encoder!r}")
        assumed = [] if image_size or stated.image_size else ["image_size"]
        size = image_size or stated.image_size or _usual_size(stated.stem)
        return replace(stated, image_size=size), assumed
    found = infer_resnet(parts.encoder, parts.small_stem)
    if found is None and encoder is None:
        raise ValueError(
            f"{path} ({parts.format}) does not state its architecture, and it is no ResNet of "
            f"torchvision (it has {first_few(list(parts.encoder))}): give encoder="
        )
    name, stem = found or (encoder, "imagenet")
    if encoder is not None and _plain(encoder) != _plain(name):
        raise ValueError(f"{path} holds a {name!r}, not a {encoder!r}")
    channels = parts.encoder["conv1.weight"].shape[1] if found else 0
    size = image_size or _usual_size(stem)
    assumed = [] if image_size else ["image_size"]
    return Architecture(encoder or name, channels, size, stem), assumed


def _plain(name: str) -> str:
    # timm's ResNets and torchvision's have the same names and keys.
    return name.removeprefix("timm:").split(".", 1)[0]


def _usual_size(stem: str) -> int:
    return 32 if stem.startswith("small") else 224


def _stated(parts: Parts, path: Path | str) -> Architecture | None:
    """The architecture that our own files state."""
    details = parts.details
    try:
        if parts.format == "barlow_fast":
            config, image = details["config"], details.get("image", {})
            name = config.get("encoder", "small")
            values = (name, image.get("channels", 0), image.get("size", 0))
            stem = config.get("stem", "auto")
            widths, grid = config.get("encoder_widths", ()), config.get("encoder_grid", 2)
        elif parts.format == "safetensors" and "name" in details:
            values = (details["name"], details["channels"], details["image_size"])
            name, stem = details["name"], details["stem"]
            widths, grid = details.get("widths", ()), details.get("grid", 2)
        else:
            return None
        if not all(isinstance(value, int) for value in (*values[1:], *widths, grid)):
            raise TypeError("sizes that are not whole numbers")
        if not isinstance(name, str) or not isinstance(stem, str):
            raise TypeError("names that are not text")
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} describes its encoder wrongly: {error}") from error
    # What the weights cannot bear out would only take time and memory to build.
    if len(widths) > len(parts.encoder):
        raise ValueError(f"{path} describes {len(widths)} stages and has fewer weights")
    largest = max((side for value in parts.encoder.values() for side in value.shape), default=0)
    if max(widths, default=0) > largest or max(*values[1:], grid) > LARGEST_SIDE:
        raise ValueError(
            f"{path} describes sizes that its weights do not have: widths {list(widths)}, "
            f"channels {values[1]}, image_size {values[2]}, grid {grid}"
        )
    if name == "small":
        if stem == "auto":
            stem = "small" if values[2] <= SMALL_IMAGE else "imagenet"
        return Architecture(name, *values[1:], stem, tuple(widths), grid)
    if stem == "auto" and not values[2]:
        # The size is unknown; the shapes decide.
        stem = (infer_resnet(parts.encoder, parts.small_stem) or (name, "imagenet"))[1]
    return Architecture(name, *values[1:], stem)


def _attached(metadata: Mapping[str, str], path: Path | str) -> dict[str, Any]:
    """What `export` attached to a safetensors file; others' metadata as it is."""
    if metadata.get("format_of") != "barlow_fast":
        return dict(metadata)
    try:
        return {
            key: value
            if key in ("name", "stem", "format", "format_of", DIGEST)
            else json.loads(value)
            for key, value in metadata.items()
        }
    except ValueError as error:
        raise ValueError(f"{path} has unreadable metadata: {error}") from error


def _filled(
    architecture: Architecture, parts: Parts, path: Path | str, channels: int | None
) -> tuple[nn.Module, Architecture]:
    """The encoder with the file's weights, in eval mode.

    Its shapes are compared before there is memory for it: a file does not decide how much that is.
    """
    state = check_tensors(parts.encoder, path)
    with torch.random.fork_rng(devices=[]):
        if not architecture.channels:
            hollow = _hollow(replace(architecture, channels=3))
            architecture = replace(architecture, channels=_channels(hollow, state, path))
        if channels not in (None, architecture.channels):
            raise ValueError(
                f"{path} holds an encoder of images with {architecture.channels} channels, "
                f"not {channels}"
            )
        hollow = _hollow(architecture)
        # Some architectures have a part of their own that is called as a wrapper's is.
        names = {unwrapped(key): key for key in hollow.state_dict()}
        state = {names.get(key, key): value for key, value in state.items()}
        state = _without_heads(state, hollow)
        _compare(hollow.state_dict(), state, architecture.name, path)
        network = build_encoder(**architecture.arguments())
        network.load_state_dict(state)
    return network.eval(), network.architecture


def _hollow(architecture: Architecture) -> nn.Module:
    arguments = architecture.arguments()
    try:
        with torch.device("meta"):
            return build_encoder(**arguments)
    except NotImplementedError:
        # A network that computes its own shape with tensors; its name alone decides its size.
        return build_encoder(**arguments)


def _channels(hollow: nn.Module, state: Mapping[str, Tensor], path: Path | str) -> int:
    """Channels of the images, from the first convolution's weight."""
    convolutions = (p for p, m in hollow.named_modules() if isinstance(m, nn.Conv2d))
    path_of_first = next(convolutions, "")
    weight = state.get(f"{path_of_first}.weight")
    if weight is None or weight.ndim != 4:
        raise ValueError(
            f"{path} is of another architecture than {hollow.architecture.name!r}: it has no "
            f"{path_of_first}.weight of four dimensions"
        )
    return weight.shape[1]


def _without_heads(state: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """Less the classifiers, which an encoder does not have."""
    heads = ["AuxLogits.", "aux1.", "aux2."]
    if network.removed_head:
        heads.append(f"{network.removed_head}.")
    return {key: value for key, value in state.items() if not key.startswith(tuple(heads))}


def _compare(
    expected: Mapping[str, Tensor], state: Mapping[str, Tensor], name: str, path: Path | str
) -> None:
    # Files from before torch 0.4.1 have no counters; torch then starts them at 0.
    missing = [k for k in expected if k not in state and not k.endswith(COUNTERS)]
    unexpected = [key for key in state if key not in expected]
    problems = []
    if missing:
        problems.append(f"without {first_few(missing)}")
    if unexpected:
        problems.append(f"with {first_few(unexpected)}, which it does not have")
    shapes = [
        f"{key} of shape {tuple(state[key].shape)} for {tuple(expected[key].shape)}"
        for key in expected
        if key in state and state[key].shape != expected[key].shape
    ]
    if shapes:
        problems.append(f"with {first_few(shapes)}")
    if problems:
        raise ValueError(f"{path} does not fit encoder {name!r}: {'; '.join(problems)}")


def _normalization(
    parts: Parts, channels: int, path: Path | str
) -> tuple[tuple[float, ...], tuple[float, ...], list[str]]:
    source = parts.details.get("image") if parts.format == "barlow_fast" else parts.details
    stated = isinstance(source, dict) and "mean" in source and "std" in source
    if not stated or parts.format not in ("barlow_fast", "safetensors"):
        if channels == 3:
            return IMAGENET_MEAN, IMAGENET_STD, ["mean", "std"]
        return (0.0,) * channels, (1.0,) * channels, ["mean", "std"]
    try:
        mean, std = (tuple(float(value) for value in source[key]) for key in ("mean", "std"))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} has a mean or std that is not numbers") from error
    fits = len(mean) == len(std) == channels and all(map(math.isfinite, mean))
    if not fits or not all(0 < value < math.inf for value in std):
        raise ValueError(f"{path}: mean {mean} and std {std} do not fit {channels} channels")
    return mean, std, []


def _projector(features: int, state: dict[str, Tensor], path: Path | str) -> nn.Module | None:
    """Linear, batch norm and ReLU in turn; None where the keys are not of that kind."""
    linear = sorted(
        int(key.partition(".")[0])
        for key, value in state.items()
        if key.partition(".")[0].isdecimal() and key.endswith(".weight") and value.ndim == 2
    )
    if not linear or linear != list(range(0, 3 * len(linear), 3)):
        return None
    check_tensors(state, path)
    widths = [state[f"{position}.weight"].shape[0] for position in linear]
    biased = [f"{position}.bias" in state for position in linear]
    with torch.device("meta"):
        projector = _layers(features, widths, biased)
    expected = projector.state_dict()
    if set(expected) != set(state) or any(
        state[key].shape != value.shape for key, value in expected.items()
    ):
        return None
    projector = projector.to_empty(device="cpu")
    projector.load_state_dict(state)
    return projector.eval()


def _layers(features: int, widths: list[int], biased: list[bool]) -> nn.Sequential:
    if not any(biased):
        return Projector(features, widths)
    layers: list[nn.Module] = []
    for width, bias in zip(widths, biased, strict=True):
        layers += [nn.Linear(features, width, bias=bias), nn.BatchNorm1d(width), nn.ReLU()]
        features = width
    return nn.Sequential(*layers[:-2])
