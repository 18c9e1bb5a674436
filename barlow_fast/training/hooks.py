"""What may watch a run. A hook sees, it does not steer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .loop import Trainer

Record = dict[str, Any]


class Hook:
    """The moments of a run; override those of interest."""

    def started(self, trainer: Trainer) -> None:
        """Before the first step of this process, after a checkpoint was loaded."""

    def stepped(self, trainer: Trainer, step: Record) -> None:
        """After each step. `step` has `loss`, `on_diagonal_mean`, `off_diagonal_mean` as 0-dim
        tensors on the device: reading one waits for the device, so read seldom."""

    def epoch_ended(self, trainer: Trainer, record: Record) -> None:
        """After each epoch, its score and its checkpoint; `record` has plain numbers."""

    def ended(self, trainer: Trainer) -> None:
        """After the last epoch, an interruption or an error."""
