"""Whether a loader shows what it should: no speed without it.

The first samples are made once more by Pillow's crops and by the photometric kernel in plain torch,
whose tests hold it against torchvision's functions one by one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from barlow_fast import kernels
from barlow_fast.data import Batch, ViewLoader
from barlow_fast.data.rendering.files import DrawnViews, by_pillow

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


def levels(loader: ViewLoader, batch: Batch) -> Tensor:
    """(V, B) mean differences in levels of 255 of the first views of the first batch from plain
    ones."""
    samples, views = batch.index[:CHECKED].cpu().numpy(), loader.views
    shapes = [(*view.shape[2:], view.shape[1]) for view in batch.views]
    drawn = DrawnViews(views, loader.seed, 0, samples, shapes)
    crops = [torch.empty(len(samples), *shape, dtype=torch.uint8) for shape in shapes]
    for row, sample in enumerate(samples.tolist()):
        pixels = loader.source.pixels(sample, len(views.mean)).pixels
        windows = drawn.windows(row, *pixels.shape[:2])
        for window, way, crop in zip(windows, drawn.interpolations, crops, strict=True):
            by_pillow(torch.from_numpy(pixels), window, way, crop[row])
    mean, std = torch.tensor(views.mean), torch.tensor(views.std)
    found = []
    for parameters, crop, got in zip(drawn.parameters, crops, batch.views, strict=True):
        rows = torch.from_numpy(parameters.photometric_rows(*crop.shape[1:3]))
        want = kernels.load("aten").photometric(crop, rows, mean, std, torch.float32)
        difference = (got[:CHECKED].cpu().float() - want) * std.view(1, -1, 1, 1) * 255
        found.append(difference.abs().mean((1, 2, 3)))
    return torch.stack(found)
