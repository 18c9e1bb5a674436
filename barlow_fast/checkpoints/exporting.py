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
from ..inputs import optional_library
from ..models.encoders import torchvision_arguments
from ..models.finite import check_finite, check_weights
from . import archive
from .pretrained import Pretrained, load_encoder
from .reading import DIGEST, check_export, read_checkpoint, weights_digest

SAFETENSORS = ".safetensors"
# The format of a file's suffix, where none is given.
SUFFIXES = {".pth": "torchvision", ".pt": "torchvision", SAFETENSORS: "safetensors"}
SUFFIXES[".onnx"] = "onnx"
# What a file of each format may be called; a name without a suffix contradicts none.
STATE_DICTS = ("", ".pth", ".pt", ".bin", ".ckpt", ".tar", SAFETENSORS)
ACCEPTED = {
    "torchvision": STATE_DICTS,
    "timm": STATE_DICTS,
    "safetensors": ("", SAFETENSORS),
    "onnx": ("", ".onnx"),
}
# Of the largest feature; other kernels add in another order, and over many layers.
TOLERANCE = 1e-4

Format = Literal["torchvision", "timm", "safetensors", "onnx"]  # the keys of FORMATS


def export(pretrained: Pretrained, path: Path | str, format: Format = "torchvision") -> str:
    """Writes the encoder to a file, if what is read back from there computes the same features.

    Formats:
        torchvision: a state dict with torchvision's keys, less the classifier: what the official
            code calls `resnet50.pth`.
        timm: a state dict with timm's keys, less the classifier; read back by timm where it is
            installed, and only ResNets where it is not.
        safetensors: the state dict, with name, sizes, mean and std as metadata; `load_encoder`
            needs no arguments for it. Any encoder.
        onnx: the network itself, images (N, channels, image_size, image_size) -> features (N,
            features), N free; name, mean and std are metadata. Any encoder. Images are expected
            normalised, as everywhere here.

    State dicts are safetensors where the path ends in `.safetensors`, and torch files otherwise.
    Weights are written in float32. The check is done on the CPU with random images of
    `pretrained.image_size` pixels.

    Returns:
        A line of Python that loads the file as `model`, without this library for all formats but
        `safetensors`.

    Raises:
        ValueError: no such format, or one that the encoder does not fit; a path whose suffix is of
            another format; `path` is the file that the encoder comes from, or a training
            checkpoint; a folder, or in none.
        RuntimeError: weights or features that are not finite, or what was read back is another
            encoder; there is no file then.
        ModuleNotFoundError: the format's library is not installed.
        OSError: the file cannot be written; an old one stays.
    """
    if format not in FORMATS:
        raise ValueError(f"format must be one of {', '.join(FORMATS)}, got {format!r}")
    path = Path(path)
    check_export(path, [] if pretrained.path is None else [pretrained.path])
    if path.suffix not in ACCEPTED[format]:
        names = ", ".join(filter(None, ACCEPTED[format]))
        raise ValueError(f"{path} does not fit format {format!r}: its files end in {names}")
    check_weights(pretrained.encoder)
    plain = replace(pretrained, encoder=_plain(pretrained.encoder))
    with whole_file(path) as temporary:
        return FORMATS[format](plain, temporary, path)


def _plain(encoder: nn.Module) -> nn.Module:
    """A copy in eval mode on the CPU, in float32: what is compared."""
    return copy.deepcopy(encoder).to("cpu", torch.float32).eval()


def _state(pretrained: Pretrained) -> dict[str, Tensor]:
    return {
        key: value.detach().contiguous().clone()
        for key, value in pretrained.encoder.state_dict().items()
    }


def _torchvision(pretrained: Pretrained, path: Path, target: Path) -> str:
    name = pretrained.name.removeprefix("timm:")
    from torchvision import models

    if name not in models.list_models(module=models):
        raise ValueError(f"torchvision has no {name!r}; safetensors and onnx take any encoder")
    _refuse_other_stem(pretrained, "torchvision")
    if pretrained.channels != 3:
        raise ValueError(
            f"torchvision's networks take images of 3 channels, the encoder "
            f"{pretrained.channels}; safetensors and onnx take any encoder"
        )
    arguments = torchvision_arguments(name, pretrained.image_size)
    head = pretrained.encoder.removed_head

    def build() -> nn.Module:
        network = models.get_model(name, **arguments)
        network.set_submodule(head, nn.Identity())
        return network

    _write_and_check(pretrained, path, target, "torchvision", build)
    reading, state = "", f"torch.load({str(target)!r}, weights_only=True)"
    if _is_safetensors(target):
        reading, state = ", safetensors.torch", f"safetensors.torch.load_file({str(target)!r})"
    return (
        f"import torch, torchvision{reading}; "
        f"model = torchvision.models.get_model({_written(name, arguments)}); "
        f"model.set_submodule({head!r}, torch.nn.Identity()); "
        f"model.load_state_dict({state}); model.eval()"
    )


