"""The settings' checks, the learning rate's course."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest

from barlow_fast.training import (
    PRESETS,
    PretrainConfig,
    configure,
    learning_rate,
)


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
    with pytest.raises(ValueError, match=r"differ.*nesterov"):
        PretrainConfig.from_dict({**PRESETS["digits"].to_dict(), "nesterov": True})


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
    with pytest.raises(ValueError, match=r"unknown preset.*digits"):
        configure("imagenet")


def test_presets_run_the_gram_form():
    for preset in PRESETS.values():
        assert 4 * preset.batch_size <= 3 * preset.projector[-1]
