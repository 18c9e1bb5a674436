"""Settings by name, by file and by assignment, and the course of the learning rate."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from barlow_fast.training import PRESETS, PretrainConfig, configure, learning_rate, override
from barlow_fast.training.presets import preset_in


def test_a_file_and_assignments_change_what_they_name(tmp_path: Path):
    file = tmp_path / "run.yaml"
    file.write_text("preset: digits\nepochs: 7\nprojector: [64, 128]\nlearning_rate: 1e-4\n")
    base = PRESETS["digits"]
    config, named = override(base, file, ["invariance=2", "epochs=9", "micro_batch_size=16"])
    changed = {
        "epochs": 9, "projector": [64, 128], "learning_rate": 1e-4, "invariance": 2.0,
        "micro_batch_size": 16,
    }  # fmt: skip
    assert config == replace(base, **{**changed, "projector": (64, 128)})
    assert named == changed
    file.write_text("preset: cifar10\nseed: 3\nepochs: 2\n")
    assert override(base, file)[0] == replace(base, seed=3, epochs=2, warmup_epochs=2)
    assert override(base) == (base, {})
    assert override(base, None, ["micro_batch_size=null"])[0].micro_batch_size is None


def test_what_is_written_reads_back(tmp_path: Path):
    yaml = pytest.importorskip("yaml")
    for name, preset in PRESETS.items():
        file = tmp_path / f"{name}.yaml"
        file.write_text(yaml.safe_dump(preset.to_dict()))
        assert override(PRESETS["digits"], file)[0] == preset
        assert PretrainConfig.from_dict(preset.to_dict()) == preset
    with pytest.raises(ValueError, match=r"differ.*nesterov"):
        PretrainConfig.from_dict({**PRESETS["digits"].to_dict(), "nesterov": True})


def test_presets_run_the_gram_form():
    for preset in PRESETS.values():
        assert 4 * preset.batch_size <= 3 * preset.projector[-1]


def test_the_rate_of_every_step():
    def by_hand(step: int, steps: int, peak: float, warmup: int, final: float = 0.001) -> float:
        if step < warmup:
            return peak * (step + 1) / warmup
        done = (step - warmup) / (steps - warmup)
        return peak * final + peak * (1 - final) * (1 + math.cos(math.pi * done)) / 2

    for case in ((10, 2.0, 3, 0.1), (7, 0.5, 0, 0.0), (9, 1.0, 8, 0.9), (100, 2.0, 10)):
        found = [learning_rate(step, *case) for step in range(case[0])]
        assert found == pytest.approx([by_hand(step, *case) for step in range(case[0])], rel=1e-12)
    # All of a run may be warm-up, and what lies behind the end stays at the end.
    assert [learning_rate(step, 4, 1.0, 4) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert learning_rate(99, 10, 2.0, 3, 0.1) == pytest.approx(0.2)
    for warmup in (-1, 11):
        with pytest.raises(ValueError, match=f"warm-up of {warmup} steps"):
            learning_rate(0, 10, 1.0, warmup)
    learning_rate(0, 10, 1.0, 10)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("epochs: many", r"epochs must be a whole number, got 'many'"),
        ("epoch: 3", r"unknown setting 'epoch'; did you mean epochs"),
        ("- 1\n- 2", r"mapping"),
        ("a: [", r"not YAML"),
        ("projector: 64", r"projector must be whole numbers such as \[512, 512, 1024\], got 64"),
        ("epochs: 0", r"epochs must be at least 1"),
        ("epochs: null", r"epochs must be a whole number, got None"),
        ("optimizer: adam", r"optimizer must be one of"),
        ("lambd: 1" + 400 * "0", r"lambd is too large"),
        ("epochs: 3\nepochs: 4", r"epochs: twice"),
        ("[epochs]: 3", r"not YAML"),
        ("1: 3", r"unknown setting 1; there are"),
        ("compile: off", r"compile must be text, got False"),
        (
            "a0: &a0 [1,1,1,1,1,1,1,1,1]\n"
            + "".join(f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 10)),
            r"more than 10000 values",
        ),
    ],
)
def test_bad_files_are_refused(tmp_path: Path, content: str, message: str):
    file = tmp_path / "run.yaml"
    file.write_text(content)
    with pytest.raises(ValueError, match=message):
        override(PRESETS["digits"], file)


@pytest.mark.parametrize("content", ["preset: [1]", "preset: {a: 1}", "preset: 3", "preset: off"])
def test_a_preset_is_a_name(tmp_path: Path, content: str):
    file = tmp_path / "run.yaml"
    file.write_text(content)
    with pytest.raises(ValueError, match="preset must be a name"):
        preset_in(file)


def test_bare_words_of_yaml_are_text_where_text_is_wanted():
    for text, value in (("off", "off"), ("'off'", "off")):
        assert override(PRESETS["digits"], None, [f"compile={text}"])[0].compile == value
    assert override(PRESETS["digits"], None, ["dataset=18"])[0].dataset == "18"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epochs", r"name=value"),
        ("lambda=1", r"unknown setting 'lambda'; did you mean lambd"),
        ("learning_rate=-1", r"learning_rate must be positive"),
        ("encoder=small\x1b[31m", r"'encoder=small\\x1b\[31m': not YAML"),
        ("epochs=2001-99-99", r"month must be in"),
        ("one_pass=maybe", r"one_pass must be true or false, got 'maybe'"),
    ],
)
def test_bad_assignments_are_refused(text: str, message: str):
    with pytest.raises(ValueError, match=message):
        override(PRESETS["digits"], None, [text])


def test_learning_rates_scale_with_the_batch():
    config = configure("cifar10", batch_size=512)
    assert config.learning_rates == pytest.approx((0.4, 0.0096))
    assert configure("digits", batch_size=64).learning_rates == (2e-3, 2e-3)


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"epochs": "x"}, "epochs must be a whole number, got 'x'"),
        ({"lambd": "abc"}, "lambd must be a number, got 'abc'"),
        ({"epoch": 3}, "unknown setting 'epoch'; did you mean epochs"),
        ({"lr": 3}, "unknown setting 'lr'; did you mean learning_rate"),
    ],
)
def test_choices_of_other_types_are_named(choices: dict, message: str):
    with pytest.raises(ValueError, match=message):
        configure("digits", **choices)