def _timm(pretrained: Pretrained, path: Path, target: Path) -> str:
    name = pretrained.name.removeprefix("timm:")
    arguments: dict[str, Any] = {"num_classes": 0}
    if pretrained.channels != 3:
        arguments["in_chans"] = pretrained.channels
    try:
        import timm
    except ModuleNotFoundError:
        # Of ResNets torchvision has the same keys.
        if "resne" not in name or pretrained.channels != 3:
            optional_library("timm", "timm", f"to see whether timm has the keys of {name!r}")
        _torchvision(pretrained, path, target)
    else:
        if name.split(".", 1)[0] not in timm.list_models():
            raise ValueError(f"timm has no {name!r}; safetensors and onnx take any encoder")
        _refuse_other_stem(pretrained, "timm")

        def build() -> nn.Module:
            sized = {"img_size": pretrained.image_size}
            try:
                network = timm.create_model(name, **arguments, **sized)
            except TypeError:  # a network for any size has no such argument
                return timm.create_model(name, **arguments)
            arguments.update(sized)
            return network

        _write_and_check(pretrained, path, target, "timm", build)
    arguments["checkpoint_path"] = str(target)
    return f"import timm; model = timm.create_model({_written(name, arguments)}).eval()"


def _written(name: str, arguments: dict[str, Any]) -> str:
    """The arguments of a call, as Python."""
    return ", ".join([repr(name), *(f"{key}={value!r}" for key, value in arguments.items())])


def _refuse_other_stem(pretrained: Pretrained, library: str) -> None:
    stem = pretrained.architecture.stem
    if stem != "imagenet":
        raise ValueError(
            f"the encoder's stem is {stem!r} (3 x 3, no max-pool), and {library}'s "
            f"{pretrained.name.removeprefix('timm:')!r} has another: safetensors and onnx take any "
            "encoder"
        )


def _write_and_check(
    pretrained: Pretrained, path: Path, target: Path, library: str, build: Callable[[], nn.Module]
) -> None:
    """Writes a state dict, and reads it back into the network that `build` makes."""
    if _is_safetensors(target):
        _write_safetensors(pretrained, path)
    else:
        archive.save(_state(pretrained), path)
    state, _ = read_checkpoint(path)
    with torch.random.fork_rng(devices=[]):
        network = build()
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{pretrained.name!r} cannot be exported for {library}, whose network of that name has "
            f"other weights; safetensors and onnx take any encoder: {reason:.300}"
        ) from error
    _compare(pretrained, network, library)


def _is_safetensors(path: Path) -> bool:
    return path.suffix == SAFETENSORS


def _write_safetensors(pretrained: Pretrained, path: Path) -> None:
    library = optional_library("safetensors.torch", "export", "a .safetensors file")
    state, metadata = _state(pretrained), _metadata(pretrained)
    metadata[DIGEST] = weights_digest(state, metadata)
    # Not by the library's own file, which reports a full disk in its own way.
    path.write_bytes(library.save(state, metadata))


def _safetensors(pretrained: Pretrained, path: Path, target: Path) -> str:
    _write_safetensors(pretrained, path)
    loaded = load_encoder(path)
    differing = [
        name
        for name in ("name", "features", "channels", "image_size", "mean", "std", "architecture")
        if getattr(loaded, name) != getattr(pretrained, name)
    ]
    if differing:
        raise RuntimeError(f"the exported file states another {', '.join(differing)}")
    _compare(pretrained, loaded.encoder, "safetensors")
    return (
        "from barlow_fast.checkpoints import load_encoder; "
        f"model = load_encoder({str(target)!r}).encoder"
    )


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


def _onnx(pretrained: Pretrained, path: Path, target: Path) -> str:
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
    return (
        f"import onnxruntime; session = onnxruntime.InferenceSession({str(target)!r}); "
        'model = lambda images: session.run(None, {"images": images})[0]  # NumPy arrays'
    )


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


FORMATS: dict[str, Callable[[Pretrained, Path, Path], str]] = {
    "torchvision": _torchvision,
    "timm": _timm,
    "safetensors": _safetensors,
    "onnx": _onnx,
}
