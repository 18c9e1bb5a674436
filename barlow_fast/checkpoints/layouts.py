"""Layouts of checkpoints: how each is recognised, and where the encoder and the projector are.

| format | where the weights are | encoder | projector | left out |
|---|---|---|---|---|
| barlow_fast | `model` | `encoder.*` | `projector.*` | |
| barlow_fast under Lightning | `state_dict` | `model.encoder.*` | `model.projector.*` | |
| official | `model`, with `module.` | `backbone.*` | `projector.{0,1,3,4,6}` | `bn.*` |
| solo-learn | `state_dict` | `backbone.*` | `projector.{0,1,3,4,6}` | classifiers, momentum twins |
| lightly | `state_dict` | `backbone.*` | `projection_head.layers.{0,1,3,4,6}` | classifiers |
| mmselfsup | `state_dict` | `backbone.*` | `neck.{fc,bn}{0,1,2}` | `head.*` |
| vissl | `classy_state_dict.base_model.model.trunk` | `_feature_blocks.*` | | heads |
| torchvision, timm | the file, `model` or `state_dict` | all | | the classifier |

The official `resnet50.pth` is of the last kind. Encoders that were wrapped into a sequence, as in
lightly's examples, get torchvision's names back.
"""

from __future__ import annotations

import re
from argparse import Namespace
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from .archive import PRETRAIN
from .reading import check_tensors

# Of batch norms; files from before torch 0.4.1 have none, and nothing in eval mode reads them.
COUNTERS = "num_batches_tracked"
# Parts of keys that are a wrapper's name for what it wraps, wherever it stands: of DDP and averaged
# models, torch.compile, FSDP, activation checkpoints, FairScale and Lightning's Fabric.
WRAPPERS = {
    "module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_fpw_module",
    "_forward_module", "_original_module",
}  # fmt: skip
# First parts of keys that belong to no encoder, by format.
HEADS = {
    "official": {"projector", "bn"},
    "solo-learn": {
        "projector", "predictor", "classifier", "momentum_backbone", "momentum_projector",
        "momentum_classifier",
    },
    "lightly": {"projection_head", "prediction_head", "online_classifier", "criterion"},
    "mmselfsup": {"neck", "head", "data_preprocessor"},
}  # fmt: skip
# The arguments of `BarlowTwinsModule`, which Lightning stores.
OF_MODULE = {"config", "channels", "image_size", "mean", "std"}
DEPTHS = {
    # (has three convolutions in a block, blocks, shape of the first block's second convolution)
    (False, (2, 2, 2, 2), (64, 64)): "resnet18",
    (False, (3, 4, 6, 3), (64, 64)): "resnet34",
    (True, (3, 4, 6, 3), (64, 64)): "resnet50",
    (True, (3, 4, 23, 3), (64, 64)): "resnet101",
    (True, (3, 8, 36, 3), (64, 64)): "resnet152",
    (True, (3, 4, 6, 3), (128, 128)): "wide_resnet50_2",
    (True, (3, 4, 23, 3), (128, 128)): "wide_resnet101_2",
    (True, (3, 4, 6, 3), (128, 4)): "resnext50_32x4d",
    (True, (3, 4, 23, 3), (256, 8)): "resnext101_32x8d",
    (True, (3, 4, 23, 3), (256, 4)): "resnext101_64x4d",
}


@dataclass(frozen=True)
class Parts:
    """A checkpoint taken apart, with the names of our modules."""

    format: str
    encoder: dict[str, Tensor]
    projector: dict[str, Tensor] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)  # plain values beside the weights
    small_stem: str = "small"  # of a ResNet whose first convolution is 3 x 3; see build_encoder


