"""The loader: the same views however they are computed, resumed to the bit, nothing left behind."""

from __future__ import annotations

import gc
import hashlib
import json
import logging
import os
import subprocess
import sys
import tarfile
import threading
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from ended import SECONDS
from photographs import MEAN, STD, colouring, cropping, photographs

from barlow_fast import kernels
from barlow_fast.data import ViewLoader, Views, ViewSpecification, draw
from barlow_fast.data.faults import BadImageError
from barlow_fast.data.loader import Batch, choose_loader
from barlow_fast.data.parallel import cores_of_rank
from barlow_fast.data.rendering import dali
from barlow_fast.data.rendering.threads import ThreadRenderer
from barlow_fast.data.sources import ArraySource, FolderSource, ShardSource

VIEWS = colouring(48)

needs_dali = pytest.mark.skipif(find_spec("nvidia.dali") is None, reason="needs NVIDIA DALI")

# Every way that files are rendered within this process.
FILE_LOADERS = [
    pytest.param({"loader": "pil", "workers": 0}, id="pil"),
    pytest.param({"loader": "dali", "workers": 2}, id="dali", marks=needs_dali),
]


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> FolderSource:
    """22 photographs in two classes."""
    root = tmp_path_factory.mktemp("photographs")
    photographs(root / "a", 12)
    photographs(root / "b", 10)
    return FolderSource(root)


def arrays(count: int = 22, labels: bool = True) -> ArraySource:
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (count, 20, 24, 3), dtype=np.uint8)
    return ArraySource(images, np.arange(count) % 5 if labels else None)


def by_sample(batches: list[Batch]) -> dict[int, tuple[torch.Tensor, ...]]:
    found = {}
    for batch in batches:
        for row, index in enumerate(batch.index.tolist()):
            assert index not in found, "a sample came twice"
            found[index] = tuple(view[row] for view in batch.views)
    return found


def assert_same_batches(ours: list[Batch], theirs: list[Batch]) -> None:
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a.index, b.index)
        assert torch.equal(a.label, b.label)
        assert all(torch.equal(x, y) for x, y in zip(a.views, b.views, strict=True))


def one_epoch(source, **settings) -> list[Batch]:
    settings = {"batch_size": 4, "seed": 9, "drop_last": False, **settings}
    with ViewLoader(source, settings.pop("views", VIEWS), **settings) as loader:
        return list(loader)


# What a batch is.


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_batch_is_crops_through_the_photometric_kernel(source, dtype):
    with ViewLoader(
        source, VIEWS, 5, seed=3, loader="pil", workers=0, dtype=dtype, device="cpu"
    ) as loader:
        assert len(loader) == 4
        loader.set_epoch(2)
        batch = next(iter(loader))
    renderer = ThreadRenderer(source, VIEWS, seed=3)
    renderer.submit(2, batch.index.numpy())
    crops = renderer.receive().crops
    for number, (view, specification) in enumerate(zip(batch.views, VIEWS.views, strict=True)):
        assert view.shape == (5, 3, 48, 48)
        assert view.dtype == dtype
        assert view.is_contiguous(memory_format=torch.channels_last)
        rows = draw(specification, 3, 2, batch.index.numpy(), number).photometric_rows(48, 48)
        expected = kernels.load("aten").photometric(
            crops[number],
            torch.from_numpy(rows),
            torch.tensor(MEAN),
            torch.tensor(STD),
            torch.float32,
        )
        # Levels of 255, through std; what a half-precision type rounds comes on top.
        error = (view.float() - expected).abs()
        rounding = 2 * torch.finfo(dtype).eps * expected.abs()
        assert (error - rounding).max() <= 0.1 / 255 / min(STD)


def test_an_interrupted_wait_loses_nothing(source, monkeypatch):
    receive = ThreadRenderer.receive
    with ViewLoader(source, VIEWS, 4, seed=9, drop_last=False, loader="pil", workers=1) as loader:

        def interrupted(self):
            monkeypatch.setattr(ThreadRenderer, "receive", receive)
            raise KeyboardInterrupt

        monkeypatch.setattr(ThreadRenderer, "receive", interrupted)
        with pytest.raises(KeyboardInterrupt):
            list(loader)
        ours = list(loader)
    assert_same_batches(ours, one_epoch(source, loader="pil", workers=0))


