"""Crops by Pillow: torchvision's, from any number of processes, which never outlive their use."""

from __future__ import annotations

import gc
import importlib
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from ended import gone, running
from photographs import MEAN, PHOTOGRAPHS, STD, cropping, photograph, photographs
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as torchvision

from barlow_fast.data import Views, draw, rendering, windows
from barlow_fast.data.processes import STOP_SIGNALS
from barlow_fast.data.rendering import Crops, crop_shapes
from barlow_fast.data.rendering.pil import PilRenderer
from barlow_fast.data.rendering.workers import FORK_SERVER, WorkerRenderer
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


def shared_memory() -> set[str]:
    """The files behind the memory that this process shares through Python's `multiprocessing`."""
    maps = Path("/proc/self/maps").read_text().splitlines()
    return {line.split(maxsplit=5)[5] for line in maps if "/pym-" in line}


def test_crops_are_torchvisions(tmp_path):
    for number, path in enumerate(PHOTOGRAPHS):
        (tmp_path / f"{number}.jpg").write_bytes(path.read_bytes())
    source = FolderSource(tmp_path)
    samples = np.arange(3)
    for epoch in range(5):
        renderer = PilRenderer(source, VIEWS, seed=7)
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


def test_a_crop_shows_nothing_from_beyond_its_window(tmp_path):
    """`Image.resize(box=...)` would: its filter reaches over the border."""
    specification = cropping(16)
    parameters = draw(specification, 0, 0, np.arange(1), 0)
    top, left, height, width = windows(parameters, specification, 90, 80)[0].tolist()
    pixels = np.full((90, 80, 3), 255, np.uint8)
    pixels[top : top + height, left : left + width] = 0
    Image.fromarray(pixels).save(tmp_path / "0.png")
    renderer = PilRenderer(FolderSource(tmp_path), Views("one", (specification,), MEAN, STD))
    (crops,) = rendered(renderer, [np.arange(1)])
    assert (height, width) != (90, 80)
    assert not crops.crops[0].any()


