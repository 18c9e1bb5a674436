"""Arrays and folders as sources of images."""

from __future__ import annotations

import os
import pickle
import re
import shutil
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from pictures import encode, pixels, write_folder
from PIL import features

from barlow_fast.data import PRESETS, ViewLoader, load
from barlow_fast.data.faults import BadImageError
from barlow_fast.data.rendering import dali
from barlow_fast.data.sources import ArraySource, FolderSource, Source, passed_over
from barlow_fast.data.sources.names import Names


def assert_is_a_source(source: Source) -> None:
    """The protocol, and what it says about every source."""
    assert isinstance(source, Source)
    indices = np.arange(len(source))
    sizes = source.sizes(indices)
    assert sizes.dtype == np.int32
    assert sizes.shape == (len(source), 2)
    assert len({source.identity(i) for i in indices.tolist()}) == len(source)
    labels = source.labels
    expected = [-1] * len(source) if labels is None else labels.tolist()
    assert [source.label(i) for i in indices.tolist()] == expected
    for i in indices.tolist():
        image = source.image(i)
        assert (image.height, image.width) == tuple(sizes[i])
    assert source.fingerprint() == source.fingerprint()
    assert len(source.fingerprint()) == 32
    # Sources travel to worker processes. A deep copy takes the same parts as a pickle.
    assert len(pickle.dumps(source)) > 0
    copy = deepcopy(source)
    assert copy.fingerprint() == source.fingerprint()
    np.testing.assert_array_equal(copy.sizes(indices[::-1]), sizes[::-1])
    np.testing.assert_array_equal(np.asarray(copy.image(0)), np.asarray(source.image(0)))


# ---- names


def test_names_keep_what_they_were_given():
    names = [b"a", b"", b"b\n/\xff", b"c" * 300]
    table = Names.of(names)
    assert [table[i] for i in range(len(table))] == names
    assert len(Names.of([])) == 0


# ---- arrays


@pytest.mark.parametrize("channels", [1, 3])
def test_an_array_is_a_source(channels: int):
    images = np.stack([pixels(5, 7, channels, seed) for seed in range(4)])
    source = ArraySource(images, [0, 1, 1, 2], name="four", classes=["a", "b", "c"])
    assert_is_a_source(source)
    assert source.identity(2) == "four[2]"
    assert source.image(3).mode == {1: "L", 3: "RGB"}[channels]
    np.testing.assert_array_equal(np.asarray(source.image(3)).reshape(5, 7, channels), images[3])
    assert source.labels.dtype == np.int64
    with pytest.raises(TypeError, match="four holds pixels"):
        source.encoded(0)


def test_an_array_is_neither_copied_nor_in_need_of_labels():
    images = torch.zeros(3, 4, 5, 3, dtype=torch.uint8)
    source = ArraySource(images)
    assert source.labels is None
    assert source.images.data_ptr() == images.data_ptr()


