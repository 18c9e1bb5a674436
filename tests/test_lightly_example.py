"""lightly's own example with lightly's loss, with the import changed, and with the patch.

Training magnifies rounding, so two runs part in float32 whatever computes their loss. Hence three
tests of 50 steps: free in float64, where what is magnified stays small; in float32 with both losses
on the same embeddings at every step, where nothing can grow; and free in float32 against the
baseline, lightly against itself from weights that are moved by one unit in the last place. Their
network is small, with lightly's head; `python -m bench dropin` does the same with ResNet-18.
"""

from __future__ import annotations

import importlib.util
import random
import sys
from pathlib import Path
from statistics import median

import numpy as np
import pytest
import torch
from torch import nn

import barlow_fast

lightly_loss = pytest.importorskip("lightly.loss")
heads = pytest.importorskip("lightly.models.modules")
pytest.importorskip("torchvision")

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "lightly_barlow_twins.py"
STEPS, BATCH, WIDTH, DIM = 50, 64, 32, 256


@pytest.fixture(scope="module")
def example():
    specification = importlib.util.spec_from_file_location("lightly_barlow_twins", EXAMPLE)
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module
    specification.loader.exec_module(module)
    yield module
    del sys.modules[specification.name]


pytestmark = pytest.mark.usefixtures("one_thread")


def seed_everything():
    for use_seed in (torch.manual_seed, random.seed, np.random.seed):
        use_seed(0)


@pytest.fixture(scope="module")
def batches(example):
    """Four batches of the example's views."""
    seed_everything()
    loader = iter(example.two_views(BATCH))
    return [next(loader) for _ in range(4)]


def start(dtype, moved=False):
    """(model, optimizer): two halving convolutions in the place of ResNet-18, lightly's head."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, WIDTH, 4, 4, bias=False), nn.BatchNorm2d(WIDTH), nn.ReLU(),
        nn.Conv2d(WIDTH, WIDTH, 3, 2, 1, bias=False), nn.BatchNorm2d(WIDTH), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        heads.BarlowTwinsProjectionHead(4 * WIDTH, DIM, DIM),
    ).to(dtype)  # fmt: skip
    if moved:
        with torch.no_grad():
            for weight in model.parameters():
                far = torch.where(torch.rand_like(weight) < 0.5, torch.inf, -torch.inf)
                weight.copy_(torch.nextafter(weight, far.to(dtype)))
    return model, torch.optim.SGD(model.parameters(), lr=0.06)


def curve(batches, dtype, criterion, moved=False, watch=None):
    """The loss of every step; `watch(z_a, z_b)` receives the embeddings of each."""
    model, optimizer = start(dtype, moved)
    losses = []
    for step in range(STEPS):
        z_a, z_b = (model(view.to(dtype)) for view in batches[step % len(batches)])
        loss = criterion(z_a, z_b)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if watch is not None:
            watch(z_a.detach(), z_b.detach())
    return losses


def differences(got, want):
    return [abs(x - y) / y for x, y in zip(got, want, strict=True)]


@pytest.fixture
def patched():
    """lightly's class as a script finds it after the patch."""
    with barlow_fast.patch("lightly"):
        yield lightly_loss.BarlowTwinsLoss()


@pytest.fixture
def original():
    return lightly_loss.BarlowTwinsLoss()


def test_the_example_itself(example):
    """ResNet-18 and all: one loss under three names, at the first step; then SGD in between."""
    before = lightly_loss.BarlowTwinsLoss
    curves = {loss: example.train(loss, 2, 16, seed=0) for loss in example.LOSSES}
    assert lightly_loss.BarlowTwinsLoss is before
    assert curves["patched"] == curves["barlow_fast"]
    assert curves["patched"][0] == pytest.approx(curves["lightly"][0], rel=1e-5)
    assert curves["patched"][1] == pytest.approx(curves["lightly"][1], rel=1e-2)
    assert curves["lightly"][0] != curves["lightly"][1]


def test_the_example_says_what_computed_the_loss(example, capsys):
    for loss, where in (
        ("lightly", "lightly.loss"),
        ("patched", "barlow_fast.adapters"),
        ("barlow_fast", "barlow_fast.adapters"),
    ):
        with example.criterion_of(loss) as criterion:
            assert type(criterion).__module__.startswith(where)


def test_fifty_free_steps_in_float64(original, patched, batches):
    assert type(original) is not type(patched)
    theirs = curve(batches, torch.float64, original)
    ours = curve(batches, torch.float64, patched)
    assert max(differences(ours, theirs)) < 1e-9
    assert theirs[-1] < 0.8 * theirs[0]


def outcome(criterion, z_a, z_b):
    """Loss and gradients in one float64 vector each."""
    seen = [z.clone().requires_grad_() for z in (z_a, z_b)]
    loss = criterion(*seen)
    return loss.detach().double(), torch.cat(torch.autograd.grad(loss, seen)).double()


def test_fifty_steps_on_the_same_embeddings(original, patched, batches):
    """At no step is ours further from float64 than twice what lightly's is at its worst."""
    errors = {"ours": [], "theirs": []}

    def watch(z_a, z_b):
        true = outcome(original, z_a.double(), z_b.double())
        for name, criterion in (("ours", patched), ("theirs", original)):
            found = outcome(criterion, z_a, z_b)
            errors[name].append(
                [float((x - y).norm() / y.norm()) for x, y in zip(found, true, strict=True)]
            )

    curve(batches, torch.float32, original, watch=watch)
    ours, theirs = (torch.tensor(errors[name]).amax(0) for name in ("ours", "theirs"))
    assert len(errors["ours"]) == STEPS
    assert (ours <= 2 * theirs + 4 * torch.finfo(torch.float32).eps).all(), (ours, theirs)
    assert ours.max() < 1e-4


def test_fifty_free_steps_in_float32(original, patched, batches):
    """The patched run leaves lightly's as lightly leaves itself. What rounding grows to differs
    between two draws of it, hence the factor."""
    theirs = curve(batches, torch.float32, original)
    moved = curve(batches, torch.float32, original, moved=True)
    ours = curve(batches, torch.float32, patched)
    assert ours[0] == pytest.approx(theirs[0], rel=1e-5)
    assert median(differences(ours, theirs)) <= 5 * median(differences(moved, theirs))
