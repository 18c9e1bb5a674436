"""Pretraining: the schedule, the loop and its checkpoints."""

from ..checkpoints.training import load_checkpoint, newest_checkpoint, save_checkpoint
from .callbacks import Hook
from .config import PretrainConfig
from .feeding import Feeding
from .lars import LARS, parameter_groups
from .loop import Trainer, TrainingDiverged, TrainingInterrupted
from .presets import PRESETS, configure, override
from .ranks import Ranks, joined
from .reporting import JsonLinesLog, MlflowLog, TensorBoardLog, Tracker, WandbLog
from .schedule import learning_rate

__all__ = [
    "LARS",
    "PRESETS",
    "Feeding",
    "Hook",
    "JsonLinesLog",
    "MlflowLog",
    "PretrainConfig",
    "Ranks",
    "TensorBoardLog",
    "Tracker",
    "Trainer",
    "TrainingDiverged",
    "TrainingInterrupted",
    "WandbLog",
    "configure",
    "joined",
    "learning_rate",
    "load_checkpoint",
    "newest_checkpoint",
    "override",
    "parameter_groups",
    "save_checkpoint",
]
