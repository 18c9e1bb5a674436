"""What is compared, declared: loaders that turn the same images into the same number of views, the
decoders and stages in them, and kernels.

A feed is opened in a process of its own (`turns`) and yields, batch after batch, how many images
it made; a kernel is called in the process of the suite.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from barlow_fast import kernels
from barlow_fast.data import draw
from barlow_fast.data.jpeg import REDUCTIONS
from barlow_fast.data.parallel import cores_of_rank
from barlow_fast.data.rendering import dali
from barlow_fast.data.rendering.files import by_pillow
from barlow_fast.data.rendering.threads import ThreadRenderer
from barlow_fast.data.sources import FolderSource
from barlow_fast.data.windows import MARGIN
from barlow_fast.kernels.photometry import Parameter
from barlow_fast.kernels.resizing import crop_resize
from bench import cli, devices, provenance
from bench.views import images, loading, turns
from bench.views.agreement import DisagreementError
from bench.views.images import LARGE, LIGHTLY, OFFICIAL, SMALL, V2, Case
from bench.views.loading import Task

CLOSE = 0.01  # levels of 255 that a kernel is from plain torch, on average, in float32
ONE_CORE = "-1"  # ends the name of a feed on one core
MARGINS = (1.0, 1.5, 2.0)  # of reduced decoding, besides the default


@dataclass(frozen=True)
class Feed:
    """One that is compared.

    Attributes:
        title: what the tables call it.
        make: task -> counts per batch, without an end.
        packages: that do the work besides torch, as they are distributed.
        modules: that it needs.
        unit: what is counted.
        instruction_set: of the native kernels, that it needs.
    """

    title: str
    make: Callable[[Task], Iterator[int]]
    packages: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()
    unit: str = "images"
    instruction_set: str = ""

    def unavailable(self, case: Case, device: torch.device) -> str | None:
        """Why it cannot run."""
        if self.packages is DALI and (reason := dali.why_unusable()):
            return reason
        for module in (*self.modules, *(["PIL"] if case.photographs else [])):
            if importlib.util.find_spec(module) is None:
                return f"{module} is not installed (pip install 'barlow-fast[bench]')"
        if self.instruction_set and (reason := kernels.why_unusable("cpu", torch.device("cpu"))):
            return reason
        if self.instruction_set:
            known = kernels.load("cpu").supported_instruction_sets()
            return None if self.instruction_set in known else "this CPU does not have it"
        return None


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


DALI = ("nvidia-dali-cuda130", "nvidia-dali-cuda120")
JPEG, VISION = ("simplejpeg", "pillow"), ("torchvision", "pillow")
_files = partial(loading.ours, loader="pil")
FEEDS = {
    "ours-threads": Feed("barlow_fast", _files, JPEG),
    "ours-shards": Feed("barlow_fast, shards", partial(_files, shards=True), JPEG),
    "ours-reduced": Feed(
        "barlow_fast, reduced decoding", partial(_files, margin=MARGIN, exact=False), JPEG
    ),
    **{
        f"reduced-{margin}": Feed(
            f"barlow_fast, reduced decoding with a margin of {margin}",
            partial(_files, margin=margin, exact=False), JPEG,
        )
        for margin in MARGINS
    },
    "ours-packed": Feed(
        f"barlow_fast, shards of --max-side {LARGE.max_side}",
        partial(_files, shards=True, exact=False), JPEG,
    ),
    "ours-dali": Feed("barlow_fast, DALI on the CPU", partial(loading.ours, loader="dali"), DALI),
    "ours-arrays": Feed("barlow_fast", partial(loading.ours, loader="arrays")),
    **{
        name: Feed(title, partial(loading.elsewhere, recipe=name), packages, modules)
        for name, title, packages, modules in (
            (OFFICIAL, "official recipe", VISION, ("torchvision",)),
            (V2, "torchvision v2 on tensors", VISION, ("torchvision",)),
            (LIGHTLY, "lightly", ("lightly", *VISION), ("torchvision", "lightly")),
        )
    },
    "crops-threads": Feed(
        "barlow_fast: decoded and cropped only", partial(loading.crops, renderer="threads"), JPEG
    ),
    "crops-dali": Feed(
        "DALI: decoded and cropped only", partial(loading.crops, renderer="dali"), DALI
    ),
    **{
        f"decode-{name}": Feed(
            f"{name}: decoded only", partial(loading.decoded, library=name), (name,),
            (name.replace("pillow", "PIL"),), "decoded",
        )
        for name in ("simplejpeg", "torchvision", "pillow")
    },
    **{
        f"sides-{divisor}": Feed(
            f"simplejpeg: decoded only, sides divided by {divisor}",
            partial(loading.decoded, library="simplejpeg", divisor=divisor), JPEG[:1], JPEG[:1],
            "decoded",
        )
        for divisor in REDUCTIONS[:-1]
    },
    **{
        f"stages{name}": Feed(
            f"barlow_fast{words}, stage by stage", partial(loading.staged, margin=margin), JPEG,
            JPEG[:1], "staged",
        )
        for name, words, margin in (("", "", 0.0), ("-reduced", ", reduced decoding", MARGIN))
    },
    **{
        f"crop-{each}": Feed(
            f"barlow_fast, {each}",
            partial(loading.cropped, crop_resize=loading.native, instruction_set=each),
            unit="views", instruction_set=each,
        )
        for each in ("avx512", "avx2", "baseline")
    },
    **{
        name: Feed(title, partial(loading.cropped, crop_resize=run), packages, unit="views")
        for name, title, run, packages in (
            ("crop-aten", "barlow_fast (aten)", crop_resize, ()),
            ("crop-pillow", "Pillow", by_pillow, ("pillow",)),
            ("crop-interpolate", "torch's interpolate, antialiased", loading.interpolate, ()),
        )
    },
}  # fmt: skip
FEEDS |= {
    name + ONE_CORE: replace(feed, title=f"{feed.title}, one core") for name, feed in FEEDS.items()
}
KERNELS = {
    "kernel-cpu": Kernel("barlow_fast", "cpu"),
    "kernel-aten": Kernel("barlow_fast (aten)", "aten"),
    "kernel-triton-sharp-bfloat16": Kernel(
        "Triton, without blur, to bfloat16", "triton", True, torch.bfloat16
    ),
    "kernel-triton-sharp-float32": Kernel("Triton, without blur, to float32", "triton", True),
    "kernel-triton-bfloat16": Kernel(
        "Triton, with blur, to bfloat16", "triton", dtype=torch.bfloat16
    ),
    "kernel-triton-float32": Kernel("Triton, with blur, to float32", "triton"),
    "kernel-aten-float32": Kernel("plain torch, with blur, to float32", "aten"),
}
COMPARED: dict[str, Feed | Kernel] = FEEDS | KERNELS
# The last two are of rows that were measured when workers were processes of Pillow.
TITLES = {name: each.title for name, each in COMPARED.items()} | {
    "ours-pil": "barlow_fast, PIL",
    "crops-pil": "PIL: decoded and cropped only",
}

_RECIPES = (OFFICIAL, V2, LIGHTLY)
_DECODERS = ("decode-simplejpeg", "decode-torchvision", "decode-pillow")
_ALONE = ("ours-threads", OFFICIAL, *_DECODERS, "stages")
_CROPS = ("avx512", "avx2", "baseline", "pillow", "interpolate", "aten")
CASES = {
    case.name: case
    for case in (
        Case(
            "photographs", "two views of 224 × 224 from JPEG files of about 500 × 400", "imagenet",
            224, 64,
            (
                "ours-threads", "ours-shards", "ours-dali", *_RECIPES, "crops-threads",
                "crops-dali", *_DECODERS, *(name + ONE_CORE for name in _ALONE),
            ),
            SMALL,
        ),
        Case(
            "large", "two views of 224 × 224 from JPEG files of 4032 × 3024", "imagenet", 224, 8,
            (
                "ours-threads", "ours-reduced", *(f"reduced-{margin}" for margin in MARGINS),
                "ours-packed", "ours-dali", *_RECIPES, *_DECODERS, "sides-2", "sides-4", "sides-8",
                "stages-1", "stages-reduced-1",
            ),
            LARGE,
        ),
        Case(
            "arrays-224", "two views of 224 × 224 × 3 from images in memory", "imagenet", 224, 64,
            ("ours-arrays", OFFICIAL, V2),
        ),
        Case(
            "arrays-32", "two views of 32 × 32 × 3 from images in memory", "cifar", 32, 256,
            ("ours-arrays", *_RECIPES), share=0.4,
        ),
        Case(
            "arrays-28", "two views of 28 × 28 × 1 from images in memory", "fashion-mnist", 28, 256,
            ("ours-arrays", OFFICIAL, V2), share=0.4,
        ),
        Case(
            "crops", "windows of photographs, cropped and resized to 224 × 224", "imagenet", 224,
            64, tuple(f"crop-{name}{ONE_CORE}" for name in _CROPS), SMALL, share=0.3,
        ),
        Case(
            "kernel", "the photometric kernel alone, 224 × 224 × 3", "imagenet", 224, 64,
            ("kernel-cpu", "kernel-aten"), SMALL, share=0.3,
        ),
    )
}  # fmt: skip
# On a GPU: the kernels, and our loaders alone.
CUDA_CASES = {
    "kernel": replace(CASES["kernel"], batch_size=256, feeds=tuple(KERNELS)[2:], seconds=20.0),
    "arrays-32": replace(CASES["arrays-32"], feeds=("ours-arrays",), share=1.0, seconds=20.0),
    "photographs": replace(CASES["photographs"], feeds=("ours-dali", "ours-threads"), seconds=55.0),
}
BY_KIND = {"cpu": CASES, "cuda": CUDA_CASES}
# A quick run has these alone; where a device's case has none of them, all of its own.
QUICK = {
    "photographs": ("ours-threads", "ours-dali", OFFICIAL, LIGHTLY, "decode-simplejpeg"),
    "arrays-32": ("ours-arrays", OFFICIAL),
    "kernel": ("kernel-cpu",),
}


def parse(cases: str | None, feeds: str | None, quick: bool, kind: str = "cpu") -> list[Case]:
    """Cases of a comma-separated list, with those of their feeds that another one names, on a kind
    of device; ValueError for an unknown name."""
    known = BY_KIND[kind]
    few = QUICK if quick else {}
    names = cli.listed(cases, known, "case", [name for name in known if name in few])
    chosen = []
    for case in map(known.__getitem__, names):
        some = case.only(few.get(case.name, ()))
        chosen.append(some if some.feeds else case)
    if feeds is not None:
        wanted = cli.listed(feeds, {feed: 0 for case in chosen for feed in case.feeds}, "feed")
        chosen = [case.only(wanted) for case in chosen]
    return [case for case in chosen if case.feeds]


def version(feed: str) -> str:
    """The packages that do the work besides torch, with their versions."""
    return provenance.versions(COMPARED[feed].packages)


@contextlib.contextmanager
def open_feed(
    feed: str, case: Case, folder: Path | None, kind: str = "cpu"
) -> Iterator[Iterator[int]]:
    """Counts per batch, without an end. What runs in the background ends with the context.

    Args:
        feed: a name of FEEDS.
        case: what to load.
        folder: of the files, for a case of files.
        kind: of the device: 'cpu' or 'cuda'.

    Raises:
        DisagreementError: with the first batch.
    """
    task = Task(case, folder, devices.choose(kind))
    torch.set_num_threads(cores_of_rank())
    begun = time.perf_counter()

    def timed(counts: Iterator[int]) -> Iterator[int]:
        for count in counts:
            task.figures.setdefault("first_batch_s", time.perf_counter() - begun)
            yield count

    with contextlib.closing(FEEDS[feed].make(task)) as counts:
        yield turns.Feed(timed(counts), task.device.synchronize, lambda: dict(task.figures))
