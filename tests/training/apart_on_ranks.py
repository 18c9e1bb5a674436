"""What each process of `test_ranks_apart.py` does: two ranks of which one is not as the other.

Every scenario leaves the ranks where they can go on with the next, or the next one fails.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from barlow_fast.data.sources import open_source
from barlow_fast.training import Feeding, Hook, Ranks, Trainer, configure, joined

CONFIG = configure(
    "digits", epochs=1, batch_size=16, encoder_widths=(8,), projector=(16, 16), warmup_epochs=0,
    views="cifar", precision="fp32",
)  # fmt: skip


class Raising(Hook):
    """At the moment that it is given."""

    def __init__(self, moment: str) -> None:
        setattr(self, moment, self._fail)

    def _fail(self, *_: Any) -> None:
        raise OSError(28, "no space left for a hook")


def trainer(folder: Path, ranks: Ranks, policy: str = "skip", **changes: Any) -> Trainer:
    options = {key: changes.pop(key) for key in ("checkpoint_path", "hooks") if key in changes}
    return Trainer(
        replace(CONFIG, **changes),
        open_source(str(folder)),
        feeding=Feeding(workers=0, on_bad_image=policy),
        ranks=ranks,
        **options,
    )


def outcome(run: Trainer, act: Any = None) -> str:
    with run:
        try:
            (act or Trainer.run)(run)
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        return "finished" if run.history else "no step"


def parts(ranks: Ranks, folder: Path, **changes: Any) -> str:
    """A run in which damaged images leave the ranks with different numbers of micro-batches."""
    run = trainer(folder, ranks, micro_batch_size=2, **changes)
    losses = []
    step = run.train_step
    run.train_step = lambda: losses.append(step()) or losses[-1]
    told = outcome(run)
    assert all(torch.isfinite(record["loss"]) for record in losses)
    return told


def failing_forward(ranks: Ranks, folder: Path) -> str:
    """Without batch norm over all ranks the others are told at once."""
    run = trainer(folder, ranks, sync_batch_norm=False)
    if ranks.rank == 1:
        run.model.register_forward_pre_hook(_out_of_memory)
    return outcome(run, Trainer.train_step)


def _out_of_memory(module: nn.Module, inputs: tuple) -> None:
    raise RuntimeError("out of memory")


def failing_score(ranks: Ranks, folder: Path) -> str:
    run = trainer(folder, ranks)
    if ranks.first:
        run.watcher.measure = lambda model: _out_of_memory(model, ())
    return outcome(run)


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    with joined("cpu") as ranks:
        whole, some, none = (folder / name for name in ("whole", "some", "none"))
        damaged = whole if ranks.first else some
        full = folder / "no folder" / "checkpoint.pt" if ranks.first else folder / "x"
        said = {
            "parts": parts(ranks, some),
            "parts without sync": parts(ranks, some, sync_batch_norm=False),
            "parts of shards": parts(ranks, some, parallel="fsdp"),
            "a damaged image": outcome(trainer(some, ranks, "error")),
            "no image of a batch": outcome(trainer(none, ranks)),
            "a forward": failing_forward(ranks, whole),
            "a score": failing_score(ranks, whole),
            "a hook": outcome(trainer(whole, ranks, hooks=[Raising("stepped")])),
            "the last hook": outcome(trainer(whole, ranks, hooks=[Raising("epoch_ended")])),
            "a checkpoint": outcome(trainer(whole, ranks, checkpoint_path=full)),
            "other settings": outcome(trainer(whole, ranks, lambd=0.1 * (1 + ranks.rank))),
            "other data": outcome(trainer(damaged, ranks)),
            "nothing": outcome(trainer(whole, ranks)),
        }
        (folder / f"said-{ranks.rank}.json").write_text(json.dumps(said))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
