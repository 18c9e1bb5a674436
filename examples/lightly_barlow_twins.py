"""lightly's Barlow Twins example with one import changed.

    python examples/lightly_barlow_twins.py                      # our loss
    python examples/lightly_barlow_twins.py --loss lightly       # lightly's
    python examples/lightly_barlow_twins.py --loss patched       # lightly's import, replaced

The network, head, transforms, optimizer and loop are those of lightly's example: ResNet-18, its
`BarlowTwinsProjectionHead(512, 2048, 2048)`, its two views of 32 x 32 pixels, SGD at 0.06. Images
are scikit-learn's digits, three channels of 32 x 32, because nothing is downloaded here.

All three begin with the same loss, digit for digit, and then part slowly: this training magnifies
the last bit of float32 to a percent within ten steps, for two runs of lightly itself as well.
`python -m bench dropin` measures that, and what is left of it in float64. About 30 seconds on two
cores; at lightly's learning rate the loss stays around 2000 for so few steps of so few images.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import sys
import time
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

try:
    import numpy as np
    import torchvision
    from lightly.models.modules import BarlowTwinsProjectionHead
    from lightly.transforms.byol_transform import (
        BYOLTransform,
        BYOLView1Transform,
        BYOLView2Transform,
    )
    from PIL import Image
    from sklearn.datasets import load_digits
except ImportError:
    sys.exit("This example needs lightly: pip install lightly scikit-learn")

import barlow_fast

LOSSES = ("lightly", "barlow_fast", "patched")


@contextlib.contextmanager
def criterion_of(loss: str) -> Iterator[nn.Module]:
    """The module that the name stands for; a patch is undone afterwards."""
    if loss == "patched":
        # For a script that you cannot edit: this line once, before it imports lightly's loss.
        with barlow_fast.patch("lightly"):
            from lightly.loss import BarlowTwinsLoss

            yield BarlowTwinsLoss()
    elif loss == "barlow_fast":
        from barlow_fast.adapters.lightly import BarlowTwinsLoss  # the import that changes

        yield BarlowTwinsLoss()
    else:
        from lightly.loss import BarlowTwinsLoss

        yield BarlowTwinsLoss()


class BarlowTwins(nn.Module):
    """A backbone and the head whose output the loss receives."""

    def __init__(self) -> None:
        super().__init__()
        layers = list(torchvision.models.resnet18().children())[:-1]
        self.backbone = nn.Sequential(*layers)
        self.projection_head = BarlowTwinsProjectionHead(512, 2048, 2048)

    def forward(self, x: Tensor) -> Tensor:
        return self.projection_head(self.backbone(x).flatten(start_dim=1))


def two_views(batch_size: int) -> torch.utils.data.DataLoader:
    """Batches of lightly's two views of the digits."""
    transform = BYOLTransform(
        view_1_transform=BYOLView1Transform(input_size=32, gaussian_blur=0.0),
        view_2_transform=BYOLView2Transform(input_size=32, gaussian_blur=0.0),
    )
    images = (load_digits().images * (255 / 16)).round().astype("uint8")
    images = [Image.fromarray(image).convert("RGB").resize((32, 32)) for image in images]

    def collate(samples: list[Image.Image]) -> list[Tensor]:
        pairs = [transform(image) for image in samples]
        return [torch.stack(views) for views in zip(*pairs, strict=True)]

    return torch.utils.data.DataLoader(
        images, batch_size, shuffle=True, drop_last=True, collate_fn=collate
    )


def train(loss: str, steps: int, batch_size: int, seed: int) -> list[float]:
    """The loss of every step; the same seed gives the same weights, batches and views."""
    for use_seed in (torch.manual_seed, random.seed, np.random.seed):  # the views draw from all
        use_seed(seed)
    loader = two_views(batch_size)
    model = BarlowTwins()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.06)
    losses, started = [], time.perf_counter()
    with criterion_of(loss) as criterion:
        while len(losses) < steps:
            for x0, x1 in loader:
                value = criterion(model(x0), model(x1))
                value.backward()
                optimizer.step()
                optimizer.zero_grad()
                losses.append(value.item())
                if len(losses) in (1, steps) or len(losses) % 10 == 0:
                    print(f"step {len(losses)}  loss {value.item():.4f}")
                if len(losses) == steps:
                    break
    print(f"{type(criterion).__module__}: {(time.perf_counter() - started) / steps:.2f} s a step")
    return losses


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--loss", choices=LOSSES, default="barlow_fast")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    train(options.loss, options.steps, options.batch, options.seed)
    return 0


if __name__ == "__main__":
    sys.exit(main())