def test_one_channel(tmp_path):
    source = FolderSource(photographs(tmp_path / "photographs", 3))
    views = Views("gray", (ViewSpecification(size=(30, 20)),), (0.5,), (0.25,))
    (crops,) = rendered(PilRenderer(source, views), [np.arange(3)])
    assert crops.crops[0].shape == (3, 30, 20, 1)
    expected = source.image(1).convert("L").resize((20, 30), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(crops.crops[0][1, ..., 0], np.asarray(expected))


def test_workers_render_what_one_process_does_and_leave_nothing(tmp_path):
    source = FolderSource(photographs(tmp_path / "photographs", 23))
    Path(source.path(4)).write_bytes(b"")
    Path(source.path(11)).write_bytes(Path(source.path(10)).read_bytes()[:-600])
    order = np.random.default_rng(0).permutation(23)
    batches = [order[:8], order[8:16], order[16:], order[:1], order[:8][::-1].copy()]
    before = shared_memory()
    # Python keeps pieces of memory below 4 MB for the next who asks, so there is room for more.
    workers = WorkerRenderer(source, VIEWS, 512, seed=3, workers=2)
    ours = rendered(workers, batches, epoch=2)
    theirs = rendered(PilRenderer(source, VIEWS, seed=3), batches, epoch=2)
    assert_same(ours, theirs)
    bad = {image.index for crops in ours for image in crops.bad}
    assert bad == {4, 11}
    assert not bad & {int(n) for crops in ours for n in crops.samples}
    # A file without a name: not even kill -9 leaves it behind.
    files = shared_memory() - before
    assert files
    assert all(name.endswith("(deleted)") for name in files)
    pids = workers.processes
    assert len(pids) == 2
    workers.close()
    assert all(gone(pid) for pid in pids)
    gc.collect()
    assert not shared_memory() & files
    with pytest.raises(RuntimeError, match="closed"):
        workers.submit(0, order[:8])
    workers.close()


def test_a_killed_worker_is_an_error_that_says_so(tmp_path):
    source = FolderSource(photographs(tmp_path / "photographs", 8))
    renderer = WorkerRenderer(source, VIEWS, 8, workers=1)
    (pid,) = rendered_pids(renderer)
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(RuntimeError, match=rf"worker 0 \(process {pid}\) died: exit code -9, SIGK"):
        # It may be noticed when a task is sent, or when its result is waited for.
        rendered(renderer, [np.arange(8)])
    with pytest.raises(RuntimeError, match="closed"):
        renderer.submit(0, np.arange(8))


class Stopped(FolderSource):
    """Stands in for a worker that is stopped, or for storage that does not answer."""

    def encoded(self, index: int) -> bytes:
        threading.Event().wait()
        raise AssertionError("not reached")


@pytest.mark.parametrize("remark", [60.0, 0.2])
def test_a_worker_that_does_not_answer_is_given_up(tmp_path, monkeypatch, remark: float):
    monkeypatch.setattr(rendering.workers, "REMARK_AFTER", remark)
    source = Stopped(photographs(tmp_path / "photographs", 8))
    renderer = WorkerRenderer(source, VIEWS, 8, workers=2, timeout=LIMIT)
    renderer.submit(0, np.arange(8))
    pids = renderer.processes
    message = rf"processes {pids[0]}, {pids[1]}\) have not answered for 0.5 s.*--worker-timeout"
    with pytest.raises(RuntimeError, match=message):
        renderer.receive()
    assert all(gone(pid) for pid in pids)


def test_signals_that_go_to_all_are_left_to_the_parent(tmp_path):
    source = FolderSource(photographs(tmp_path / "photographs", 8))
    renderer = WorkerRenderer(source, VIEWS, 8, workers=1)
    (pid,) = rendered_pids(renderer)
    for number in STOP_SIGNALS:
        os.kill(pid, number)
        assert rendered_pids(renderer) == [pid]
    renderer.close()
    assert gone(pid)


def test_a_forgotten_renderer_ends_its_workers_unless_it_is_a_forks(tmp_path):
    source = FolderSource(photographs(tmp_path / "photographs", 8))
    renderer = WorkerRenderer(source, VIEWS, 8, workers=1)
    (pid,) = rendered_pids(renderer)
    fork = os.fork()
    if not fork:
        renderer._finalizer()
        os._exit(0)
    os.waitpid(fork, 0)
    assert rendered_pids(renderer) == [pid]
    del renderer
    gc.collect()
    assert gone(pid)


def rendered_pids(renderer: WorkerRenderer) -> list[int]:
    """The workers' process numbers, once they have proved to work."""
    rendered(renderer, [np.arange(8)])
    return renderer.processes


ORPHANS = """
import multiprocessing, os, sys
import numpy as np
from photographs import MEAN, STD, cropping
from barlow_fast.data import Views
from barlow_fast.data.parallel import in_order
from barlow_fast.data.rendering.workers import FORK_SERVER, WorkerRenderer
from barlow_fast.data.sources import FolderSource

if __name__ == "__main__":
    source = FolderSource(sys.argv[2])
    if sys.argv[1] == "pool":
        results = in_order(source, source.identity, workers=1)
        next(results)
        pids = [process.pid for process in multiprocessing.active_children()]
    else:
        renderer = WorkerRenderer(source, Views("crops", (cropping(48),), MEAN, STD), 8, workers=1)
        renderer.submit(0, np.arange(8))
        renderer.receive()
        pids = renderer.processes
    # A fork that lives on has copies of all pipes.
    if sys.argv[1] != "forked" or os.fork():
        print(*pids, flush=True)
    sys.stdin.read()
"""


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks at /proc")
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow) for name in ("forked", "renderer", "pool")],
)
def test_workers_end_with_a_killed_parent(tmp_path, name):
    folder = photographs(tmp_path / "photographs", 8)
    script = tmp_path / "orphans.py"
    script.write_text(ORPHANS)
    command = [sys.executable, script, name, folder]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    with running(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as parent:
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        parent.kill()
        parent.wait()
        assert len(pids) == 1
        assert all(gone(pid) for pid in pids)


@pytest.mark.parametrize("build", [PilRenderer, lambda *a: WorkerRenderer(*a, 8)])
def test_no_more_batches_than_were_agreed_on(tmp_path, build, monkeypatch):
    monkeypatch.setattr(WorkerRenderer, "_start", lambda self: None)
    renderer = build(FolderSource(photographs(tmp_path / "photographs", 4)), VIEWS)
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
    with pytest.raises(ValueError, match="workers must be at least 1"):
        WorkerRenderer(files, VIEWS, 4, workers=0)


def test_the_fork_server_reports_all_but_a_parent_that_was_killed(monkeypatch, capsys):
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    sys.modules.pop(FORK_SERVER, None)
    importlib.import_module(FORK_SERVER)
    sys.excepthook(EOFError, EOFError("Ran out of input"), None)
    assert capsys.readouterr().err == ""
    sys.excepthook(ValueError, ValueError("damaged"), None)
    assert capsys.readouterr().err == "ValueError: damaged\n"
