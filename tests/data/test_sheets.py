"""Sheets of images of extreme shapes, and with names in any script."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from pictures import Image, encode, pixels, write_folder

from barlow_fast.data import PRESETS, ViewLoader, fonts, show
from barlow_fast.data.faults import BadImageError
from barlow_fast.data.pack import pack
from barlow_fast.data.rendering import dali
from barlow_fast.data.show import FRAMES, GAP, LINE, MARGIN, TILE, sheet
from barlow_fast.data.sources import ArraySource, FolderSource
from barlow_fast.evaluation.images import CentreCrop
from barlow_fast.training.reporting.figures import _drawn

SHAPES = ((1, 3000), (3000, 1), (9000, 20), (20, 9000), (1, 1), (2, 3), (1, 40_000))
CAT, ROCKET = "猫", "\N{ROCKET}"


@pytest.mark.parametrize("shape", SHAPES)
def test_images_of_any_shape_are_shown_rendered_and_read(tmp_path: Path, shape, monkeypatch):
    write_folder(tmp_path, {"x.png": encode(pixels(*shape))})
    source = FolderSource(tmp_path)
    views = PRESETS["imagenet"]
    picture, bad = sheet(source, views, 1)
    assert not bad
    # A frame of each view is on the original, within its tile.
    top = GAP + 2 * LINE + GAP
    tile = np.asarray(picture)[top : top + TILE, MARGIN : MARGIN + TILE]
    assert (tile == FRAMES[1]).all(-1).any()
    for loader in ("pil", "dali"):
        if loader == "dali" and dali.why_unusable() is not None:
            continue
        with ViewLoader(source, views, 1, loader=loader, workers=0) as batches:
            assert [len(batch.index) for batch in batches] == [1]
    resized = []
    resize = Image.Image.resize
    monkeypatch.setattr(
        Image.Image, "resize", lambda self, size, *a: resized.append(size) or resize(self, size, *a)
    )
    assert CentreCrop(source, (224, 224), 3)(0).pixels.shape == (224, 224, 3)
    # Whole, the longest strip would take 8 GB.
    assert all(width * height < 10 * 256 * 256 for width, height in resized)


def test_a_strip_that_no_jpeg_holds_is_named(tmp_path: Path):
    write_folder(tmp_path / "in", {"a.png": encode(pixels()), "x.png": encode(pixels(4, 100_000))})
    source = FolderSource(tmp_path / "in")
    with pytest.raises(BadImageError, match=r"in/x\.png: "):
        pack(source, tmp_path / "out", size=3, workers=0)
    packed = pack(source, tmp_path / "out", size=3, workers=0, on_bad_image="skip")
    assert (packed.images, packed.left_out) == (1, 1)


def test_the_middle_of_a_strip_is_what_is_read(tmp_path: Path):
    strip = np.zeros((10, 4000, 3), np.uint8)
    strip[:, 1995:2005] = 200
    write_folder(tmp_path, {"x.png": encode(strip)})
    crop = CentreCrop(FolderSource(tmp_path), (10, 10), 3)(0).pixels
    np.testing.assert_array_equal(crop, np.full((10, 10, 3), 200))


def made_font(path: Path, family: str, text: str) -> Path:
    """A font whose characters are all squares, and nothing for those that it lacks."""
    builder_of = pytest.importorskip("fontTools.fontBuilder").FontBuilder
    pens = pytest.importorskip("fontTools.pens.ttGlyphPen")
    pen = pens.TTGlyphPen(None)
    pen.moveTo((100, 0))
    for corner in ((100, 700), (800, 700), (800, 0)):
        pen.lineTo(corner)
    pen.closePath()
    glyph = pen.glyph()
    names = {ord(c): f"glyph{number}" for number, c in enumerate(dict.fromkeys(text))}
    order = [".notdef", *names.values()]
    builder = builder_of(1000, isTTF=True)
    builder.setupGlyphOrder(order)
    builder.setupCharacterMap(names)
    builder.setupGlyf({**dict.fromkeys(order, glyph), ".notdef": pens.TTGlyphPen(None).glyph()})
    builder.setupHorizontalMetrics(dict.fromkeys(order, (900, 100)))
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": family, "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(path)
    return path


@pytest.fixture
def drawn(monkeypatch) -> list[str]:
    """All texts that are drawn on a sheet, none with a box for a character."""
    texts: list[str] = []
    from PIL import ImageDraw

    draw = ImageDraw.ImageDraw.text

    def record(self, place, text, color, font):
        texts.append(text)
        box = bytes(font.getmask("\U0010ffff"))
        assert not [c for c in text if bytes(font.getmask(c)) == box], text
        return draw(self, place, text, color, font)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", record)
    return texts


@pytest.fixture
def names(tmp_path: Path) -> FolderSource:
    folder = tmp_path / "i"
    write_folder(
        folder, {f"{CAT}/{ROCKET}.png": encode(pixels()), f"é/{CAT}.png": encode(pixels())}
    )
    return FolderSource(folder)


def test_what_no_font_has_is_escaped(names, drawn, monkeypatch):
    plain = {name: font for name, font in fonts.installed().items() if name == "DejaVu Sans"}
    for installed, accent in ((plain, "é"), ({}, r"\xe9")):
        monkeypatch.setattr(fonts, "installed", lambda installed=installed: installed)
        drawn.clear()
        sheet(names, PRESETS["imagenet"])
        text = "\n".join(drawn)
        for part in (
            r"class 1 \u732b",
            r"\U0001f680.png",
            accent + r"/\u732b.png",
            "class 0 " + accent,
        ):
            assert part in text, part
        assert CAT not in text


def test_degrees_are_drawn(drawn):
    sheet(ArraySource(pixels(28, 28)[None, ..., :1]), PRESETS["digits"], 1)
    assert any("turn " in text and "°" in text for text in drawn)


def test_a_font_that_has_them_is_used(names, drawn, monkeypatch, tmp_path: Path):
    from matplotlib import font_manager

    every = "".join(map(chr, range(32, 256))) + CAT
    path = made_font(tmp_path / "cats.ttf", "Source Han Sans", every)
    monkeypatch.setattr(font_manager.fontManager, "ttflist", [
        *(e for e in font_manager.fontManager.ttflist if e.name not in fonts.FAMILIES[1:]),
    ])  # fmt: skip
    font_manager.fontManager.addfont(path)
    fonts.installed.cache_clear()
    try:
        assert list(fonts.installed()) == ["DejaVu Sans", "Source Han Sans"]
        assert show._font(CAT)[0].path == str(path)
        sheet(names, PRESETS["imagenet"])
        text = "\n".join(drawn)
        assert f"class 1 {CAT}" in text
        assert rf"{CAT}/\U0001f680.png" in text
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with _drawn(tmp_path / "figure.png", f"{CAT} {ROCKET} é", (3, 2)) as figure:
                assert figure.get_suptitle() == rf"{CAT} \U0001f680 é"
                figure.canvas.draw()
    finally:
        fonts.installed.cache_clear()