@pytest.mark.parametrize("before", [True, False])
def test_an_interrupted_submission_leaves_nothing_behind(source, monkeypatch, before: bool):
    submit = ThreadRenderer.submit
    calls = 0

    def interrupted(self, *arguments):
        nonlocal calls
        calls += 1
        if calls == 3 and before:
            raise KeyboardInterrupt
        submit(self, *arguments)
        if calls == 3:
            raise KeyboardInterrupt

    with ViewLoader(source, VIEWS, 4, seed=9, drop_last=False, loader="pil", workers=1) as loader:
        monkeypatch.setattr(ThreadRenderer, "submit", interrupted)
        with pytest.raises(KeyboardInterrupt):
            list(loader)
        ours = list(loader)
    assert_same_batches(ours, one_epoch(source, loader="pil", workers=0))


def test_labels(source):
    for batch in one_epoch(source, loader="pil", workers=0):
        assert batch.label.dtype == torch.int64
        assert batch.label.tolist() == [int(index >= 12) for index in batch.index]
    for batch in one_epoch(arrays(labels=False)):
        assert batch.label.tolist() == [-1] * len(batch.index)


def test_views_of_different_sizes(source):
    views = Views("sizes", (cropping(32), cropping((20, 40)), cropping(32)), MEAN, STD)
    (batch,) = one_epoch(source, views=views, batch_size=22, loader="pil", workers=0)
    assert [tuple(view.shape[2:]) for view in batch.views] == [(32, 32), (20, 40), (32, 32)]
    assert not torch.equal(batch.views[0], batch.views[2])


# The same views however they are computed.


@pytest.mark.parametrize("settings", FILE_LOADERS)
def test_views_depend_on_no_batch_size_and_no_rank(source, settings):
    expected = by_sample(one_epoch(source, **settings))
    assert expected.keys() == set(range(22))
    for batch_size, ranks in ((7, 1), (3, 2), (22, 1), (1, 3)):
        batches = []
        for rank in range(ranks):
            batches += one_epoch(source, batch_size=batch_size, rank=rank, ranks=ranks, **settings)
        ours = by_sample(batches)
        assert ours.keys() == expected.keys()
        for index, views in ours.items():
            assert all(torch.equal(x, y) for x, y in zip(views, expected[index], strict=True))


@pytest.mark.parametrize(
    "settings", [*FILE_LOADERS, pytest.param({"loader": "pil", "workers": 1}, id="worker")]
)
def test_shards_show_the_views_of_the_folder_that_they_hold(source, tmp_path, settings):
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for index in range(len(source)):
            tar.add(source.path(index), f"{index:04d}.jpg")
    shards = ShardSource(tmp_path)
    expected = by_sample(one_epoch(source, loader=settings["loader"], workers=0))
    ours = by_sample(one_epoch(shards, **settings))
    assert ours.keys() == expected.keys()
    for index, views in ours.items():
        assert all(torch.equal(x, y) for x, y in zip(views, expected[index], strict=True))


def data_threads() -> list[str]:
    names = (thread.name for thread in threading.enumerate())
    return [name for name in names if name.startswith("barlow_fast")]


def test_workers_change_nothing(source):
    """Nor do threads end with their work: a loader that is forgotten takes them along."""
    expected = one_epoch(source, loader="pil", workers=0)
    loader = ViewLoader(
        source, VIEWS, 4, seed=9, drop_last=False, loader="pil", workers=2, prefetch=3
    )
    assert_same_batches(list(loader), expected)
    assert loader.state_dict()["epoch"] == 1
    loader.set_epoch(0)
    assert_same_batches(list(loader), expected)
    assert len(data_threads()) == 2
    del loader
    gc.collect()
    assert not data_threads()


