"""Encoders on the Hub, offline: a folder, and an upload and download of which the network's part is
replaced."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from scrambled import scramble
from torch import nn

from barlow_fast.checkpoints import Pretrained, load_encoder
from barlow_fast.data import load
from barlow_fast.models import build_encoder
from barlow_fast.training import Trainer, configure

huggingface_hub = pytest.importorskip("huggingface_hub")
pytest.importorskip("safetensors")
from barlow_fast.checkpoints import hub  # noqa: E402

FILES = ["README.md", "config.json", "model.safetensors"]
IMAGES = torch.randn(2, 1, 8, 8)


@pytest.fixture
def encoder() -> hub.HubEncoder:
    torch.manual_seed(0)
    network = scramble(build_encoder("small", channels=1, image_size=8, widths=(4,)))
    return hub.HubEncoder(
        Pretrained(network, "small", network.features, 1, 8, (0.25,), (0.5,), "none", None, {})
    )


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def assert_same(found: hub.HubEncoder, expected: hub.HubEncoder) -> None:
    assert not found.training
    with torch.no_grad():
        assert torch.equal(found(IMAGES), expected(IMAGES))
    for name in ("name", "features", "channels", "image_size", "mean", "std", "architecture"):
        assert getattr(found.pretrained, name) == getattr(expected.pretrained, name), name


def test_a_folder_holds_all_of_it(encoder, tmp_path: Path):
    encoder.save_pretrained(tmp_path / "saved")
    assert names(tmp_path / "saved") == FILES
    assert_same(hub.HubEncoder.from_pretrained(tmp_path / "saved"), encoder)
    assert_same(hub.HubEncoder(load_encoder(tmp_path / "saved" / "model.safetensors")), encoder)
    assert json.loads((tmp_path / "saved" / "config.json").read_text()) == {
        "name": "small", "features": 16, "channels": 1, "image_size": 8, "mean": [0.25],
        "std": [0.5], "stem": "small",
    }  # fmt: skip


def test_weights_are_saved_as_they_are_then(encoder, tmp_path: Path):
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.5)
    encoder.save_pretrained(tmp_path)
    assert_same(hub.HubEncoder.from_pretrained(tmp_path), encoder)


def test_an_encoder_of_a_run(tmp_path: Path):
    digits = load("digits")
    digits = replace(
        digits, train_images=digits.train_images[:64], train_labels=digits.train_labels[:64]
    )
    config = configure("digits", epochs=1, batch_size=64, encoder_widths=(4,), projector=(8,))
    trainer = Trainer(config, digits, checkpoint_path=tmp_path / "checkpoint.pt")
    trainer.network.train()
    trainer.train_step()
    trainer.save()
    encoder = hub.HubEncoder(load_encoder(tmp_path / "checkpoint.pt"))
    encoder.save_pretrained(tmp_path / "saved")
    found = hub.HubEncoder.from_pretrained(tmp_path / "saved")
    assert_same(found, encoder)
    assert found.pretrained.mean == trainer.views.mean
    with torch.no_grad():
        torch.testing.assert_close(found(IMAGES), trainer.model.eval().encoder(IMAGES))


class Hub:
    """The Hub's side: what is uploaded, and what is fetched from it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.made, self.token = folder, [], None

    def api(self, token=None):
        self.token = token
        return self

    def create_repo(self, repo_id, **options):
        self.made.append((repo_id, options["private"]))
        return SimpleNamespace(repo_id=repo_id)

    def upload_folder(self, *, repo_id, folder_path, **options):
        shutil.copytree(folder_path, self.folder / repo_id)
        return f"hub:{repo_id}"

    def download(self, repo_id, filename, **options):
        assert options["revision"] == "main"
        return str(self.folder / repo_id / filename)


def test_a_repository_is_uploaded_and_read(encoder, tmp_path: Path, monkeypatch):
    stand_in = Hub(tmp_path)
    monkeypatch.setattr(huggingface_hub.hub_mixin, "HfApi", stand_in.api)
    monkeypatch.setattr(huggingface_hub.hub_mixin, "hf_hub_download", stand_in.download)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", stand_in.download)
    assert encoder.push_to_hub("somebody/small", private=True, token="t") == "hub:somebody/small"
    assert (stand_in.made, stand_in.token) == ([("somebody/small", True)], "t")
    assert names(tmp_path / "somebody" / "small") == FILES
    found = hub.HubEncoder.from_pretrained("somebody/small", revision="main")
    assert_same(found, encoder)


def test_the_card_says_how_to_load_it(encoder, tmp_path: Path):
    card = encoder.generate_model_card(address=str(tmp_path))
    assert card.data.library_name == "barlow_fast"
    assert {"barlow-twins", "self-supervised-learning"} <= set(card.data.tags)
    encoder.save_pretrained(tmp_path)
    (code,) = (part.split("```")[0] for part in card.text.split("```python")[1:])
    found = {"images": IMAGES}
    exec(code, found)
    assert torch.equal(found["features"], encoder(IMAGES))
    assert "(0.25,)" in card.text
    assert "images (B, 1, 8, 8)" in " ".join(card.text.split())


def test_a_wrong_encoder_is_not_saved(encoder, tmp_path: Path):
    nn.init.constant_(encoder.encoder[0].weight, float("nan"))
    with pytest.raises(RuntimeError, match="not finite"):
        encoder.save_pretrained(tmp_path / "saved")
    assert names(tmp_path / "saved") == []


def test_it_names_the_extra_that_is_missing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.delitem(sys.modules, "barlow_fast.checkpoints.hub")
    with pytest.raises(ModuleNotFoundError, match=r"barlow-fast\[huggingface\]"):
        importlib.import_module("barlow_fast.checkpoints.hub")
