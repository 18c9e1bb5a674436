"""Pretraining: the model, the schedule, the loop and its checkpoints."""

from .checkpoint import load_checkpoint, save_checkpoint
from .config import PRESETS, PretrainConfig, configure
from .feeding import Feeding
from .hooks import Hook, JsonLinesLog
from .loop import Trainer, TrainingDiverged, TrainingInterrupted
from .model import BarlowTwinsModel, Projector, SmallEncoder, build_model
from .schedule import learning_rate

__all__ = [
    "PRESETS",
    "BarlowTwinsModel",
    "Feeding",
    "Hook",
    "JsonLinesLog",
    "PretrainConfig",
    "Projector",
    "SmallEncoder",
    "Trainer",
    "TrainingDiverged",
    "TrainingInterrupted",
    "build_model",
    "configure",
    "learning_rate",
    "load_checkpoint",
    "save_checkpoint",
]
