"""Activations that are computed twice: gradients and batch norm's memory as if once."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

from barlow_fast.models import (
    BarlowTwinsModel,
    Projector,
    build_encoder,
    build_twins,
    checkpoint_activations,
)


def trained_a_step(model: nn.Module, views: tuple, seed: int = 3) -> tuple[dict, dict]:
    torch.manual_seed(seed)
    z_a, z_b = model(*views)
    (z_a.square().sum() + (z_a * z_b).sum()).backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    return gradients, model.state_dict()


class Residual(nn.Module):
    """A block with all that a second computation could get wrong."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(width, momentum=None)  # a mean over all batches
        self.convolution = nn.Conv2d(width, width, 3, padding=1)
        self.dropout = nn.Dropout(0.5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images + self.dropout(self.convolution(self.norm(images).relu()))


def with_dropout() -> BarlowTwinsModel:
    encoder = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.Sequential(Residual(4), Residual(4)), nn.Flatten()
    )
    return BarlowTwinsModel(encoder, Projector(4 * 14**2, (8, 8)))


def twins(name: str, **options) -> Callable[[bool], BarlowTwinsModel]:
    options |= {"channels": 1, "projector": (8, 8)}
    return lambda one_pass: build_twins(name, one_pass=one_pass, **options)


# (model, its blocks)
MODELS = {
    "small": (twins("small", encoder_widths=(4, 6)), 2),
    "dropout": (lambda one_pass: with_dropout(), 2),
    "resnet18": (twins("resnet18", image_size=16), 8),
}


@pytest.mark.parametrize(
    ("name", "one_pass"),
    [("small", False), ("small", True), ("dropout", False), ("resnet18", False)],
)
def test_gradients_and_running_statistics_are_as_without(name: str, one_pass: bool):
    if name == "resnet18":
        pytest.importorskip("torchvision")
    make, blocks = MODELS[name]
    plain = make(one_pass)
    saving = copy.deepcopy(plain)
    assert checkpoint_activations(saving.encoder) == blocks
    views = torch.rand(2, 3, 1, 16, 16).unbind()
    gradients, state = trained_a_step(plain, views)
    assert any(gradient.any() for gradient in gradients.values())
    for found, expected in zip(trained_a_step(saving, views), (gradients, state), strict=True):
        assert list(found) == list(expected)
        for key, value in expected.items():
            assert torch.equal(found[key], value), key
    moved = [value for key, value in state.items() if key.endswith("num_batches_tracked")]
    assert {int(value) for value in moved} == {1 if one_pass else 2}


def test_fewer_activations_are_kept():
    pytest.importorskip("torchvision")
    encoder = build_encoder("resnet18", image_size=32)
    images = torch.rand(2, 3, 32, 32)

    def kept(network: nn.Module) -> int:
        sizes: dict[int, int] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            network(images)
        return sum(sizes.values())

    def weights(network: nn.Module) -> int:
        return sum(p.untyped_storage().nbytes() for p in network.parameters())

    saving = copy.deepcopy(encoder)
    checkpoint_activations(saving)
    without, with_it = kept(encoder) - weights(encoder), kept(saving)
    assert with_it < 0.4 * without


def test_a_copy_calls_its_own_blocks():
    encoder = build_encoder("small", channels=1, image_size=8, widths=(4, 4))
    checkpoint_activations(encoder)
    other = copy.deepcopy(encoder).eval()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    assert not other(torch.rand(2, 1, 8, 8)).any()
    assert encoder.eval()(torch.rand(2, 1, 8, 8)).any()


def test_evaluation_needs_no_second_computation():
    encoder = build_encoder("small", channels=1, image_size=8, widths=(4, 4)).eval()
    images = torch.rand(2, 1, 8, 8)
    with torch.inference_mode():
        expected = encoder(images)
        checkpoint_activations(encoder)
        assert torch.equal(encoder(images), expected)


def test_a_network_without_blocks():
    pytest.importorskip("torchvision")
    with torch.device("meta"):
        encoder = build_encoder("vgg11", image_size=64)
    with pytest.raises(ValueError, match="no blocks"):
        checkpoint_activations(encoder)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["small", "dropout"])
def test_compiled(name: str):
    plain = MODELS[name][0](False).eval()
    for norm in plain.modules():
        if isinstance(norm, (nn.BatchNorm2d, nn.BatchNorm1d)):
            norm.train()
    saving = copy.deepcopy(plain)
    checkpoint_activations(saving.encoder)
    views = torch.rand(2, 3, 1, 16, 16).unbind()
    compiled = trained_a_step(torch.compile(saving, backend="aot_eager"), views)
    for found, expected in zip(compiled, trained_a_step(plain, views), strict=True):
        for (key, value), again in zip(expected.items(), found.values(), strict=True):
            torch.testing.assert_close(again, value, msg=key)
