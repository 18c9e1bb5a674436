"""Files that are not what they should be: an error that says so, nothing run, little memory."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

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


def test_tensors_larger_than_their_data(saved: Save):
    state = {"conv1.weight": torch.zeros(1).expand(10**6, 10**6)}
    with pytest.raises(ValueError, match=r"'conv1.weight' claims 4000000000000 bytes and has 4"):
        load_encoder(saved(state))


def test_one_tensor_under_many_names(saved: Save):
    shared = torch.zeros(2**18)
    with pytest.raises(ValueError, match="of weights and has"):
        load_encoder(saved({f"{number}.weight": shared for number in range(64)}))


def test_sizes_that_only_the_settings_claim(saved: Save):
    model = build_twins(channels=1, encoder_widths=(4, 6), projector=(8, 6))
    config = {"encoder_widths": [4, 10**9], "encoder_grid": 2}
    content = {"format": PRETRAIN, "version": 1, "config": config, "model": model.state_dict()}
    with pytest.raises(ValueError, match=r"sizes that its weights do not have: widths \[4, 10000"):
        load_encoder(saved(content))
    config["encoder_widths"] = [4, 5]
    with pytest.raises(ValueError, match=r"does not fit encoder 'small'.*\(6, 4, 3, 3\) for \(5"):
        load_encoder(saved(content))
    config["encoder_widths"] = [1] * 10**6
    with pytest.raises(ValueError, match="1000000 stages"):
        load_encoder(saved(content))
    config["encoder_widths"] = "wide"
    with pytest.raises(ValueError, match="describes its encoder wrongly"):
        load_encoder(saved(content))


def changed(state: dict[str, Tensor], **changes: Any) -> dict[str, Tensor]:
    return {**state, **{key.replace("__", "."): value for key, value in changes.items()}}


def test_keys_and_shapes_must_be_the_architectures(resnet18, saved: Save):
    state = dict(resnet18.state)
    with pytest.raises(ValueError, match=r"'resnet18'.*with layer9.weight, which it does not"):
        load_encoder(saved(changed(state, layer9__weight=torch.zeros(1))))
    del state["bn1.weight"], state["layer4.1.bn2.bias"]
    with pytest.raises(ValueError, match=r"without bn1.weight, layer4.1.bn2.bias$"):
        load_encoder(saved(state))
    wrong = changed(resnet18.state, bn1__bias=torch.zeros(3))
    with pytest.raises(ValueError, match=r"bn1.bias of shape \(3,\) for \(64,\)"):
        load_encoder(saved(wrong))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"encoder": "resnet50"}, r"holds a 'resnet18', not a 'resnet50'"),
        ({"encoder": "vgg11"}, r"holds a 'resnet18', not a 'vgg11'"),
        ({"channels": 1}, r"images with 3 channels, not 1"),
    ],
)
def test_another_architecture_than_requested(arguments: dict, message: str, resnet18, saved: Save):
    with pytest.raises(ValueError, match=message):
        load_encoder(saved(resnet18.state), **arguments)


def test_another_architecture_than_named(saved: Save):
    with pytest.raises(ValueError, match="does not state its architecture"):
        load_encoder(saved({"blocks.0.weight": torch.zeros(3)}))
    with pytest.raises(ValueError, match=r"of another architecture than 'vgg11'"):
        load_encoder(saved({"blocks.0.weight": torch.zeros(3)}), encoder="vgg11")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], r"holds a list"),
        ({}, r"no weights"),
        ({"epoch": 3}, r"'epoch' is a int, not a tensor"),
        ({"state_dict": {"backbone.conv1.weight": 3}}, r"is a int, not a tensor"),
        ({"classy_state_dict": {"base_model": 3}}, r"VISSL checkpoint without"),
        ({"format": PRETRAIN}, r"without model or config"),
        (
            {"model": {"module.backbone.a": torch.ones(1), "module.decoder.b": torch.ones(1)}},
            r"looks like a checkpoint of official, which has no decoder.b",
        ),
    ],
)
def test_other_content(content: Any, message: str, saved: Save):
    with pytest.raises(ValueError, match=message):
        load_encoder(saved(content))


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


class Call:
    """Unpickles as the result of a call."""

    def __init__(self, function: Callable, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple:
        return self.call


@pytest.mark.parametrize(
    "call", [Call(bytearray, 10**6), Call(torch.Tensor, 1000), Call(torch.IntTensor, 8)]
)
def test_memory_that_no_record_fills(call: Call, saved: Save):
    """torch allows these calls, of any size, and their numbers are whatever memory held."""
    with pytest.raises(ValueError, match=r"it calls (bytearray|Tensor|IntTensor), which no file"):
        load_encoder(saved({"conv1.weight": call}))


def test_a_pipe_is_not_waited_for(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe.pth")
    with pytest.raises(ValueError, match="is not a file"):
        load_encoder(tmp_path / "pipe.pth")
