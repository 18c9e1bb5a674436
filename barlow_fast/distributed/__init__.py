"""The loss of a batch that is spread over the ranks of a process group.

`barlow_twins_loss(..., process_group=...)` comes here. Three layouts compute the same numbers:
`features` and `rows` (Gram form), `correlation`; `cost` chooses. None of them moves a D x D matrix
unless N is about D or more. README.md in this folder has the mathematics and the traffic of each.
"""

import torch.distributed as dist

from .cost import LAYOUTS, LayoutCost, Network
from .traffic import Traffic, count_traffic

if dist.is_available():
    # Its functions have the default group of the moment of import as a default argument. Imported
    # later (DistributedDataParallel and torch.compile do), it keeps that group alive for good: its
    # threads then outlive destroy_process_group, and now and then abort the interpreter's exit.
    import torch.distributed.nn  # noqa: F401

__all__ = ["LAYOUTS", "LayoutCost", "Network", "Traffic", "count_traffic"]
