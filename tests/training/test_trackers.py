"""Weights & Biases and MLflow: what they receive, with stand-ins for their libraries, and that a
run never ends because of them."""

from __future__ import annotations

import importlib.machinery
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from commands import pretrain
from runs import StopAt

from barlow_fast.training import MlflowLog, Tracker, Trainer, TrainingInterrupted, WandbLog
from barlow_fast.training.reporting.trackers import TRACKERS, check_trackers


def module(name: str, monkeypatch: pytest.MonkeyPatch, **names: Any) -> None:
    found = ModuleType(name)
    found.__spec__ = importlib.machinery.ModuleSpec(name, None)
    found.__dict__.update(names)
    monkeypatch.setitem(sys.modules, name, found)


class StandIn:
    """What a library is requested; `fail` names a method that raises."""

    def __init__(self, fail: str = "") -> None:
        self.calls, self.fail, self.number = [], fail, 0
        self.experiments: dict[str, str] = {}

    def note(self, name: str, values: Any = None) -> None:
        if name == self.fail:
            raise OSError("no route")
        self.calls.append((name, values))

    def values(self, name: str) -> list[Any]:
        return [values for each, values in self.calls if each == name]

    def logged(self) -> dict[str, dict[int, float]]:
        """{name: {step: value}}."""
        found: dict[str, dict[int, float]] = {}
        for name, step, value in self.points():
            found.setdefault(name, {})[step] = value
        return found


class Wandb(StandIn):
    def init(self, **options: Any) -> Any:
        self.note("init", options)
        self.number += 1
        return SimpleNamespace(
            id=options["id"] or f"run{self.number}",
            define_metric=lambda name, step_metric: self.note("metric", (name, step_metric)),
            log=lambda values: self.note("log", values),
            finish=lambda exit_code: self.note("finish", exit_code),
        )

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        module("wandb", monkeypatch, init=self.init)

    def points(self) -> Iterator[tuple[str, int, float]]:
        for values in self.values("log"):
            for name in values.keys() - {"trained_steps"}:
                yield name, values["trained_steps"], values[name]

    def opened(self) -> list[str | None]:
        return [options["id"] for options in self.values("init")]

    def settings(self) -> dict[str, str]:
        return {key: str(value) for key, value in self.values("init")[0]["config"].items()}

    def ends(self) -> list[bool]:
        return [code == 0 for code in self.values("finish")]


class Mlflow(StandIn):
    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        entities = SimpleNamespace(
            Param=lambda key, value: (key, value), Metric=lambda *values: values
        )
        module("mlflow", monkeypatch, MlflowClient=lambda: self, entities=entities)

    def get_experiment_by_name(self, name: str) -> Any:
        if name in self.experiments:
            return SimpleNamespace(experiment_id=self.experiments[name])
        return None

    def create_experiment(self, name: str) -> str:
        return self.experiments.setdefault(name, f"experiment {name}")

    def create_run(self, experiment: str, run_name: str) -> Any:
        self.note("init", (experiment, run_name))
        self.number += 1
        return SimpleNamespace(info=SimpleNamespace(run_id=f"run{self.number}"))

    def update_run(self, run: str, status: str) -> None:
        assert status == "RUNNING"
        self.note("continued", run)

    def set_tag(self, run: str, name: str, value: str) -> None:
        self.note("tag", (run, name, value))

    def log_batch(self, run: str, metrics: Any = (), params: Any = ()) -> None:
        assert run == f"run{self.number}"
        self.note("log" if metrics else "params", metrics or dict(params))

    def set_terminated(self, run: str, status: str) -> None:
        self.note("finish", status)

    def points(self) -> Iterator[tuple[str, int, float]]:
        for name, value, time, step in (m for metrics in self.values("log") for m in metrics):
            assert time > 10**12  # milliseconds
            yield name, step, value

    def opened(self) -> list[str | None]:
        kinds = {"init": lambda _: None, "continued": lambda run: run}
        return [kinds[name](values) for name, values in self.calls if name in kinds]

    def settings(self) -> dict[str, str]:
        return self.values("params")[0]

    def ends(self) -> list[bool]:
        return [status == "FINISHED" for status in self.values("finish")]


STAND_INS: dict[str, tuple[type[Tracker], Callable[..., Any]]] = {
    "wandb": (WandbLog, Wandb), "mlflow": (MlflowLog, Mlflow)
}  # fmt: skip


