"""The loss of a batch that is spread over the ranks of a process group.

`barlow_twins_loss(..., process_group=...)` comes here. Three layouts compute the same numbers:
`features` and `rows` (Gram form), `correlation`; `cost` chooses. None of them moves a D x D matrix
unless N is about D or more. README.md in this folder has the mathematics and the traffic of each.
"""

from .cost import LAYOUTS, LayoutCost, Network
from .traffic import Traffic, count_traffic

__all__ = ["LAYOUTS", "LayoutCost", "Network", "Traffic", "count_traffic"]
