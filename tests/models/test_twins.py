"""The network's shapes and initial weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from barlow_fast.models import Projector, SmallEncoder, build_model


@pytest.mark.parametrize("size", [8, 12, 28, 64])
@pytest.mark.parametrize(("widths", "grid"), [((4, 8), 1), ((4, 8, 16), 2)])
def test_encoder_takes_small_images_of_any_size(size: int, widths: tuple, grid: int):
    encoder = SmallEncoder(3, widths, grid)
    features = encoder(torch.rand(2, 3, size, size))
    assert features.shape == (2, encoder.features)
    assert encoder.features == widths[-1] * grid**2


def test_projector_is_the_papers():
    projector = Projector(12, (20, 24, 30))
    kinds = [type(layer) for layer in projector]
    block = [nn.Linear, nn.BatchNorm1d, nn.ReLU]
    assert kinds == [*block, *block, nn.Linear]
    assert all(layer.bias is None for layer in projector if isinstance(layer, nn.Linear))
    assert projector(torch.rand(4, 12)).shape == (4, 30)


def test_views_do_not_share_batch_statistics():
    model = build_model(1, (4,), (8,), seed=0).train()
    a, b = torch.rand(6, 1, 8, 8), 5 * torch.rand(6, 1, 8, 8)
    alone, _ = model(a, a)
    together, _ = model(a, b)
    torch.testing.assert_close(alone, together)


def test_weights_depend_on_the_seed_alone():
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    first = build_model(1, (4,), (8,), seed=7)
    assert torch.equal(torch.rand(1), expected)
    second = build_model(1, (4,), (8,), seed=7)
    other = build_model(1, (4,), (8,), seed=8)
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(next(first.parameters()), next(other.parameters()))


@pytest.mark.parametrize("wrong", [(), (0,), (8, -1)])
def test_widths_must_be_positive(wrong: tuple):
    with pytest.raises(ValueError, match="positive"):
        SmallEncoder(1, wrong)
    with pytest.raises(ValueError, match="positive"):
        Projector(8, wrong)