@needs_dali
def test_dali_shows_the_views_that_pillow_shows(source):
    ours = one_epoch(source, views=colouring(96), loader="dali")
    theirs = one_epoch(source, views=colouring(96), loader="pil", workers=0)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a.index, b.index)
        for view, other in zip(a.views, b.views, strict=True):
            # Brightness and contrast may each stretch a difference by 1.4, saturation by 1.2.
            levels = (view - other).abs() * 255 * min(STD) / (1.4 * 1.4 * 1.2)
            assert levels.mean() <= 0.3
            assert (levels <= 2).float().mean() >= 0.995


def test_arrays_show_the_views_that_pillow_shows():
    ours = one_epoch(arrays(), loader="arrays")
    theirs = one_epoch(arrays(), loader="pil", workers=0)
    for a, b in zip(ours, theirs, strict=True):
        levels = (a.views[0] - b.views[0]).abs() * 255 * min(STD)
        assert levels.mean() <= 0.05


def test_epochs_and_seeds_differ():
    first = one_epoch(arrays())
    assert not torch.equal(first[0].views[0], one_epoch(arrays(), seed=10)[0].views[0])
    with ViewLoader(arrays(), VIEWS, 4, seed=9, drop_last=False) as loader:
        ours, later = by_sample(list(loader)), by_sample(list(loader))
    assert not any(torch.equal(ours[index][0], later[index][0]) for index in ours)


def test_a_rank_without_a_sample_gets_an_empty_batch():
    batches = one_epoch(arrays(9), batch_size=2, rank=0, ranks=4)
    sizes = [
        [len(b.index) for b in one_epoch(arrays(9), batch_size=2, rank=rank, ranks=4)]
        for rank in range(4)
    ]
    assert [sum(row) for row in zip(*sizes, strict=True)] == [8, 1]
    assert 0 in {row[1] for row in sizes}
    assert batches[1].views[0].shape[1:] == (3, 48, 48)


# Where it stands.


@pytest.mark.parametrize(
    "settings", [*FILE_LOADERS, pytest.param({"loader": "arrays"}, id="arrays")]
)
def test_a_resumed_epoch_is_the_same_to_the_bit(source, settings):
    images = arrays() if settings["loader"] == "arrays" else source
    with ViewLoader(images, VIEWS, 4, seed=1, **settings) as loader:
        expected = list(loader) + list(loader)
        assert len(expected) == 10
    for stop in (0, 1, 3, 5, 7):
        with ViewLoader(images, VIEWS, 4, seed=1, **settings) as loader:
            seen = []
            while len(seen) < stop:
                for batch in loader:
                    seen.append(batch)
                    if len(seen) == stop:
                        break
            state = json.loads(json.dumps(loader.state_dict()))
        assert (state["epoch"], state["batch"]) == divmod(stop, 5)
        with ViewLoader(images, VIEWS, 4, seed=1, **settings) as loader:
            loader.load_state_dict(state)
            loader.set_epoch(state["epoch"])  # as a training loop does; must not start again
            while len(seen) < 10:
                seen += list(loader)
        assert_same_batches(seen, expected)


def test_going_on_after_a_break():
    expected = one_epoch(arrays())
    with ViewLoader(arrays(), VIEWS, 4, seed=9, drop_last=False) as loader:
        seen = []
        for batch in loader:
            seen.append(batch)
            if len(seen) == 2:
                break
        seen += list(loader)
        assert loader.epoch == 1
        loader.set_epoch(0)
        again = list(loader)
    assert_same_batches(seen, expected)
    assert_same_batches(again, expected)


def test_a_second_iteration_ends_the_first():
    with ViewLoader(arrays(), VIEWS, 4) as loader:
        first = iter(loader)
        next(first)
        second = iter(loader)
        next(second)
        with pytest.raises(RuntimeError, match="another iteration"):
            next(first)
    with pytest.raises(RuntimeError, match="closed"):
        next(second)
    with pytest.raises(RuntimeError, match="closed"):
        iter(loader)


