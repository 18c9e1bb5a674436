"""Tar files as sources of images."""

from __future__ import annotations

import gzip
import io
import json
import logging
import os
import tarfile
import threading
import zlib
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
from pictures import encode, pixels, write_folder
from test_sources import assert_is_a_source

from barlow_fast.data.faults import BadImageError
from barlow_fast.data.sources import (
    ArraySource,
    FolderSource,
    ShardSource,
    open_source,
    passed_over,
    shards,
)
from barlow_fast.data.sources.shard_index import index_path

FILES = {
    "a/1.jpg": encode(pixels(20, 30, seed=1), "JPEG"),
    "a/1.cls": b"3\n",
    "a/2.PNG": encode(pixels(10, 12, seed=2)),
    "a/2.json": b'{"label": 0, "text": "a \\"cat\\""}',
    "b.webp": encode(pixels(9, 8, seed=3), "WEBP"),
    "b.txt": b"no label",
}


def write_shard(
    path: Path, files: dict[str, bytes], form: int = tarfile.USTAR_FORMAT, **options: str
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form, **options) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def test_shards_are_a_source(tmp_path: Path):
    write_shard(tmp_path / "1.tar", {"c.png": FILES["a/2.PNG"], "c.cls": b"1"})
    write_shard(tmp_path / "0.tar", FILES)
    source = ShardSource(tmp_path)
    assert_is_a_source(source)
    identities = [source.identity(i) for i in range(4)]
    expected = ["0.tar:a/1.jpg", "0.tar:a/2.PNG", "0.tar:b.webp", "1.tar:c.png"]
    assert identities == [str(tmp_path / name) for name in expected]
    assert source.labels.tolist() == [3, 0, -1, 1]
    assert source.classes is None
    assert source.encoded(2) == FILES["b.webp"]
    assert source.sizes(np.arange(4)).tolist() == [[20, 30], [10, 12], [9, 8], [10, 12]]
    for index in (4, -1):
        with pytest.raises(IndexError, match="4 images"):
            source.encoded(index)


def test_shards_without_labels(tmp_path: Path):
    source = ShardSource(write_shard(tmp_path / "x.tar", {"a.jpg": FILES["a/1.jpg"]}))
    assert source.labels is None
    assert source.label(0) == -1


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_formats_of_tar_and_long_names(tmp_path: Path, form: int):
    names = ["folder/" * 14 + "x.png"]
    if form != tarfile.USTAR_FORMAT:
        names += ["y" * 300 + ".png", "grün/猫" + "z" * 120 + ".png", "short.png"]
    files = {name: encode(pixels(4, 4 + i)) for i, name in enumerate(names)}
    source = ShardSource(write_shard(tmp_path / "x.tar", files, form))
    assert [source.identity(i).partition(".tar:")[2] for i in range(len(names))] == names
    assert [source.encoded(i) for i in range(len(names))] == list(files.values())


def test_folders_in_the_archive_and_hidden_files_are_passed_over(tmp_path: Path):
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        folder = tarfile.TarInfo("a")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for name in ("a/.hidden.png", "a/b.png", "a/README"):
            info = tarfile.TarInfo(name)
            info.size = len(FILES["a/2.PNG"])
            archive.addfile(info, io.BytesIO(FILES["a/2.PNG"]))
    source = ShardSource(tmp_path)
    assert [source.identity(i) for i in range(len(source))] == [f"{tmp_path}/x.tar:a/b.png"]


def test_a_second_dot_makes_another_extension_and_that_is_said(tmp_path: Path, caplog):
    files = {"a.png": FILES["a/2.PNG"], "a.mask.png": FILES["a/2.PNG"]}
    with caplog.at_level(logging.WARNING, "barlow_fast.data"):
        assert len(ShardSource(write_shard(tmp_path / "x.tar", files))) == 1
    assert "1 members such as a.mask.png" in caplog.text


# ---- the index


