"""JPEG by simplejpeg: Pillow's pixels and refusals, libjpeg's warnings, and decoding at reduced
scale."""

from __future__ import annotations

import logging
import re
import struct
import sys
import threading
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from photographs import MEAN, STD, cropping, encoded, photograph
from pictures import encode, pixels
from PIL import Image
from test_half_images import SHORT, WHOLE, jpeg_cut
from test_one_verdict import FAMILIES, GOOD, PIECE, damaged
from typer.testing import CliRunner

from barlow_fast.cli.app import app
from barlow_fast.data import ViewLoader, Views, jpeg
from barlow_fast.data.decoding import Decoded, check, decode_pixels
from barlow_fast.data.faults import BadImageError, BadImages
from barlow_fast.data.pack import pack
from barlow_fast.data.rendering import dali
from barlow_fast.data.sources import ArraySource, FolderSource, ShardSource
from barlow_fast.data.views import draw
from barlow_fast.data.windows import MARGIN, reduced, reduction, windows
from barlow_fast.evaluation.images import CentreCrop, ImageFormat, Reading, pictures

simplejpeg = pytest.importorskip("simplejpeg")


def segment(code: int, content: bytes) -> bytes:
    return bytes((0xFF, code)) + struct.pack(">H", len(content) + 2) + content


def with_segments(file: bytes, *segments: bytes) -> bytes:
    """The segments after the first marker of a JPEG."""
    return file[:2] + b"".join(segments) + file[2:]


def of_components(identities: bytes, file: bytes) -> bytes:
    """A JPEG of three components that are called otherwise, in frame and scans, without JFIF."""
    found = re.sub(rb"\xff\xe0..JFIF.{11}", b"", file, count=1, flags=re.DOTALL)
    frame = found.index(b"\xff\xc0")
    scan = found.index(b"\xff\xda")
    changed = bytearray(found)
    for number, identity in enumerate(identities):
        changed[frame + 10 + 3 * number] = identity
        changed[scan + 5 + 2 * number] = identity
    return bytes(changed)


PLAIN = encoded(PIECE)
ICC = b"ICC_PROFILE\0"
ADOBE = b"Adobe\0\x64\0\0\0\0"
RESOLUTION = b"8BIM\x03\xed\0\0\0\0\0\x10" + bytes(16)
# Whose header asks something of a reader.
ODD = {
    "of 12 bits": PLAIN.replace(b"\xff\xc0\0\x11\x08", b"\xff\xc0\0\x11\x0c"),
    "arithmetic": PLAIN.replace(b"\xff\xc0\0\x11", b"\xff\xc9\0\x11"),
    "lossless": PLAIN.replace(b"\xff\xc0\0\x11", b"\xff\xc3\0\x11"),
    "two components": PLAIN.replace(b"\x03\x01\x22\0", b"\x02\x01\x22\0"),
    "components R, G, B": of_components(b"RGB", encoded(PIECE, subsampling=0)),
    "components 1, 34, 35": of_components(b"\x01\x22\x23", PLAIN),
    "YCCK": with_segments(encoded(PIECE.convert("CMYK")), segment(0xEE, ADOBE + b"\x02")),
    **{
        f"Adobe, transform {n}": with_segments(PLAIN, segment(0xEE, ADOBE + bytes((n,))))
        for n in (0, 1, 2, 9)
    },
    "Adobe, short": with_segments(PLAIN, segment(0xEE, b"Adobe")),
    "JFIF, short": with_segments(PLAIN, segment(0xE0, b"JFIF\0")),
    "JFIF of another version": PLAIN.replace(b"JFIF\0\x01", b"JFIF\0\x09"),
    "color profile, short": with_segments(PLAIN, segment(0xE2, ICC)),
    "color profile, a part": with_segments(PLAIN, segment(0xE2, ICC + b"\x02\x03profile")),
    "Photoshop": with_segments(PLAIN, segment(0xED, b"Photoshop 3.0\0" + RESOLUTION)),
    "Photoshop, short": with_segments(PLAIN, segment(0xED, b"Photoshop 3.0\0" + RESOLUTION[:6])),
    "EXIF, damaged": with_segments(PLAIN, segment(0xE1, b"Exif\0\0II*\0\x99\0\0\0")),
    "MPF, damaged": with_segments(PLAIN, segment(0xE2, b"MPF\0II*\0" + bytes(9))),
    "an extension": with_segments(PLAIN, segment(0xF0, b"more")),
    "an unknown marker": with_segments(PLAIN, segment(0x02, b"more")),
    "bytes between segments": with_segments(PLAIN, b"bytes"),
    "a marker alone": with_segments(PLAIN, b"\xff\xd0"),
    "two frames": with_segments(PLAIN, PLAIN[PLAIN.index(b"\xff\xc0") :][:19]),
    "no rows": PLAIN.replace(struct.pack(">BHH", 8, *PIECE.size[::-1]), b"\x08\0\0\0\xe7"),
    "table, short": with_segments(PLAIN, segment(0xDB, bytes(40))),
    "no end": PLAIN[:-2],
    "header alone": PLAIN[: PLAIN.index(b"\xff\xda")],
    "half a header": PLAIN[:90],
    "half a segment": PLAIN[:3],
    "nothing": b"\xff\xd8\xff",
    "the middle left out": PLAIN[:3000] + PLAIN[4000:],
}
SAMPLINGS = {
    f"{name}, {size}{', progressive' if progressive else ''}": encoded(
        PIECE.resize(size), subsampling=number, progressive=progressive, quality=88
    )
    for number, name in enumerate(("4:4:4", "4:2:2", "4:2:0"))
    for size in ((61, 47), (64, 48), (1, 1), (17, 1), (200, 9))
    for progressive in (False, True)
}
CLEAN = GOOD | SAMPLINGS
HERE = Path(__file__).parent


