"""What two processes do of which one is not as the other; called by `run_on_ranks.py`.

Every scenario leaves the ranks where they can continue with the next, or the next one fails.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from barlow_fast.data.order import Shard, batches
from barlow_fast.data.sources import open_source
from barlow_fast.training import Feeding, Hook, Ranks, Trainer, configure

IMAGES = 48  # three steps of eight images on each rank

CONFIG = configure(
    "digits", loss="barlow-twins",
    epochs=1, batch_size=16, encoder_widths=(8,), projector=(16, 16), warmup_epochs=0,
    views="cifar", precision="fp32",
)  # fmt: skip


def write_images(folder: Path, damaged: Collection[int] = ()) -> Path:
    from sources import write_images as write  # not in the path of the ranks, which only read

    write(folder, IMAGES)
    for number in damaged:
        path = folder / f"{number:02d}.png"
        path.write_bytes(path.read_bytes()[:60])
    return folder


def write_folders(folder: Path) -> None:
    """In the first step of `some` rank 1 lacks three images, in the second rank 0 has two left; of
    `none` rank 1 has none in the first."""
    first, second = (list(batches(0, 0, IMAGES, 8, Shard(rank, 2))) for rank in (0, 1))
    write_images(folder / "whole")
    write_images(folder / "some", [*second[0][:3], *first[1][:6]])
    write_images(folder / "none", second[0])


class Raising(Hook):
    """At the moment that it is given."""

    def __init__(self, moment: str) -> None:
        setattr(self, moment, self._fail)

    def _fail(self, *_: Any) -> None:
        raise OSError(28, "no space left for a hook")


def trainer(folder: Path, ranks: Ranks, policy: str = "skip", **changes: Any) -> Trainer:
    options = {key: changes.pop(key) for key in ("checkpoint_path", "hooks") if key in changes}
    run = Trainer(
        replace(CONFIG, **changes),
        open_source(str(folder)),
        feeding=Feeding(workers=0, on_bad_image=policy),
        ranks=ranks,
        **options,
    )
    # It has a loader of its own, with processes that take seconds to start.
    run.watcher.measure = lambda model: (torch.zeros(1, 1), {})
    return run


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
    result = outcome(run)
    assert all(torch.isfinite(record["loss"]) for record in losses)
    return result


def reported(ranks: Ranks, folder: Path) -> str:
    """How many damaged images this rank reports in three epochs, and how many it knows of."""
    lines = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    log = logging.getLogger("barlow_fast.data")
    log.addHandler(handler)
    run = trainer(folder, ranks, epochs=3)
    result = outcome(run)
    log.removeHandler(handler)
    count = sum(line.startswith("left out: ") for line in lines)
    return f"{result} {count} {len(run.loader.bad_images)}"


def failing_forward(ranks: Ranks, folder: Path) -> str:
    """Without batch norm over all ranks the others are informed at once."""
    run = trainer(folder, ranks, sync_batch_norm=False)
    if ranks.rank == 1:
        run.model.register_forward_pre_hook(_out_of_memory)
    return outcome(run, Trainer.train_step)


def _out_of_memory(*_: Any) -> None:
    raise RuntimeError("out of memory")


def failing_compiler(ranks: Ranks, folder: Path) -> str:
    """On one rank: all go back to the plain network."""
    run = trainer(folder, ranks, sync_batch_norm=False, compile="default")
    fails = _out_of_memory if ranks.rank == 1 else run.network._call_impl
    run.network._compiled_call_impl = fails
    result = outcome(run)
    assert run.network._compiled_call_impl is None
    return result


def failing_score(ranks: Ranks, folder: Path) -> str:
    run = trainer(folder, ranks)
    if ranks.first:
        run.watcher.measure = _out_of_memory
    return outcome(run)


def report(folder: Path, ranks: Ranks) -> None:
    """Writes `said-RANK.json`, if there are images."""
    whole, some, none = (folder / name for name in ("whole", "some", "none"))
    if not whole.exists():
        return
    damaged = whole if ranks.first else some
    path = folder / "no folder" / "checkpoint.pt" if ranks.first else folder / "x"
    said = {
        "parts": parts(ranks, some),
        "parts without sync": parts(ranks, some, sync_batch_norm=False),
        "parts of shards": parts(ranks, some, parallel="fsdp"),
        "a damaged image": outcome(trainer(some, ranks, "error")),
        "no image of a batch": outcome(trainer(none, ranks)),
        "reported": reported(ranks, some),
        "a forward": failing_forward(ranks, whole),
        "a score": failing_score(ranks, whole),
        "a hook": outcome(trainer(whole, ranks, hooks=[Raising("stepped")])),
        "the last hook": outcome(trainer(whole, ranks, hooks=[Raising("epoch_ended")])),
        "a checkpoint": outcome(trainer(whole, ranks, checkpoint_path=path)),
        "other settings": outcome(trainer(whole, ranks, lambd=0.1 * (1 + ranks.rank))),
        "other data": outcome(trainer(damaged, ranks)),
        "a compiler": failing_compiler(ranks, whole),
        "nothing": outcome(trainer(whole, ranks)),
    }
    (folder / f"said-{ranks.rank}.json").write_text(json.dumps(said))
