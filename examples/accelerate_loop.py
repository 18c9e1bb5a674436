"""Barlow Twins in a loop of one's own under Hugging Face's accelerate.

    python examples/accelerate_loop.py
    torchrun --nproc_per_node 2 examples/accelerate_loop.py      # or accelerate launch, on GPUs

accelerate puts model and batches on devices, deals batches to processes and casts; the loss needs
one word about it: with several processes, `process_group="world"` makes it that of all their
samples. Under autocast the projector's output may be bfloat16 or float16; the loss adds up in
float32 either way.

Rows of scikit-learn's digits with some cells replaced by other rows', as in `tabular.py`, so the
network is small. Takes about 10 seconds on two cores; the loss falls from about 250 to below 80.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import torch
from torch import Tensor, nn

try:
    from accelerate import Accelerator
    from accelerate.utils import set_seed
    from sklearn.datasets import load_digits
except ImportError:
    sys.exit("This example needs accelerate: pip install accelerate scikit-learn")

from barlow_fast import BarlowTwinsLoss

BATCH, WIDTH, DIMENSIONS = 256, 256, 512


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--precision", default="no", help="bf16; fp16 on GPUs")
    options = parser.parse_args(arguments)

    # Without `cpu`, processes that torchrun starts on a machine without GPUs stay strangers.
    cpu = not torch.cuda.is_available()
    accelerator = Accelerator(mixed_precision=options.precision, cpu=cpu)
    set_seed(options.seed)  # the same weights on every process
    table = torch.from_numpy(load_digits().data).float() / 16

    def view(rows: Tensor) -> Tensor:
        others = torch.randint(len(table), rows.shape)
        cells = table.gather(0, others).to(rows.device)
        return torch.where(torch.rand(rows.shape, device=rows.device) < 0.3, cells, rows)

    model = nn.Sequential(
        nn.Linear(table.shape[1], WIDTH), nn.BatchNorm1d(WIDTH), nn.ReLU(),
        nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH), nn.ReLU(),
        nn.Linear(WIDTH, DIMENSIONS, bias=False),
    )  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    loader = torch.utils.data.DataLoader(
        table, BATCH // accelerator.num_processes, shuffle=True, drop_last=True
    )
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    group = "world" if accelerator.num_processes > 1 else None
    criterion = BarlowTwinsLoss(process_group=group)
    set_seed(options.seed, device_specific=True)  # other views on every process

    step = 0
    while step < options.steps:
        for rows in loader:
            with accelerator.autocast():
                loss = criterion(model(view(rows)), model(view(rows)))
            optimizer.zero_grad()
            accelerator.backward(loss)
            optimizer.step()
            step += 1
            if step in (1, options.steps) or step % 25 == 0:
                accelerator.print(f"step {step}  loss {loss.item():.2f}")
            if step == options.steps:
                break
    accelerator.end_training()
    return 0


if __name__ == "__main__":
    sys.exit(main())