def take_apart(content: Mapping[str, Any], path: Path | str) -> Parts:
    """Recognises the layout.

    Raises:
        ValueError: no layout that is known, or keys that its layout does not have.
    """
    details = {
        key: content[key]
        for key in ("epoch", "step", "global_step", "version", "versions", "config", "image")
        if isinstance(content.get(key), (int, float, str, dict, list))
    }
    settings = content.get("args", content.get("hyper_parameters"))
    if isinstance(settings, Namespace):
        settings = vars(settings)
    if isinstance(settings, Mapping):
        details["settings"] = dict(settings)
    if content.get("format") == PRETRAIN:
        return _ours(content, path, details)
    if isinstance(settings, Mapping) and set(settings) >= OF_MODULE:
        return _module(content, settings, path, details)
    if "classy_state_dict" in content:
        return _vissl(content, path, details)
    nested = next(
        (key for key in ("state_dict", "model") if isinstance(content.get(key), Mapping)), None
    )
    state = _unwrapped(check_tensors(content[nested] if nested else content, path), path)
    if not state:
        raise ValueError(f"{path} holds no weights")
    first_parts = {key.split(".", 1)[0] for key in state}
    if "backbone" not in first_parts:
        encoder, small_stem = _torchvision_names(state)
        return Parts("torchvision", encoder, {}, details, small_stem)
    layout = _backbone_layout(first_parts, nested)
    unknown = first_parts - HEADS[layout] - {"backbone"}
    if unknown:
        strange = [key for key in state if key.split(".", 1)[0] in unknown]
        raise ValueError(
            f"{path} looks like a checkpoint of {layout}, which has no {first_few(strange)}"
        )
    encoder, small_stem = _torchvision_names(_under("backbone.", state))
    if layout == "solo-learn" and small_stem == "small":
        small_stem = "small-padding-2"  # which no shape shows
    return Parts(layout, encoder, _projector_of(layout, state), details, small_stem)


def infer_resnet(state: Mapping[str, Tensor], small_stem: str) -> tuple[str, str] | None:
    """Name and stem of the ResNet that has these keys and shapes; None where there is none."""
    stem = state.get("conv1.weight")
    block = state.get("layer1.0.conv2.weight")
    if stem is None or block is None or stem.ndim != 4 or block.ndim != 4:
        return None
    blocks = [0] * 4
    for key in state:
        match = re.match(r"layer([1-4])\.(\d{1,3})\.", key)
        if match:
            blocks[int(match[1]) - 1] = max(blocks[int(match[1]) - 1], int(match[2]) + 1)
    bottleneck = "layer1.0.conv3.weight" in state
    name = DEPTHS.get((bottleneck, tuple(blocks), tuple(block.shape[:2])))
    if name is None:
        return None
    if stem.shape[-1] == 7:
        return name, "imagenet"
    return (name, small_stem) if stem.shape[-1] == 3 else None


def _ours(content: Mapping[str, Any], path: Path | str, details: dict[str, Any]) -> Parts:
    if not isinstance(content.get("model"), Mapping) or not isinstance(details.get("config"), dict):
        raise ValueError(f"{path} is a checkpoint of barlow-fast without model or config")
    state = _unwrapped(check_tensors(content["model"], path), path)
    strange = [key for key in state if not key.startswith(("encoder.", "projector."))]
    if strange:
        raise ValueError(f"{path} has keys that no model of ours has: {first_few(strange)}")
    return Parts("barlow_fast", _under("encoder.", state), _under("projector.", state), details)


def _module(
    content: Mapping[str, Any],
    settings: Mapping[str, Any],
    path: Path | str,
    details: dict[str, Any],
) -> Parts:
    """As Lightning writes `BarlowTwinsModule`."""
    state = content.get("state_dict")
    if not isinstance(state, Mapping):
        raise ValueError(f"{path} is a Lightning checkpoint of barlow_fast without state_dict")
    image = {"channels": settings["channels"], "size": settings["image_size"]}
    image |= {key: settings[key] for key in ("mean", "std") if settings[key] is not None}
    ours = {"model": _under("model.", _unwrapped(check_tensors(state, path), path))}
    return _ours(ours, path, {**details, "config": settings["config"], "image": image})


