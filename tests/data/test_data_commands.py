"""`barlow-fast data check`, `pack` and `show`, as a user meets them."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ended import SECONDS, group_gone, running
from pictures import Image, bomb, encode, photographs, pixels, write_folder
from typer.testing import CliRunner

from barlow_fast.cli.app import app
from barlow_fast.data import PRESETS, order
from barlow_fast.data.check import bad_images, write_report
from barlow_fast.data.faults import BadImage, BadImageError
from barlow_fast.data.show import FRAMES, MARGIN, TILE, describe, sheet, write_sheet
from barlow_fast.data.sources import ArraySource, FolderSource, ShardSource, open_source
from barlow_fast.data.views import ViewSpecification, draw


def data(*arguments: object):
    return CliRunner().invoke(app, ["data", *map(str, arguments)])


GOOD = encode(pixels())
BAD = {
    "a/empty.jpg": (b"", "is empty"),
    "a/text.png": (b"<html>", "none of JPEG"),
    "a/cut.png": (GOOD[:-90], "truncated"),
    "b/bomb.png": (bomb(), "pixels"),
    "b/[red]markup\n.png": (b"", "is empty"),
}
FINE = {
    "a/fine.png": GOOD,
    "a/png.jpg": GOOD,
    "b/gray.tif": encode(np.arange(600, dtype=np.uint16).reshape(20, 30) * 100, "TIFF"),
    "b/cmyk.jpg": encode(Image.fromarray(pixels()).convert("CMYK"), "JPEG"),
    "b/one.gif": encode(pixels(1, 1), "GIF"),
}


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    files = {name: content for name, (content, _) in BAD.items()}
    return write_folder(tmp_path / "mixed", {**files, **FINE, "notes.txt": b"x"})


# ---- check


def test_check_lists_what_is_wrong_and_exits_with_1(mixed: Path):
    result = data("check", mixed)
    assert result.exit_code == 1
    assert "10 images in 2 classes" in result.output
    assert "5 of 10 images cannot be read" in result.output
    assert "not looked at: 1 file of other extensions: 1 .txt" in result.output
    lines = result.output.splitlines()
    for name, (_, reason) in BAD.items():
        shown = f"{mixed}/{name}".replace("\n", r"\n")
        assert sum(line.startswith(shown) and reason in line for line in lines) == 1, name
    assert not any(name in result.output for name in FINE)
    # Without a terminal there is no bar, only lines.
    assert "\r" not in result.output
    assert "\x1b" not in result.output


def test_check_of_what_is_right_exits_with_0(tmp_path: Path):
    result = data("check", write_folder(tmp_path, FINE))
    assert result.exit_code == 0
    assert "0 of 5 images cannot be read" in result.output


def test_check_writes_all_of_it_as_json(mixed: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr("barlow_fast.cli.data.ROWS", 2)
    report = tmp_path / "report.json"
    result = data("check", mixed, "--json", report)
    assert result.exit_code == 1
    assert "and 3 more (--json FILE lists them all)" in result.output
    written = json.loads(report.read_text())
    assert written["source"] == str(mixed)
    assert written["images"] == 10
    assert [set(bad) for bad in written["bad"]] == [{"index", "identity", "reason", "suspect"}] * 5
    source = FolderSource(mixed)
    for bad in written["bad"]:
        assert source.identity(bad["index"]) == bad["identity"]
    assert [p.name for p in tmp_path.iterdir() if "partial" in p.name] == []
    fine = write_folder(tmp_path / "fine", FINE)
    assert data("check", fine, "--json", report).exit_code == 0
    assert json.loads(report.read_text())["bad"] == []


@pytest.mark.parametrize("target", ["", "absent/bad.json", "mixed", "mixed/a/fine.png", "run.pt"])
def test_check_refuses_a_list_that_cannot_be_written_before_it_looks(
    mixed: Path, tmp_path: Path, target: str, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    Path("run.pt").write_bytes(b"PK")
    monkeypatch.setattr("barlow_fast.data.sources.open_source", None)
    result = data("check", mixed, "--json", target)
    assert result.exit_code == 2
    assert "--json" in result.stderr
    assert (mixed / "a/fine.png").read_bytes() == GOOD


def test_check_prints_the_list_that_it_fails_to_write(mixed: Path, tmp_path: Path, monkeypatch):
    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("barlow_fast.files.os.fsync", fail)
    result = data("check", mixed, "--json", tmp_path / "bad.json")
    assert result.exit_code == 2
    assert all(f"{mixed}/{name}".replace("\n", r"\n") in result.stdout for name in BAD)
    assert "5 of 10 images cannot be read" in result.stdout
    assert f"cannot write {tmp_path / 'bad.json'}: No space left on device" in result.stderr


def test_a_list_that_fails_half_way_still_passes_all_on(mixed: Path, tmp_path: Path, monkeypatch):
    def dumps(content: object, plain=json.dumps) -> str:
        if "reason" in content:
            raise OSError(28, "No space left on device")
        return plain(content)

    monkeypatch.setattr("barlow_fast.data.check.json.dumps", dumps)
    source = FolderSource(mixed)
    passed = write_report(tmp_path / "bad.json", source, bad_images(source, 0))
    assert len([next(passed) for _ in BAD]) == 5
    with pytest.raises(OSError, match="No space left"):
        next(passed)


@pytest.mark.parametrize("target", ["sheet.png", "mixed/sheet.png", "mixed/a/fine.png", "link.png"])
def test_no_sheet_becomes_an_image_of_the_data(
    mixed: Path, tmp_path: Path, target: str, monkeypatch
):
    Path(tmp_path / "link.png").symlink_to(mixed / "a/fine.png")
    monkeypatch.chdir(mixed if target == "sheet.png" else tmp_path)
    result = data("show", mixed, "--preset", "imagenet", "--output", target)
    assert result.exit_code == 2
    assert f"--output {target} lies in the folder of the images" in result.stderr
    assert (mixed / "a/fine.png").read_bytes() == GOOD
    assert not (mixed / "sheet.png").exists()


def test_check_reads_shards_and_data_sets(tmp_path: Path):
    write_folder(tmp_path / "folder", FINE)
    assert data("pack", tmp_path / "folder", tmp_path / "out").exit_code == 0
    assert data("check", tmp_path / "out").exit_code == 0
    assert data("check", "digits").exit_code == 0
    shard = tmp_path / "out" / "shard-000000.tar"
    source = ShardSource(shard)
    offset = int(source._offsets[1])
    with open(shard, "r+b") as file:
        file.seek(offset)
        file.write(bytes(20))
    result = data("check", tmp_path / "out")
    assert result.exit_code == 1
    assert f"{source.identity(1)}  is none of" in result.output


@pytest.mark.parametrize("command", ["check", "pack", "show"])
@pytest.mark.parametrize("spec", ["nothing-like-this", "/nowhere", "https://example.org/x.tar"])
def test_sources_that_are_not_there_are_usage_errors(tmp_path: Path, command: str, spec: str):
    more = {"check": (), "pack": (tmp_path / "out",), "show": ("--preset", "digits")}[command]
    result = data(command, spec, *more)
    assert result.exit_code == 2
    assert result.stderr.startswith("barlow-fast: ")
    assert len(result.stderr.splitlines()) == 1
    assert "Traceback" not in result.output


def test_links_out_of_the_folder_are_asked_about(tmp_path: Path):
    write_folder(tmp_path / "outside", {"x.png": GOOD})
    write_folder(tmp_path / "root", {"a.png": GOOD})
    (tmp_path / "root" / "link").symlink_to(tmp_path / "outside")
    refused = data("check", tmp_path / "root")
    assert refused.exit_code == 2
    assert "--allow-symlinks" in refused.stderr
    allowed = data("check", tmp_path / "root", "--allow-symlinks")
    assert "0 of 2 images" in allowed.output


def test_bad_images_come_in_order_with_progress(mixed: Path):
    done: list[int] = []
    found = list(bad_images(FolderSource(mixed), 0, done.append))
    assert [bad.index for bad in found] == sorted(bad.index for bad in found)
    assert len(found) == 5
    assert done == list(range(1, 11))


def test_a_report_of_very_many_takes_no_memory(tmp_path: Path):
    source = ArraySource(np.zeros((1, 1, 1, 1), np.uint8))
    many = (BadImage(i, f"{i}.jpg", "is empty") for i in range(50_000))
    path = tmp_path / "report.json"
    tracemalloc.start()
    count = sum(1 for _ in write_report(path, source, many))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 50_000
    assert peak < 2**20
    assert len(json.loads(path.read_text())["bad"]) == 50_000


def test_a_report_that_is_broken_off_does_not_appear(tmp_path: Path):
    source = ArraySource(np.zeros((1, 1, 1, 1), np.uint8))
    path = tmp_path / "report.json"

    def broken():
        yield BadImage(0, "0.jpg", "is empty")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(write_report(path, source, broken()))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_ctrl_c_ends_a_check(tmp_path: Path):
    folder = write_folder(tmp_path, {"0.jpg": photographs()[0]})
    # So many that the check is under way for seconds, however late the signal is sent.
    for number in range(1, 4000):
        os.link(folder / "0.jpg", folder / f"{number}.jpg")
    command = [sys.executable, "-m", "barlow_fast", "data", "check", folder, "--workers", "2"]
    with running(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert "4,000 images" in process.stdout.readline()
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=SECONDS)
        assert process.returncode == 130
        assert "interrupted" in errors
        assert group_gone(process.pid)


# ---- pack


def test_pack_says_what_it_did(tmp_path: Path):
    folder = write_folder(tmp_path / "folder", {**FINE, "c/photo.jpg": photographs()[0]})
    out = tmp_path / "out"
    result = data("pack", folder, out, "--size", 100, "--shard-bytes", "4K")
    assert result.exit_code == 0, result.output
    shards = open_source(out)
    sizes = sum(shard.stat().st_size for shard in shards.shards)
    assert (
        f"6 images (1 resized, 0 left out) in {len(shards.shards)} shards, {sizes:,} bytes, "
        f"read back and compared: {out}" in result.output
    )
    assert shards.classes == ["a", "b", "c"]
    again = data("pack", folder, out)
    assert again.exit_code == 2
    assert "not empty" in again.stderr


def test_pack_stops_at_a_bad_image_or_leaves_it_out(mixed: Path, tmp_path: Path, caplog):
    out = tmp_path / "out"
    stopped = data("pack", mixed, out)
    assert stopped.exit_code == 1
    assert "truncated" in stopped.stderr
    assert not out.exists()
    with caplog.at_level(logging.WARNING, "barlow_fast.data"):
        skipped = data("pack", mixed, out, "--on-bad-image", "skip")
    assert skipped.exit_code == 0
    assert "5 images (0 resized, 5 left out) in 1 shard," in skipped.output
    assert sum("left out: " in record.getMessage() for record in caplog.records) == 5


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--shard-bytes", "many", "takes a number"),
        ("--shard-bytes", "-1", "takes a number"),
        ("--shard-bytes", "0", "at least 1"),
        ("--quality", 101, "quality"),
        ("--size", 0, "size"),
        ("--on-bad-image", "ignore", "error, skip"),
    ],
)
def test_choices_out_of_range_are_usage_errors(tmp_path, option, value, words):
    folder = write_folder(tmp_path / "folder", FINE)
    result = data("pack", folder, tmp_path / "out", option, value)
    assert result.exit_code == 2
    assert words in result.stderr
    assert not (tmp_path / "out").exists()


# ---- show


@pytest.fixture
def photos(tmp_path: Path) -> FolderSource:
    files = {f"{name}/{i}.jpg": p for name in "ab" for i, p in enumerate(photographs())}
    return FolderSource(write_folder(tmp_path / "photos", files))


def test_show_draws_a_sheet(photos: FolderSource, tmp_path: Path):
    out = tmp_path / "sheet.png"
    result = data("show", photos.root, "--preset", "imagenet", "--output", out, "--count", 3)
    assert result.exit_code == 0, result.output
    assert str(out) in result.output
    image = Image.open(out)
    assert image.mode == "RGB"
    assert image.width >= MARGIN + 3 * TILE
    assert image.height >= 3 * TILE
    colours = {colour for _, colour in image.getcolors(2**24)}
    assert set(FRAMES[:2]) <= colours
    shutil.copy(out, tmp_path / "first.png")
    assert data("show", photos.root, "--preset", "imagenet", "--output", out, "--count", 3)
    assert out.read_bytes() == (tmp_path / "first.png").read_bytes()


def test_a_path_is_printed_as_it_is(photos: FolderSource, tmp_path: Path):
    """Brackets are no markup."""
    out = tmp_path / "[red]sheet.png"
    result = data("show", photos.root, "--preset", "imagenet", "--output", out, "--count", 2)
    assert result.exit_code == 0, result.output
    assert "[red]sheet.png" in "".join(result.output.split())


def test_the_help_says_what_the_commands_are_for():
    assert "Look over, pack and show images." in data("--help").output


@pytest.mark.parametrize("preset", ["digits", "fashion-mnist"])
def test_show_of_images_in_memory(tmp_path: Path, preset: str):
    result = data("show", "digits", "--preset", preset, "--output", tmp_path / "x.png")
    assert result.exit_code == 0, result.output
    assert Image.open(tmp_path / "x.png").width > 8 * TILE


def test_show_of_more_views(photos: FolderSource, tmp_path: Path):
    """A row for the originals and for each view."""
    common = ("show", photos.root, "--preset", "imagenet", "--count", 2, "--output")
    more = ("--views", 3, "--small-views", 2, "--small-size", 48)
    heights = []
    for name, options in (("two.png", ()), ("five.png", more)):
        result = data(*common, tmp_path / name, *options)
        assert result.exit_code == 0, result.output
        heights.append(Image.open(tmp_path / name).height)
    assert heights[1] - heights[0] > 3 * TILE
    refused = data(*common, tmp_path / "x.png", "--small-size", 48)
    assert refused.exit_code == 2
    assert "the number of small views must be at least 1, got 0" in refused.stderr


def test_show_takes_views_from_yaml(photos: FolderSource, tmp_path: Path):
    pytest.importorskip("yaml")
    (tmp_path / "views.yaml").write_text(
        "name: mine\nmean: [0.5, 0.5, 0.5]\nstd: [0.2, 0.2, 0.2]\nviews:\n"
        "  - &first {size: 32, brightness: 0.4}\n"
        "  - {<<: *first, flip: 1.0}\n  - {<<: *first, size: 64, grayscale: 1.0}\n"
    )
    out = tmp_path / "sheet.png"
    result = data("show", photos.root, "--preset", tmp_path / "views.yaml", "--output", out)
    assert result.exit_code == 0, result.output
    assert Image.open(out).height > 4 * TILE


def tiles(image: Image.Image, columns: int) -> np.ndarray:
    """The colours in each column of a sheet, to distinguish columns."""
    pixels = np.asarray(image).astype(int)
    starts = [MARGIN + column * (TILE + 10) for column in range(columns)]
    return np.stack([pixels[:, start : start + TILE] for start in starts])


def test_a_sheet_shows_the_first_samples_of_the_epoch_as_they_are():
    images = np.stack([np.full((8, 8, 3), level, np.uint8) for level in range(0, 250, 10)])
    source = ArraySource(images)
    unchanged = replace(PRESETS["cifar"], views=(ViewSpecification(size=16),))
    image, bad = sheet(source, unchanged, 4, seed=3, epoch=2)
    assert bad == []
    for column, index in zip(tiles(image, 4), order(3, 2, 25)[:4].tolist(), strict=True):
        # The original and its view, each a tile of one colour.
        same = (column == 10 * index).all(-1).sum()
        assert 1.9 * TILE * TILE < same < 2.1 * TILE * TILE
    other, _ = sheet(source, unchanged, 4, seed=4, epoch=2)
    assert other.tobytes() != image.tobytes()


def test_a_sheet_leaves_bad_images_out_and_names_them(photos: FolderSource, tmp_path: Path):
    (photos.root / "a" / "0.jpg").write_bytes(b"")
    image, bad = sheet(photos, PRESETS["imagenet"], 8)
    assert [b.identity for b in bad] == [str(photos.root / "a" / "0.jpg")]
    assert image.width < MARGIN + 4 * TILE
    result = data("show", photos.root, "--preset", "imagenet", "--output", tmp_path / "sheet.png")
    assert result.exit_code == 0
    assert "0.jpg  is empty" in result.output
    for path in photos.root.rglob("*.jpg"):
        path.write_bytes(b"")
    with pytest.raises(BadImageError):
        sheet(photos, PRESETS["imagenet"], 8)


def test_what_was_drawn_is_described():
    everything = ViewSpecification(
        crop_area=(0.2, 0.5),
        flip=1.0,
        brightness=0.4,
        contrast=0.4,
        saturation=0.2,
        hue=0.1,
        grayscale=1.0,
        blur=1.0,
        blur_sigma=(1.5, 1.5),
        solarize=1.0,
        erase=1.0,
        size=32,
    )
    parameters = draw(everything, 0, 0, np.array([5]), 0)
    lines = describe(everything, parameters, (1, 2, 30, 40))
    assert lines[:2] == ["crop 40 x 30 at 2, 1", "mirrored"]
    p = parameters
    assert lines[2] == (
        f"b {p.brightness[0]:.2f}, c {p.contrast[0]:.2f}, s {p.saturation[0]:.2f}, "
        f"h {p.hue[0]:+.2f}"
    )
    assert lines[3].startswith("gray, blur 1.50, solarized at 128, erased ")
    plain = ViewSpecification(size=32)
    assert describe(plain, draw(plain, 0, 0, np.array([5]), 0), (0, 0, 8, 8)) == [
        "crop 8 x 8 at 0, 0"
    ]
    never = replace(everything, jitter=0.0)
    assert not any(line.startswith("b ") for line in describe(
        never, draw(never, 0, 0, np.array([5]), 0), (0, 0, 8, 8)
    ))  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("digits", "--preset", "imagnet"), "one of imagenet, cifar"),
        (("digits", "--preset", "nowhere.yaml"), "nowhere.yaml"),
        (("digits", "--preset", "digits", "--count", 0), "count must be in"),
        (("digits", "--preset", "digits", "--count", 65), "count must be in"),
        (("digits", "--preset", "digits", "--output", "x.jpg"), "is a PNG"),
        (
            ("digits", "--preset", "digits", "--output", "/nowhere/x.png"),
            "no folder /nowhere for x.png",
        ),
        (("digits", "--preset", "digits", "--split", "unlabelled"), "no split"),
    ],
)
def test_what_cannot_be_shown_is_a_usage_error(arguments, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = data("show", *arguments)
    assert result.exit_code == 2
    assert words in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_sheet_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch):
    def fail(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="No space"):
        write_sheet(tmp_path / "x.png", Image.new("RGB", (4, 4)))
    assert list(tmp_path.iterdir()) == []