def changed(**fields) -> Views:
    views = (ViewSpecification(**{"size": 8, **fields}),) * 2
    return Views("changed", views, MEAN, STD)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"seed": 2}, r"seed: 1 there, 2 here"),
        ({"source": arrays(23)}, r"number of images: 22 there, 23 here; fingerprint of the images"),
        ({"source": arrays(labels=False)}, r"fingerprint of the images' names, sizes and labels"),
        ({"views": changed(flip=0.4)}, r"fingerprint of the views' specification"),
        ({"batch_size": 5}, r"batch size over all ranks: 4 there, 5 here"),
        ({"drop_last": False}, r"drop_last: True there, False here"),
    ],
)
def test_the_state_of_another_run_is_refused(settings, named):
    ours = {"source": arrays(), "views": changed(flip=0.5), "batch_size": 4, "seed": 1}
    with ViewLoader(**ours) as loader:
        next(iter(loader))
        state = loader.state_dict()
    with ViewLoader(**{**ours, **settings}) as other:
        with pytest.raises(ValueError, match=named):
            other.load_state_dict(state)
        assert other.state_dict()["batch"] == 0
    with ViewLoader(**ours) as same:
        same.load_state_dict(state)
        assert same.state_dict() == state


def test_damaged_states_are_refused():
    with ViewLoader(arrays(), VIEWS, 4) as loader:
        state = loader.state_dict()
        with pytest.raises(ValueError, match="lacks batch"):
            loader.load_state_dict({k: v for k, v in state.items() if k != "batch"})
        with pytest.raises(ValueError, match="batch 5 of an epoch that has 5"):
            loader.load_state_dict({**state, "batch": 5})
        with pytest.raises(ValueError, match="epoch"):
            loader.load_state_dict({**state, "epoch": -1})


def test_the_number_of_ranks_changes_between_epochs_only():
    with ViewLoader(arrays(), VIEWS, 6, seed=4) as loader:
        iterator = iter(loader)
        next(iterator)
        middle = loader.state_dict()
        list(iterator)
        end = loader.state_dict()
        expected = by_sample(list(loader))
    found = []
    for rank in range(3):
        with ViewLoader(arrays(), VIEWS, 2, seed=4, rank=rank, ranks=3) as loader:
            with pytest.raises(ValueError, match="1 there, 3 here, at batch 1 of epoch 0"):
                loader.load_state_dict(middle)
            loader.load_state_dict(end)
            assert loader.epoch == 1
            found += list(loader)
    ours = by_sample(found)
    assert ours.keys() == expected.keys()
    assert all(torch.equal(ours[index][1], expected[index][1]) for index in ours)


def test_a_state_says_when_the_renderer_changed(source, caplog):
    with ViewLoader(arrays(), VIEWS, 4) as loader:
        state = loader.state_dict()
    with ViewLoader(arrays(), VIEWS, 4, loader="pil", workers=0) as loader:
        loader.load_state_dict(state)
    assert "rendered by arrays and now are by pil" in caplog.text


