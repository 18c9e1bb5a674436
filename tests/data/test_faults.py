"""Decoding of every kind of file, good and bad, and what is done about the bad ones."""

from __future__ import annotations

import io
import logging
import multiprocessing
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from pictures import Image, bomb, encode, photographs, pixels
from sources import decode

from barlow_fast.data import decoding
from barlow_fast.data.decoding import header_size, read_file
from barlow_fast.data.faults import BadImage, BadImageError, BadImages
from barlow_fast.terminal import printable


def read(encoded: bytes, **options: int) -> np.ndarray:
    """Decoded pixels, seen to agree with the header."""
    image = decode(encoded, "picture", **options)
    assert image.mode == "RGB"
    assert header_size(encoded, "picture") == (image.height, image.width)
    return np.asarray(image)


def reason(encoded: bytes, **options: int) -> str:
    with pytest.raises(BadImageError) as caught:
        decode(encoded, "folder/picture.jpg", 7, **options)
    bad = caught.value.image
    assert (bad.index, bad.identity) == (7, "folder/picture.jpg")
    assert str(caught.value) == f"folder/picture.jpg: {bad.reason}"
    assert "\n" not in bad.reason
    assert " at 0x" not in bad.reason
    assert 0 < len(bad.reason) <= 200
    return bad.reason


# ---- good images


@pytest.mark.parametrize("form", ["PNG", "BMP", "TIFF", "PPM", "WEBP", "GIF", "JPEG"])
def test_formats(form: str):
    image = pixels()
    exact = {"WEBP": {"lossless": True}, "JPEG": {"quality": 95, "subsampling": 0}}
    decoded = read(encode(image, form, **exact.get(form, {})))
    error = np.abs(decoded.astype(int) - image)
    # GIF has a palette of 256 colours, JPEG rounds its coefficients.
    assert error.mean() <= {"GIF": 6, "JPEG": 1.5}.get(form, 0)


def test_photographs_decode_as_pil_has_them():
    for encoded in photographs():
        expected = np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))
        assert expected.shape == (427, 640, 3)
        np.testing.assert_array_equal(read(encoded), expected)


def test_gray_is_repeated():
    gray = pixels(channels=1)[..., 0]
    np.testing.assert_array_equal(read(encode(gray)), np.repeat(gray[..., None], 3, -1))
    assert np.ptp(read(encode(gray, "JPEG")).astype(int), axis=-1).max() == 0


def test_alpha_is_dropped_and_not_blended():
    image = pixels(channels=4)
    image[..., 3] = 10
    np.testing.assert_array_equal(read(encode(image)), image[..., :3])
    pair = np.ascontiguousarray(image[..., [0, 3]])
    np.testing.assert_array_equal(
        read(encode(Image.fromarray(pair, "LA") if pair.ndim == 2 else Image.fromarray(pair))),
        np.repeat(image[..., :1], 3, -1),
    )


