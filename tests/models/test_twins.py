"""The network's shapes and initial weights."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from barlow_fast.models import Projector, SmallEncoder, build_twins


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
    model = build_twins(channels=1, encoder_widths=(4,), projector=(8,), seed=0).train()
    a, b = torch.rand(6, 1, 8, 8), 5 * torch.rand(6, 1, 8, 8)
    alone, _ = model(a, a)
    together, _ = model(a, b)
    torch.testing.assert_close(alone, together)


@pytest.mark.parametrize("name", ["small", "resnet18"])
def test_weights_depend_on_the_seed_alone(name: str):
    options = {"channels": 1, "encoder_widths": (4,)}
    if name == "resnet18":
        pytest.importorskip("torchvision")
        options = {"image_size": 32}
    build = partial(build_twins, name, projector=(8,), **options)
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    first = build(seed=7)
    assert torch.equal(torch.rand(1), expected)
    second, other = build(seed=7), build(seed=8)
    for key, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[key])
    assert not torch.equal(next(first.parameters()), next(other.parameters()))


@pytest.mark.parametrize("wrong", [(), (0,), (8, -1)])
def test_widths_must_be_positive(wrong: tuple):
    with pytest.raises(ValueError, match="positive"):
        SmallEncoder(1, wrong)
    with pytest.raises(ValueError, match="positive"):
        Projector(8, wrong)


def test_one_pass_shares_batch_statistics():
    a, b = torch.rand(6, 1, 8, 8), 5 * torch.rand(6, 1, 8, 8)
    model = build_twins(channels=1, encoder_widths=(4,), projector=(8,), one_pass=True).train()
    together = torch.cat(model(a, b))
    expected = model.projector(model.encoder(torch.cat((a, b))))
    torch.testing.assert_close(together, expected)
    apart = build_twins(channels=1, encoder_widths=(4,), projector=(8,)).train()
    assert not torch.allclose(together, torch.cat(apart(a, b)))


def test_one_pass_and_two_agree_in_eval_mode():
    a, b = torch.rand(5, 1, 8, 8), torch.rand(3, 1, 8, 8)
    one, two = (
        build_twins(channels=1, encoder_widths=(4,), projector=(8, 6), one_pass=flag).eval()
        for flag in (True, False)
    )
    for together, alone in zip(one(a, b), two(a, b), strict=True):
        assert together.shape == alone.shape
        torch.testing.assert_close(together, alone)


@pytest.mark.parametrize("one_pass", [False, True])
def test_views_of_two_sizes_come_back_in_their_order(one_pass: bool):
    options = {"channels": 1, "encoder_widths": (4,), "projector": (8, 6)}
    model = build_twins(**options, one_pass=one_pass).eval()
    views = [torch.rand(5, 1, side, side) for side in (8, 12, 8, 12, 10)]
    found = model(*views)
    assert len(found) == 5
    for view, embeddings in zip(views, found, strict=True):
        torch.testing.assert_close(embeddings, model.projector(model.encoder(view)))
    seen: list[int] = []
    model.encoder.register_forward_pre_hook(lambda _, images: seen.append(len(images[0])))
    model(*views)
    assert seen == ([10, 10, 5] if one_pass else [5] * 5)


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("size", [4, 9])
def test_pooling_takes_its_gradient_in_the_layout_of_the_network(size: int, layout):
    images = torch.rand(2, 8, size, size).to(memory_format=layout).requires_grad_()
    weights = torch.rand(2, 8 * 4**2)
    arrived, found = [], []
    for pool in (SmallEncoder(3, (4, 8), grid=4)[-2], nn.AdaptiveAvgPool2d(4)):
        output = pool(images)
        output.register_hook(arrived.append)
        gradient = torch.autograd.grad((output.flatten(1) * weights).sum(), images)[0]
        found.append((output, gradient))
    torch.testing.assert_close(*found)
    assert arrived[0].is_contiguous(memory_format=layout)
    assert arrived[1].is_contiguous()  # what a flattening returns: without a hook it stays so
