"""Every option of the public functions of training, of checkpoints and of micro-batches has a test
that shows its effect. The settings of a run are in `test_every_setting.py`."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from options import assert_covered, names_of, record_calls
from sources import write_encoder

from barlow_fast import checkpoints, training
from barlow_fast.checkpoints import load_encoder, load_official, save_official, to_official
from barlow_fast.microbatch import backward_in_microbatches
from barlow_fast.models import build_encoder, build_twins
from barlow_fast.training import LARS, PRESETS, Ranks, configure, joined, parameter_groups, ranks
from barlow_fast.training.estimate import check_memory, estimate_memory, plan_loss
from barlow_fast.training.reporting import tensorboard_log, trackers

CPU = torch.device("cpu")
TESTS = Path(__file__).resolve().parents[1]


def test_configure():
    assert configure("cifar10") == PRESETS["cifar10"]
    changed = configure("digits", seed=3, epochs=4, lambd=None)
    assert changed == replace(PRESETS["digits"], seed=3, epochs=4, warmup_epochs=4)
    assert configure("digits", epochs=4, warmup_epochs=2).warmup_epochs == 2
    assert configure("digits", epochs=50).warmup_epochs == PRESETS["digits"].warmup_epochs
    with pytest.raises(ValueError, match=r"unknown preset.*digits"):
        configure("imagenet")


@pytest.mark.parametrize(
    ("module", "logs"),
    [
        (tensorboard_log, [training.TensorBoardLog]),
        (trackers, [training.Tracker, training.WandbLog, training.MlflowLog]),
    ],
)
def test_logs_of_steps(tmp_path, monkeypatch, module, logs):
    received = record_calls(monkeypatch, module, "StepReadings", lambda every: None)
    for log in logs:
        assert log(str(tmp_path), 3).folder == tmp_path
        log(tmp_path)
    assert [call["every"] for call in received] == len(logs) * [3, 10]


def test_ranks():
    assert Ranks(CPU, 1, 4, 2) == Ranks(device=CPU, rank=1, size=4, nodes=2)
    assert not Ranks(CPU, 1, 4).first
    assert not Ranks(CPU, 0, 4).alone


def test_joined(monkeypatch):
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    chosen = record_calls(monkeypatch, ranks, "choose_device", lambda *_: CPU)
    with joined("cuda") as alone:
        assert alone == Ranks(CPU)
    monkeypatch.setenv("LOCAL_RANK", "3")
    with joined("auto"):
        pass
    assert chosen == [{"name": "cuda", "local_rank": 0}, {"name": "auto", "local_rank": 3}]


@pytest.mark.parametrize(("size", "here", "nodes"), [(8, "4", 2), (8, "", 1), (2, "4", 1)])
def test_machines_are_counted(monkeypatch, size: int, here: str, nodes: int):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", here)
    assert ranks._nodes(size) == nodes


def test_processes_that_are_not_reported_everything_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ValueError, match="MASTER_ADDR, MASTER_PORT is not set"), joined("cpu"):
        pass
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(ValueError, match=r"WORLD_SIZE must be a whole .* got 'two'"), joined("cpu"):
        pass


@pytest.mark.parametrize(("count", "local", "refused"), [(2, 1, False), (2, 2, True), (0, 0, True)])
def test_a_process_needs_a_gpu_of_its_own(monkeypatch, count: int, local: int, refused: bool):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    if refused:
        with pytest.raises(ValueError, match=r"no GPU of its own|no CUDA device"):
            ranks.choose_device("cuda", local)
    else:
        assert ranks.choose_device("cuda", local) == torch.device("cuda", local)
        assert ranks.choose_device("auto", local) == torch.device("cuda", local)
    assert ranks.choose_device("cpu", local) == CPU


def test_what_is_requested_of_the_weights_in_a_file(tmp_path):
    """Of those that state their architecture and image, and of bare weights."""
    own, bare = write_encoder(tmp_path / "own.pt", 1), tmp_path / "bare.pt"
    assert load_encoder(own, image_size=40).image_size == 40
    load_encoder(own, encoder="small", channels=1)
    for load in (load_encoder, checkpoints.load_projector):
        with pytest.raises(ValueError, match="holds a 'small', not a 'resnet18'"):
            load(own, encoder="resnet18")
    with pytest.raises(ValueError, match="1 channels, not 3"):
        load_encoder(own, channels=3)
    torch.save(build_encoder("resnet18", channels=1, image_size=32).state_dict(), bare)
    guessed = load_encoder(bare)
    assert (guessed.image_size, guessed.channels, guessed.mean) == (32, 1, (0.0,))
    assert guessed.metadata["assumed"] == ["image_size", "mean", "std"]
    assert load_encoder(bare, image_size=48).metadata["assumed"] == ["mean", "std"]


def test_an_official_file_with_and_without_an_optimizer(tmp_path):
    def built(seed: int):
        model = build_twins("resnet18", image_size=32, projector=(6, 6, 5), seed=seed)
        groups = parameter_groups(model, weights_lr=0.2, biases_lr=0.1, weight_decay=0.01)
        return model, LARS(groups, 0.2)

    (model, optimizer), (other, fresh) = built(0), built(1)
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    optimizer.step()
    assert "optimizer" not in to_official(model, epoch=3)
    path = tmp_path / "official.pth"
    save_official(path, model, epoch=4, optimizer=optimizer)
    assert load_official(path, other) == 4
    assert not fresh.state
    assert load_official(path, other, fresh) == 4
    for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(ours, theirs)
        momenta = optimizer.state[ours], fresh.state[theirs]
        assert torch.equal(*(state["momentum_buffer"] for state in momenta))
    save_official(path, model, epoch=5)
    with pytest.raises(ValueError):  # noqa: PT011 - whichever of its words
        load_official(path, other, fresh)
    assert load_official(path, other) == 5


# {function: {options: the test that shows their effect}}; `choices` is any setting by its name.
LOG = {"folder every": "test_logs_of_steps"}
FILES = "test_what_is_requested_of_the_weights_in_a_file"
OFFICIAL = "test_an_official_file_with_and_without_an_optimizer"
SHOWN = {
    LARS: {
        "lr weight_decay momentum trust_coefficient weight_decay_filter lars_adaptation_filter":
            "test_the_stated_mathematics"
    },
    parameter_groups: {"weights_lr biases_lr weight_decay": "test_the_two_groups_of_the_recipe"},
    training.learning_rate: {"step steps peak warmup final": "test_the_rate_of_every_step"},
    configure: {"preset choices": "test_configure"},
    training.override: {"file assignments": "test_a_file_and_assignments_change_what_they_name"},
    training.save_checkpoint: {"keep": "test_older_files_are_kept_and_no_more_than_requested"},
    training.load_checkpoint: {},
    training.newest_checkpoint: {},
    training.JsonLinesLog: {"path every": "test_lines_of_steps_hold_what_the_steps_gave"},
    training.TensorBoardLog: LOG,
    training.Tracker: LOG,
    training.WandbLog: LOG,
    training.MlflowLog: LOG,
    Ranks: {"device rank size nodes": "test_ranks"},
    joined: {"device": "test_joined"},
    estimate_memory: {"config channels sizes device ranks": "test_what_every_option_takes"},
    plan_loss: {"config views device ranks nodes": "test_the_loss_is_planned_as_it_runs"},
    check_memory: {"config device": "test_what_is_free_decides"},
    backward_in_microbatches: {
        "micro_batch_size": "test_the_gradient_of_the_whole_batch",
        "call": "test_terms_come_back_and_one_view_models_are_called_as_reported",
        "autocast": "test_autocast",
        "scaler": "test_the_scaler_scales",
    },
    build_encoder: {
        "name channels image_size": "test_a_backbone_without_its_head",
        "stem": "test_stem",
        "widths grid": "test_small_is_the_compact_encoder",
        "other_sizes": "test_an_encoder_of_two_sizes",
    },
    build_twins: {
        "channels image_size": "test_our_own_checkpoints",
        "other_sizes": "test_small_views_that_an_encoder_does_not_take",
        "encoder stem encoder_widths encoder_grid projector seed one_pass":
            "test_every_setting_has_its_effect",
    },
    checkpoints.export: {"format": "test_every_file_is_what_its_suffix_says_and_the_line_loads_it"},
    load_encoder: {"encoder channels image_size": FILES},
    checkpoints.load_projector: {"encoder": FILES},
    to_official: {"epoch optimizer": "test_ours_is_read_by_theirs"},
    save_official: {"epoch optimizer": OFFICIAL},
    load_official: {"optimizer": OFFICIAL},
}  # fmt: skip
OPERANDS = {
    "base", "criterion", "memory", "model", "params", "path", "pretrained", "state", "views"
}  # fmt: skip
# With tables of their own in `test_every_setting.py`, or without options.
ELSEWHERE = {
    "FORMATS", "PRESETS", "Feeding", "Hook", "PretrainConfig", "Pretrained", "Trainer",
    "TrainingDiverged", "TrainingInterrupted",
}  # fmt: skip


def test_every_public_function_is_in_the_table():
    public = {
        getattr(p, name) for p in (training, checkpoints) for name in {*p.__all__} - ELSEWHERE
    }
    assert public <= set(SHOWN)


@pytest.fixture(scope="module")
def written() -> set[str]:
    """The names of all tests."""
    texts = [path.read_text(encoding="utf-8") for path in TESTS.rglob("test_*.py")]
    return {name for text in texts for name in re.findall(r"^def (test_\w+)\(", text, re.MULTILINE)}


@pytest.mark.parametrize("entry", SHOWN, ids=lambda entry: entry.__name__)
def test_every_option_has_a_test(entry, written: set[str]):
    assert set(SHOWN[entry].values()) <= written
    shown = [name for options in SHOWN[entry] for name in options.split()]
    operands = OPERANDS.intersection(names_of(entry)) - set(shown)
    assert_covered(entry, set(shown) - {"choices"}, dict.fromkeys(operands, "what is computed on"))
