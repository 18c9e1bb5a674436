"""barlow_fast: the exact Barlow Twins loss at the cost of its smallest matrix."""

from typing import TYPE_CHECKING

from .functional import Terms, barlow_twins_loss
from .loss import BarlowTwinsLoss
from .microbatch import backward_in_microbatches
from .plan import Plan, explain
from .warming import warmup

if TYPE_CHECKING:
    from .patching import patch, unpatch

__version__ = "0.1.0"

__all__ = [
    "BarlowTwinsLoss",
    "Plan",
    "Terms",
    "__version__",
    "backward_in_microbatches",
    "barlow_twins_loss",
    "explain",
    "patch",
    "unpatch",
    "warmup",
]


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> object:
    if name in ("patch", "unpatch"):  # for scripts that ask for them; nobody else waits
        from . import patching

        return getattr(patching, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
