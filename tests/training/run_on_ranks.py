"""What each process does of the tests on two ranks; started by torchrun with a folder."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import apart_on_ranks
import torch
from scenarios import CONFIG, KINDS, SCENARIOS, digits, gradients
from state_on_ranks import report

from barlow_fast.training import Trainer, TrainingInterrupted, joined, parallel


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    with joined("cpu") as ranks:
        for name, changes in SCENARIOS.items():
            config = replace(CONFIG, **changes)
            with Trainer(config, digits(), ranks=ranks) as trainer:
                found = gradients(trainer)
            if ranks.first:
                torch.save(found, folder / f"{name}.pt")
        for kind, changes in KINDS.items():
            path = folder / f"whole-{kind}.pt"
            config = replace(CONFIG, **changes, epochs=2)
            with Trainer(config, digits(), checkpoint_path=path, ranks=ranks) as trainer:
                trainer.run()
                scores = [record["knn"] for record in trainer.history]
                assert (scores[-1] is not None) == ranks.first, scores
                assert parallel.is_sharded(trainer.model) == (kind != "ddp")
        # The first of these continues for another epoch.
        path = folder / "longer.pt"
        with Trainer(replace(CONFIG, epochs=3), digits(), None, path, ranks=ranks) as trainer:
            trainer.resume(folder / "whole-ddp.pt")
            trainer.run()
        # One rank alone is requested to stop: all do, at the same step, and the first one saves.
        path = folder / "stopped.pt"
        with Trainer(CONFIG, digits(), checkpoint_path=path, ranks=ranks) as trainer:
            trainer.train_step()
            trainer._saved_at = 0.0
            trainer.stop_requested = ranks.rank == 1
            try:
                trainer.train_epoch()
            except TrainingInterrupted:
                (folder / f"stopped-{ranks.rank}").write_text(str(trainer.step))
        report(folder, ranks)
        apart_on_ranks.report(folder, ranks)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