@pytest.mark.parametrize("transparency", [None, 3, bytes(range(256))])
def test_palettes_are_looked_up_without_a_warning(transparency):
    image = Image.fromarray(pixels()).quantize(200)
    options = {} if transparency is None else {"transparency": transparency}
    encoded = encode(image, "PNG", **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        decoded = read(encoded)
    np.testing.assert_array_equal(decoded, np.asarray(image.convert("RGB")))


def test_one_bit_becomes_black_and_white():
    bits = pixels(channels=1)[..., 0] > 127
    decoded = read(encode(Image.fromarray(bits)))
    np.testing.assert_array_equal(decoded, np.repeat(bits[..., None] * np.uint8(255), 3, -1))


def test_cmyk_is_converted():
    image = Image.fromarray(pixels()).convert("CMYK")
    decoded = read(encode(image, "JPEG", quality=95, subsampling=0))
    error = np.abs(decoded.astype(int) - np.asarray(image.convert("RGB")))
    assert error.mean() < 2


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_and_not_clipped(form: str):
    values = np.linspace(0, 65535, 24 * 36).round().astype(np.uint16).reshape(24, 36)
    decoded = read(encode(values, form))
    expected = np.round(values / 257).astype(np.uint8)
    np.testing.assert_array_equal(decoded, np.repeat(expected[..., None], 3, -1))
    assert (decoded == 255).mean() < 0.01


def test_wide_integers_are_scaled_where_they_are_sixteen_bits_and_refused_elsewhere():
    values = np.arange(24 * 36, dtype=np.int32).reshape(24, 36) * 70
    assert read(encode(values, "TIFF")).max() == round(values.max() / 257)
    assert "outside 0 to 65535" in reason(encode(values * 9, "TIFF"))
    assert "outside 0 to 65535" in reason(encode(values - 1, "TIFF"))
    assert "floating-point" in reason(encode(values.astype(np.float32), "TIFF"))


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG"])
def test_of_an_animation_the_first_frame_is_taken(form: str):
    frames = [Image.fromarray(np.full((8, 9, 3), level, np.uint8)) for level in (40, 200)]
    options = {"lossless": True} if form == "WEBP" else {}
    encoded = encode(frames[0], form, save_all=True, append_images=frames[1:], **options)
    assert Image.open(io.BytesIO(encoded)).n_frames == 2
    np.testing.assert_array_equal(read(encoded), np.full((8, 9, 3), 40))


def test_exif_turns_nothing():
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn me by 90 degrees"
    image = pixels(24, 36)
    encoded = encode(image, "JPEG", quality=95, exif=exif)
    assert read(encoded).shape == (24, 36, 3)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "WEBP"])
def test_one_pixel(form: str):
    decoded = read(encode(np.full((1, 1, 3), 128, np.uint8), form))
    assert decoded.shape == (1, 1, 3)
    assert np.abs(decoded.astype(int) - 128).max() <= 2


# ---- bad images


@pytest.mark.parametrize("form", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM"])
@pytest.mark.parametrize("part", [0.3, 0.6, 0.9])
def test_truncated_files_are_bad_and_not_half_gray(form: str, part: float):
    noise = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    encoded = encode(noise, form)
    assert reason(encoded[: int(len(encoded) * part)])


def test_truncated_photographs_are_bad():
    for encoded in photographs():
        for part in (0.02, 0.5, 0.95):
            assert reason(encoded[: int(len(encoded) * part)])


def test_every_short_beginning_of_a_file_is_bad():
    encoded = encode(pixels(), "JPEG")
    for length in range(0, len(encoded) - 40, 7):
        assert reason(encoded[:length])


def test_damaged_bytes_decode_or_are_bad_but_never_anything_else():
    rng = np.random.default_rng(0)
    outcomes = set()
    for form in ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM"):
        good = np.frombuffer(encode(pixels(), form), np.uint8)
        for _ in range(60):
            damaged = good.copy()
            places = rng.integers(0, len(good), 6)
            damaged[places] = rng.integers(0, 256, 6)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    decode(damaged.tobytes(), "picture")
                    outcomes.add("decoded")
                except BadImageError:
                    outcomes.add("bad")
    assert outcomes == {"decoded", "bad"}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"<html>not found</html>", "none of JPEG, PNG"),
        (bytes(1000), "none of JPEG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "none of JPEG"),
        (b"\x89PNG\r\n\x1a\n", "header is damaged"),
    ],
)
def test_what_is_no_image_is_bad(content: bytes, words: str):
    assert words in reason(content)
    with pytest.raises(BadImageError, match=words):
        header_size(content, "picture")


def test_a_bomb_is_refused_from_its_header():
    assert len(bomb()) < 200
    assert "pixels" in reason(bomb())
    with pytest.raises(BadImageError, match="pixels"):
        header_size(bomb(), "picture")


def test_the_limit_of_pixels_can_be_lowered():
    encoded = encode(pixels(24, 36))
    assert read(encoded, max_pixels=24 * 36).shape == (24, 36, 3)
    assert "24 x 36" in reason(encoded, max_pixels=24 * 36 - 1)


def test_a_bomb_warning_that_is_an_error_is_a_bad_image():
    size = (10_000, 10_000)  # between PIL's warning and its error
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "pixels" in reason(bomb(*size))