def outcome(file: bytes, channels: int) -> np.ndarray | str:
    """Pixels, or the reason of a refusal."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return decode_pixels(file, "picture", channels=channels).pixels
        except BadImageError as error:
            return error.image.reason


def assert_as_by_pillow(file: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same pixels or the same refusal with simplejpeg and without; `check` with the same
    verdict."""
    for channels in (1, 3):
        ours = outcome(file, channels)
        with monkeypatch.context() as patch:
            patch.setattr(jpeg, "simplejpeg", lambda: None)
            pillow = outcome(file, channels)
        assert type(ours) is type(pillow), (ours, pillow)
        np.testing.assert_array_equal(ours, pillow)
        if isinstance(ours, np.ndarray):
            assert ours.flags.c_contiguous
            assert ours.shape[2] == channels
    try:
        found = check(file, "picture")[:2]
    except BadImageError as error:
        found = error.image.reason
    assert found == (ours if isinstance(ours, str) else ours.shape[:2])


@pytest.mark.parametrize("name", [*CLEAN, *ODD])
def test_pixels_and_refusals_are_those_of_pillow(name: str, monkeypatch):
    assert_as_by_pillow((CLEAN | ODD)[name], monkeypatch)


@pytest.mark.parametrize("name", [name for name in (*SHORT, *WHOLE) if "jpeg" in name])
def test_half_images_are_refused_as_by_pillow(name: str, monkeypatch):
    assert_as_by_pillow((SHORT | WHOLE)[name], monkeypatch)


@pytest.mark.parametrize(("kind", "damage"), FAMILIES)
def test_damaged_files_are_decoded_or_refused_as_by_pillow(kind: str, damage, monkeypatch):
    for file in damaged(kind, damage, 12):
        assert_as_by_pillow(file, monkeypatch)


def test_cut_files_are_refused_as_by_pillow(monkeypatch):
    for file in (PLAIN, encoded(PIECE, progressive=True), encoded(PIECE.convert("L"))):
        for share in np.linspace(0.001, 0.999, 30):
            assert_as_by_pillow(jpeg_cut(file, share), monkeypatch)
            assert_as_by_pillow(file[: int(len(file) * share)], monkeypatch)


