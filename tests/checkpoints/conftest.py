"""A ResNet-18 with weights that show every mistake, and its features of two images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from scrambled import scramble
from torch import Tensor, nn

from barlow_fast.checkpoints import Pretrained, load_encoder


class Truth(NamedTuple):
    state: dict[str, Tensor]
    images: Tensor
    features: Tensor

    def assert_same(self, loaded: Pretrained) -> None:
        with torch.no_grad():
            assert torch.equal(loaded.encoder(self.images), self.features)


def truth_of(network: nn.Module, size: int) -> Truth:
    network.fc = nn.Identity()
    scramble(network)
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        return Truth(network.state_dict(), images, network(images))


@pytest.fixture(scope="session")
def resnet18() -> Truth:
    """torchvision's own, without its head."""
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(0)
    return truth_of(torchvision.models.resnet18(weights=None), 40)


@pytest.fixture(scope="session")
def small_resnet18() -> Callable[[int], Truth]:
    """With a 3 x 3 stem of the given padding and no max-pool."""
    torchvision = pytest.importorskip("torchvision")

    def make(padding: int) -> Truth:
        torch.manual_seed(0)
        network = torchvision.models.resnet18(weights=None)
        network.conv1 = nn.Conv2d(3, 64, 3, padding=padding, bias=False)
        network.maxpool = nn.Identity()
        return truth_of(network, 16)

    return make


@pytest.fixture
def saved(tmp_path: Path) -> Callable[[Any], Path]:
    """Writes anything with torch.save."""

    def save(content: Any, name: str = "checkpoint.pth") -> Path:
        torch.save(content, tmp_path / name)
        return tmp_path / name

    return save


@pytest.fixture
def load(saved: Callable[[Any], Path]) -> Callable[..., Pretrained]:
    """What `load_encoder` makes of anything, saved."""
    return lambda content, **options: load_encoder(saved(content), **options)