def test_files_that_cannot_be_read_are_bad(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "picture.png"
    for prepare, words in ((lambda: None, "No such file"), (path.mkdir, "folder")):
        prepare()
        with pytest.raises(BadImageError, match=words) as caught:
            read_file(str(path), "picture.png", 3)
        assert caught.value.image.index == 3
    path.rmdir()
    path.write_bytes(encode(pixels()))
    assert read_file(str(path), "picture.png") == path.read_bytes()

    # Tests may run as root, whom no permission stops.
    def refuse(*args: object, **kwargs: object) -> int:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(BadImageError, match=r"picture.png: Permission denied$"):
        read_file(str(path), "picture.png")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_does_not_hang(tmp_path: Path):
    os.mkfifo(tmp_path / "picture.jpg")
    with pytest.raises(BadImageError, match="not a regular file"):
        read_file(str(tmp_path / "picture.jpg"), "picture.jpg")


def test_a_file_too_large_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(decoding, "MAX_BYTES", 10)
    (tmp_path / "picture.jpg").write_bytes(bytes(11))
    with pytest.raises(BadImageError, match="11 bytes"):
        read_file(str(tmp_path / "picture.jpg"), "picture.jpg")


def _raise_bad_image(_: int) -> None:
    raise BadImageError(BadImage(4, "a.jpg", "is empty"))


def test_the_error_survives_the_way_between_processes():
    with (
        multiprocessing.get_context("spawn").Pool(1) as pool,
        pytest.raises(BadImageError) as caught,
    ):
        pool.map(_raise_bad_image, [0])
    assert caught.value.image == BadImage(4, "a.jpg", "is empty")


def test_running_out_of_memory_is_not_the_images_fault(monkeypatch: pytest.MonkeyPatch):
    def fail(image: object) -> None:
        raise MemoryError

    monkeypatch.setattr(decoding, "_rgb", fail)
    with pytest.raises(MemoryError):
        decode(encode(pixels()), "picture")


def test_without_pillow_the_error_says_what_to_install():
    code = (
        "import sys; sys.modules['PIL'] = None\n"
        "from barlow_fast.data.decoding import decode_pixels\n"
        "try: decode_pixels(b'', 'x')\n"
        "except ModuleNotFoundError as error: print(error.name, error)"
    )
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert output.startswith("PIL image files are read with Pillow")
    assert "barlow-fast[train]" in output


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cat.jpg", "cat.jpg"),
        ("grün/猫.jpg", "grün/猫.jpg"),
        ("two\nlines.jpg", r"two\nlines.jpg"),
        (b"latin\xff.jpg", r"latin\xff.jpg"),
        ("\x1b[31mred", r"\x1b[31mred"),
        (os.fsdecode(b"latin\xff.jpg"), r"latin\xff.jpg"),
    ],
)
def test_names_are_printable(name: str | bytes, expected: str):
    assert printable(name) == expected
    assert printable(name).isprintable()


# ---- the policy


def bad(index: int) -> BadImage:
    return BadImage(index, f"{index}.jpg", "is empty")


def test_error_raises_and_skip_records_once(caplog: pytest.LogCaptureFixture):
    with pytest.raises(BadImageError, match=r"3\.jpg: is empty"):
        BadImages("error").add(bad(3))
    record = BadImages("skip")
    with caplog.at_level(logging.WARNING, "barlow_fast.data"):
        for index in (3, 5, 3):
            record.add(bad(index))
    assert record.images == [bad(3), bad(5)]
    assert record.encounters == 3
    assert [r.getMessage() for r in caplog.records] == [
        "left out: 3.jpg: is empty",
        "left out: 5.jpg: is empty",
    ]


def test_the_record_is_bounded(caplog: pytest.LogCaptureFixture):
    record = BadImages("skip", limit=2)
    with caplog.at_level(logging.WARNING, "barlow_fast.data"):
        for index in (0, 1, 0, 2, 3, 4, 4, 0):
            record.add(bad(index))
    assert record.images == [bad(0), bad(1)]
    assert record.encounters == 8
    assert len(caplog.records) == 3
    assert "more than 2" in caplog.records[-1].getMessage()


def test_another_policy_is_refused():
    with pytest.raises(ValueError, match="error, skip, strict, got 'ignore'"):
        BadImages("ignore")