def test_damaged_headers_are_decoded_or_refused_as_by_pillow(monkeypatch):
    generator = np.random.default_rng(3)
    for file in (PLAIN, ODD["Photoshop"], CLEAN["color profile"], CLEAN["progressive"]):
        for _ in range(60):
            changed = bytearray(file)
            scan = file.index(b"\xff\xda")
            changed[int(generator.integers(2, min(scan, 700)))] = int(generator.integers(256))
            assert_as_by_pillow(bytes(changed), monkeypatch)


def test_a_photograph_is_decoded_without_pillow(monkeypatch):
    monkeypatch.setattr("barlow_fast.data.decoding._open", None)
    for name in ("subsampling 0", "progressive", "gray", "thumbnail", "color profile", "restarts"):
        assert decode_pixels(CLEAN[name], name).pixels.shape == (179, 231, 3)


def test_the_limit_of_pixels_is_that_of_the_header(monkeypatch):
    assert decode_pixels(PLAIN, "x", max_pixels=179 * 231).height == 179
    with pytest.raises(BadImageError, match="179 x 231 pixels, more than 41348"):
        decode_pixels(PLAIN, "x", max_pixels=179 * 231 - 1)
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", 100)
    monkeypatch.setattr("barlow_fast.data.decoding.WARNED_PIXELS", 100)
    with pytest.raises(BadImageError, match="more than the 200 pixels that PIL opens"):
        decode_pixels(PLAIN, "x")


def runs_beside(work) -> bool:
    """Whether this thread runs while another one is inside of `work`: with a switch interval of a
    quarter of an hour only one that releases the interpreter's lock lets others run."""
    begun, done = threading.Event(), []

    def thread() -> None:
        begun.set()
        work()
        done.append(True)

    before = sys.getswitchinterval()
    worker = threading.Thread(target=thread)
    sys.setswitchinterval(1000)
    try:
        worker.start()
        begun.wait()
        return not done
    finally:
        sys.setswitchinterval(before)
        worker.join()


def test_decoding_releases_the_interpreters_lock():
    file = encoded(photograph(0).resize((3000, 2000)))
    assert runs_beside(lambda: decode_pixels(file, "large"))
    assert not runs_beside(lambda: sum(range(300_000)))


# ---- suspect images


def damaged_in_three_places(file: bytes, generator: np.random.Generator, whole: bool) -> bytes:
    """Three bits, or all bits of three bytes, flipped in the data of the last scan."""
    changed, scan = bytearray(file), file.rindex(b"\xff\xda") + 14
    for at in generator.integers(scan, len(file) - 2, 3):
        changed[at] ^= 0xFF if whole else 1 << int(generator.integers(8))
    return bytes(changed)


@pytest.mark.parametrize(("whole", "least"), [(False, 50), (True, 80)])
def test_most_files_with_flipped_bits_are_suspect(whole: bool, least: int):
    generator = np.random.default_rng(0)
    suspect = accepted = 0
    for _ in range(100):
        image = photograph(int(generator.integers(3))).crop((20, 20, 486, 391))
        file = damaged_in_three_places(encoded(image, quality=95), generator, whole)
        try:
            warning = decode_pixels(file, "picture").warning
        except BadImageError:
            continue
        accepted += 1
        suspect += bool(warning)
        assert not warning or warning.startswith(("Corrupt JPEG data", "Premature end"))
        assert check(file, "picture").warning == warning
    assert accepted > 80
    assert suspect > least


@pytest.mark.parametrize("name", list(CLEAN))
def test_no_clean_file_is_suspect(name: str):
    assert decode_pixels(CLEAN[name], name).warning == ""
    assert check(CLEAN[name], name).warning == ""


def test_what_this_build_cannot_decode_is_not_suspect(monkeypatch):
    def refuse(*args: object, **options: object) -> None:
        raise ValueError("Unsupported")

    monkeypatch.setattr(simplejpeg, "decode_jpeg", refuse)
    assert decode_pixels(PLAIN, "x").warning == ""
    assert check(PLAIN, "x") == (179, 231, "")


