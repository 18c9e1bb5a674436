"""The network's shapes, the settings' checks, the learning rate's course."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import nn

from barlow_fast.training import (
    PRESETS,
    PretrainConfig,
    Projector,
    SmallEncoder,
    build_model,
    configure,
    learning_rate,
)


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


def test_learning_rate_warms_up_and_comes_down():
    rates = [learning_rate(step, 100, 2.0, 10) for step in range(100)]
    assert rates[0] == pytest.approx(0.2)
    assert rates[9] == rates[10] == 2.0
    assert all(a < b for a, b in pairwise(rates[:10]))
    assert all(a > b for a, b in pairwise(rates[10:]))
    assert rates[55] == pytest.approx(2.0 * (0.001 + 0.999 / 2))
    assert rates[-1] == pytest.approx(2.0 * 0.001, rel=0.5)
    with pytest.raises(ValueError, match="warm-up"):
        learning_rate(0, 5, 1.0, 6)


def test_settings_survive_a_checkpoint():
    for preset in PRESETS.values():
        assert PretrainConfig.from_dict(preset.to_dict()) == preset
    with pytest.raises(ValueError, match=r"differ.*momentum"):
        PretrainConfig.from_dict({**PRESETS["digits"].to_dict(), "momentum": 0.9})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", 0),
        ("batch_size", 1),
        ("projector", ()),
        ("encoder_widths", (8, 0)),
        ("learning_rate", 0.0),
        ("learning_rate", math.inf),
        ("lambd", math.nan),
        ("weight_decay", -1.0),
        ("warmup_epochs", 10**6),
        ("seed", -1),
        ("precision", "fp8"),
    ],
)
def test_impossible_settings_are_named(name: str, value):
    with pytest.raises(ValueError, match=name):
        replace(PRESETS["digits"], **{name: value})


def test_choices_replace_the_preset():
    config = configure("fashion-mnist", epochs=3, lambd=None)
    assert config.epochs == 3
    assert config.lambd == PRESETS["fashion-mnist"].lambd
    assert configure("digits", epochs=1).warmup_epochs == 1
    with pytest.raises(ValueError, match=r"unknown data set.*digits"):
        configure("imagenet")


def test_presets_run_the_gram_form():
    for preset in PRESETS.values():
        assert 4 * preset.batch_size <= 3 * preset.projector[-1]
