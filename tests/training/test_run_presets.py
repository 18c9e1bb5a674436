"""Settings by name, by file and by assignment."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from barlow_fast.training import PRESETS, PretrainConfig, configure, override
from barlow_fast.training.presets import preset_in


def test_the_papers_recipe():
    """Zbontar et al. (ICML 2021), section 2.2, and the authors' code."""
    paper = PRESETS["imagenet-1000ep"]
    assert (paper.encoder, paper.projector) == ("resnet50", (8192, 8192, 8192))
    assert (paper.lambd, paper.batch_size, paper.epochs) == (0.0051, 2048, 1000)
    assert (paper.optimizer, paper.momentum, paper.trust_coefficient) == ("lars", 0.9, 0.001)
    assert paper.weight_decay == 1e-6
    assert paper.warmup_epochs == 10
    weights, biases = paper.learning_rates
    assert weights == pytest.approx(0.2 * 2048 / 256)
    assert biases == pytest.approx(0.0048 * 2048 / 256)


@pytest.mark.parametrize(
    "name",
    ["imagenet-1000ep", "imagenet-100ep", "imagenet100", "cifar10", "stl10", "fashion-mnist",
     "digits"],
)  # fmt: skip
def test_presets_that_the_documentation_names(name: str):
    assert isinstance(PRESETS[name], PretrainConfig)


def test_a_file_and_assignments_change_what_they_name(tmp_path: Path):
    file = tmp_path / "run.yaml"
    file.write_text("preset: digits\nepochs: 7\nprojector: [64, 128]\nlearning_rate: 1e-4\n")
    base = PRESETS["digits"]
    config, named = override(base, file, ["lambd=0.02", "epochs=9", "micro_batch_size=16"])
    expected = replace(
        base,
        epochs=9,
        projector=(64, 128),
        learning_rate=1e-4,
        lambd=0.02,
        micro_batch_size=16,
        warmup_epochs=5,
    )
    assert config == expected
    assert set(named) == {"epochs", "projector", "learning_rate", "lambd", "micro_batch_size"}
    assert override(base) == (base, {})
    assert override(base, None, ["micro_batch_size=null"])[0].micro_batch_size is None


def test_what_is_written_as_yaml_reads_back(tmp_path: Path):
    yaml = pytest.importorskip("yaml")

    for name, preset in PRESETS.items():
        file = tmp_path / f"{name}.yaml"
        file.write_text(yaml.safe_dump(preset.to_dict()))
        assert override(PRESETS["digits"], file)[0] == preset


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


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("micro_batch_size", 1),
        ("momentum", 1.0),
        ("scale", 0.0),
        ("keep_checkpoints", 0),
        ("parallel", "pipeline"),
        ("compile", "fast"),
        ("stem", "large"),
        ("bias_learning_rate", -1.0),
        ("checkpoint_minutes", 0.0),
        ("reference_batch_size", 0),
    ],
)
def test_impossible_values_are_named(name: str, value: object):
    with pytest.raises(ValueError, match=name):
        replace(PRESETS["digits"], **{name: value})


def test_learning_rates_scale_with_the_batch():
    config = configure("cifar10", batch_size=512)
    assert config.learning_rates == pytest.approx((0.4, 0.0096))
    assert configure("digits", batch_size=64).learning_rates == (2e-3, 2e-3)


@pytest.mark.parametrize(
    ("name", "encoder", "epochs", "batch_size", "projector"),
    [
        ("fashion-mnist", "small", 4, 256, None),
        ("cifar10", "resnet18", 1000, 256, (2048, 2048, 2048)),
        ("cifar100", "resnet18", 1000, 256, (2048, 2048, 2048)),
        ("stl10", "resnet18", 400, 256, (2048, 2048, 2048)),
        ("imagenet100", "resnet18", 400, 256, (2048, 2048, 2048)),
        ("imagenet-100ep", "resnet50", 100, 256, (8192, 8192, 8192)),
        ("files", "small", 20, 64, None),
    ],
)
def test_what_a_preset_trains(name, encoder, epochs, batch_size, projector):
    """A change of these is a change of what users compare their scores with."""
    preset = PRESETS[name]
    assert (preset.encoder, preset.epochs, preset.batch_size) == (encoder, epochs, batch_size)
    assert preset.projector == (projector or PretrainConfig().projector)
    assert preset.lambd == 0.0051
    if encoder == "small":
        assert preset.encoder_widths in ((32, 64, 128), (16, 32, 64, 128, 256))
        assert preset.warmup_epochs < preset.epochs


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