def _vissl(content: Mapping[str, Any], path: Path | str, details: dict[str, Any]) -> Parts:
    trunk: Any = content
    for key in ("classy_state_dict", "base_model", "model", "trunk"):
        trunk = trunk.get(key) if isinstance(trunk, Mapping) else None
    if not isinstance(trunk, Mapping):
        raise ValueError(f"{path} is a VISSL checkpoint without classy_state_dict...model.trunk")
    state = _unwrapped(check_tensors(trunk, path), path)
    marker = "_feature_blocks."
    strange = [key for key in state if marker not in key]
    if strange:
        raise ValueError(f"{path}: the trunk has keys outside {marker}*: {first_few(strange)}")
    return Parts("vissl", {key.split(marker, 1)[1]: v for key, v in state.items()}, {}, details)


def _backbone_layout(first_parts: set[str], nested: str | None) -> str:
    if "projection_head" in first_parts or "online_classifier" in first_parts:
        return "lightly"
    if first_parts & {"neck", "head"}:
        return "mmselfsup"
    if nested == "model" or "bn" in first_parts:
        return "official"
    return "solo-learn"


def _projector_of(layout: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    if layout == "lightly":
        return _under("projection_head.layers.", state)
    if layout != "mmselfsup":
        return _under("projector.", state)
    renamed = {}
    for key, value in _under("neck.", state).items():
        match = re.fullmatch(r"(fc|bn)(\d{1,2})\.(\w+)", key)
        if match:
            position = 3 * int(match[2]) + (match[1] == "bn")
            renamed[f"{position}.{match[3]}"] = value
    return renamed


def unwrapped(key: str) -> str:
    """A key less the names that wrappers put into it, in any order and at any depth."""
    return ".".join(part for part in key.split(".") if part not in WRAPPERS)


def _unwrapped(state: dict[str, Tensor], path: Path | str) -> dict[str, Tensor]:
    found: dict[str, str] = {}
    for key in state:
        if found.setdefault(unwrapped(key), key) != key:
            raise ValueError(
                f"{path} has {found[unwrapped(key)]} and {key}, which name one weight with and "
                "without wrappers: take one of the two models out of the file"
            )
    # torch's AveragedModel counts beside the model that it wraps.
    return {name: state[key] for name, key in found.items() if name != "n_averaged"}


def without_shared_prefix(parts: Parts, expected: Iterable[str]) -> Parts:
    """Less what all keys of the encoder begin with, if what follows are the `expected` keys."""
    wanted = {unwrapped(key) for key in expected if not key.endswith(COUNTERS)}
    state = parts.encoder
    while True:
        encoder, small_stem = _torchvision_names(state)
        if wanted <= encoder.keys():
            return replace(parts, encoder=encoder, small_stem=small_stem)
        prefix = f"{next(iter(state), '').split('.', 1)[0]}."
        if not all(key.startswith(prefix) for key in state):
            return parts
        state = _under(prefix, state)


def _under(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def _torchvision_names(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """Names of a ResNet whose children stand in a sequence: 0 is the convolution, 1 its norm, and
    the four that have blocks are the layers. lightly's own ResNet calls a downsampling a shortcut.

    Also the stem, if it is a small one. Layers right after the norm have no ReLU before them: a
    sequence of the parts of lightly's ResNet, as in its small benches, loses the function.
    """
    state = {key.replace(".shortcut.", ".downsample."): value for key, value in state.items()}
    layers = sorted(
        {int(m[1]) for key in state if (m := re.match(r"(\d{1,2})\.\d{1,3}\.conv1\.", key))}
    )
    if len(layers) != 4:
        return state, "small"
    names = {0: "conv1", 1: "bn1"} | {old: f"layer{n}" for n, old in enumerate(layers, 1)}
    renamed = {}
    for key, value in state.items():
        first, _, rest = key.partition(".")
        known = first.isdecimal() and int(first) in names
        renamed[f"{names[int(first)]}.{rest}" if known else key] = value
    return renamed, "small-without-relu" if layers[0] == 2 else "small"


def first_few(keys: list[str]) -> str:
    """The first keys of a list, for an error."""
    more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
    return ", ".join(keys[:3]) + more