@pytest.fixture
def suspicious(tmp_path: Path) -> FolderSource:
    """Twelve images, of which number 3 and 7 are suspect and 5 is bad."""
    generator = np.random.default_rng(1)
    folder = tmp_path / "in" / "a"
    folder.mkdir(parents=True)
    for number in range(12):
        file = PLAIN
        while number in (3, 7) and not (file != PLAIN and verdict(file) == "suspect"):
            file = damaged_in_three_places(PLAIN, generator, True)
        (folder / f"{number:02}.jpg").write_bytes(b"none" if number == 5 else file)
    return FolderSource(tmp_path / "in")


def verdict(file: bytes) -> str:
    try:
        return "suspect" if decode_pixels(file, "x").warning else "clean"
    except BadImageError:
        return "bad"


VIEWS = Views("crops", (cropping(16), cropping(16)), MEAN, STD)
LOADERS = ["pil", pytest.param("dali", marks=pytest.mark.skipif(
    dali.why_unusable() is not None, reason="DALI is not usable here"))]  # fmt: skip


@pytest.mark.parametrize("loader", LOADERS)
def test_loaders_name_suspect_images_and_strict_leaves_them_out(suspicious, loader: str, caplog):
    for policy, left_out in (("skip", {5}), ("strict", {3, 5, 7})):
        caplog.clear()
        with (
            caplog.at_level(logging.WARNING, "barlow_fast.data"),
            ViewLoader(
                suspicious, VIEWS, 4, loader=loader, workers=1, on_bad_image=policy
            ) as batches,
        ):
            for _ in range(2):
                seen = [index for batch in batches for index in batch.index.tolist()]
                assert sorted(seen) == sorted(set(range(12)) - left_out)
            assert [bad.index for bad in batches.bad_images] == [5]
            assert sorted(bad.index for bad in batches.suspect_images) == [3, 7]
            assert "2 images that were decoded with a warning" in batches.suspects
        # Each once in two epochs.
        reports = [record.getMessage() for record in caplog.records]
        start = "left out, since suspect: " if policy == "strict" else "suspect: "
        named = [text for text in reports if text.startswith(start)]
        assert len(named) == 2
        assert all("Corrupt JPEG data" in text for text in named)


@pytest.mark.parametrize("loader", LOADERS)
def test_suspect_images_are_used_under_the_policy_error(suspicious, loader: str):
    (Path(suspicious.root) / "a/05.jpg").write_bytes(PLAIN)
    with ViewLoader(suspicious, VIEWS, 12, loader=loader, workers=1) as batches:
        (batch,) = batches
        assert len(batch.index) == 12
        assert len(batches.suspect_images) == 2


def test_a_batch_of_suspect_images_alone_is_an_error_under_strict(suspicious):
    for number in range(12):
        path = Path(suspicious.root) / f"a/{number:02}.jpg"
        path.write_bytes((Path(suspicious.root) / "a/03.jpg").read_bytes())
    with (
        ViewLoader(suspicious, VIEWS, 4, workers=0, on_bad_image="strict") as batches,
        pytest.raises(BadImageError, match="Corrupt JPEG data"),
    ):
        next(iter(batches))


def test_check_pack_and_evaluation_name_them(suspicious, tmp_path: Path):
    run = CliRunner().invoke
    output = run(app, ["data", "check", suspicious.name])
    assert output.exit_code == 1
    assert "1 of 12 images cannot be read" in output.output
    assert "2 more suspect: decoded with a warning" in output.output
    assert output.output.count("suspect: Corrupt JPEG data") == 2
    for policy, packed in (("skip", "11 images (0 resized, 1 left out, 2 suspect)"),
                           ("strict", "9 images (0 resized, 3 left out)")):  # fmt: skip
        target = str(tmp_path / policy)
        output = run(app, ["data", "pack", suspicious.name, target, "--on-bad-image", policy])
        assert packed in output.output
    for policy, left_out in (("skip", {5}), ("strict", {3, 5, 7})):
        record = BadImages(policy)
        reading = Reading(workers=0, on_bad_image=record)
        found = pictures(suspicious, ImageFormat(16), reading)
        assert sum(len(part.labels) for part in found) == 12 - len(left_out)
        assert sorted(bad.index for bad in record.suspects) == [3, 7]
    (Path(suspicious.root) / "a/05.jpg").write_bytes(PLAIN)
    output = run(app, ["data", "check", suspicious.name])
    assert output.exit_code == 0


