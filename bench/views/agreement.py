"""Whether a loader shows what it should: no speed without it.

The first samples are made once more by Pillow's crops and by the photometric kernel in plain torch,
whose tests hold it against torchvision's functions one by one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from barlow_fast import kernels
from barlow_fast.data import Batch, ViewLoader
from barlow_fast.data.rendering.files import by_pillow, draw_views
from barlow_fast.data.sources import Source

CHECKED = 8  # images of the first batch
# Levels of 255, the mean over a view: DALI's crops differ from PIL's by up to 0.3 on average, which
# jitter enlarges.
BOUND = 1.0


class DisagreementError(Exception):
    """A feed does not make what the others make."""


def check(loader: ViewLoader, batch: Batch) -> None:
    """DisagreementError where the first batch of a loader is not what it should be."""
    if found := {view.dtype for view in batch.views} - {torch.float32}:
        raise DisagreementError(f"views are {found}, should be float32")
    errors = levels(loader, batch)
    view, row = divmod(int(errors.argmax()), errors.shape[1])
    # Written so that NaN is a problem.
    if not float(errors[view, row]) <= BOUND:
        raise DisagreementError(
            f"view {view} of sample {int(batch.index[row])} is {float(errors[view, row]):.2f} "
            f"levels from the plain one on average, more than {BOUND:g}"
        )


def levels(loader: ViewLoader, batch: Batch, source: Source | None = None) -> Tensor:
    """(V, B) mean differences in levels of 255 of the first views of the first batch from plain
    ones, of the loader's source or another one with the same images."""
    samples, views = batch.index[:CHECKED].cpu().numpy(), loader.views
    channels, found = len(views.mean), []
    pictures = [
        torch.from_numpy((source or loader.source).pixels(sample, channels).pixels)
        for sample in samples.tolist()
    ]
    drawn = draw_views(views, loader.seed, 0, samples)
    mean, std = torch.tensor(views.mean), torch.tensor(views.std)
    for view, got in zip(drawn, batch.views, strict=True):
        size = view.specification.shape or tuple(pictures[0].shape[:2])
        crops = torch.empty(len(samples), *size, channels, dtype=torch.uint8)
        for row, (image, crop) in enumerate(zip(pictures, crops, strict=True)):
            window = view.windows.find(row, *image.shape[:2])
            by_pillow(image, window, view.specification.interpolation, crop)
        rows = torch.from_numpy(view.parameters.photometric_rows(*size))
        want = kernels.load("aten").photometric(crops, rows, mean, std, torch.float32)
        difference = (got[:CHECKED].cpu().float() - want) * std.view(1, -1, 1, 1) * 255
        found.append(difference.abs().mean((1, 2, 3)))
    return torch.stack(found)
