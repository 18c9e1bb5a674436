"""Kernels that are called in the process of the suite: the photometric one, and crops."""

from __future__ import annotations

import contextlib
import functools
import types
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from barlow_fast import kernels
from barlow_fast.data.rendering.files import CropResize, by_pillow, draw_views
from barlow_fast.data.rendering.threads import ThreadRenderer
from barlow_fast.data.sources import FolderSource
from barlow_fast.kernels.photometry import Parameter
from bench.views import images
from bench.views.loading import samples_of

if TYPE_CHECKING:
    from bench.views.feeds import Case

CLOSE = 0.01  # levels of 255 from plain torch, on average, in float32
IMAGES = 4  # that crops are cut out of: they stay in a core's cache, as they do in a loader


class Prepared(NamedTuple):
    """What is timed, and what was found out before.

    Attributes:
        call: makes the views of one batch.
        problem: why it is not timed; None where nothing is wrong.
        figures: fields of its row.
    """

    call: Callable[[], object]
    problem: str | None
    figures: Mapping[str, float] = types.MappingProxyType({})


class Photometric(NamedTuple):
    """The photometric kernel of a set.

    Attributes:
        backend: the kernel set.
        sharp: whether nothing is blurred.
        dtype: of the views.
    """

    backend: str
    sharp: bool = False
    dtype: torch.dtype = torch.float32

    def unusable(self, device: torch.device) -> str | None:
        """Why it cannot run on a device."""
        return kernels.why_unusable(self.backend, device)

    def bytes_moved(self, case: Case) -> int:
        """What a view must move: bytes read once, values written once."""
        return case.side**2 * len(case.views.mean) * (1 + self.dtype.itemsize)

    def prepare(self, case: Case, folder: Path | None, device: torch.device) -> Prepared:
        """The call on one batch of photographs, or of random pixels without a folder."""
        run, given = kernels.load(self.backend).photometric, arguments(case, folder, device)
        if self.sharp:
            given = [(pixels, _sharp(rows), *rest) for pixels, rows, *rest in given]
        return Prepared(lambda: [run(*each, self.dtype) for each in given], differs(run, given))


@functools.lru_cache(1)
def arguments(case: Case, folder: Path | None, device: torch.device) -> list[tuple]:
    """(crops, rows, mean, std) of each view of one batch."""
    views = case.views
    if folder is None:
        samples = np.arange(case.batch_size)
        pixels = images.pixels(case.side, len(views.mean), case.batch_size)
        crops = [torch.from_numpy(pixels)] * len(views.views)
    else:
        source = FolderSource(folder)
        samples = next(samples_of(source, case))
        renderer = ThreadRenderer(source, views)
        renderer.submit(0, samples)
        crops = renderer.receive().crops
    statistics = [torch.tensor(values, device=device) for values in (views.mean, views.std)]
    drawn = draw_views(views, 0, 0, samples)
    return [
        (
            pixels.to(device),
            torch.from_numpy(view.parameters.photometric_rows(*pixels.shape[1:3])).to(device),
            *statistics,
        )
        for view, pixels in zip(drawn, crops, strict=True)
    ]


def _sharp(rows: Tensor) -> Tensor:
    rows = rows.clone()
    rows[:, Parameter.BLUR_SIGMA] = 0
    return rows


def differs(run: Callable, given: list[tuple]) -> str | None:
    """How far a kernel is from plain torch, where that is too far."""
    plain = kernels.load("aten").photometric
    for each in given:
        std = each[-1].view(1, -1, 1, 1)
        error = (run(*each, torch.float32) - plain(*each, torch.float32)) * std * 255
        # Written so that NaN is a problem.
        if not float(error.abs().mean()) <= CLOSE:
            return f"{float(error.abs().mean()):.3g} levels from plain torch on average"
    return None


class Crop(NamedTuple):
    """A way to crop and resize, in one thread, held against Pillow.

    Attributes:
        run: as `crop_resize` of the kernels.
        instruction_set: of the native kernel, which must have Pillow's bits; '' for another's.
    """

    run: CropResize
    instruction_set: str = ""

    def unusable(self, device: torch.device) -> str | None:
        """Why it cannot run on a device."""
        reason = kernels.why_unusable("cpu", device) if self.instruction_set else None
        if self.instruction_set and reason is None:
            known = kernels.load("cpu").supported_instruction_sets()
            reason = None if self.instruction_set in known else "this CPU does not have it"
        return reason

    def prepare(self, case: Case, folder: Path, device: torch.device) -> Prepared:
        """The call on the windows of one batch."""
        cuts = windows(case, folder)
        out = torch.empty(len(cuts), case.side, case.side, len(case.views.mean), dtype=torch.uint8)

        def call(run: CropResize = self.run) -> Tensor:
            with _alone(self.instruction_set):
                for cut, to in zip(cuts, out, strict=True):
                    run(*cut, to)
            return out

        errors = (call().int() - call(by_pillow).int()).abs()
        largest = int(errors.max())
        problem = (
            f"up to {largest} levels from Pillow" if self.instruction_set and largest else None
        )
        differing = float((errors > 0).double().mean())
        figures = {"differing_share": differing, "largest_levels": largest}
        return Prepared(call, problem, figures)


@contextlib.contextmanager
def _alone(instruction_set: str) -> Iterator[None]:
    """One thread of torch, and an instruction set of the native kernels."""
    threads, native = torch.get_num_threads(), kernels.load("cpu") if instruction_set else None
    before = native and native.instruction_set()
    torch.set_num_threads(1)
    try:
        if native:
            native.use_instruction_set(instruction_set)
        yield
    finally:
        torch.set_num_threads(threads)
        if native:
            native.use_instruction_set(before)


def windows(case: Case, folder: Path) -> list[tuple[Tensor, tuple[int, int, int, int], str]]:
    """(image, window, interpolation) of each view of one batch of IMAGES images, repeated."""
    source = FolderSource(folder)
    samples = next(samples_of(source, case))
    pixels = [torch.from_numpy(source.pixels(int(each)).pixels) for each in samples[:IMAGES]]
    found = []
    for view in draw_views(case.views, 0, 0, samples):
        for row in range(len(samples)):
            image = pixels[row % IMAGES]
            window = view.windows.find(row, *image.shape[:2])
            found.append((image, window, view.specification.interpolation))
    return found


def native(*arguments: Any) -> None:
    """`crop_resize` in C++."""
    kernels.load("cpu").crop_resize(*arguments)


def interpolate(
    image: Tensor, window: tuple[int, int, int, int], interpolation: str, out: Tensor
) -> None:
    """`crop_resize` by torch, antialiased."""
    top, left, height, width = window
    part = image.permute(2, 0, 1)[None, :, top : top + height, left : left + width]
    resized = functional.interpolate(
        part, tuple(out.shape[:2]), mode=interpolation, align_corners=False, antialias=True
    )
    out.copy_(resized[0].permute(1, 2, 0))
