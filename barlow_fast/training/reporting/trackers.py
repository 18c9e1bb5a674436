"""Curves for experiment trackers: Weights & Biases and MLflow, each of which is imported when a run
starts.

Where they write is for them to say: WANDB_MODE, WANDB_PROJECT, MLFLOW_TRACKING_URI,
MLFLOW_EXPERIMENT_NAME and their other variables hold.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import math
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...files import write_whole
from ...inputs import needed_for, optional_library
from ..callbacks import Hook, Record
from .readings import StepReadings

if TYPE_CHECKING:
    from ..loop import Trainer

LOG = logging.getLogger("barlow_fast.training")

PROJECT = "barlow_fast"
# In a run's folder: which runs of the trackers it is, {tracker: identifier}.
IDENTIFIERS = "trackers.json"


class Tracker(Hook):
    """Settings, the loss of every so many steps (`step/loss`, ...) and every epoch's record
    (`epoch/knn`, ...) over the number of steps.

    A resumed run continues the tracker's run, whose identifier is in the folder's `trackers.json`.
    A tracker that fails after the start of a run is left out with a warning, and the run continues.

    To add another: a subclass with `name`, `open`, `write` and `close`, and an entry in `TRACKERS`.

    Args:
        folder: of the run.
        every: steps between two readings of the loss.

    Raises:
        ValueError: fewer than one step.
        ModuleNotFoundError: at the start of a run, without the tracker's library.
        RuntimeError: at the start of a run, where the tracker does not start.
    """

    name: str

    def __init__(self, folder: Path | str, every: int = 10) -> None:
        self.folder = Path(folder)
        self._readings = StepReadings(every)
        self._works = False

    def open(self, identifier: str | None, settings: Record) -> str:
        """Begins the run, or continues that of the identifier; returns the identifier."""
        raise NotImplementedError

    def write(self, values: dict[str, float], step: int) -> None:
        """Numbers of a step."""
        raise NotImplementedError

    def close(self, finished: bool) -> None:
        """Ends the run; `finished`: after its last epoch."""
        raise NotImplementedError

    def started(self, trainer: Trainer) -> None:
        path = self.folder / IDENTIFIERS
        known = json.loads(path.read_text()) if path.exists() else {}
        # A run that begins anew in its folder is another one.
        identifier = known.get(self.name) if trainer.step else None
        settings = {**trainer.config.to_dict(), "device": trainer.provenance()["device"]}
        try:
            opened = self.open(identifier, settings)
        except ModuleNotFoundError:
            raise
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise RuntimeError(f"{self.name} does not start: {reason}") from error
        self._works = True
        write_whole(path, json.dumps({**known, self.name: opened}) + "\n")
        if identifier is None:
            for record in trainer.history:
                self._write("epoch", record)

    def stepped(self, trainer: Trainer, step: Record) -> None:
        self._write_steps(self._readings.add(trainer, step))

    def epoch_ended(self, trainer: Trainer, record: Record) -> None:
        self._write_steps(self._readings.read())
        self._write("epoch", record)

    def ended(self, trainer: Trainer) -> None:
        self._write_steps(self._readings.read_last())
        if self._works:
            self._works = False
            self._attempt(self.close, trainer.step == trainer.total_steps)

    def _write_steps(self, steps: list[Record]) -> None:
        for step in steps:
            self._write("step", step)

    def _write(self, group: str, record: Record) -> None:
        values = {
            f"{group}/{name}": float(value)
            for name, value in record.items()
            if name not in ("step", "epoch")
            and isinstance(value, (int, float))
            and math.isfinite(value)
        }
        if self._works:
            self._works = self._attempt(self.write, values, record["step"])

    def _attempt(self, call: Any, *arguments: Any) -> bool:
        try:
            call(*arguments)
        # Of any kind: a failing tracker does not end a run.
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            LOG.warning("%s failed, the run continues without it: %s", self.name, reason[:300])
            return False
        return True


class WandbLog(Tracker):
    """Weights & Biases, in the project WANDB_PROJECT or `barlow_fast`; its own files are in the
    folder of the run. WANDB_MODE=offline writes those alone."""

    name = "wandb"

    def open(self, identifier: str | None, settings: Record) -> str:
        wandb = optional_library("wandb", "loggers", "logger 'wandb'")
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=self.folder.resolve().name,
            dir=str(self.folder),
            config=settings,
            id=identifier,
            resume=None if identifier is None else "allow",
            # A resumed run may have more epochs.
            allow_val_change=identifier is not None,
        )
        # So that what is written again after a resume is not refused as too old.
        self._run.define_metric("*", step_metric="trained_steps")
        return self._run.id

    def write(self, values: dict[str, float], step: int) -> None:
        self._run.log({**values, "trained_steps": step})

    def close(self, finished: bool) -> None:
        self._run.finish(exit_code=0 if finished else 1)


class MlflowLog(Tracker):
    """MLflow, in the experiment MLFLOW_EXPERIMENT_NAME or `barlow_fast`, at MLFLOW_TRACKING_URI."""

    name = "mlflow"

    def open(self, identifier: str | None, settings: Record) -> str:
        mlflow = optional_library("mlflow", "loggers", "logger 'mlflow'")
        self._entities, self._client = mlflow.entities, mlflow.MlflowClient()
        if identifier is not None:
            self._id = identifier
            self._client.update_run(identifier, status="RUNNING")
            # A resumed run may have more, and parameters cannot change.
            self._client.set_tag(identifier, "epochs", str(settings["epochs"]))
            return identifier
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        found = self._client.get_experiment_by_name(name)
        experiment = self._client.create_experiment(name) if found is None else found.experiment_id
        run = self._client.create_run(experiment, run_name=self.folder.resolve().name)
        self._id = run.info.run_id
        parameters = [self._entities.Param(key, str(value)) for key, value in settings.items()]
        self._client.log_batch(self._id, params=parameters)
        return self._id

    def write(self, values: dict[str, float], step: int) -> None:
        now = time.time_ns() // 10**6
        metrics = [self._entities.Metric(key, value, now, step) for key, value in values.items()]
        self._client.log_batch(self._id, metrics=metrics)

    def close(self, finished: bool) -> None:
        self._client.set_terminated(self._id, "FINISHED" if finished else "KILLED")


TRACKERS: dict[str, type[Tracker]] = {"wandb": WandbLog, "mlflow": MlflowLog}


def check_trackers(names: Sequence[str]) -> None:
    """Raises what `--logger` refuses: ValueError of an unknown name, ModuleNotFoundError of a
    library that is not installed."""
    for name in names:
        if name not in TRACKERS:
            raise ValueError(f"--logger must be one of {', '.join(TRACKERS)}, got {name!r}")
        with needed_for(f"--logger {name}", "loggers"):
            if importlib.util.find_spec(name) is None:
                raise ModuleNotFoundError(name=name)
