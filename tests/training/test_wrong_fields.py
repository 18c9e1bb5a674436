"""Checkpoints that are whole files and hold something else than a run's state: one line each."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import pretrain
from options import assert_covered

from barlow_fast.checkpoints import state
from barlow_fast.training import (
    JsonLinesLog,
    PretrainConfig,
    Trainer,
    configure,
    load_checkpoint,
    newest_checkpoint,
    save_checkpoint,
)
from barlow_fast.training.reporting import page

WRONG = ["x", -1, 1.5, None, True, [], {}, ["x"], {"x": "x"}, torch.zeros(2, 3), 10**30]


@pytest.fixture(scope="module")
def config() -> PretrainConfig:
    return configure(
        "digits", loss="barlow-twins",
        encoder_widths=(4,), projector=(8, 12), epochs=2, evaluate_every=1,
        batch_size=64, precision="fp32",
    )  # fmt: skip


@pytest.fixture(scope="module")
def trained(config: PretrainConfig, small_digits) -> dict[str, Any]:
    """The state after one of two epochs."""
    trainer = Trainer(config, small_digits)
    trainer.network.train()
    trainer._measure_before()
    trainer.train_epoch()
    return copy.deepcopy(trainer.state_dict())


@pytest.fixture
def good(trained: dict[str, Any]) -> dict[str, Any]:
    return copy.deepcopy(trained)


def places(value: Any, path: tuple = ()) -> Iterator[tuple]:
    """Every field, and those within: of what is many alike, the first two."""
    for key, inner in list(value.items() if isinstance(value, dict) else enumerate(value)):
        if isinstance(key, int) and key > 1:
            continue
        yield (*path, key)
        if isinstance(inner, (dict, list)):
            yield from places(inner, (*path, key))


def replaced(whole: dict[str, Any], place: tuple, value: Any) -> dict[str, Any]:
    changed = inner = copy.deepcopy(whole)
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    return changed


def refused(content: dict, path: Path, config: PretrainConfig, data, run: bool = True) -> str:
    """What is said of a checkpoint; where nothing is, the run resumes from it to its end."""
    save_checkpoint(path, content)
    trainer = Trainer(config, data, hooks=[JsonLinesLog(path.with_name("log.jsonl"))])
    try:
        PretrainConfig.from_dict(load_checkpoint(path).get("config"))
        trainer.resume(path)
    except ValueError as error:
        return str(error)
    if run:
        trainer.run()
        page.render_page(page.content(trainer, "digits", {}, {}))
    return ""


def test_every_field_is_checked(good: dict[str, Any]):
    assert_covered(list(good), state.FIELDS)


@pytest.mark.parametrize("name", list(state.FIELDS))
def test_a_field_of_another_type_is_one_line(tmp_path: Path, config, small_digits, good, name: str):
    path = tmp_path / "checkpoint.pt"
    reported = [
        refused(replaced(good, (name,), value), path, config, small_digits, run=False)
        for value in ("x", -1, None, [])
        if not (name == "device" and value == "x")
    ]
    assert all(reported)
    assert not any("\n" in line for line in reported)
    del good[name]
    message = "settings must be" if name == "config" else f"lacks {name}"
    assert message in refused(good, path, config, small_digits)


def test_auto_passes_over_it(tmp_path: Path, good):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, good)
    save_checkpoint(path, {**good, "history": {}}, keep=2)
    found, complaints = newest_checkpoint(path)
    assert found == tmp_path / "checkpoint-1.pt"
    assert complaints == [
        f"{path} is not a readable checkpoint: its history must be the records of epochs, not {{}}"
    ]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("step", "x", "its step must be a whole number, not 'x'"),
        ("model", -1, "its model must be tensors by name, not -1"),
        ("config", {}, "settings that differ"),
    ],
)
def test_the_command_says_it_in_one_line(tmp_path: Path, good, name: str, value, message: str):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, {**good, name: value})
    result = pretrain("--resume", path, code=2)
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


@pytest.mark.slow
def test_whatever_is_in_any_place_is_refused_or_does_no_harm(
    tmp_path: Path, config, small_digits, good
):
    for place in places(good):
        for value in WRONG if len(place) < 3 else WRONG[:4]:
            content = replaced(good, place, value)
            line = refused(content, tmp_path / "checkpoint.pt", config, small_digits)
            assert "\n" not in line, (place, value)
