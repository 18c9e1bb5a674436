"""Barlow Twins for dense prediction: whole feature maps as embeddings, D = 12,288.

    python examples/dense_prediction.py
    python examples/dense_prediction.py --steps 20 --seed 3

A segmenter needs features of places, not of images, so the map of a convolutional encoder is
flattened, 48 channels of 16 x 16 places, and every place and channel is a dimension of its own.
The D x D matrix would take 576 MiB for every copy of it; the loss of 32 samples needs two 32 x 32
matrices, which `explain` says before anything runs.

Images are mosaics of four of scikit-learn's digits. Views differ in brightness, noise and pixels
that are missing, not in place. In the end a linear classifier, applied to every place of the
maps, predicts the digit of the place: on noisy views of mosaics of unseen digits, where
there is ink, against the same classifier on the pixels around each place and on an encoder that
learned nothing.

Takes about 15 seconds on two cores. Prints a loss that falls from about 8600 to 2000, and
accuracies of about 16 % for the pixels, 18 % for the untrained maps and 22 % for the learned
ones.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

try:
    from sklearn.datasets import load_digits
except ImportError:
    sys.exit("This example needs scikit-learn: pip install scikit-learn")

from barlow_fast import BarlowTwinsLoss, explain
from barlow_fast.evaluation import fit_logistic

BATCH, SIDE, CHANNELS = 32, 16, 48
DIMENSIONS = CHANNELS * SIDE * SIDE
TRAINED, PROBED = 1297, 100  # digits to learn from; mosaics of the probe, and of its score


def mosaics(digits: Tensor, labels: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """(count, 1, 16, 16) images of four random digits each, and what each place belongs to: its
    digit, or -1 where there is no ink."""
    chosen = torch.randint(len(digits), (count, 2, 2))
    images = digits[chosen].transpose(2, 3).reshape(count, 1, SIDE, SIDE)
    places = labels[chosen].repeat_interleave(8, 1).repeat_interleave(8, 2)
    return images, torch.where(images[:, 0] > 0.3, places, -1)


def view(images: Tensor) -> Tensor:
    """Brightness and contrast of its own for each image, noise, a third of the pixels missing."""
    contrast, brightness = (torch.rand(2, len(images), 1, 1, 1) - 0.5) * 0.6
    images = (1 + contrast) * images + brightness + 0.1 * torch.randn(images.shape)
    return images * (torch.rand(images.shape) > 0.3)


@torch.no_grad()
def maps_of(encoder: nn.Module, sets: Sequence[Tensor]) -> list[Tensor]:
    """(B, CHANNELS, 16, 16) of each set of images; batches decide the norms, as in training."""
    return [encoder(images) for images in sets]


def score(maps: Sequence[Tensor], places: Sequence[Tensor]) -> float:
    """Accuracy at places with ink: fitted on the first set of maps, scored on the second."""
    (x, y), (new_x, new_y) = (
        (each.movedim(1, -1)[target >= 0], target[target >= 0])
        for each, target in zip(maps, places, strict=True)
    )
    return fit_logistic(x, y, 10, penalty=1e-3, iterations=30).accuracy(new_x, new_y).top1


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)

    torch.manual_seed(options.seed)
    bunch = load_digits()
    digits, labels = torch.from_numpy(bunch.images).float() / 16, torch.from_numpy(bunch.target)
    encoder = nn.Sequential(
        nn.Conv2d(1, CHANNELS, 5, padding=2), nn.BatchNorm2d(CHANNELS), nn.ReLU(),
        nn.Conv2d(CHANNELS, CHANNELS, 3, padding=2, dilation=2), nn.BatchNorm2d(CHANNELS),
        nn.ReLU(), nn.Conv2d(CHANNELS, CHANNELS, 3, padding=2, dilation=2),
    )  # fmt: skip
    parts = (digits[:TRAINED], labels[:TRAINED]), (digits[TRAINED:], labels[TRAINED:])
    images, places = zip(*(mosaics(*part, PROBED) for part in parts), strict=True)
    images = [view(each) for each in images]
    pixels = [functional.unfold(each, 5, padding=2).unflatten(2, (SIDE, SIDE)) for each in images]
    untrained = maps_of(encoder, images)
    print(explain(BATCH, DIMENSIONS))

    criterion = BarlowTwinsLoss(lambd=1 / DIMENSIONS)  # the second term has D - 1 times as many
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=1e-3)
    for step in range(1, options.steps + 1):
        batch, _ = mosaics(*parts[0], BATCH)
        loss = criterion(*(encoder(view(batch)).flatten(1) for _ in range(2)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step in (1, options.steps) or step % 50 == 0:
            print(f"step {step}  loss {loss.item():.0f}")

    learned = maps_of(encoder, images)
    scores = [score(maps, places) for maps in (pixels, untrained, learned)]
    print("digit of a place: {:.1%} pixels, {:.1%} untrained, {:.1%} learned".format(*scores))
    return 0


if __name__ == "__main__":
    sys.exit(main())
