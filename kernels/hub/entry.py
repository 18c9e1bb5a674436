"""The exact Barlow Twins loss at the cost of its smallest matrix, from the Kernel Hub.

barlow_fast's loss with its Triton and plain-torch kernels. The package on PyPI adds native CPU
kernels, data loading, training and evaluation.
"""

from . import reference
from .functional import Terms, barlow_twins_loss
from .loss import BarlowTwinsLoss
from .microbatch import backward_in_microbatches
from .plan import Plan, explain
from .warming import warmup

__all__ = [
    "BarlowTwinsLoss",
    "Plan",
    "Terms",
    "backward_in_microbatches",
    "barlow_twins_loss",
    "explain",
    "reference",
    "warmup",
]
