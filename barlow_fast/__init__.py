"""barlow_fast: exact losses of redundancy reduction at the cost of their smallest matrix."""

import importlib
from typing import TYPE_CHECKING

from .explain import Plan, explain
from .losses.barlow_twins import BarlowTwinsLoss, Terms, barlow_twins_loss
from .losses.frossl import FroSSLLoss, FroSSLTerms, frossl_loss
from .losses.mixed_barlow_twins import (
    MixedBarlowTwinsLoss,
    MixedTerms,
    mix_inputs,
    mixed_barlow_twins_loss,
)
from .losses.vicreg import VICRegLoss, VICRegTerms, vicreg_loss
from .microbatch import backward_in_microbatches
from .warming import warmup

if TYPE_CHECKING:
    from . import statistics as statistics
    from .adapters.patching import patch, unpatch

__version__ = "0.1.0"

__all__ = [
    "BarlowTwinsLoss",
    "FroSSLLoss",
    "FroSSLTerms",
    "MixedBarlowTwinsLoss",
    "MixedTerms",
    "Plan",
    "Terms",
    "VICRegLoss",
    "VICRegTerms",
    "__version__",
    "backward_in_microbatches",
    "barlow_twins_loss",
    "explain",
    "frossl_loss",
    "mix_inputs",
    "mixed_barlow_twins_loss",
    "patch",
    "unpatch",
    "vicreg_loss",
    "warmup",
]


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> object:
    if name in ("patch", "unpatch"):  # imported at first use
        from .adapters import patching

        return getattr(patching, name)
    if name == "statistics":
        return importlib.import_module(f"{__name__}.statistics")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
