"""Statistics of embeddings whose D x D matrix does not fit in memory: exact, by blocks.

| function | of |
|---|---|
| `cross_correlation_summary` | C of two views: its diagonal, what is off it, dead columns |
| `effective_rank` | the singular values of one matrix |
| `cka`, `MinibatchCKA` | how alike two representations of the same samples are |

Every matrix is a tensor (N, D) or (..., D), or blocks of its columns: a list of (N, d) tensors, any
iterable that can be read more than once, or a function without arguments that returns a new
iterator, such as a generator that loads one block after the other. Blocks need not be of one width.
Everything is computed in float64, on the device of the tensors, without gradients. `memory` bounds
the bytes of what is allocated besides the inputs and blocks that an iterable holds itself, and
besides what a function documents as its result.

NaN and infinity are refused: no summary of them would be one.
"""

from .cka import MinibatchCKA, cka
from .correlation import CrossCorrelationSummary, cross_correlation_summary
from .rank import EffectiveRank, effective_rank, singular_values

__all__ = [
    "CrossCorrelationSummary",
    "EffectiveRank",
    "MinibatchCKA",
    "cka",
    "cross_correlation_summary",
    "effective_rank",
    "singular_values",
]
