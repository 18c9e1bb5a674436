"""Mixed Barlow Twins with a projector of 32768 features, in a plain PyTorch loop.

    python examples/mixed_wide.py
    python examples/mixed_wide.py --steps 20 --features 8192

Besides two views of a batch the network gets a mixture of them, whose embeddings are to have the
mixture of the views' cross-correlations. Code with D x D matrices makes seven of 4 GiB each in
every step at this width; here the loss keeps three of N x N.

Learns scikit-learn's handwritten digits without their labels, which are used once, at the end:
nearest neighbours on the encoder's features. The script prints the mean squares of C off its
diagonal and of what is left of the mixture, which do not depend on the width.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Sequence

import torch
from torch import nn

try:
    import sklearn  # noqa: F401  the digits
except ImportError:
    sys.exit("This example needs the training extra: pip install 'barlow-fast[train]'")

from barlow_fast import MixedBarlowTwinsLoss, mix_inputs
from barlow_fast.data import PRESETS, ViewLoader, load
from barlow_fast.data.render import normalise
from barlow_fast.data.sources import ArraySource
from barlow_fast.evaluation import knn_accuracy
from barlow_fast.models import SmallEncoder

BATCH, FEATURES, HIDDEN = 128, 32768, 128


@torch.no_grad()
def accuracy(encoder: nn.Module, data, views) -> float:
    """The share of test images whose nearest neighbours among the training images are of their
    class."""
    encoder.eval()
    train, test = (
        encoder(normalise(images, views.mean[0], views.std[0]))
        for images in (data.train_images, data.test_images)
    )
    encoder.train()
    return knn_accuracy(train, data.train_labels, test, data.test_labels)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--features", type=int, default=FEATURES, help="of the projector")
    options = parser.parse_args(arguments)

    torch.manual_seed(options.seed)
    data, recipe = load("digits"), PRESETS["digits"]
    encoder = SmallEncoder(widths=(16, 32, 64))
    projector = nn.Sequential(
        nn.Linear(encoder.features, HIDDEN, bias=False),
        nn.BatchNorm1d(HIDDEN),
        nn.ReLU(),
        nn.Linear(HIDDEN, options.features, bias=False),
    )
    model = nn.Sequential(encoder, projector)
    # The off-diagonal sum grows with the number of features.
    criterion = MixedBarlowTwinsLoss(lambd=2.6 / options.features, mixing=1.0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1e-4)
    before = accuracy(encoder, data, recipe)

    source = ArraySource(data.train_images.movedim(1, -1))
    with ViewLoader(source, recipe, BATCH, seed=options.seed) as loader:
        epochs = itertools.chain.from_iterable(itertools.repeat(loader))
        for step, batch in enumerate(itertools.islice(epochs, options.steps), 1):
            x_a, x_b = batch.views
            x_mixed, permutation, alpha = mix_inputs(x_a, x_b)
            embeddings = [model(x) for x in (x_a, x_b, x_mixed)]
            loss, terms = criterion(*embeddings, permutation, alpha, return_terms=True)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if step in (1, options.steps) or step % 50 == 0:
                print(f"step {step}  loss {loss.item():.2f}")

    print(
        f"mean squares: {terms.off_diagonal_mean:.4f} off the diagonal, "
        f"{terms.mixing_mean:.4f} of the mixture"
    )
    after = accuracy(encoder, data, recipe)
    print(f"nearest neighbours: {before:.1%} before training, {after:.1%} after")
    return 0


if __name__ == "__main__":
    sys.exit(main())