def test_without_simplejpeg_none_is_suspect(suspicious, monkeypatch):
    monkeypatch.setattr(jpeg, "simplejpeg", lambda: None)
    output = CliRunner().invoke(app, ["data", "check", suspicious.name]).output
    assert "1 of 12 images cannot be read" in output
    assert "suspect:" not in output
    assert "without simplejpeg" in output


def test_a_missing_library_is_no_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "simplejpeg", None)
    assert jpeg.simplejpeg.__wrapped__() is None


def test_the_ranks_learn_of_each_others_suspects(suspicious, caplog):
    one, other = BadImages("skip"), BadImages("skip")
    found = [suspicious.pixels(3), suspicious.pixels(7)]
    assert all(isinstance(each, Decoded) and each.warning for each in found)
    with ViewLoader(suspicious, VIEWS, 12, workers=0, on_bad_image=one) as batches:
        list(batches)
    caplog.clear()
    sent: list = []
    one.share(lambda images: sent.append(images) or [images])
    other.share(lambda images: [images, sent[0]])
    assert other.suspects == one.suspects
    assert other.images == one.images
    one.share(lambda images: sent.append(images) or [images])
    assert sent[1] == []
    with caplog.at_level(logging.WARNING, "barlow_fast.data"):
        assert other.add(one.images[0])
        assert not other.add(one.suspects[0])
    assert caplog.records == []


# ---- decoding at reduced scale


@pytest.mark.parametrize("divisor", jpeg.REDUCTIONS)
@pytest.mark.parametrize("name", ["4:2:0, (64, 48)", "4:4:4, (61, 47), progressive", "gray", "CMYK",
                                  "two pictures"])  # fmt: skip
