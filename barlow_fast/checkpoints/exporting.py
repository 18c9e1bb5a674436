"""Encoders for others: written, read back, and compared before the file gets its name."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..files import whole_file
from ..models.finite import check_finite, check_weights
from . import archive
from .pretrained import Pretrained, load_encoder
from .reading import DIGEST, check_export, optional_library, weights_digest

SUFFIXES = {".pth": "torchvision", ".pt": "torchvision", ".safetensors": "safetensors"}
SUFFIXES[".onnx"] = "onnx"
# Of the largest feature; other kernels add in another order, and over many layers.
TOLERANCE = 1e-4

Format = Literal["torchvision", "timm", "safetensors", "onnx"]  # the keys of FORMATS


def export(pretrained: Pretrained, path: Path | str, format: Format = "torchvision") -> None:
    """Writes the encoder to a file, if what is read back from there computes the same features.

    Formats:
        torchvision: a state dict (.pth) with torchvision's keys, less the classifier: what the
            official code calls `resnet50.pth`.
        timm: a state dict with timm's keys, less the classifier; read back by timm where it is
            installed, and only ResNets where it is not.
        safetensors: the state dict, with name, sizes, mean and std as metadata; `load_encoder`
            needs no arguments for it. Any encoder.
        onnx: the network itself, images (N, channels, image_size, image_size) -> features (N,
            features), N free; name, mean and std are metadata. Any encoder. Images are expected
            normalised, as everywhere here.

    Weights are written in float32. The check is done on the CPU with random images of
    `pretrained.image_size` pixels.

    Raises:
        ValueError: no such format, or one that the encoder does not fit; `path` is the file that
            the encoder comes from, or a training checkpoint; a folder, or in none.
        RuntimeError: weights or features that are not finite, or what was read back is another
            encoder; there is no file then.
        ModuleNotFoundError: the format's library is not installed.
        OSError: the file cannot be written; an old one stays.
    """
    if format not in FORMATS:
        raise ValueError(f"format must be one of {', '.join(FORMATS)}, got {format!r}")
    check_export(path, [] if pretrained.path is None else [pretrained.path])
    check_weights(pretrained.encoder)
    plain = replace(pretrained, encoder=_plain(pretrained.encoder))
    with whole_file(path) as temporary:
        FORMATS[format](plain, temporary)


def _plain(encoder: nn.Module) -> nn.Module:
    """A copy in eval mode on the CPU, in float32: what is compared."""
    return copy.deepcopy(encoder).to("cpu", torch.float32).eval()


def _state(pretrained: Pretrained) -> dict[str, Tensor]:
    return {
        key: value.detach().contiguous().clone()
        for key, value in pretrained.encoder.state_dict().items()
    }


def _torchvision(pretrained: Pretrained, path: Path) -> None:
    _refuse_untold_stem(pretrained)
    name = pretrained.name.removeprefix("timm:")
    from torchvision import models

    if name not in models.list_models(module=models):
        raise ValueError(f"torchvision has no {name!r}; safetensors and onnx take any encoder")
    archive.save(_state(pretrained), path)
    loaded = _read_back(pretrained, path, name)
    _compare(pretrained, loaded.encoder, "torchvision")


def _timm(pretrained: Pretrained, path: Path) -> None:
    _refuse_untold_stem(pretrained)
    name = pretrained.name.removeprefix("timm:")
    try:
        import timm
    except ModuleNotFoundError:
        if "resne" not in name:
            optional_library("timm", "timm", f"to see whether timm has the keys of {name!r}")
        _torchvision(pretrained, path)  # the same keys, for ResNets
        return
    if name.split(".", 1)[0] not in timm.list_models():
        raise ValueError(f"timm has no {name!r}; safetensors and onnx take any encoder")
    archive.save(_state(pretrained), path)
    loaded = _read_back(pretrained, path, f"timm:{name}")
    _compare(pretrained, loaded.encoder, "timm")


def _refuse_untold_stem(pretrained: Pretrained) -> None:
    stem = pretrained.architecture.stem
    if stem not in ("imagenet", "small"):
        raise ValueError(
            f"the encoder's stem is {stem!r}, which a state dict does not tell: export to "
            "safetensors or onnx"
        )


def _read_back(pretrained: Pretrained, path: Path, name: str) -> Pretrained:
    try:
        return load_encoder(path, encoder=name, image_size=pretrained.image_size)
    except ValueError as error:
        reason = str(error).replace(str(path), "the file")
        raise ValueError(f"{pretrained.name!r} cannot be exported as {name!r}: {reason}") from error


def _safetensors(pretrained: Pretrained, path: Path) -> None:
    library = optional_library("safetensors.torch", "export", "format 'safetensors'")
    state, metadata = _state(pretrained), _metadata(pretrained)
    metadata[DIGEST] = weights_digest(state, metadata)
    # Not by the library's own file, which reports a full disk in its own way.
    path.write_bytes(library.save(state, metadata))
    loaded = load_encoder(path)
    told = [
        name
        for name in ("name", "features", "channels", "image_size", "mean", "std", "architecture")
        if getattr(loaded, name) != getattr(pretrained, name)
    ]
    if told:
        raise RuntimeError(f"the exported file tells another {', '.join(told)}")
    _compare(pretrained, loaded.encoder, "safetensors")


def _metadata(pretrained: Pretrained) -> dict[str, str]:
    """Text by name; numbers and lists as JSON."""
    architecture = pretrained.architecture
    values: dict[str, Any] = {
        "features": pretrained.features,
        "channels": pretrained.channels,
        "image_size": pretrained.image_size,
        "mean": pretrained.mean,
        "std": pretrained.std,
        "widths": architecture.widths,
        "grid": architecture.grid,
    }
    return {
        "format": "pt",  # as other readers of safetensors expect
        "format_of": "barlow_fast",
        "name": architecture.name,
        "stem": architecture.stem,
        **{key: json.dumps(value) for key, value in values.items()},
    }


def _onnx(pretrained: Pretrained, path: Path) -> None:
    onnx = optional_library("onnx", "export", "format 'onnx'")
    optional_library("onnxscript", "export", "format 'onnx'")
    # A network under our interface is exported as itself.
    encoder = getattr(pretrained.encoder, "network", pretrained.encoder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter's own parts
        torch.onnx.export(
            encoder,
            # Two, because an example of one image would make N = 1 a rule.
            (_images(pretrained, 2),),
            str(path),
            input_names=["images"],
            output_names=["features"],
            dynamic_shapes=({0: torch.export.Dim("N")},),
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    model = onnx.load(str(path))
    onnx.helper.set_model_props(model, _metadata(pretrained))
    onnx.save(model, str(path))
    onnx.checker.check_model(model)
    run = _onnx_runner(model)
    for count in (1, 3):
        images = _images(pretrained, count)
        with torch.inference_mode():
            _assert_same(torch.from_numpy(run(images)), pretrained.encoder(images), "onnx")


def _onnx_runner(model: Any) -> Callable[[Tensor], Any]:
    """onnxruntime where it is installed, else the slow evaluator that comes with onnx."""
    try:
        import onnxruntime
    except ModuleNotFoundError:
        from onnx.reference import ReferenceEvaluator

        evaluator = ReferenceEvaluator(model)
        return lambda images: evaluator.run(None, {"images": images.numpy()})[0]
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return lambda images: session.run(None, {"images": images.numpy()})[0]


def _images(pretrained: Pretrained, count: int) -> Tensor:
    generator = torch.Generator().manual_seed(count)
    size = pretrained.image_size
    return torch.randn(count, pretrained.channels, size, size, generator=generator, device="cpu")


def _compare(pretrained: Pretrained, loaded: nn.Module, format: str) -> None:
    images = _images(pretrained, 2)
    with torch.inference_mode():
        _assert_same(loaded.eval()(images), pretrained.encoder(images), format)


def _assert_same(found: Tensor, expected: Tensor, format: str) -> None:
    if found.shape != expected.shape:
        raise RuntimeError(
            f"the exported {format} file gives features of shape {tuple(found.shape)}, the encoder "
            f"{tuple(expected.shape)}"
        )
    check_finite(expected, "the encoder's features of random images")
    largest = expected.abs().max()
    error = (found - expected).abs().max()
    # Written so that NaN is a difference.
    if not error <= TOLERANCE * largest:
        raise RuntimeError(
            f"the exported {format} file computes other features: they differ by {error:.3g}, the "
            f"largest is {largest:.3g}"
        )


FORMATS: dict[str, Callable[[Pretrained, Path], None]] = {
    "torchvision": _torchvision,
    "timm": _timm,
    "safetensors": _safetensors,
    "onnx": _onnx,
}