KILLED = """
import hashlib, json, os, signal, sys
from photographs import colouring
from barlow_fast.data import ViewLoader
from barlow_fast.data.sources import FolderSource

if __name__ == "__main__":
    folder, log, loader, workers, stop = sys.argv[1:]
    with ViewLoader(
        FolderSource(folder), colouring(48), 4, seed=6, loader=loader, workers=int(workers)
    ) as loader, open(log, "a+") as lines:
        lines.seek(0)
        seen = [json.loads(line) for line in lines]
        if seen:
            loader.load_state_dict(seen[-1]["state"])
        number = len(seen)
        while number < 10:
            for batch in loader:
                digest = hashlib.sha256(b"".join(v.numpy().tobytes() for v in batch.views))
                line = {"views": digest.hexdigest(), "state": loader.state_dict()}
                print(json.dumps(line), file=lines, flush=True)
                number += 1
                if number == int(stop):
                    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
def test_killed_in_the_middle_of_an_epoch_and_resumed(source, tmp_path):
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    loader = "dali" if find_spec("nvidia.dali") else "pil"
    log = tmp_path / "log"
    for stop, code in (("3", -9), ("0", 0)):
        done = subprocess.run(
            [sys.executable, script, source.root, log, loader, "0", stop],
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
            timeout=SECONDS,
        )
        assert done.returncode == code
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    with ViewLoader(source, VIEWS, 4, seed=6, loader=loader, workers=0) as ours:
        expected = [
            hashlib.sha256(b"".join(v.numpy().tobytes() for v in batch.views)).hexdigest()
            for batch in [*ours, *ours]
        ]
    assert [line["views"] for line in lines] == expected


# Bad images.


@pytest.mark.parametrize("settings", FILE_LOADERS)
def test_bad_images_are_skipped_or_an_error(tmp_path, settings, caplog):
    source = FolderSource(photographs(tmp_path / "photographs", 12))
    expected = by_sample(one_epoch(source, **settings))
    for index, data in {2: b"", 7: Path(source.path(0)).read_bytes()[:900]}.items():
        Path(source.path(index)).write_bytes(data)
    with ViewLoader(
        source, VIEWS, 4, seed=9, drop_last=False, on_bad_image="skip", **settings
    ) as loader:
        batches = list(loader)
        assert sum(len(batch.index) for batch in batches) == 10
        ours = by_sample(batches)
        assert ours.keys() == expected.keys() - {2, 7}
        for index, views in ours.items():
            assert torch.equal(views[0], expected[index][0])
        list(loader)
        assert sorted(image.index for image in loader.bad_images) == [2, 7]
        assert caplog.text.count("left out: ") == 2  # each once, in two epochs
        # A resumed loader has not met them yet, and shows the same views all the same.
        state = loader.state_dict()
        third = list(loader)
    with ViewLoader(
        source, VIEWS, 4, seed=9, drop_last=False, on_bad_image="skip", **settings
    ) as loader:
        loader.load_state_dict(state)
        assert_same_batches(list(loader), third)
    with ViewLoader(source, VIEWS, 4, seed=9, drop_last=False, **settings) as loader:
        with pytest.raises(BadImageError) as caught:
            list(loader)
        path = source.path(caught.value.image.index)
        assert caught.value.image.index in (2, 7)
        assert path in str(caught.value)
        # It remains at the next attempt, and other batches follow.
        with pytest.raises(BadImageError, match=str(path)):
            list(loader)
        loader.set_epoch(1)
        loader.load_state_dict(loader.state_dict())


def test_a_batch_that_is_lost_as_a_whole_is_an_error(tmp_path):
    source = FolderSource(photographs(tmp_path / "photographs", 4))
    for index in range(4):
        Path(source.path(index)).write_bytes(b"")
    with (
        ViewLoader(source, VIEWS, 4, loader="pil", workers=0, on_bad_image="skip") as loader,
        pytest.raises(BadImageError, match="is empty; nor can any other of the 4 images"),
    ):
        list(loader)


# Choice of a loader, and arguments.


def test_auto_says_what_it_chose(source, monkeypatch, caplog):
    gray = Views("gray", (cropping(8),), (0.5,), (0.5,))
    assert choose_loader("auto", arrays(), VIEWS) == ("arrays", "images in memory")
    assert choose_loader("auto", arrays(), VIEWS, "cuda")[0] == "arrays"
    monkeypatch.setattr(dali, "why_unusable", lambda device: None)
    assert choose_loader("auto", source, VIEWS)[0] == "pil"
    assert choose_loader("auto", source, VIEWS, "cuda")[0] == "dali"
    assert choose_loader("auto", source, gray, "cuda")[0] == "pil"
    assert choose_loader("dali", source, VIEWS) == ("dali", "requested")
    monkeypatch.setattr(dali, "why_unusable", lambda device: f"not for {device}")
    assert choose_loader("auto", source, VIEWS, "cuda") == ("pil", "not dali: not for cuda")
    with pytest.raises(ImportError, match="loader='dali' cannot be used here: not for cpu"):
        choose_loader("dali", source, VIEWS)
    with pytest.raises(ValueError, match="loader='arrays' is for images in memory"):
        choose_loader("arrays", source, VIEWS)
    with pytest.raises(ValueError, match="'torch'"):
        choose_loader("torch", source, VIEWS)
    with (
        caplog.at_level(logging.INFO, "barlow_fast.data"),
        ViewLoader(source, VIEWS, 4, workers=0) as loader,
    ):
        assert loader.chosen == "pil"
        assert f"loader: pil ({loader.reason})" in caplog.text


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 23}, "has 22 images, fewer than one batch of 23"),
        ({"batch_size": 12, "ranks": 2}, "fewer than one batch of 24"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"rank": 1}, "rank must be in"),
        ({"seed": -1}, "seed must be in"),
        ({"dtype": torch.float64}, "dtype must be"),
        ({"prefetch": 0}, "prefetch must be at least 1"),
        ({"workers": -1}, "workers must be at least 0"),
        ({"on_bad_image": "repeat"}, "on_bad_image must be one of"),
    ],
)
def test_arguments_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        ViewLoader(**{"source": arrays(), "views": VIEWS, "batch_size": 4, **settings})


def test_cores_are_shared_by_the_ranks_of_a_machine(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert cores_of_rank() == 16
    for ranks, cores in (("4", 4), ("5", 3), ("64", 1), ("many", 16), ("0", 16)):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", ranks)
        assert cores_of_rank() == cores


# Memory and processes over many epochs.


@pytest.mark.parametrize("prefetch", [1, 3])
def test_no_more_is_rendered_ahead_than_prefetch(source, monkeypatch, prefetch):
    most = 0
    submit = ThreadRenderer.submit

    def counted(self, epoch, samples):
        nonlocal most
        submit(self, epoch, samples)
        most = max(most, len(self._under_way))

    monkeypatch.setattr(ThreadRenderer, "submit", counted)
    with ViewLoader(source, VIEWS, 4, loader="pil", workers=0, prefetch=prefetch) as loader:
        list(loader)
    assert most == prefetch


def resident() -> int:
    """Bytes of memory that this process has in use."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="looks at /proc")
