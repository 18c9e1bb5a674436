"""Files that are not what they should be: an error that says so, nothing run, little memory."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from barlow_fast.checkpoints import load_encoder
from barlow_fast.checkpoints.layouts import PRETRAIN
from barlow_fast.checkpoints.reading import check_tensors
from barlow_fast.models import build_twins

Save = Callable[..., Path]


class Attack:
    """Runs a command when it is unpickled the usual way."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple:
        return os.system, (f"touch '{self.marker}'",)


@pytest.mark.parametrize("old_format", [False, True])
def test_a_pickle_is_not_run(old_format: bool, resnet18, tmp_path: Path):
    marker = tmp_path / "ran"
    path = tmp_path / "checkpoint.pth"
    content = {"state_dict": resnet18.state, "args": Attack(marker)}
    torch.save(content, path, _use_new_zipfile_serialization=not old_format)
    named = "" if old_format else r" \(posix.system\)"
    with pytest.raises(ValueError, match=rf"refused: it holds objects.*run code{named}"):
        load_encoder(path)
    assert not marker.exists()


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.99])
def test_a_truncated_file(share: float, resnet18, saved: Save):
    path = saved(resnet18.state)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(ValueError, match=r"is not a readable checkpoint|is refused"):
        load_encoder(path)


def test_a_flipped_bit(resnet18, saved: Save):
    path = saved(resnet18.state)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="fails its checksum"):
        load_encoder(path)


def test_an_archive_that_unpacks_to_more_than_it_weighs(tmp_path: Path):
    path = tmp_path / "checkpoint.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(2**24))
    with pytest.raises(ValueError, match="unpacks to 16777216 bytes"):
        load_encoder(path)


@pytest.mark.parametrize(
    ("widths", "message"),
    [
        ([4, 10**9], r"sizes that its weights do not have: widths \[4, 10000"),
        ([4, 5], r"does not fit encoder 'small'.*\(6, 4, 3, 3\) for \(5"),
        ([1] * 10**6, "1000000 stages"),
        ("wide", "describes its encoder wrongly"),
    ],
    ids=["huge", "other", "many", "no numbers"],
)
def test_sizes_that_only_the_settings_claim(widths: Any, message: str, load):
    model = build_twins(channels=1, encoder_widths=(4, 6), projector=(8, 6))
    config = {"encoder_widths": widths, "encoder_grid": 2}
    content = {"format": PRETRAIN, "version": 1, "config": config, "model": model.state_dict()}
    with pytest.raises(ValueError, match=message):
        load(content)


def test_keys_and_shapes_must_be_the_architectures(resnet18, load):
    missing = dict(resnet18.state)
    del missing["bn1.weight"], missing["layer4.1.bn2.bias"]
    for state, message in (
        (resnet18.state | {"layer9.weight": torch.zeros(1)},
         r"'resnet18'.*with layer9.weight, which it does not"),
        (missing, r"without bn1.weight, layer4.1.bn2.bias$"),
        (resnet18.state | {"bn1.bias": torch.zeros(3)}, r"bn1.bias of shape \(3,\) for \(64,\)"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            load(state)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"encoder": "resnet50"}, r"holds a 'resnet18', not a 'resnet50'"),
        ({"encoder": "vgg11"}, r"holds a 'resnet18', not a 'vgg11'"),
        ({"channels": 1}, r"images with 3 channels, not 1"),
    ],
)
def test_another_architecture_than_requested(arguments: dict, message: str, resnet18, load):
    with pytest.raises(ValueError, match=message):
        load(resnet18.state, **arguments)


class Call:
    """Unpickles as the result of a call."""

    def __init__(self, function: Callable, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple:
        return self.call


TWO_PARTS = {"module.backbone.a": torch.ones(1), "module.decoder.b": torch.ones(1)}
BLOCKS = {"blocks.0.weight": torch.zeros(3)}
OTHER_CONTENT = {
    "a list": ([1, 2], r"holds a list"),
    "nothing": ({}, r"no weights"),
    "a number": ({"epoch": 3}, r"'epoch' is a int, not a tensor"),
    "a number for weights": ({"state_dict": {"backbone.bn1.bias": 3}}, r"is a int, not a tensor"),
    "VISSL's": ({"classy_state_dict": {"base_model": 3}}, r"VISSL checkpoint without"),
    "ours": ({"format": PRETRAIN}, r"without model or config"),
    "two parts": (
        {"model": TWO_PARTS}, r"looks like a checkpoint of official, which has no decoder.b",
    ),
    "no architecture": (BLOCKS, "does not state its architecture"),
    "tensors larger than their data": (
        {"conv1.weight": torch.zeros(1).expand(10**6, 10**6)},
        r"'conv1.weight' claims 4000000000000 bytes and has 4",
    ),
    "one tensor under many names": (
        dict.fromkeys((f"{number}.weight" for number in range(64)), torch.zeros(2**18)),
        "of weights and has",
    ),
    # torch allows these calls, of any size, and their numbers are whatever memory held.
    **{f"a call of {kind.__name__}": (
        {"conv1.weight": Call(kind, size)}, f"it calls {kind.__name__}, which no file",
    ) for kind, size in ((bytearray, 10**6), (torch.Tensor, 1000), (torch.IntTensor, 8))},
}  # fmt: skip


@pytest.mark.parametrize("name", OTHER_CONTENT)
def test_other_content(name: str, load):
    content, message = OTHER_CONTENT[name]
    with pytest.raises(ValueError, match=message):
        load(content)


def test_another_architecture_than_named(load):
    with pytest.raises(ValueError, match=r"of another architecture than 'vgg11'"):
        load(BLOCKS, encoder="vgg11")


def test_no_file(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        load_encoder(tmp_path / "none.pth")
    with pytest.raises(ValueError, match="is not a file"):
        load_encoder(tmp_path)
    (tmp_path / "text.pth").write_text("a page that says 404")
    with pytest.raises(ValueError, match=r"is not a readable checkpoint|is refused"):
        load_encoder(tmp_path / "text.pth")


def test_damaged_safetensors(tmp_path: Path):
    pytest.importorskip("safetensors")
    path = tmp_path / "encoder.safetensors"
    path.write_bytes((20).to_bytes(8, "little") + b'{"a": nothing}      ')
    with pytest.raises(ValueError, match="is not a readable checkpoint"):
        load_encoder(path)


@pytest.mark.parametrize(
    "value", [torch.eye(2).to_sparse(), torch.empty(2, device="meta")], ids=["sparse", "meta"]
)
def test_tensors_of_other_kinds(value, tmp_path: Path):
    with pytest.raises(ValueError, match=r"'conv1.weight' is not a dense tensor with data"):
        check_tensors({"conv1.weight": value}, tmp_path / "checkpoint.pt")


def test_a_pipe_is_not_waited_for(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe.pth")
    with pytest.raises(ValueError, match="is not a file"):
        load_encoder(tmp_path / "pipe.pth")
