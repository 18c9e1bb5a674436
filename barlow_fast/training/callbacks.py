"""Training callbacks."""

from __future__ import annotations

from typing import Any

Record = dict[str, Any]


class Hook:
    """Base class of training callbacks: override the methods of interest.

    `trainer` is the `Trainer` that calls; callbacks read it and change nothing of it.
    """

    def started(self, trainer: Any) -> None:
        """Before the first step of this process, after a checkpoint was loaded."""

    def stepped(self, trainer: Any, step: Record) -> None:
        """After each step. `step` has `loss` and its terms, by the names of `LOSSES` in
        `barlow_fast.losses.catalogue` (of Barlow Twins `on_diagonal_mean`, `off_diagonal_mean`), as
        0-dim tensors on the device: reading one waits for the device, so read rarely."""

    def epoch_ended(self, trainer: Any, record: Record) -> None:
        """After each epoch, its score and its checkpoint; `record` has plain numbers."""

    def ended(self, trainer: Any) -> None:
        """After the last epoch, an interruption or an error."""
