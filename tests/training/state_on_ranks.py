"""What two processes keep of their own and what they share; called by `run_on_ranks.py`."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from runs import Recording
from scenarios import CONFIG, digits

from barlow_fast.training import Ranks, Trainer, TrainingInterrupted

# Three steps of 40 images an epoch; 8 of 128 images are left out.
RUN = replace(CONFIG, batch_size=40)


def report(folder: Path, ranks: Ranks) -> None:
    """Writes `state-RANK.json`."""
    moments, seeds, samples = Recording(), [], []
    path = folder / "state.pt"
    found: dict[str, Any] = {
        "agreed": [ranks.agree(ranks.rank == 1), ranks.agree(False)],
        "total": ranks.total(ranks.rank + 1),
    }
    with Trainer(RUN, digits(), hooks=[moments], ranks=ranks) as whole:
        whole.network.register_forward_pre_hook(lambda *_: seeds.append(torch.initial_seed()))
        plain = whole.next_batch

        def next_batch() -> Any:
            batch = plain()
            samples.append(batch.index.tolist())
            return batch

        whole.next_batch = next_batch
        whole.run()
        found |= {
            "moments": moments.moments,
            "seeds": seeds[:6],
            "samples": samples[:3],
            "images": [r["images_per_second"] * r["seconds"] for r in whole.history],
            "scored": [record["knn"] is not None for record in whole.history],
            "before": list(whole.before),
        }
        expected = copy.deepcopy(whole.state_dict())
    with Trainer(RUN, digits(), checkpoint_path=path, ranks=ranks) as stopped:
        stopped.network.train()
        for _ in range(2):
            stopped.train_step()
        stopped.stop_requested = True
        try:
            stopped.train_epoch()
        except TrainingInterrupted:
            found["stopped"] = stopped.step
    ranks.barrier()
    torch.manual_seed(ranks.rank)
    with Trainer(RUN, digits(), ranks=ranks) as resumed:
        resumed.resume(path)
        found["resumed_images"] = resumed._images
        resumed.run()
        ended = resumed.state_dict()
        found["same_weights"] = all(
            torch.equal(value, expected["model"][name]) for name, value in ended["model"].items()
        )
        found["same_momentum"] = all(
            torch.equal(values["momentum_buffer"], theirs["momentum_buffer"])
            for values, theirs in zip(
                ended["optimizer"]["state"].values(),
                expected["optimizer"]["state"].values(),
                strict=True,
            )
        )
        found["same_losses"] = [r["loss"] for r in ended["history"]] == [
            r["loss"] for r in expected["history"]
        ]
        found["resumed_totals"] = [r["images_per_second"] * r["seconds"] for r in ended["history"]]
    (folder / f"state-{ranks.rank}.json").write_text(json.dumps(found))
