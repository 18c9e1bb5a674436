"""The official layout there and back, judged by a plain model and optimizer of its kind."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from scrambled import scramble
from torch import nn

from barlow_fast.checkpoints import load_encoder, load_official, save_official, to_official
from barlow_fast.models import BarlowTwinsModel, build_twins

pytest.importorskip("torchvision")
BACKBONE = "shufflenet_v2_x0_5"  # theirs is a ResNet-50; this one is small


def twins(seed: int = 0) -> BarlowTwinsModel:
    return build_twins(BACKBONE, image_size=64, projector=(8, 8, 6), seed=seed)


class TheirModel(nn.Module):
    """The modules of the official model, with its names."""

    def __init__(self) -> None:
        super().__init__()
        torchvision = pytest.importorskip("torchvision")
        self.backbone = torchvision.models.get_model(BACKBONE, weights=None)
        self.backbone.fc = nn.Identity()
        self.projector = nn.Sequential(
            nn.Linear(1024, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(),
            nn.Linear(8, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(),
            nn.Linear(8, 6, bias=False),
        )  # fmt: skip
        self.bn = nn.BatchNorm1d(6, affine=False)


class Momentum(torch.optim.Optimizer):
    """Settings and state of a LARS, with its update left out."""

    def __init__(self, groups: list, key: str, trust: str) -> None:
        defaults = {"lr": 0.2, "weight_decay": 1e-6, "momentum": 0.9, trust: 0.001}
        defaults |= {"weight_decay_filter": True, "lars_adaptation_filter": True}
        super().__init__(groups, defaults)
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter][key] = torch.randn_like(parameter)


def their_optimizer(model: nn.Module) -> Momentum:
    weights = [p for p in model.parameters() if p.ndim != 1]
    biases = [p for p in model.parameters() if p.ndim == 1]
    return Momentum([{"params": weights}, {"params": biases, "lr": 0.0048}], "mu", "eta")


def our_optimizer(model: nn.Module) -> Momentum:
    # Another order and more groups than theirs.
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim == 1], "lr": 0.0048},
        {"params": [p for p in parameters if p.ndim == 2][::-1]},
        {"params": [p for p in parameters if p.ndim == 4]},
    ]
    return Momentum(groups, "momentum_buffer", "trust_coefficient")


def saved_by_theirs(path: Path) -> tuple[TheirModel, Momentum]:
    """What the official code writes after its first epoch."""
    theirs = scramble(TheirModel())
    their = their_optimizer(theirs)
    model = {f"module.{key}": value for key, value in theirs.state_dict().items()}
    torch.save({"epoch": 1, "model": model, "optimizer": their.state_dict()}, path)
    return theirs, their


def test_ours_is_read_by_theirs(tmp_path: Path):
    model = scramble(twins())
    optimizer = our_optimizer(model)
    save_official(tmp_path / "checkpoint.pth", model, epoch=7, optimizer=optimizer)
    content = torch.load(tmp_path / "checkpoint.pth", weights_only=True)
    assert content["epoch"] == 7
    theirs = TheirModel()
    # What their DistributedDataParallel does: one prefix.
    theirs.load_state_dict({k.removeprefix("module."): v for k, v in content["model"].items()})
    assert list(content["model"]) == [f"module.{key}" for key in theirs.state_dict()]
    images = torch.randn(2, 3, 64, 64)
    theirs.eval()
    with torch.no_grad():
        expected, _ = model(images, images)
        assert torch.equal(theirs.projector(theirs.backbone(images)), expected)
    assert torch.equal(theirs.bn.running_var, torch.ones(6))
    assert not theirs.bn.running_mean.any()
    their = their_optimizer(theirs)
    their.load_state_dict(content["optimizer"])
    ours = dict(zip(theirs.parameters(), model.parameters(), strict=True))
    for parameter, counterpart in ours.items():
        momentum = optimizer.state[counterpart]["momentum_buffer"]
        assert torch.equal(their.state[parameter]["mu"], momentum)
    assert [group["lr"] for group in their.param_groups] == [0.2, 0.0048]
    assert {group["eta"] for group in their.param_groups} == {0.001}


def test_theirs_is_read_by_ours_and_written_again_as_it_was(tmp_path: Path):
    saved_by_theirs(tmp_path / "checkpoint.pth")
    content = torch.load(tmp_path / "checkpoint.pth", weights_only=True)
    model = twins(seed=1)
    optimizer = our_optimizer(model)
    assert load_official(tmp_path / "checkpoint.pth", model, optimizer) == 1
    again = to_official(model, epoch=1, optimizer=optimizer)
    # Their statistics of the embeddings are not kept; nothing reads them.
    kept = {key: v for key, v in content["model"].items() if not key.startswith("module.bn.")}
    for key, value in kept.items():
        assert torch.equal(again["model"][key], value), key
    before, after = content["optimizer"]["state"], again["optimizer"]["state"]
    assert set(before) == set(after)
    for index in before:
        assert torch.equal(before[index]["mu"], after[index]["mu"])
    groups = (saved["optimizer"]["param_groups"] for saved in (content, again))
    for old, new in zip(*groups, strict=True):
        assert new == {key: old[key] for key in new}


def test_our_lars_continues_with_their_momentum(tmp_path: Path):
    from barlow_fast.training.lars import LARS

    theirs, their = saved_by_theirs(tmp_path / "checkpoint.pth")
    ours = twins(seed=1)
    optimizer = LARS(ours.parameters(), lr=0.1)
    load_official(tmp_path / "checkpoint.pth", ours, optimizer)
    parameter = ours.projector[1].weight
    before, mu = parameter.detach().clone(), their.state[theirs.projector[1].weight]["mu"]
    parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    torch.testing.assert_close(parameter.detach(), before - 0.1 * (0.9 * mu + 1))


def test_the_encoder_alone(tmp_path: Path):
    model = scramble(twins())
    save_official(tmp_path / "checkpoint.pth", model, epoch=0)
    loaded = load_encoder(tmp_path / "checkpoint.pth", encoder=BACKBONE)
    assert (loaded.format, loaded.name) == ("official", BACKBONE)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(loaded.encoder(images), model.encoder(images))


def test_what_does_not_fit_changes_nothing(tmp_path: Path):
    path = tmp_path / "checkpoint.pth"
    model = twins()
    save_official(path, model, epoch=0, optimizer=our_optimizer(model))
    other = build_twins(BACKBONE, image_size=64, projector=(8, 8, 7), seed=1)
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(ValueError, match=r"does not fit the model's projector.*6.weight"):
        load_official(path, other)
    for key, value in other.state_dict().items():
        assert torch.equal(value, before[key])
    adam = torch.optim.AdamW(model.parameters())
    with pytest.raises(ValueError, match="must be a LARS, got AdamW"):
        load_official(path, model, adam)
    with pytest.raises(ValueError, match="must be a LARS, got AdamW"):
        save_official(path, model, epoch=1, optimizer=adam)
    assert torch.load(path, weights_only=True)["epoch"] == 0
    partial = our_optimizer(model.encoder)
    with pytest.raises(ValueError, match="other parameters than the model"):
        to_official(model, epoch=1, optimizer=partial)
    uneven = our_optimizer(model)
    uneven.param_groups[1]["lr"] = 3.0
    with pytest.raises(ValueError, match="settings differ among the weights"):
        to_official(model, epoch=1, optimizer=uneven)
    content = to_official(model, epoch=1, optimizer=our_optimizer(model))
    content["optimizer"]["state"][0]["mu"] = torch.zeros(3)
    torch.save(content, path)
    with pytest.raises(ValueError, match="momentum of parameter 0 is not a tensor of shape"):
        load_official(path, model, our_optimizer(model))
    torch.save({"state_dict": {"backbone.a": torch.ones(1)}}, path)
    with pytest.raises(ValueError, match="solo-learn, not an official one"):
        load_official(path, model)


def test_a_lars_of_their_kind_gets_momentum_under_their_name(tmp_path: Path):
    theirs, their = saved_by_theirs(tmp_path / "checkpoint.pth")
    for make, key in ((their_optimizer, "mu"), (our_optimizer, "momentum_buffer")):
        ours = twins(seed=1)
        optimizer = make(ours)
        load_official(tmp_path / "checkpoint.pth", ours, optimizer)
        state = optimizer.state[ours.projector[1].weight]
        assert list(state) == [key]
        assert torch.equal(state[key], their.state[theirs.projector[1].weight]["mu"])