@pytest.fixture(params=STAND_INS)
def tracked(request, monkeypatch: pytest.MonkeyPatch):
    """(the hook's class, makes and installs the stand-in)."""
    hook, stand_in = STAND_INS[request.param]
    for name in ("WANDB_PROJECT", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)

    def install(fail: str = ""):
        made = stand_in(fail)
        made.install(monkeypatch)
        return made

    return hook, install


def test_curves_of_a_run(tracked, train, tmp_path: Path):
    make, install = tracked
    library = install()
    trainer = train(make(tmp_path, every=4))
    assert library.opened() == [None]
    assert library.ends() == [True]
    logged = library.logged()
    assert list(logged["step/loss"]) == [4, 8, 12, 16, 20, 24]
    assert {"step/on_diagonal_mean", "step/off_diagonal_mean", "step/learning_rate"} <= set(logged)
    losses = {record["step"]: record["loss"] for record in trainer.history}
    assert logged["epoch/loss"] == losses
    # Scored every second epoch; None is no number.
    assert list(logged["epoch/knn"]) == [12, 24]
    assert "epoch/step" not in logged
    settings = library.settings()
    assert (settings["projector"], settings["epochs"]) == ("[32, 64]", "4")
    assert settings["device"].startswith("cpu")


def test_a_resumed_run_is_the_same_run(tracked, train, tmp_path: Path):
    make, install = tracked
    library, path = install(), tmp_path / "checkpoint.pt"
    with pytest.raises(TrainingInterrupted):
        train(make(tmp_path), StopAt(9), path=path)
    assert library.ends() == [False]
    train(make(tmp_path), resume=path, epochs=5)
    assert library.opened() == [None, "run1"]
    assert library.ends() == [False, True]
    assert list(library.logged()["epoch/loss"]) == [6, 12, 18, 24, 30]
    if make is MlflowLog:
        assert ("tag", ("run1", "epochs", "5")) in library.calls
    # Elsewhere it is a run of its own, with the epochs before; so is one that begins anew.
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    library = install()
    train(make(elsewhere), resume=path, epochs=5)
    assert library.opened() == [None]
    assert list(library.logged()["epoch/loss"]) == [6, 12, 18, 24, 30]
    library = install()
    train(make(tmp_path), epochs=1)
    assert library.opened() == [None]


def test_trackers_share_a_folder(train, tmp_path: Path, monkeypatch):
    for _, stand_in in STAND_INS.values():
        stand_in().install(monkeypatch)
    train(*(hook(tmp_path) for hook in TRACKERS.values()), epochs=1)
    noted = json.loads((tmp_path / "trackers.json").read_text())
    assert noted == {"wandb": "run1", "mlflow": "run1"}


@pytest.mark.parametrize("fail", ["log", "finish"])
def test_a_failure_ends_the_tracker_and_not_the_run(
    tracked, train, tmp_path: Path, fail: str, caplog
):
    make, install = tracked
    library = install(fail)
    trainer = train(make(tmp_path, every=1))
    assert trainer.step == trainer.total_steps
    warnings = [record.getMessage() for record in caplog.records if "failed" in record.getMessage()]
    assert warnings == [f"{make.name} failed, the run continues without it: no route"]
    assert library.logged() == {} if fail == "log" else library.ends() == []


def test_a_tracker_that_does_not_start_ends_the_run_before_it_trains(
    tracked, small_config, small_digits, tmp_path: Path
):
    make, install = tracked
    install("init")
    trainer = Trainer(small_config, small_digits, hooks=[make(tmp_path)])
    with pytest.raises(RuntimeError, match=f"{make.name} does not start: no route"):
        trainer.run()
    assert trainer.step == 0


def test_projects_are_those_of_the_environment(tracked, train, tmp_path: Path, monkeypatch):
    make, install = tracked
    folder = tmp_path / "my run"
    folder.mkdir()
    for expected in ("barlow_fast", "mine"):
        library = install()
        train(make(folder), epochs=1)
        (opened,) = library.values("init")
        if make is WandbLog:
            assert (opened["project"], opened["name"]) == (expected, "my run")
            assert opened["dir"] == str(folder)
            assert ("metric", ("*", "trained_steps")) in library.calls
        else:
            assert opened == (f"experiment {expected}", "my run")
        monkeypatch.setenv("WANDB_PROJECT", "mine")
        monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")


def test_what_the_option_refuses(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    Wandb().install(monkeypatch)
    check_trackers(["wandb"])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for name, code, message in (
        ("tensorbored", 2, "--logger must be one of wandb, mlflow, got 'tensorbored'"),
        ("mlflow", 1, "--logger mlflow needs mlflow: pip install 'barlow-fast[loggers]'"),
    ):
        assert message in pretrain("--dry-run", "--logger", name, code=code).stderr
