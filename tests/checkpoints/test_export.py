"""Exports: what others read from them is the same encoder, and a wrong one gets no file."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import typer
from scrambled import scramble
from torch import nn
from typer.testing import CliRunner

from barlow_fast.checkpoints import FORMATS, Pretrained, export, exporting, load_encoder
from barlow_fast.checkpoints.reading import read_checkpoint
from barlow_fast.cli.export import export as export_command
from barlow_fast.models import build_encoder

Save = Callable[..., Path]
NEEDED = {
    "torchvision": ("torchvision",), "timm": ("torchvision",), "safetensors": ("safetensors",),
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
}  # fmt: skip


def pretrained(name: str, size: int = 32, channels: int = 1, **arguments) -> Pretrained:
    torch.manual_seed(0)
    encoder = build_encoder(name, image_size=size, channels=channels, **arguments)
    normalisation = (0.25,) * channels, (0.5,) * channels
    shape = encoder.features, channels, size
    return Pretrained(scramble(encoder), name, *shape, *normalisation, "barlow_fast", None, {})


TINY = pretrained("small", size=12, channels=3, widths=(4,))


@pytest.fixture(scope="module")
def resnet() -> Pretrained:
    return pretrained("resnet18")


@pytest.fixture(scope="module")
def imagenet_resnet() -> Pretrained:
    return pretrained("resnet18", size=65, channels=3)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def need(format: str) -> None:
    for library in NEEDED[format]:
        pytest.importorskip(library)


def run_line(line: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """What a printed line loads."""
    assert "\n" not in line
    names: dict[str, object] = {}
    exec(line, names)
    model = names["model"]
    if isinstance(model, nn.Module):
        return model
    return lambda images: torch.from_numpy(model(images.numpy()))


@pytest.mark.parametrize("suffix", ["", ".pth", ".pt", ".bin", ".h5", ".safetensors", ".onnx"])
@pytest.mark.parametrize("format", FORMATS)
def test_every_file_is_what_its_suffix_says_and_the_line_loads_it(
    format: str, suffix: str, imagenet_resnet: Pretrained, tmp_path: Path
):
    need(format)
    given = imagenet_resnet if exporting.ACCEPTED[format] is exporting.STATE_DICTS else TINY
    path = tmp_path / f"it's{suffix}"
    if suffix not in exporting.ACCEPTED[format]:
        with pytest.raises(ValueError, match=rf"does not fit format '{format}': its files end in"):
            export(given, path, format)
        assert names(tmp_path) == []
        return
    if suffix == ".safetensors":
        pytest.importorskip("safetensors")
    line = export(given, path, format)
    if suffix == ".safetensors":
        assert load_encoder(path).architecture == given.architecture
    elif format in ("torchvision", "timm"):
        torch.load(path, weights_only=True)
    if format == "timm":
        pytest.importorskip("timm")
    images = torch.randn(2, 3, given.image_size, given.image_size)
    with torch.no_grad():
        found, expected = run_line(line)(images), given.encoder(images)
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.parametrize(
    ("name", "format", "size", "channels"),
    [
        ("squeezenet1_1", "torchvision", 65, 3),  # its head is a convolution
        ("mobilenet_v3_small", "torchvision", 65, 3),  # a head inside a sequence
        ("timm:resnet10t", "timm", 65, 1),  # channels, and a deep stem
        ("timm:vit_tiny_patch16_224", "timm", 48, 3),  # made for a size
        ("small", "safetensors", 12, 1),
    ],
)
def test_lines_have_the_arguments_that_the_network_needs(
    name: str, format: str, size: int, channels: int, tmp_path: Path
):
    need(format)
    if name.startswith("timm:"):
        pytest.importorskip("timm")
    given = pretrained(name, size, channels)
    line = export(given, tmp_path / "encoder.safetensors", format)
    images = torch.randn(2, channels, size, size)
    with torch.no_grad():
        torch.testing.assert_close(run_line(line)(images), given.encoder(images))


def test_classifiers_of_torchvision_stay_what_they_are(imagenet_resnet: Pretrained, tmp_path: Path):
    torchvision = pytest.importorskip("torchvision")
    export(imagenet_resnet, tmp_path / "resnet18.pth", "torchvision")
    network = torchvision.models.resnet18(weights=None)
    state = torch.load(tmp_path / "resnet18.pth", weights_only=True)
    missing = network.load_state_dict(state, strict=False)
    assert missing.missing_keys == ["fc.weight", "fc.bias"]
    assert not missing.unexpected_keys
    assert names(tmp_path) == ["resnet18.pth"]


@pytest.mark.parametrize("format", ["torchvision", "timm"])
def test_what_the_library_itself_cannot_load_gets_no_file(format: str, tmp_path: Path):
    small_stem = pretrained("resnet18", size=32, channels=3)
    message = rf"stem is 'small' \(3 x 3, no max-pool\), and {format}'s 'resnet18' has another"
    with pytest.raises(ValueError, match=f"{message}: safetensors and onnx take any encoder"):
        export(small_stem, tmp_path / "encoder.pth", format)
    if format == "torchvision":
        with pytest.raises(ValueError, match=r"take images of 3 channels, the encoder 1"):
            export(pretrained("resnet18", size=65), tmp_path / "encoder.pth", format)
    assert names(tmp_path) == []


def test_timm_that_is_not_installed(
    imagenet_resnet: Pretrained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    pytest.importorskip("torchvision")
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "timm", None)
        line = export(imagenet_resnet, tmp_path / "encoder.pth", "timm")
        with pytest.raises(ModuleNotFoundError, match=r"barlow-fast\[timm\]"):
            export(pretrained("small", size=12, widths=(4,)), tmp_path / "encoder.pth", "timm")
    pytest.importorskip("timm")
    images = torch.randn(2, 3, 65, 65)
    with torch.no_grad():
        torch.testing.assert_close(run_line(line)(images), imagenet_resnet.encoder(images))


def test_safetensors_contain_its_metadata(resnet: Pretrained, tmp_path: Path):
    safetensors = pytest.importorskip("safetensors")
    path = tmp_path / "encoder.safetensors"
    for given in (resnet, pretrained("small", size=12, widths=(4, 6), grid=3)):
        export(given, path, "safetensors")
        loaded = load_encoder(path)
        assert loaded.format == "safetensors"
        assert loaded.architecture == given.architecture
        assert (loaded.mean, loaded.std, loaded.metadata["assumed"]) == ((0.25,), (0.5,), [])
        images = torch.randn(2, 1, given.image_size, given.image_size)
        with torch.no_grad():
            assert torch.equal(loaded.encoder(images), given.encoder(images))
    with safetensors.safe_open(path, framework="pt") as opened:
        metadata = opened.metadata()
    assert (metadata["name"], metadata["mean"], metadata["std"]) == ("small", "[0.25]", "[0.5]")
    assert (metadata["features"], metadata["format"]) == ("54", "pt")


@pytest.mark.parametrize("name", ["small", "squeezenet1_1"])
def test_onnx_computes_it_for_any_number_of_images(name: str, tmp_path: Path):
    need("onnx")
    onnx, runtime = map(importlib.import_module, ("onnx", "onnxruntime"))
    given = pretrained(name, size=32)
    path = tmp_path / "encoder.onnx"
    export(given, path, "onnx")
    assert names(tmp_path) == ["encoder.onnx"]
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for count in (1, 5):
        images = torch.randn(count, 1, 32, 32)
        found = torch.from_numpy(session.run(["features"], {"images": images.numpy()})[0])
        with torch.no_grad():
            expected = given.encoder(images)
        assert found.shape == (count, given.features)
        assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()
    properties = {entry.key: entry.value for entry in onnx.load(str(path)).metadata_props}
    assert (properties["name"], properties["mean"]) == (name, "[0.25]")


@pytest.mark.parametrize("format", FORMATS)
def test_a_difference_leaves_no_file_and_the_old_one_as_it_was(
    format: str, imagenet_resnet: Pretrained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    need(format)
    (tmp_path / "old").write_text("mine")
    given = TINY if format == "onnx" else imagenet_resnet
    if format == "onnx":

        def other(model: object) -> Callable[[torch.Tensor], object]:
            return lambda images: torch.rand(len(images), TINY.features).numpy()

        monkeypatch.setattr(exporting, "_onnx_runner", other)
    else:
        state = imagenet_resnet.encoder.state_dict()
        changed = {key: value.clone() for key, value in state.items()}
        changed["layer4.1.bn2.bias"] += 1
        monkeypatch.setattr(exporting, "_state", lambda given: changed)
    with pytest.raises(RuntimeError, match="computes other features"):
        export(given, tmp_path / "old", format)
    assert names(tmp_path) == ["old"]
    assert (tmp_path / "old").read_text() == "mine"


def test_what_a_format_cannot_contain(resnet: Pretrained, tmp_path: Path):
    small, padded = TINY, pretrained("resnet18", stem="small-padding-2")
    for given, out, format, error, message in (
        (small, "x.pth", "torchvision", ValueError, r"has no 'small'"),
        (small, "x.pth", "timm", ValueError, r"has no 'small'|timm has the keys of 'small'"),
        (padded, "x.pth", "torchvision", ValueError, "stem is 'small-padding-2'"),
        (resnet, "x.pth", "keras", ValueError, r"format must be one of torchvision.*'keras'"),
        (resnet, "none/x.pth", "torchvision", FileNotFoundError, "no folder"),
        (resnet, ".", "torchvision", ValueError, "is a folder"),
    ):
        with pytest.raises(error, match=message):
            export(given, tmp_path / out, format)
    assert names(tmp_path) == []


def test_keys_that_timm_does_not_have(tmp_path: Path):
    pytest.importorskip("timm")
    with pytest.raises(ValueError, match="'convnext_tiny' cannot be exported for timm"):
        export(pretrained("convnext_tiny", channels=3), tmp_path / "encoder.pth", "timm")
    assert names(tmp_path) == []


def spellings(path: Path, folder: Path) -> list[Path]:
    """Names of one file: as it is, another way to it, a link, a second name."""
    (folder / "deeper").mkdir()
    link, second = folder / "link.pt", folder / "second.pt"
    link.symlink_to(path)
    os.link(path, second)
    return [path, folder / "deeper" / ".." / path.name, link, second]


def test_no_input_is_overwritten(resnet18, saved: Save, tmp_path: Path):
    path = saved(resnet18.state, "input.pt")
    content = path.read_bytes()
    for out in spellings(path, tmp_path):
        refused = run(path, out, "--format", "torchvision")
        assert refused.exit_code == 2
        assert f"{out} is the input {path}" in refused.output
        with pytest.raises(ValueError, match="is the input"):
            export(load_encoder(path), out, "torchvision")
    assert path.read_bytes() == content
    assert (tmp_path / "link.pt").is_symlink()
    # An earlier export is replaced.
    assert run(path, tmp_path / "out.pt").exit_code == 0
    assert run(path, tmp_path / "out.pt").exit_code == 0


CHECKPOINTS = {
    "ours": lambda state: {"format": "barlow_fast.pretrain", "version": 3, "model": state},
    "official": lambda state: {"epoch": 3, "model": state, "optimizer": {}},
    "Lightning": lambda state: {"state_dict": state, "optimizer_states": [{}]},
}


@pytest.mark.parametrize("name", [*CHECKPOINTS, "damaged", "legacy"])
@pytest.mark.parametrize("format", FORMATS)
def test_no_training_checkpoint_is_overwritten(
    name: str, format: str, resnet: Pretrained, saved: Save, tmp_path: Path
):
    content = CHECKPOINTS.get(name, CHECKPOINTS["official"])({"weight": torch.ones(2)})
    path = saved(content)
    if name == "damaged":
        path.write_bytes(path.read_bytes()[:-40])
    elif name == "legacy":
        torch.save(content, path, _use_new_zipfile_serialization=False)
    before = path.read_bytes()
    for out in spellings(path, tmp_path):
        with pytest.raises(ValueError, match="a training checkpoint, whole or damaged"):
            export(resnet, out, format)
    assert path.read_bytes() == before
    refused = run(tmp_path / "other.pt", path, "--format", format)
    assert refused.exit_code == 2
    assert "holds more than weights by name" in refused.output


def run(*arguments: object):
    app = typer.Typer()
    app.command()(export_command)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_command(resnet18, saved: Save, tmp_path: Path):
    path = saved(resnet18.state)
    done = run(path, tmp_path / "encoder.pth", "--image-size", 64)
    assert done.exit_code == 0, done.output
    assert "resnet18 of a torchvision checkpoint, 512 features, 3 x 64 x 64" in done.output
    assert "assumed: mean (0.485, 0.456, 0.406), std" in done.output
    assert "read back and compared\nload it with: import torch, torchvision; model" in done.output
    written = torch.load(tmp_path / "encoder.pth", weights_only=True)
    assert torch.equal(written["bn1.bias"], resnet18.state["bn1.bias"])


def test_the_command_says_what_is_wrong(resnet18, saved: Save, tmp_path: Path):
    path = saved(resnet18.state)
    out = tmp_path / "encoder.pth"
    formats = "--format must be one of torchvision, timm, safetensors, onnx, got none"
    for arguments, message in (
        ((path, tmp_path / "encoder.h5"), formats),
        ((path, out, "--encoder", "resnet50"), "holds a 'resnet18', not a 'resnet50'"),
        ((tmp_path / "none.pth", out), "no checkpoint at"),
    ):
        wrong = run(*arguments)
        assert wrong.exit_code == 2
        assert message in wrong.output
    assert not (tmp_path / "encoder.pth").exists()


def test_the_command_names_the_extra_of_a_missing_library(
    resnet18, saved: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "onnx", None)
    wrong = run(saved(resnet18.state), tmp_path / "encoder.onnx")
    assert wrong.exit_code == 1
    assert "format 'onnx' needs onnx: pip install 'barlow-fast[export]'" in wrong.output


def test_every_byte_of_an_exported_safetensors_file(tmp_path: Path):
    pytest.importorskip("safetensors")
    path = tmp_path / "encoder.safetensors"
    export(pretrained("small", 8, widths=(2,), grid=1), path, "safetensors")
    content = path.read_bytes()
    state, metadata = read_checkpoint(path)
    damaged = 0
    for position in range(len(content)):
        flipped = bytearray(content)
        flipped[position] ^= 0x10
        path.write_bytes(flipped)
        try:
            found, read = read_checkpoint(path)
        except ValueError:
            damaged += 1
            continue
        # A digest by another name is nobody's.
        assert "barlow_fast_sha256" not in read
        assert {**read, **metadata}.keys() > metadata.keys()
        assert all(torch.equal(found[name], value) for name, value in state.items())
    assert len(content) - damaged <= len("barlow_fast_sha256")
