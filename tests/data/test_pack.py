"""Packing a source into tar shards."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from ended import SECONDS, running
from pictures import Image, encode, photographs, pixels, write_folder
from test_sources import assert_is_a_source

from barlow_fast.data import pack as packing
from barlow_fast.data.faults import BadImageError
from barlow_fast.data.pack import Packed, pack
from barlow_fast.data.sources import ArraySource, FolderSource, ShardSource, open_source

PICTURES = {
    "cat/a.jpg": encode(pixels(20, 30, seed=1), "JPEG"),
    "cat/a.png": encode(pixels(40, 35, seed=2)),
    "cat/png named.jpg": encode(pixels(12, 13, seed=3)),
    "dog/two.dots.gif": encode(pixels(9, 8, seed=4), "GIF"),
    "dog/grün.TIFF": encode(pixels(50, 20, seed=5), "TIFF"),
    "dog/" + "long" * 50 + ".webp": encode(pixels(9, 8, seed=6), "WEBP"),
}


@pytest.fixture
def folder(tmp_path: Path) -> FolderSource:
    return FolderSource(write_folder(tmp_path / "folder", PICTURES))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".index"}


def test_files_are_copied_byte_for_byte_in_order(tmp_path: Path, folder: FolderSource):
    done: list[int] = []
    packed = pack(folder, tmp_path / "out", progress=done.append)
    shards = ShardSource(tmp_path / "out")
    assert_is_a_source(shards)
    assert packed == Packed(6, 0, 0, 1, (tmp_path / "out" / "shard-000000.tar").stat().st_size)
    assert done == [1, 2, 3, 4, 5, 6]
    assert [shards.encoded(i) for i in range(6)] == [folder.encoded(i) for i in range(6)]
    assert shards.labels.tolist() == folder.labels.tolist()
    assert shards.classes == ["cat", "dog"]
    np.testing.assert_array_equal(shards.sizes(np.arange(6)), folder.sizes(np.arange(6)))
    for i in range(6):
        np.testing.assert_array_equal(np.asarray(shards.image(i)), np.asarray(folder.image(i)))


def test_members_are_named_for_any_reader(tmp_path: Path, folder: FolderSource):
    pack(folder, tmp_path / "out")
    with tarfile.open(tmp_path / "out" / "shard-000000.tar") as archive:
        names = archive.getnames()
        assert {info.type for info in archive} == {tarfile.REGTYPE}
    images, labels = names[::2], names[1::2]
    # What the file holds decides about its extension, as it decides about its decoder.
    extensions = ["jpg", "png", "png", "tif", "webp", "gif"]
    assert [name.rpartition(".")[2] for name in images] == extensions
    stems = [name.partition(".")[0] for name in images]
    assert labels == [f"{stem}.cls" for stem in stems]
    assert stems[:4] == [
        "00000000-a",
        "00000001-a",
        "00000002-png_named",
        "00000003-gr_n",
    ]
    assert stems[5] == "00000005-two_dots"
    assert all(name.count(".") == 1 and len(name) < 100 and name.isascii() for name in names)


def test_the_same_source_gives_the_same_bytes(tmp_path: Path, folder: FolderSource):
    for name, workers in (("one", 0), ("two", 0), ("three", 2)):
        pack(folder, tmp_path / name, size=16, workers=workers)
    one = contents(tmp_path / "one")
    assert set(one) == {"shard-000000.tar", "classes.json"}
    assert contents(tmp_path / "two") == one
    assert contents(tmp_path / "three") == one


def test_images_that_are_too_large_are_resized_and_no_others(tmp_path: Path):
    files = {f"{i}.jpg": photo for i, photo in enumerate(photographs())}
    files |= {"small.png": encode(pixels(100, 300)), "tall.png": encode(pixels(300, 151))}
    folder = FolderSource(write_folder(tmp_path / "folder", files))
    packed = pack(folder, tmp_path / "out", size=150)
    shards = ShardSource(tmp_path / "out")
    assert packed.resized == 3
    assert shards.labels is None
    assert shards.sizes(np.arange(4)).tolist() == [[150, 225], [150, 225], [100, 300], [298, 150]]
    assert shards.encoded(2) == files["small.png"]
    for i in (0, 1, 3):
        original = Image.open(io.BytesIO(folder.encoded(i)))
        size = tuple(shards.sizes(np.array([i]))[0, ::-1].tolist())
        smaller = original.resize(size, Image.Resampling.LANCZOS)
        assert shards.encoded(i) == encode(smaller, "JPEG", quality=95)
        error = np.abs(np.asarray(shards.image(i)).astype(int) - np.asarray(smaller))
        assert error.mean() < 4


def test_quality_decides_about_size(tmp_path: Path):
    files = {f"{i}.jpg": photo for i, photo in enumerate(photographs())}
    folder = FolderSource(write_folder(tmp_path / "folder", files))
    sizes = [pack(folder, tmp_path / str(q), size=200, quality=q).bytes for q in (60, 95)]
    assert sizes[0] < 0.6 * sizes[1]


@pytest.mark.parametrize("channels", [1, 3])
def test_arrays_are_packed_without_loss(tmp_path: Path, channels: int):
    images = np.stack([pixels(20, 24, channels, seed) for seed in range(5)])
    source = ArraySource(images, [0, 1, 2, 1, 0], classes=["a", "b", "c"])
    pack(source, tmp_path / "out")
    shards = ShardSource(tmp_path / "out")
    expected = np.repeat(images, 3, -1) if channels == 1 else images
    np.testing.assert_array_equal([np.asarray(shards.image(i)) for i in range(5)], expected)
    assert shards.labels.tolist() == [0, 1, 2, 1, 0]
    assert shards.classes == ["a", "b", "c"]
    pack(source, tmp_path / "small", size=10)
    assert ShardSource(tmp_path / "small").sizes(np.array([3])).tolist() == [[10, 12]]


def test_shards_are_packed_again(tmp_path: Path, folder: FolderSource):
    pack(folder, tmp_path / "one")
    pack(open_source(tmp_path / "one"), tmp_path / "two", shard_bytes=1)
    one, two = ShardSource(tmp_path / "one"), ShardSource(tmp_path / "two")
    assert len(two.shards) == 6
    assert [two.encoded(i) for i in range(6)] == [one.encoded(i) for i in range(6)]
    assert two.labels.tolist() == one.labels.tolist()
    assert two.classes == one.classes


def test_shards_are_bounded_but_never_empty(tmp_path: Path):
    files = {f"{i:02d}.jpg": encode(pixels(10 + i, 40, seed=i), "JPEG") for i in range(20)}
    folder = FolderSource(write_folder(tmp_path / "folder", files))
    packed = pack(folder, tmp_path / "out", shard_bytes=8192)
    shards = sorted((tmp_path / "out").glob("*.tar"))
    assert len(shards) == packed.shards > 2
    assert packed.bytes == sum(shard.stat().st_size for shard in shards)
    for shard in shards:
        with tarfile.open(shard) as archive:
            members = archive.getmembers()
        assert len(members) >= 1
        assert sum(512 + -(-m.size // 512) * 512 for m in members) <= 8192
    assert [ShardSource(tmp_path / "out").encoded(i) for i in range(20)] == list(files.values())


def test_the_index_is_written_and_current(tmp_path: Path, folder: FolderSource, caplog):
    pack(folder, tmp_path / "out")
    index = tmp_path / "out" / "shard-000000.tar.index"
    made = index.read_bytes()
    caplog.clear()
    ShardSource(tmp_path / "out")
    assert caplog.text == ""
    index.unlink()
    ShardSource(tmp_path / "out")
    assert index.read_bytes() == made


# ---- what goes wrong


def test_a_bad_image_stops_or_is_left_out(tmp_path: Path):
    good = encode(pixels())
    files = {"a.png": good, "b.png": good[:-90], "c.jpg": b"", "d.png": good}
    folder = FolderSource(write_folder(tmp_path / "folder", files))
    with pytest.raises(BadImageError, match=r"b\.png: .*truncated"):
        pack(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    with pytest.raises(BadImageError):
        pack(folder, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
    packed = pack(folder, tmp_path / "out", on_bad_image="skip")
    assert (packed.images, packed.left_out) == (2, 2)
    shards = ShardSource(tmp_path / "out")
    assert [shards.encoded(i) for i in range(len(shards))] == [good, good]
    # A number in a name is the sample's number in its source.
    assert shards.identity(1).endswith(":00000003-d.png")


def test_nothing_to_pack_is_an_error(tmp_path: Path):
    folder = FolderSource(write_folder(tmp_path / "folder", {"a.png": b""}))
    with pytest.raises(ValueError, match="no image can be read"):
        pack(folder, tmp_path / "out", on_bad_image="skip")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path, folder: FolderSource):
    write_folder(tmp_path / "out", {"precious.txt": b"x"})
    with pytest.raises(ValueError, match="not empty"):
        pack(folder, tmp_path / "out")
    assert contents(tmp_path / "out") == {"precious.txt": b"x"}


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        ({"size": 0}, "size"),
        ({"quality": 0}, "quality"),
        ({"quality": 101}, "quality"),
        ({"shard_bytes": 0}, "shard_bytes"),
        ({"on_bad_image": "ignore"}, "error, skip"),
    ],
)
def test_choices_out_of_range_are_refused(tmp_path, folder, choice, words):
    with pytest.raises(ValueError, match=words):
        pack(folder, tmp_path / "out", **choice)
    assert not (tmp_path / "out").exists()


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, folder, monkeypatch):
    add = packing.Writer.add

    def fill(self, key, sample, label):
        if key.startswith("00000003"):
            raise OSError(28, "No space left on device")
        add(self, key, sample, label)

    monkeypatch.setattr(packing.Writer, "add", fill)
    with pytest.raises(OSError, match="No space"):
        pack(folder, tmp_path / "out", shard_bytes=1)
    assert not (tmp_path / "out").exists()


def test_what_reads_back_as_something_else_is_no_pack(tmp_path: Path, folder, monkeypatch):
    fsync = os.fsync

    def flip(descriptor: int) -> None:
        fsync(descriptor)
        with open(f"/proc/self/fd/{descriptor}", "r+b") as file:
            file.seek(700)
            file.write(b"!!!!")

    monkeypatch.setattr(packing.os, "fsync", flip)
    with pytest.raises(RuntimeError, match="reads back as something else"):
        pack(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_pack_that_is_killed_leaves_nothing_that_opens(tmp_path: Path, folder):
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from barlow_fast.data.pack import pack\n"
        "from barlow_fast.data.sources import FolderSource\n"
        "def slow(done):\n"
        "    print(done, flush=True)\n"
        "    done == 4 and sys.stdin.read()\n"
        "pack(FolderSource(sys.argv[1]), Path(sys.argv[2]), shard_bytes=1, progress=slow)\n"
    )
    out = tmp_path / "out"
    command = [sys.executable, "-c", code, folder.root, out]
    with running(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert "4\n" in iter(process.stdout.readline, "")
    assert len(list(out.glob("*.partial"))) == 4
    with pytest.raises(ValueError, match="did not finish"):
        open_source(out)
    with pytest.raises(ValueError, match="not empty"):
        pack(folder, out)


def test_classes_are_kept_as_text(tmp_path: Path):
    files = {"grün/a.png": encode(pixels()), "two\nlines/b.png": encode(pixels())}
    folder = FolderSource(write_folder(tmp_path / "folder", files))
    pack(folder, tmp_path / "out")
    names = json.loads((tmp_path / "out" / "classes.json").read_text())
    assert names == folder.classes == ["grün", r"two\nlines"]


def test_a_script_on_standard_input_may_pack(tmp_path: Path, folder: FolderSource):
    """It has no file that another process could import."""
    code = (
        "from pathlib import Path\n"
        "from barlow_fast.data.pack import pack\n"
        "from barlow_fast.data.sources import FolderSource\n"
        f"folder, out = {str(folder.root)!r}, {str(tmp_path / 'out')!r}\n"
        "print(pack(FolderSource(folder), Path(out), workers=2))\n"
    )
    done = subprocess.run(
        [sys.executable, "-"], input=code, capture_output=True, text=True, timeout=SECONDS
    )
    assert done.stdout.startswith("Packed(images=6"), done.stderr