@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"loader": "arrays"}, id="arrays"),
        *FILE_LOADERS,
        pytest.param({"loader": "pil", "workers": 1}, id="worker"),
    ],
)
def test_fifty_epochs_take_no_more_memory_than_ten(source, settings):
    images = arrays() if settings["loader"] == "arrays" else source
    with ViewLoader(images, VIEWS, 8, on_bad_image="skip", **settings) as loader:

        def state() -> tuple[int, int, int]:
            gc.collect()
            return resident(), len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))

        for _ in range(10):
            list(loader)
        memory, files, threads = state()
        for _ in range(40):
            list(loader)
        later, more_files, more_threads = state()
        assert loader.epoch == 50
        # A batch of views takes 0.44 MB and an epoch shows two: one of them kept per epoch would
        # be 17 MB.
        assert later - memory < 8e6
        assert more_files <= files
        assert more_threads <= threads
    assert not data_threads()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": "photos"}, "source must be of images, .* got 'photos'"),
        ({"views": "imagenet"}, "views must be Views, .* got 'imagenet'"),
        ({"batch_size": "4"}, "batch_size must be a whole number, got '4'"),
        ({"seed": None}, "seed must be a whole number, got None"),
        ({"workers": "2"}, "workers must be a whole number, got '2'"),
        ({"prefetch": 1.5}, "prefetch must be a whole number, got 1.5"),
        ({"timeout": "2"}, "timeout must be a number of seconds, got '2'"),
    ],
)
def test_arguments_of_other_types_are_named(source, changes: dict, message: str):
    arguments = {"source": source, "views": VIEWS, "batch_size": 4, **changes}
    with pytest.raises(TypeError, match=message):
        ViewLoader(**arguments)
