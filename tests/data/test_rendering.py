"""Crops of files: torchvision's, from any number of threads, which end with their use."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from ended import SECONDS, until
from photographs import MEAN, PHOTOGRAPHS, STD, colouring, cropping, photograph, photographs
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as torchvision

from barlow_fast import kernels
from barlow_fast.data import ViewLoader, Views, draw, parallel, windows
from barlow_fast.data.decoding import Decoded
from barlow_fast.data.faults import BadImage
from barlow_fast.data.rendering import Crops, crop_shapes, files
from barlow_fast.data.rendering.threads import CHUNK, Finish, ThreadRenderer
from barlow_fast.data.sources import ArraySource, FolderSource
from barlow_fast.data.views import ViewSpecification

LIMIT = 0.5  # seconds
VIEWS = Views("crops", (cropping(48), cropping((40, 56), interpolation="bilinear")), MEAN, STD)


def rendered(renderer, batches: list[np.ndarray], epoch: int = 0) -> list[Crops]:
    """All batches, two under way, copied: a renderer's tensors live until the next `receive`."""
    received = []
    for number, samples in enumerate(batches):
        renderer.submit(epoch, samples)
        if number:
            received.append(copied(renderer.receive()))
    return [*received, copied(renderer.receive())]


def copied(crops: Crops) -> Crops:
    return Crops([view.clone() for view in crops.crops], crops.samples, crops.bad)


def assert_same(ours: list[Crops], theirs: list[Crops]) -> None:
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a.samples, b.samples)
        assert a.bad == b.bad
        for view, other in zip(a.crops, b.crops, strict=True):
            assert torch.equal(view, other)


def running_threads() -> list[str]:
    names = (thread.name for thread in threading.enumerate())
    return [name for name in names if name.startswith("barlow_fast data thread")]


@pytest.fixture(params=["as installed", "by Pillow"])
def either(request, monkeypatch):
    """The native kernel where it is built, and Pillow, which stands in for it elsewhere."""
    if request.param == "by Pillow":
        monkeypatch.setattr(files, "native_crop", lambda: None)


@pytest.mark.usefixtures("either")
def test_crops_are_torchvisions(tmp_path):
    for number, path in enumerate(PHOTOGRAPHS):
        (tmp_path / f"{number}.jpg").write_bytes(path.read_bytes())
    source = FolderSource(tmp_path)
    samples = np.arange(3)
    for epoch in range(5):
        renderer = ThreadRenderer(source, VIEWS, seed=7)
        (crops,) = rendered(renderer, [samples], epoch)
        for number, specification in enumerate(VIEWS.views):
            parameters = draw(specification, 7, epoch, samples, number)
            for sample in range(3):
                image = photograph(sample)
                row = parameters[sample : sample + 1]
                top, left, height, width = windows(row, specification, image.height, image.width)[
                    0
                ].tolist()
                expected = torchvision.resized_crop(
                    image,
                    top,
                    left,
                    height,
                    width,
                    specification.shape,
                    InterpolationMode(specification.interpolation),
                )
                np.testing.assert_array_equal(crops.crops[number][sample], np.asarray(expected))


@pytest.mark.usefixtures("either")
def test_a_crop_shows_nothing_from_beyond_its_window(tmp_path):
    """`Image.resize(box=...)` would: its filter reaches over the border."""
    specification = cropping(16)
    parameters = draw(specification, 0, 0, np.arange(1), 0)
    top, left, height, width = windows(parameters, specification, 90, 80)[0].tolist()
    pixels = np.full((90, 80, 3), 255, np.uint8)
    pixels[top : top + height, left : left + width] = 0
    Image.fromarray(pixels).save(tmp_path / "0.png")
    renderer = ThreadRenderer(FolderSource(tmp_path), Views("one", (specification,), MEAN, STD))
    (crops,) = rendered(renderer, [np.arange(1)])
    assert (height, width) != (90, 80)
    assert not crops.crops[0].any()


