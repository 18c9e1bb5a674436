"""Pretraining: the schedule, the loop and its checkpoints."""

from .checkpoint import load_checkpoint, save_checkpoint
from .config import PRESETS, PretrainConfig, configure
from .feeding import Feeding
from .hooks import Hook, JsonLinesLog
from .loop import Trainer, TrainingDiverged, TrainingInterrupted
from .schedule import learning_rate

__all__ = [
    "PRESETS",
    "Feeding",
    "Hook",
    "JsonLinesLog",
    "PretrainConfig",
    "Trainer",
    "TrainingDiverged",
    "TrainingInterrupted",
    "configure",
    "learning_rate",
    "load_checkpoint",
    "save_checkpoint",
]
