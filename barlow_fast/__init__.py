"""barlow_fast: the exact Barlow Twins loss at the cost of its smallest matrix."""

from .functional import Terms, barlow_twins_loss
from .loss import BarlowTwinsLoss
from .microbatch import backward_in_microbatches
from .patching import patch, unpatch
from .plan import Plan, explain
from .warming import warmup

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