def test_the_index_is_made_once_and_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    shard = write_shard(tmp_path / "x.tar", FILES)
    scans = []
    scan = shards.shard_index.scan
    monkeypatch.setattr(shards.shard_index, "scan", lambda s: scans.append(s) or scan(s))
    first = ShardSource(tmp_path)
    second = ShardSource(tmp_path)
    assert scans == [shard]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.tar", "x.tar.index"]
    assert_is_a_source(second)
    assert second.fingerprint() == first.fingerprint()
    assert second.labels.tolist() == first.labels.tolist()
    assert [second.encoded(i) for i in range(3)] == [first.encoded(i) for i in range(3)]
    np.testing.assert_array_equal(second.sizes(np.arange(3)), first.sizes(np.arange(3)))


def test_a_changed_shard_is_scanned_again(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    shard = write_shard(tmp_path / "x.tar", FILES)
    before = ShardSource(tmp_path).fingerprint()
    write_shard(shard, {"new.png": FILES["a/2.PNG"]})
    os.utime(shard, (0, 1_000_000_000))
    with caplog.at_level(logging.WARNING, "barlow_fast.data"):
        source = ShardSource(tmp_path)
    assert "older than its shard" in caplog.text
    assert len(source) == 1
    assert source.fingerprint() != before
    # The same size, another time.
    caplog.clear()
    os.utime(shard, (0, 1_000_000_100))
    with caplog.at_level(logging.WARNING, "barlow_fast.data"):
        ShardSource(tmp_path)
    assert "older than its shard" in caplog.text
    caplog.clear()
    ShardSource(tmp_path)
    assert not caplog.text


def damaged_indices(content: bytes) -> dict[str, tuple[bytes, str]]:
    line, _, body = content.partition(b"\n")
    header = json.loads(line)

    def rewritten(**changes: object) -> bytes:
        return json.dumps({**header, **changes}).encode() + b"\n" + body

    return {
        "empty": (b"", "damaged"),
        "no JSON": (b"x" + content, "damaged"),
        "a list": (b"[]\n" + body, "damaged"),
        "nested": (b"[" * 100_000 + b"\n" + body, "damaged"),
        "cut": (content[:-1], "damaged"),
        "flipped": (content[:-1] + bytes([content[-1] ^ 1]), "damaged"),
        "too many": (rewritten(images=10**12), "damaged"),
        "fewer": (rewritten(images=1), "damaged"),
        "negative": (rewritten(images=-1), "damaged"),
        "no number": (rewritten(images="3"), "damaged"),
        "version": (rewritten(version=1), "another version"),
        "another shard": (rewritten(shard_bytes=1), "older"),
    }


@pytest.mark.parametrize(
    "name", list(damaged_indices(b'{"shard_bytes": 1, "shard_modified": 1}\n.'))
)
def test_an_index_that_is_wrong_is_made_anew(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
):
    shard = write_shard(tmp_path / "x.tar", FILES)
    good = ShardSource(shard)
    index = index_path(shard)
    whole = index.read_bytes()
    content, words = damaged_indices(whole)[name]
    index.write_bytes(content)
    with caplog.at_level(logging.WARNING, "barlow_fast.data"):
        source = ShardSource(shard)
    assert words in caplog.text
    assert source.fingerprint() == good.fingerprint()
    assert index.read_bytes() == whole


def test_offsets_of_an_index_stay_inside_the_shard(tmp_path: Path, caplog):
    shard = write_shard(tmp_path / "x.tar", {"a.png": FILES["a/2.PNG"]})
    ShardSource(shard)
    index = index_path(shard)
    line, _, body = index.read_bytes().partition(b"\n")
    columns = np.frombuffer(body[:32], "<i8").copy()
    columns[1] = shard.stat().st_size  # the offset
    body = columns.tobytes() + body[32:]
    header = {**json.loads(line), "crc32": zlib.crc32(body)}
    index.write_bytes(json.dumps(header).encode() + b"\n" + body)
    with caplog.at_level(logging.WARNING, "barlow_fast.data"):
        assert ShardSource(shard).encoded(0) == FILES["a/2.PNG"]
    assert "damaged" in caplog.text


def test_an_index_that_cannot_be_kept_is_no_error(tmp_path: Path, monkeypatch, caplog):
    def refuse(*args: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(shards.shard_index.os, "replace", refuse)
    for name in ("x.tar", "y.tar", "z.tar"):
        write_shard(tmp_path / name, FILES)
    with caplog.at_level(logging.WARNING, "barlow_fast.data"):
        assert len(ShardSource(tmp_path)) == 9
    # One line for all of them.
    (message,) = caplog.messages
    assert "the indexes of 3 of 3 shards cannot be kept" in message
    assert message.endswith("Read-only file system")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.tar", "y.tar", "z.tar"]


# ---- what is wrong with shards


def changed(content: bytes, offset: int, value: bytes) -> bytes:
    return content[:offset] + value + content[offset + len(value) :]


def damaged_shards(content: bytes) -> dict[str, tuple[bytes, str]]:
    """Of a shard whose second header lies at byte `second`."""
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        archive.next()
        second = archive.next().offset
    return {
        "empty": (b"", "byte 0 without an end marker"),
        "no tar": (b"x" * 2048, "byte 0: damaged tar header"),
        "first header": (changed(content, 0, b"!"), "byte 0: damaged tar header"),
        "second header": (changed(content, second, b"!"), f"byte {second}: damaged tar header"),
        "number": (changed(content, second + 124, b"x"), f"byte {second}: damaged tar header"),
        "cut in a header": (content[: second + 100], f"byte {second + 100} without an end"),
        "cut between members": (content[:second], f"byte {second} without an end"),
        "cut in a member": (content[: second - 600], "byte 0: a member of"),
        "compressed": (gzip.compress(content), "is compressed.*gunzip"),
    }


DAMAGES = (
    "empty",
    "no tar",
    "first header",
    "second header",
    "number",
    "cut in a header",
    "cut between members",
    "cut in a member",
    "compressed",
)


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_shard_is_named_with_its_byte(tmp_path: Path, name: str):
    files = {"a.png": encode(pixels(40, 40)), "b.png": encode(pixels(30, 30))}
    shard = write_shard(tmp_path / "x.tar", files)
    content, words = damaged_shards(shard.read_bytes())[name]
    shard.write_bytes(content)
    with pytest.raises(ValueError, match=words) as caught:
        ShardSource(shard)
    assert str(caught.value).startswith(f"{shard}: ")
    assert not index_path(shard).exists()


def test_a_size_beyond_the_file_is_refused(tmp_path: Path):
    info = tarfile.TarInfo("a.png")
    for size in (10**9, 10**17, -1):
        info.size = max(size, 0)
        header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
        if size < 0:
            header[124:136] = b"\xff" * 12
            header[148:156] = b" " * 8
            header[148:156] = b"%06o\0 " % sum(header)
        (tmp_path / "x.tar").write_bytes(bytes(header) + bytes(2048))
        with pytest.raises(ValueError, match=rf"byte 0: a member of {size} bytes"):
            ShardSource(tmp_path)


@pytest.mark.parametrize("padding", [0, 512, 2**20])
def test_archives_one_after_another_are_read(tmp_path: Path, padding: int):
    parts = []
    for number, names in enumerate((["a.png"], ["b.png", "b.cls"], ["c.png"])):
        files = {name: FILES["a/2.PNG"] if name.endswith("png") else b"4" for name in names}
        parts.append(write_shard(tmp_path / "parts" / f"{number}.tar", files).read_bytes())
    (tmp_path / "x.tar").write_bytes(bytes(padding).join(parts))
    source = ShardSource(tmp_path / "x.tar")
    assert [source.identity(i).rpartition(":")[2] for i in range(3)] == ["a.png", "b.png", "c.png"]
    assert source.labels.tolist() == [-1, 4, -1]
    assert all(source.encoded(i) == FILES["a/2.PNG"] for i in range(3))
    # What follows is an archive, or the shard is refused.
    length = len(parts[0])
    for rest, words in (
        (b"x" * 512, f"byte {length}: damaged tar header"),
        (b"x", f"byte {length + 1} without an end marker"),
        (parts[1][:512], f"byte {length}: a member of"),
        (parts[1][:1024], "without an end marker"),
    ):
        (tmp_path / "y.tar").write_bytes(parts[0] + rest)
        with pytest.raises(ValueError, match=words):
            ShardSource(tmp_path / "y.tar")


def test_zeros_without_an_end_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    shard = write_shard(tmp_path / "x.tar", FILES)
    with open(shard, "r+b") as file:
        file.truncate(2**20)
    assert len(ShardSource(shard)) == 3
    monkeypatch.setattr("barlow_fast.data.sources.tar.LONGEST_PADDING", 2**18)
    index_path(shard).unlink()
    with pytest.raises(ValueError, match="more than 262144 bytes of zeros"):
        ShardSource(shard)


@pytest.mark.parametrize("name", ["x.tar.gz", "x.tgz", "x.TAR.zst", "x.tar.bz2", "x.txz"])
def test_compressed_shards_are_refused_by_name(tmp_path: Path, name: str):
    write_shard(tmp_path / "only" / name, FILES)
    write_shard(tmp_path / "both" / name, FILES)
    write_shard(tmp_path / "both" / "y.tar", FILES)
    pattern = str(tmp_path / "only" / "x.*")
    for spec in (tmp_path / "only" / name, tmp_path / "only", tmp_path / "both", pattern):
        with pytest.raises(ValueError, match=rf"{name}:? is compressed"):
            open_source(spec)


def test_what_is_passed_over_is_counted(tmp_path: Path):
    files = FILES | {"c.cls": b"1", "d.seg.png": b"x", ".hidden.jpg": b"x"}
    write_shard(tmp_path / "0.tar", files)
    # A text, a label without an image, a name with two extensions, a hidden one.
    for source in (open_source(tmp_path), open_source(tmp_path), open_source(tmp_path / "0.tar")):
        assert source.ignored == 4
    (tmp_path / "loose.jpg").write_bytes(FILES["a/1.jpg"])
    (tmp_path / "more").mkdir()
    assert open_source(tmp_path).ignored == 6
    assert passed_over(open_source(tmp_path)) == (
        "not looked at: 6 files that are no images or labels"
    )
    write_shard(tmp_path / "clean" / "0.tar", {"a.png": FILES["a/2.PNG"], "a.cls": b"1"})
    assert passed_over(open_source(tmp_path / "clean")) == ""


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_pipes_do_not_hang(tmp_path: Path):
    os.mkfifo(tmp_path / "x.tar")
    for spec in (tmp_path, tmp_path / "x.tar"):
        with pytest.raises(OSError, match="not a regular file"):
            open_source(spec)
    # An index and the names of classes are no different.
    write_shard(tmp_path / "y" / "y.tar", FILES)
    os.mkfifo(tmp_path / "y" / "y.tar.index")
    assert len(open_source(tmp_path / "y" / "y.tar")) == 3
    os.mkfifo(tmp_path / "y" / "classes.json")
    with pytest.raises(OSError, match="not a regular file"):
        open_source(tmp_path / "y")


@pytest.mark.parametrize("kind", [tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_devices_are_refused(tmp_path: Path, kind: bytes):
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        device = tarfile.TarInfo("a.jpg")
        device.type = kind
        archive.addfile(device)
    with pytest.raises(ValueError, match="byte 0: a member that is of type"):
        ShardSource(tmp_path)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_links_are_refused(tmp_path: Path, kind: bytes):
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        link = tarfile.TarInfo("a.jpg")
        link.type, link.linkname = kind, "/etc/passwd"
        archive.addfile(link)
    with pytest.raises(ValueError, match="byte 0: a member that is a link"):
        ShardSource(tmp_path)


@pytest.mark.parametrize(
    "records",
    [b"9999 path=x\n", b"path", b"12 path=x", b"0 path=x\n", b"99999999999999999999 a=b\n"],
)
def test_a_damaged_pax_header_is_refused(tmp_path: Path, records: bytes):
    info = tarfile.TarInfo("pax")
    info.type, info.size = tarfile.XHDTYPE, len(records)
    block = info.tobuf(tarfile.USTAR_FORMAT) + records.ljust(512, b"\0")
    (tmp_path / "x.tar").write_bytes(block + bytes(1024))
    with pytest.raises(ValueError, match="damaged PAX header"):
        ShardSource(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.cls", b"cat", "no label"),
        ("a.cls", b"-1", "no label"),
        ("a.cls", b"", "no label"),
        ("a.cls", b"9" * 12, "no label"),
        ("a.cls", b"1" * 33, "33 bytes are no label"),
        ("a.json", b"{", "not JSON"),
        ("a.json", b"\xff", "not JSON"),
        ("a.json", b"[" * 100_000, "not JSON"),
        ("a.json", b'{"label": "3"}', "no label"),
        ("a.json", b'{"label": true}', "no label"),
        ("a.json", b'{"label": 1.5}', "no label"),
    ],
)
def test_labels_that_are_none_are_named(tmp_path: Path, name: str, content: bytes, words: str):
    shard = write_shard(tmp_path / "x.tar", {"a.jpg": FILES["a/1.jpg"], name: content})
    with pytest.raises(ValueError, match=words) as caught:
        ShardSource(shard)
    assert f"{shard}:{name}" in str(caught.value)


def test_json_without_a_label_is_no_label(tmp_path: Path):
    files = {"a.jpg": FILES["a/1.jpg"], "a.json": b'{"text": "cat"}', "b.json": b"[]"}
    assert ShardSource(write_shard(tmp_path / "x.tar", files)).labels is None


def test_one_sample_has_one_image_and_one_label(tmp_path: Path):
    image = FILES["a/2.PNG"]
    shard = write_shard(tmp_path / "x.tar", {"a.png": image, "a.jpg": image})
    with pytest.raises(ValueError, match=r"two images of one sample: a\.png and a\.jpg"):
        ShardSource(shard)
    write_shard(shard, {"a.png": image, "a.cls": b"1", "a.json": b'{"label": 2}'})
    with pytest.raises(ValueError, match="two labels of one sample: a"):
        ShardSource(shard)


def test_bad_images_in_a_shard_are_named(tmp_path: Path):
    good = encode(pixels())
    files = {"a.png": good, "b.jpg": b"", "c.jpg": b"text", "d.png": good[:-90]}
    shard = write_shard(tmp_path / "x.tar", files)
    for source in (ShardSource(shard), ShardSource(shard)):
        assert source.sizes(np.arange(4)).tolist() == [[24, 36], [0, 0], [0, 0], [24, 36]]
        for index, words in ((1, "empty"), (2, "none of"), (3, "truncated")):
            with pytest.raises(BadImageError, match=words) as caught:
                source.image(index)
            assert caught.value.image.identity == source.identity(index)
            assert caught.value.image.index == index


def test_the_limit_of_pixels_is_the_sources_own(tmp_path: Path):
    shard = write_shard(tmp_path / "x.tar", {"a.png": encode(pixels(24, 36))})
    assert ShardSource(shard).sizes(np.array([0])).tolist() == [[24, 36]]
    small = ShardSource(shard, max_pixels=24 * 36 - 1)
    assert small.sizes(np.array([0])).tolist() == [[0, 0]]
    with pytest.raises(BadImageError, match="24 x 36"):
        small.image(0)


def test_a_shard_cut_while_in_use_gives_bad_images(tmp_path: Path):
    shard = write_shard(tmp_path / "x.tar", {"a.png": encode(pixels())})
    source = ShardSource(shard)
    os.truncate(shard, 600)
    with pytest.raises(BadImageError, match="bytes before the image does"):
        source.encoded(0)


# ---- reading


def test_threads_and_copies_read_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shards, "KEPT_OPEN", 2)
    contents = {}
    for number in range(5):
        files = {f"{i}.png": encode(pixels(5, 6, seed=10 * number + i)) for i in range(10)}
        write_shard(tmp_path / f"{number}.tar", files)
        contents.update({10 * number + i: files[f"{i}.png"] for i in range(10)})
    source = ShardSource(tmp_path)
    wrong = []

    def read(seed: int, source: ShardSource) -> None:
        for index in np.random.default_rng(seed).permutation(50).tolist() * 4:
            if source.encoded(index) != contents[index]:
                wrong.append(index)

    threads = [threading.Thread(target=read, args=(s, source)) for s in range(4)]
    threads += [threading.Thread(target=read, args=(9, deepcopy(source)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="no list of open files here")
def test_open_files_are_bounded_and_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shards, "KEPT_OPEN", 3)
    for number in range(8):
        write_shard(tmp_path / f"{number}.tar", {"a.png": FILES["a/2.PNG"]})
    before = len(os.listdir("/proc/self/fd"))
    source = ShardSource(tmp_path)
    for _ in range(2):
        assert all(source.encoded(i) == FILES["a/2.PNG"] for i in range(8))
    assert len(os.listdir("/proc/self/fd")) == before + 3
    del source
    assert len(os.listdir("/proc/self/fd")) == before


def test_fingerprints_of_shards_see_members_and_not_files(tmp_path: Path):
    image = FILES["a/2.PNG"]
    one = write_shard(tmp_path / "one" / "x.tar", {"a.png": image, "b.png": image})
    write_shard(tmp_path / "two" / "0.tar", {"a.png": image})
    write_shard(tmp_path / "two" / "1.tar", {"b.png": image})
    same = ShardSource(one).fingerprint()
    assert ShardSource(tmp_path / "two").fingerprint() == same
    others = [
        {"a.png": image, "c.png": image},
        {"a.png": image, "b.png": image + b"x"},
        {"a.png": image, "b.png": image, "b.cls": b"1"},
    ]
    seen = {same} | {
        ShardSource(write_shard(tmp_path / f"{i}.tar", files)).fingerprint()
        for i, files in enumerate(others)
    }
    assert len(seen) == 4


# ---- names of classes


def test_names_of_classes_are_read_and_checked(tmp_path: Path):
    shard = write_shard(tmp_path / "x.tar", {"a.png": FILES["a/2.PNG"], "a.cls": b"1"})
    classes = tmp_path / "classes.json"
    classes.write_text('["cat", "dog"]')
    assert ShardSource(shard).classes == ["cat", "dog"]
    for content, words in (
        ("[", "not JSON"),
        ('{"a": 1}', "not a list"),
        ("[1, 2]", "not a list"),
        ('["cat"]', "1 names, but label 1"),
    ):
        classes.write_text(content)
        with pytest.raises(ValueError, match=words):
            ShardSource(shard)


# ---- open_source


def test_open_source_finds_out_what_it_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    image = encode(pixels())
    folder = write_folder(tmp_path / "folder", {"train/a/x.png": image, "val/b/y.png": image})
    packed = tmp_path / "packed"
    for name in ("train-0.tar", "train-1.tar", "val-0.tar"):
        write_shard(packed / name, {f"{name}/x.png": image})
    assert isinstance(open_source("digits"), ArraySource)
    assert len(open_source("digits", "test")) == 600
    assert isinstance(open_source(folder), FolderSource)
    assert open_source(str(folder)).classes == ["a"]
    assert open_source(folder, "val").classes == ["b"]
    with pytest.raises(ValueError, match="shards of several parts"):
        open_source(packed)
    assert len(open_source(str(packed / "train-*.tar"))) == 2
    assert len(open_source(packed / "val-0.tar")) == 1
    # A folder named like a data set.
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "digits", {"x.png": image})
    assert len(open_source("./digits")) == 1
    assert len(open_source("digits")) == 1197


@pytest.mark.parametrize(
    ("spec", "options", "words"),
    [
        ("imagenet", {}, "neither a path nor a data set; there are digits"),
        ("/nowhere/at/all", {}, "does not exist"),
        ("/nowhere/x-*.tar", {}, "no tar files"),
        ("https://example.org/x.tar", {}, "local files only"),
        ("pipe:cat x.tar", {}, "local files only"),
        ("digits", {"split": "unlabelled"}, "no split 'unlabelled'"),
        ("/nowhere", {"data_dir": Path()}, "named data set"),
        ("/nowhere/x.tar", {"split": "train"}, "no splits"),
    ],
)
def test_open_source_says_what_it_does_not_find(spec: str, options: dict, words: str):
    with pytest.raises(ValueError, match=words):
        open_source(spec, **options)


def test_shards_of_an_unfinished_pack_are_refused(tmp_path: Path):
    write_shard(tmp_path / "0.tar", FILES)
    (tmp_path / "1.tar.partial").touch()
    with pytest.raises(ValueError, match="did not finish"):
        open_source(tmp_path)


def test_a_shard_is_named_once(tmp_path: Path):
    shard = write_shard(tmp_path / "0.tar", FILES)
    with pytest.raises(ValueError, match="twice"):
        ShardSource([shard, shard])
    with pytest.raises(ValueError, match="no shards"):
        ShardSource([])