@pytest.mark.parametrize(
    ("images", "options", "words"),
    [
        (np.zeros((2, 4, 4), np.uint8), {}, r"\(N, H, W, C\)"),
        (np.zeros((2, 4, 4, 3), np.float32), {}, "uint8"),
        (np.zeros((2, 4, 4, 2), np.uint8), {}, "C = 1 or 3"),
        (np.zeros((0, 4, 4, 3), np.uint8), {}, "no images"),
        (np.zeros((2, 4, 4, 3), np.uint8), {"labels": [1]}, r"\(2,\) integers"),
        (np.zeros((2, 4, 4, 3), np.uint8), {"labels": [0.5, 1]}, "integers"),
        (np.zeros((2, 4, 4, 3), np.uint8), {"labels": [0, -1]}, "at least 0"),
        (np.zeros((2, 4, 4, 3), np.uint8), {"labels": [0, 2], "classes": ["a", "b"]}, "label 2"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(images, options, words):
    with pytest.raises(ValueError, match=words):
        ArraySource(images, **options)


def test_fingerprints_of_arrays_see_shape_labels_and_contents():
    images = np.zeros((3, 4, 5, 1), np.uint8)
    other = images.copy()
    other[1, 2, 2] = 1
    fingerprints = {
        ArraySource(images).fingerprint(),
        ArraySource(images[:2]).fingerprint(),
        ArraySource(images, [0, 0, 0]).fingerprint(),
        ArraySource(images, [0, 1, 0]).fingerprint(),
        ArraySource(other).fingerprint(),
    }
    assert len(fingerprints) == 5
    # The same images with other strides are the same images.
    turned = torch.from_numpy(other).permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    assert ArraySource(turned).fingerprint() == ArraySource(other).fingerprint()


def test_a_split_of_a_data_set_is_a_source():
    digits = load("digits")
    source = ArraySource.of_dataset(digits, "test")
    assert_is_a_source(ArraySource(source.images[:5], source.labels[:5]))
    np.testing.assert_array_equal(source.labels, digits.test_labels.numpy())
    np.testing.assert_array_equal(np.asarray(source.image(9)), digits.test_images[9, 0].numpy())
    with pytest.raises(ValueError, match="no split 'unlabelled'; there are train, test"):
        ArraySource.of_dataset(digits, "unlabelled")


# ---- folders


PICTURES = {
    "dog/b.JPG": encode(pixels(20, 30, seed=1), "JPEG"),
    "dog/a.png": encode(pixels(10, 12, seed=2)),
    "cat/deep/er/c.webp": encode(pixels(9, 8, seed=3), "WEBP"),
    "cat/.hidden.png": b"",
    "cat/notes.txt": b"no picture",
    ".git/d.png": b"",
    "empty/readme": b"",
}


def test_a_folder_is_a_source_with_a_class_per_sub_folder(tmp_path: Path):
    source = FolderSource(write_folder(tmp_path, PICTURES))
    assert_is_a_source(source)
    names = ["cat/deep/er/c.webp", "dog/a.png", "dog/b.JPG"]
    assert [source.identity(i) for i in range(3)] == [str(tmp_path / name) for name in names]
    assert source.classes == ["cat", "dog"]
    assert source.labels.tolist() == [0, 1, 1]
    assert source.ignored == 2
    assert source.encoded(1) == PICTURES["dog/a.png"]
    assert source.sizes(np.array([2, 0])).tolist() == [[20, 30], [9, 8]]
    assert source.image(2).mode == "RGB"
    assert Path(source.path(0)).read_bytes() == PICTURES["cat/deep/er/c.webp"]
    for index in (3, -1):
        with pytest.raises(IndexError, match="3 images"):
            source.identity(index)


@pytest.mark.parametrize(
    "extension", ["jpg", "jpeg", "png", "bmp", "webp", "tif", "tiff", "gif", "ppm", "jfif", "PnG"]
)
def test_extensions_in_any_case(tmp_path: Path, extension: str):
    # Content decides: this is a PNG under each of the names.
    source = FolderSource(write_folder(tmp_path, {f"a.{extension}": encode(pixels())}))
    np.testing.assert_array_equal(np.asarray(source.image(0)), pixels())


def test_a_flat_folder_has_no_labels_and_a_mixed_one_some(tmp_path: Path):
    flat = FolderSource(write_folder(tmp_path / "flat", {"a.png": encode(pixels())}))
    assert flat.classes is None
    assert flat.labels is None
    assert flat.label(0) == -1
    files = {"a.png": encode(pixels()), "b/c.png": encode(pixels())}
    mixed = FolderSource(write_folder(tmp_path / "mixed", files))
    assert mixed.classes == ["b"]
    assert mixed.labels.tolist() == [-1, 0]


def test_folders_without_images_are_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="does not exist"):
        FolderSource(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"no images: it is empty.*\.jpg"):
        FolderSource(tmp_path / "empty")
    with pytest.raises(ValueError, match=r"no images: 1 \.txt. Files that end with \.jpg"):
        FolderSource(write_folder(tmp_path, {"a.txt": b""}))
    with pytest.raises(ValueError, match="not a folder"):
        FolderSource(tmp_path / "a.txt")


def test_other_files_are_counted_by_extension(tmp_path: Path):
    names = [
        *(f"{c}/{i}.HEIC" for c in "ab" for i in range(3)),
        "x.avif",
        "n.txt",
        "m.txt",
        "README",
    ]
    files = dict.fromkeys(names, b"")
    expected = (
        r"6 \.heic, 2 \.txt, 1 without an extension, 1 \.avif "
        r"\(convert \.heic \.avif to JPEG, such as by"
    )
    with pytest.raises(ValueError, match=f"holds no images: {expected}"):
        FolderSource(write_folder(tmp_path, files))
    source = FolderSource(write_folder(tmp_path, {"a/y.png": encode(pixels())}))
    assert source.ignored == 10
    assert re.match(f"not looked at: 10 files of other extensions: {expected}", passed_over(source))
    write_folder(tmp_path, {f"z.{c}": b"" for c in "abcdefgh"})
    assert FolderSource(tmp_path).others.startswith("6 .heic, 2 .txt")
    assert ", 7 more kinds (convert" in FolderSource(tmp_path).others


@pytest.mark.parametrize("form", ["AVIF", "HEIC"])
def test_files_that_are_not_read_say_what_they_are(tmp_path: Path, form: str):
    """Whatever the installed Pillow reads, under every loader: the name of the file lies."""
    content = b"\0\0\0\x20ftyp" + form.lower().encode() + bytes(40)
    if form == "AVIF" and "avif" in features.get_supported():
        content = encode(pixels(), form)
    write_folder(tmp_path, {"a.jpg": content, "b.jpg": encode(pixels(), "JPEG")})
    source = FolderSource(tmp_path)
    with pytest.raises(BadImageError, match=rf"a\.jpg: is {form.lower()}, .*: convert it to JPEG"):
        source.image(0)
    for loader in ("pil", "dali"):
        if loader == "dali" and dali.why_unusable() is not None:
            continue
        with ViewLoader(
            source, PRESETS["cifar"], 2, loader=loader, workers=0, on_bad_image="skip"
        ) as batches:
            assert [batch.index.tolist() for batch in batches] == [[1]]


def test_bad_files_are_named_and_have_no_size(tmp_path: Path):
    good = encode(pixels())
    files = {"a.png": good, "b.png": good[:-90], "c.jpg": b"", "d.jpg": b"text", "e.png": good}
    source = FolderSource(write_folder(tmp_path, files))
    (tmp_path / "e.png").unlink()
    (tmp_path / "e.png").mkdir()
    sizes = source.sizes(np.arange(5)).tolist()
    # The header of a truncated file is whole.
    assert sizes == [[24, 36], [24, 36], [0, 0], [0, 0], [0, 0]]
    for index, words in ((1, "truncated"), (2, "empty"), (3, "none of"), (4, "folder")):
        with pytest.raises(BadImageError, match=words) as caught:
            source.image(index)
        assert caught.value.image.index == index
        assert caught.value.image.identity == source.identity(index)


def test_sizes_are_read_once_and_failures_again(tmp_path: Path):
    source = FolderSource(write_folder(tmp_path, {"a.png": encode(pixels()), "b.png": b""}))
    assert source.sizes(np.array([0, 1, 0])).tolist() == [[24, 36], [0, 0], [24, 36]]
    (tmp_path / "a.png").unlink()
    (tmp_path / "b.png").write_bytes(encode(pixels(3, 4)))
    assert source.sizes(np.array([1, 0])).tolist() == [[3, 4], [24, 36]]


def test_strange_names(tmp_path: Path):
    names = [b"two\nlines.png", b"latin\xff.png", "grün 猫.png".encode(), b"[red]x.png", b"a;b.png"]
    for name in names:
        with open(os.path.join(os.fsencode(tmp_path), name), "wb") as file:
            file.write(encode(pixels()))
    source = FolderSource(tmp_path)
    assert_is_a_source(source)
    identities = {source.identity(i).removeprefix(f"{tmp_path}/") for i in range(len(source))}
    assert identities == {
        r"two\nlines.png",
        r"latin\xff.png",
        "grün 猫.png",
        "[red]x.png",
        "a;b.png",
    }
    with open(source.path(0), "rb") as file:
        assert file.read() == source.encoded(0)


def test_links_below_the_root_are_followed(tmp_path: Path):
    write_folder(tmp_path, {"a/x.png": encode(pixels()), "b/y.png": encode(pixels(3, 4))})
    (tmp_path / "c").symlink_to("b")
    (tmp_path / "a" / "z.png").symlink_to("../b/y.png")
    source = FolderSource(tmp_path)
    assert [Path(source.path(i)).relative_to(tmp_path).as_posix() for i in range(4)] == [
        "a/x.png",
        "a/z.png",
        "b/y.png",
        "c/y.png",
    ]
    assert source.classes == ["a", "b", "c"]
    assert source.image(1).size == (4, 3)


@pytest.mark.parametrize("target", ["outside", "outside/x.png"])
def test_links_out_of_the_root_need_permission(tmp_path: Path, target: str):
    write_folder(tmp_path / "outside", {"x.png": encode(pixels())})
    root = write_folder(tmp_path / "root", {"a.png": encode(pixels())})
    link = root / ("link.png" if target.endswith("png") else "link")
    link.symlink_to(tmp_path / target)
    with pytest.raises(ValueError, match=r"link.* leads out of .*--allow-symlinks"):
        FolderSource(root)
    source = FolderSource(root, allow_symlinks=True)
    assert len(source) == 2
    assert source.image(1).size == (36, 24)


def test_a_root_that_is_a_link_is_no_way_out(tmp_path: Path):
    write_folder(tmp_path / "real", {"a/x.png": encode(pixels())})
    (tmp_path / "root").symlink_to("real")
    assert len(FolderSource(tmp_path / "root")) == 1


def test_links_in_a_circle_end(tmp_path: Path):
    write_folder(tmp_path, {"a/x.png": encode(pixels()), "b/y.png": encode(pixels())})
    (tmp_path / "a" / "self").symlink_to("self")
    assert len(FolderSource(tmp_path)) == 2
    (tmp_path / "a" / "up").symlink_to("..")
    with pytest.raises(ValueError, match="a folder that it lies in"):
        FolderSource(tmp_path)
    (tmp_path / "a" / "up").unlink()
    (tmp_path / "a" / "to_b").symlink_to("../b")
    (tmp_path / "b" / "to_a").symlink_to("../a")
    with pytest.raises(ValueError, match="a folder that it lies in"):
        FolderSource(tmp_path)


def test_a_broken_link_is_a_bad_image_and_not_a_lost_one(tmp_path: Path):
    (tmp_path / "a.png").symlink_to("nowhere.png")
    source = FolderSource(tmp_path)
    with pytest.raises(BadImageError, match="No such file"):
        source.image(0)
    assert source.sizes(np.array([0])).tolist() == [[0, 0]]


def test_a_sub_folder_that_cannot_be_listed_is_an_error(tmp_path: Path, monkeypatch):
    write_folder(tmp_path, {"a/x.png": encode(pixels()), "b/y.png": encode(pixels())})
    scandir = os.scandir

    def refuse(path: bytes):
        if path.endswith(b"b"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(PermissionError, match=str(tmp_path / "b")):
        FolderSource(tmp_path)


def test_fingerprints_of_folders_see_names_sizes_and_labels(tmp_path: Path):
    root = write_folder(tmp_path / "one", PICTURES)
    first = FolderSource(root).fingerprint()
    shutil.copytree(root, tmp_path / "two")
    assert FolderSource(tmp_path / "two").fingerprint() == first
    seen = {first}
    for change in (
        lambda: (root / "dog" / "a.png").rename(root / "dog" / "e.png"),
        lambda: (root / "dog" / "e.png").write_bytes(b"another size"),
        lambda: (root / "dog" / "e.png").unlink(),
        lambda: (root / "dog").rename(root / "aog"),
    ):
        change()
        seen.add(FolderSource(root).fingerprint())
    assert len(seen) == 5


def test_a_long_scan_makes_few_calls_and_reports_its_progress(tmp_path: Path, monkeypatch):
    """What takes the time is what the system is asked: each folder once, no file by itself."""
    for folder in range(10):
        (tmp_path / str(folder)).mkdir()
        for number in range(1000):
            (tmp_path / str(folder) / f"{number}.jpg").touch()
    asked: list[str] = []

    def counted(name: str):
        ask = getattr(os, name)
        return lambda *arguments, **options: (asked.append(name), ask(*arguments, **options))[1]

    for name in ("scandir", "listdir", "stat", "lstat", "open"):
        monkeypatch.setattr(os, name, counted(name))
    seen: list[int] = []
    source = FolderSource(tmp_path, progress=seen.append)
    monkeypatch.undo()
    assert len(source) == 10_000
    assert seen == [4096, 8192, 10_000]
    assert asked.count("scandir") == 11
    assert len(asked) < 100