def test_reduced_pixels_are_those_of_pillow(name: str, divisor: int, monkeypatch):
    sizes = []

    def reduce(height: int, width: int) -> int:
        sizes.append((height, width))
        return divisor

    ours = decode_pixels(CLEAN[name], name, reduce=reduce)
    monkeypatch.setattr(jpeg, "simplejpeg", lambda: None)
    pillow = decode_pixels(CLEAN[name], name, reduce=reduce)
    np.testing.assert_array_equal(ours.pixels, pillow.pixels)
    height, width = sizes[0]
    assert ours[1:] == pillow[1:] == (height, width, divisor, "")
    assert ours.pixels.shape == (-(-height // divisor), -(-width // divisor), 3)


def test_other_formats_and_arrays_are_not_reduced():
    image = pixels(24, 36)
    for decoded in (
        decode_pixels(encode(image), "x", reduce=lambda *_: 8),
        ArraySource(image[None]).pixels(0, reduce=lambda *_: 8),
    ):
        assert decoded.reduction == 1
        np.testing.assert_array_equal(decoded.pixels, image)


def test_no_view_is_enlarged_more_than_without():
    generator = np.random.default_rng(0)
    view = cropping(48)
    reductions = set()
    for sample in range(400):
        height, width = generator.integers(20, 2000, 2).tolist()
        found = np.concatenate(
            [
                windows(draw(view, 0, 0, np.array([sample]), number), view, height, width)
                for number in (0, 1)
            ]
        )
        divisor = reduction(found, [(48, 48), (48, 48)])
        reductions.add(divisor)
        cut = reduced(found, divisor)
        if divisor > 1:
            assert (cut[:, 2:] >= MARGIN * 48).all()
        assert (cut[:, :2] >= 0).all()
        assert (cut[:, 0] + cut[:, 2] <= -(-height // divisor)).all()
        assert (cut[:, 1] + cut[:, 3] <= -(-width // divisor)).all()
        # Edges are moved by half a reduced pixel at most.
        for edges in (lambda at: at[:, :2], lambda at: at[:, :2] + at[:, 2:]):
            assert np.abs(edges(cut) * divisor - edges(found)).max() <= divisor / 2
        # The largest: twice as much would be too much.
        if divisor < 8:
            assert (reduced(found, 2 * divisor)[:, 2:] < MARGIN * 48).any()
    assert reductions == set(jpeg.REDUCTIONS)
    np.testing.assert_array_equal(reduced(found, 1), found)


@pytest.fixture
def large(tmp_path: Path) -> FolderSource:
    folder = tmp_path / "large"
    folder.mkdir()
    for number in range(4):
        file = encoded(photograph(number % 3).resize((1100, 900)), quality=90)
        (folder / f"{number}.jpg").write_bytes(file)
    return FolderSource(folder)


def crops(source: FolderSource, views: Views) -> list[np.ndarray]:
    with ViewLoader(source, views, len(source), workers=0) as batches:
        (batch,) = batches
    return [(view.numpy() * 0.25 + 0.5) * 255 for view in batch.views]


def test_reduced_views_show_the_same_windows(large):
    views = replace(VIEWS, views=(cropping(64),) * 2, mean=(0.5,) * 3, std=(0.25,) * 3)
    full, small = (crops(large, each) for each in (views, replace(views, reduced_decoding=True)))
    for view, other in zip(full, small, strict=True):
        assert 0 < np.abs(view - other).mean() < 3
    # A window that is shown as it is leaves nothing to reduce.
    whole = replace(views, views=(cropping((900, 1100)),))
    np.testing.assert_array_equal(
        crops(large, whole)[0], crops(large, replace(whole, reduced_decoding=True))[0]
    )


def test_reduced_decoding_belongs_to_a_runs_identity(large):
    reduced_views = replace(VIEWS, reduced_decoding=True)
    with (
        ViewLoader(large, VIEWS, 2, workers=0) as one,
        ViewLoader(large, reduced_views, 2, workers=0) as other,
    ):
        with pytest.raises(ValueError, match="fingerprint of the views"):
            other.load_state_dict(one.state_dict())
        other.load_state_dict(other.state_dict())


def test_reduced_decoding_is_for_files_and_not_for_dali(large):
    views = replace(VIEWS, reduced_decoding=True)
    with pytest.raises(ValueError, match="reduced_decoding is for files"):
        ViewLoader(ArraySource(pixels(24, 36)[None]), views, 1)
    with pytest.raises(ValueError, match="DALI decodes whole images"):
        ViewLoader(large, views, 2, loader="dali")


def test_evaluation_reduces_to_no_less_than_it_needs(large):
    full = CentreCrop(large, (112, 112), 3)(0).pixels
    small = CentreCrop(large, (112, 112), 3, reduced_decoding=True)(0).pixels
    assert 0 < np.abs(full.astype(int) - small).mean() < 3
    wide = CentreCrop(large, (400, 400), 3)
    np.testing.assert_array_equal(wide(1).pixels, replace(wide, reduced_decoding=True)(1).pixels)


# ---- packing


def test_pack_limits_the_longer_side(large, tmp_path: Path):
    (Path(large.root) / "small.jpg").write_bytes(PLAIN)
    (Path(large.root) / "strip.png").write_bytes(encode(pixels(2, 900)))
    source = FolderSource(large.root)
    assert pack(source, tmp_path / "out", max_side=300, workers=0).resized == 5
    shards = ShardSource(tmp_path / "out")
    assert shards.sizes(np.arange(6)).tolist() == [[245, 300]] * 4 + [[179, 231], [1, 300]]
    assert shards.encoded(4) == PLAIN
    expected = source.image(0).resize((300, 245), Image.Resampling.LANCZOS)
    assert shards.encoded(0) == encoded(expected, quality=95)
    pack(source, tmp_path / "both", max_side=300, size=200, workers=0)
    sizes = ShardSource(tmp_path / "both").sizes(np.arange(6))
    assert sizes.tolist() == [[200, 244]] * 4 + [[179, 231], [1, 300]]
