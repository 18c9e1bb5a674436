"""The photometric kernel of each set, called in the process of the suite."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from barlow_fast import kernels
from barlow_fast.data import draw
from barlow_fast.data.rendering.threads import ThreadRenderer
from barlow_fast.data.sources import FolderSource
from barlow_fast.kernels.photometry import Parameter
from bench.views import images
from bench.views.agreement import DisagreementError
from bench.views.case import Case

CLOSE = 0.01  # levels of 255 from plain torch, on average, in float32


@dataclass(frozen=True)
class Kernel:
    """The photometric kernel of a set.

    Attributes:
        title: what the tables call it.
        backend: the kernel set.
        sharp: whether nothing is blurred.
        dtype: of the views.
    """

    title: str
    backend: str
    sharp: bool = False
    dtype: torch.dtype = torch.float32
    packages: tuple[str, ...] = ()
    unit = "views"

    def unavailable(self, case: Case, device: torch.device) -> str | None:
        """Why it cannot run."""
        return kernels.why_unusable(self.backend, device)

    def bytes_moved(self, case: Case) -> int:
        """What a view must move: bytes read once, values written once."""
        return case.side**2 * len(case.views.mean) * (1 + self.dtype.itemsize)

    def prepare(self, case: Case, folder: Path | None, device: torch.device) -> Callable:
        """A call that makes the views of one batch of photographs, or of random pixels without a
        folder.

        Raises:
            DisagreementError: they are not those of plain torch.
        """
        run, plain = (kernels.load(name).photometric for name in (self.backend, "aten"))
        given = arguments(case, folder, self.sharp, device)
        for each in given:
            std = each[-1].view(1, -1, 1, 1)
            error = (run(*each, torch.float32) - plain(*each, torch.float32)) * std * 255
            # Written so that NaN is a problem.
            if not float(error.abs().mean()) <= CLOSE:
                raise DisagreementError(
                    f"{float(error.abs().mean()):.3g} levels from plain torch on average"
                )
        return lambda: [run(*each, self.dtype) for each in given]


@functools.lru_cache(2)
def arguments(case: Case, folder: Path | None, sharp: bool, device: torch.device) -> list[tuple]:
    """(crops, rows, mean, std) of each view of one batch."""
    views = case.views
    if folder is None:
        samples = np.arange(case.batch_size)
        pixels = images.pixels(case.side, len(views.mean), case.batch_size)
        crops = [torch.from_numpy(pixels)] * len(views.views)
    else:
        source = FolderSource(folder)
        samples = next(case.samples(len(source)))
        renderer = ThreadRenderer(source, views)
        renderer.submit(0, samples)
        crops = renderer.receive().crops
    statistics = [torch.tensor(values, device=device) for values in (views.mean, views.std)]
    found = []
    for number, pixels in enumerate(crops):
        parameters = draw(views.views[number], 0, 0, samples, number)
        rows = torch.from_numpy(parameters.photometric_rows(*pixels.shape[1:3]))
        rows[:, Parameter.BLUR_SIGMA] *= not sharp
        found.append((pixels.to(device), rows.to(device), *statistics))
    return found