@pytest.mark.usefixtures("either")
def test_one_channel(tmp_path):
    source = FolderSource(photographs(tmp_path / "photographs", 3))
    views = Views("gray", (ViewSpecification(size=(30, 20)),), (0.5,), (0.25,))
    (crops,) = rendered(ThreadRenderer(source, views), [np.arange(3)])
    assert crops.crops[0].shape == (3, 30, 20, 1)
    expected = source.image(1).convert("L").resize((20, 30), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(crops.crops[0][1, ..., 0], np.asarray(expected))


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_threads_render_what_the_calling_thread_does_and_end(tmp_path, workers: int):
    source = FolderSource(photographs(tmp_path / "photographs", 23))
    Path(source.path(4)).write_bytes(b"")
    Path(source.path(11)).write_bytes(Path(source.path(10)).read_bytes()[:-600])
    order = np.random.default_rng(0).permutation(23)
    batches = [order[:8], order[8:16], order[16:], order[:1], order[:8][::-1].copy()]
    renderer = ThreadRenderer(source, VIEWS, seed=3, workers=workers)
    assert not running_threads()
    ours = rendered(renderer, batches, epoch=2)
    theirs = rendered(ThreadRenderer(source, VIEWS, seed=3), batches, epoch=2)
    assert_same(ours, theirs)
    bad = {image.index for crops in ours for image in crops.bad}
    assert bad == {4, 11}
    assert not bad & {int(n) for crops in ours for n in crops.samples}
    assert len(running_threads()) == workers
    renderer.close()
    assert not running_threads()
    with pytest.raises(RuntimeError, match="closed"):
        renderer.submit(0, order[:8])
    with pytest.raises(RuntimeError, match="closed"):
        renderer.receive()
    renderer.close()


@pytest.mark.skipif(not Finish.possible(torch.device("cpu")), reason="needs the native kernels")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("workers", [0, 2])
def test_views_that_threads_finish_are_those_of_the_kernel(tmp_path, workers: int, dtype):
    source = FolderSource(photographs(tmp_path / "photographs", 11))
    Path(source.path(6)).write_bytes(b"")
    views, samples = colouring(40), np.arange(11)[::-1].copy()
    finish = Finish(torch.tensor(views.mean), torch.tensor(views.std), dtype)
    renderer = ThreadRenderer(source, views, seed=5, workers=workers, finish=finish)
    (ours,) = rendered(renderer, [samples], epoch=1)
    (crops,) = rendered(ThreadRenderer(source, views, seed=5), [samples], epoch=1)
    renderer.close()
    assert [image.index for image in ours.bad] == [6]
    for number, (view, pixels) in enumerate(zip(ours.crops, crops.crops, strict=True)):
        drawn = draw(views.views[number], 5, 1, crops.samples, number)
        expected = kernels.load("cpu").photometric(
            pixels, torch.from_numpy(drawn.photometric_rows(40, 40)), *finish
        )
        assert torch.equal(view.permute(0, 3, 1, 2), expected)


class Suspect(FolderSource):
    """One of its images decodes with a warning."""

    def pixels(self, index: int, *arguments) -> Decoded:
        decoded = super().pixels(index, *arguments)
        return decoded._replace(warning="flipped bits") if index == 3 else decoded


@pytest.mark.parametrize("workers", [0, 2])
def test_suspect_images_are_rendered_and_reported(tmp_path, workers: int):
    source = Suspect(photographs(tmp_path / "photographs", 8))
    renderer = ThreadRenderer(source, VIEWS, workers=workers)
    (ours,) = rendered(renderer, [np.arange(8)[::-1].copy()])
    renderer.close()
    assert ours.bad == [BadImage(3, source.path(3), "flipped bits", suspect=True)]
    (theirs,) = rendered(ThreadRenderer(FolderSource(source.root), VIEWS), [ours.samples])
    assert_same([ours._replace(bad=[])], [theirs])


@pytest.mark.parametrize("policy", ["skip", "strict"])
def test_suspect_images_are_left_out_under_strict(tmp_path, policy: str):
    source = Suspect(photographs(tmp_path / "photographs", 8))
    settings = {"on_bad_image": policy, "loader": "pil", "workers": 2}
    with ViewLoader(source, VIEWS, 8, **settings) as loader:
        (batch,) = list(loader)
    assert sorted(batch.index.tolist()) == [n for n in range(8) if policy == "skip" or n != 3]
    assert [image.index for image in loader.suspect_images] == [3]


class Waiting(FolderSource):
    """Stands in for storage that does not answer, until `answer` is set."""

    def __init__(self, *arguments) -> None:
        super().__init__(*arguments)
        self.answer = threading.Event()
        self.asked: list[int] = []

    def encoded(self, index: int) -> bytes:
        self.asked.append(index)
        self.answer.wait()
        return super().encoded(index)


@pytest.mark.parametrize("remark", [60.0, 0.2])
def test_storage_that_does_not_answer_is_given_up(tmp_path, monkeypatch, remark: float):
    monkeypatch.setattr(parallel, "REMARK_AFTER", remark)
    source = Waiting(photographs(tmp_path / "photographs", 8))
    renderer = ThreadRenderer(source, VIEWS, workers=3, timeout=LIMIT)
    renderer.submit(0, np.arange(8))
    message = (
        rf"no image has been read for 0.5 s, such as {source.path(0)} .* the {CHUNK} from there on"
        ".*--worker-timeout"
    )
    with pytest.raises(RuntimeError, match=message):
        renderer.receive()
    with pytest.raises(RuntimeError, match="closed"):
        renderer.receive()
    # As soon as it answers, the threads end as well.
    source.answer.set()
    assert until(lambda: not running_threads())


def test_images_that_come_slowly_are_waited_for(tmp_path, monkeypatch):
    """The limit counts from the last image on."""
    source = Waiting(photographs(tmp_path / "photographs", 3 * CHUNK))
    renderer = ThreadRenderer(source, VIEWS, workers=1, timeout=LIMIT)
    renderer.submit(0, np.arange(3 * CHUNK))
    batch = renderer._under_way[0]
    waits = []

    def wait(seconds: float) -> bool:
        waits.append(seconds)
        if len(waits) == 2:
            batch.tasks[1].ready.set()
        assert len(waits) < 5
        return len(waits) == 4

    monkeypatch.setattr(parallel, "REMARK_AFTER", 0.2)
    monkeypatch.setattr(batch.tasks[0].ready, "wait", wait)
    renderer._wait(batch, batch.tasks[0])
    assert waits == [0.2, 0.2, 0.2, 0.2]
    source.answer.set()
    renderer.close()


def test_closing_waits_for_no_image_that_nobody_needs(tmp_path):
    source = Waiting(photographs(tmp_path / "photographs", 8 * CHUNK))
    renderer = ThreadRenderer(source, VIEWS, workers=1)
    renderer.submit(0, np.arange(8 * CHUNK))
    assert until(lambda: source.asked)
    answer = threading.Timer(0.1, source.answer.set)
    answer.start()
    renderer.close()
    answer.join()
    assert not running_threads()
    assert len(source.asked) <= CHUNK


class Failing(FolderSource):
    """Its images raise what no damaged file does."""

    def encoded(self, index: int) -> bytes:
        if index == 5:
            raise ZeroDivisionError("of image 5")
        return super().encoded(index)


def test_an_error_in_a_thread_comes_with_its_traceback(tmp_path):
    source = Failing(photographs(tmp_path / "photographs", 8))
    renderer = ThreadRenderer(source, VIEWS, workers=2)
    renderer.submit(0, np.arange(8))
    renderer.submit(0, np.arange(4))
    with pytest.raises(RuntimeError, match="a data thread failed") as caught:
        renderer.receive()
    for part in ("Traceback", "in encoded", "ZeroDivisionError: of image 5"):
        assert part in str(caught.value)
    # The threads live on.
    (expected,) = rendered(ThreadRenderer(source, VIEWS), [np.arange(4)])
    assert_same([renderer.receive()], [expected])
    renderer.close()
    with pytest.raises(ZeroDivisionError, match="of image 5"):
        rendered(ThreadRenderer(source, VIEWS), [np.arange(8)])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_wait_that_is_interrupted_is_resumed(tmp_path, monkeypatch, workers: int):
    source = FolderSource(photographs(tmp_path / "photographs", 3 * CHUNK))
    renderer = ThreadRenderer(source, VIEWS, workers=workers)
    renderer.submit(0, np.arange(3 * CHUNK))
    calls = 0

    def interrupt(self, *arguments):
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return original(self, *arguments)

    owner, name = (threading.Event, "wait") if workers else (parallel.Task, "perform")
    original = getattr(owner, name)
    monkeypatch.setattr(owner, name, interrupt)
    with pytest.raises(KeyboardInterrupt):
        renderer.receive()
    ours = renderer.receive()
    assert_same([ours], rendered(ThreadRenderer(source, VIEWS), [np.arange(3 * CHUNK)]))
    renderer.close()


@pytest.mark.parametrize("prefetch", [1, 3])
def test_memory_is_bounded_by_the_batches_under_way(tmp_path, prefetch: int):
    """They alone hold crops, and only until they are received."""
    source = FolderSource(photographs(tmp_path / "photographs", 8))
    renderer = ThreadRenderer(source, VIEWS, workers=2, prefetch=prefetch)
    for _ in range(prefetch):
        renderer.submit(0, np.arange(8))
    with pytest.raises(RuntimeError, match=f"{prefetch} batches are under way"):
        renderer.submit(0, np.arange(8))
    batches = [weakref.ref(batch) for batch in renderer._under_way]
    crops = [weakref.ref(view) for batch in renderer._under_way for view in batch.out]
    for _ in range(prefetch):
        renderer.receive()
    # A thread lets go of its last batch a moment after that is ready.
    assert until(lambda: not any(each() for each in (*batches, *crops)))
    renderer.close()


def test_a_forgotten_renderer_ends_its_threads(tmp_path):
    source = FolderSource(photographs(tmp_path / "photographs", 8))
    renderer = ThreadRenderer(source, VIEWS, workers=2)
    rendered(renderer, [np.arange(8)])
    renderer.submit(0, np.arange(8))
    assert len(running_threads()) == 2
    del renderer
    gc.collect()
    assert not running_threads()


FORKED = """
import os, sys
import numpy as np
from photographs import MEAN, STD, cropping
from barlow_fast.data import Views
from barlow_fast.data.rendering.threads import ThreadRenderer
from barlow_fast.data.sources import FolderSource

source = FolderSource(sys.argv[1])
renderer = ThreadRenderer(source, Views("crops", (cropping(48),), MEAN, STD), workers=2)
renderer.submit(0, np.arange(8))
fork = os.fork()
if not fork:
    for call in (renderer.receive, lambda: renderer.submit(0, np.arange(8))):
        try:
            call()
        except RuntimeError as error:
            assert f"made in process {os.getppid()}" in str(error), error
        else:
            raise AssertionError("not refused")
    renderer.close()  # leaves the threads of the parent alone
    del renderer
    sys.exit(0)
assert os.waitpid(fork, 0)[1] == 0
assert len(renderer.receive().samples) == 8
print("received")
"""

# Leaves while its threads decode, with a renderer that was never closed.
LEAVING = """
import sys
import numpy as np
from photographs import MEAN, STD, cropping
from barlow_fast.data import Views
from barlow_fast.data.rendering.threads import ThreadRenderer
from barlow_fast.data.sources import FolderSource

source = FolderSource(sys.argv[1])
renderer = ThreadRenderer(source, Views("crops", (cropping(48),), MEAN, STD), workers=2)
renderer.submit(0, np.arange(8).repeat(1000))
print("received")
"""

# Storage answers never: threads are left behind, and the process ends all the same.
HANGING = """
import sys, threading
import numpy as np
from photographs import MEAN, STD, cropping
from barlow_fast.data import Views
from barlow_fast.data.rendering import threads
from barlow_fast.data.sources import FolderSource

class Hanging(FolderSource):
    def encoded(self, index):
        threading.Event().wait()

threads.PATIENCE = 0.1
source = Hanging(sys.argv[1])
views = Views("crops", (cropping(48),), MEAN, STD)
renderer = threads.ThreadRenderer(source, views, workers=2, timeout=threads.PATIENCE)
renderer.submit(0, np.arange(8))
try:
    renderer.receive()
except RuntimeError as error:
    assert "does not answer" in str(error), error
renderer = threads.ThreadRenderer(source, views, workers=2)
renderer.submit(0, np.arange(8))
print("received")
"""


@pytest.mark.parametrize(
    "script",
    [
        pytest.param(FORKED, id="forked", marks=pytest.mark.slow),
        pytest.param(LEAVING, id="leaving"),
        pytest.param(HANGING, id="hanging", marks=pytest.mark.slow),
    ],
)
def test_a_process_ends_whatever_its_threads_do(tmp_path, script: str):
    folder = photographs(tmp_path / "photographs", 8)
    done = subprocess.run(
        [sys.executable, "-c", script, folder],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
        capture_output=True, text=True, timeout=SECONDS,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "received\n", "")


def test_nothing_is_received_that_was_not_submitted(tmp_path):
    renderer = ThreadRenderer(FolderSource(photographs(tmp_path / "photographs", 4)), VIEWS)
    with pytest.raises(RuntimeError, match="no batch is under way"):
        renderer.receive()


def test_what_cannot_be_rendered_is_refused(tmp_path):
    files = FolderSource(photographs(tmp_path / "photographs", 2))
    arrays = ArraySource(np.zeros((4, 9, 7, 3), np.uint8))
    unsized = Views("unsized", (ViewSpecification(),), MEAN, STD)
    turned = Views("turned", (ViewSpecification(rotation=5, size=8),), MEAN, STD)
    with pytest.raises(ValueError, match=r"view 0 of 'unsized' has no size"):
        crop_shapes(files, unsized)
    assert crop_shapes(arrays, unsized) == [(9, 7, 3)]
    with pytest.raises(ValueError, match=r"view 0 of 'turned' turns"):
        crop_shapes(files, turned)
    with pytest.raises(ValueError, match="workers must be at least 0"):
        ThreadRenderer(files, VIEWS, workers=-1)
