"""A sheet of originals and their views (`barlow-fast data show`)."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..files import check_output, is_inside, write_whole
from ..kernels.photometry import ORDERS
from ..terminal import printable
from . import fonts
from .decoding import picture, pillow
from .faults import BadImage, BadImageError
from .order import order
from .presets import Views
from .render import photometric_kernel
from .rendering.arrays import ArrayRenderer
from .rendering.threads import ThreadRenderer
from .sources import ArraySource, Source
from .views import ViewParameters, ViewSpecification, draw
from .windows import windows

if TYPE_CHECKING:
    from PIL import Image, ImageDraw, ImageFont

MOST = 64

# All in pixels of the sheet.
TILE, GAP, MARGIN, TEXT = 176, 10, 92, 10
LINE = TEXT + 3
PER_BLOCK = 8
NARROWEST = 520  # what the legend needs

BACKGROUND, INK, FAINT = (255, 255, 255), (20, 20, 20), (110, 110, 110)
# One per view: the frame on the original and around the view. Distinct for the colour-blind too.
FRAMES = ((0, 114, 178), (230, 159, 0), (0, 158, 115), (204, 121, 167))

LETTERS = "bcsh"  # brightness, contrast, saturation, hue
LEGEND = (
    "crop: width x height at left, top; b brightness, c contrast, s saturation, h hue, "
    "in the order of their use"
)

PNG_START = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Shown:
    """One sample of a sheet."""

    index: int
    original: Image.Image  # as large as it is shown
    size: tuple[int, int]  # width and height that it had
    frames: list[tuple[int, int, int, int] | None]  # top, left, height, width; None: warped
    views: list[Image.Image]
    texts: list[list[str]]  # lines per view


def sheet(
    source: Source, views: Views, count: int = 8, *, seed: int = 0, epoch: int = 0
) -> tuple[Image.Image, list[BadImage]]:
    """The first samples of an epoch, each with its views before mean and deviation are taken
    out.

    A column per sample; rows are labelled: the original with the frames of its views, then each
    view with what was drawn for it.

    Args:
        source: of the images.
        views: what is drawn.
        count: samples, 1 to `MOST`; all when the source has fewer.
        seed, epoch: as in training.

    Returns:
        (the sheet, RGB; the images that could not be read, which it lacks).

    Raises:
        ValueError: a number out of its range, views that this source cannot show.
        BadImageError: none of the samples can be read.
        ModuleNotFoundError: Pillow is missing.
    """
    if not 1 <= count <= MOST:
        raise ValueError(f"count must be in [1, {MOST}], got {count}")
    pillow()
    samples = order(seed, epoch, len(source))[:count]
    shown, bad = _rendered(source, views, samples, seed, epoch)
    if not shown:
        raise BadImageError(bad[0])
    title = f"{views.name}, seed {seed}, epoch {epoch}: {source.name}"
    return _drawn(source, title, shown), bad


def check_sheet(path: Path, source: Source | None = None, option: str = "") -> None:
    """Whether a sheet can be written there.

    Args:
        path: the file.
        source: the images of the sheet, which it must not be among.
        option: names the file in messages.

    Raises:
        ValueError: a name that does not end in .png, a file in the folder of the images, and as
            `check_output`.
    """
    called = f"{option} {printable(str(path))}".lstrip()
    if path.suffix.lower() != ".png":
        raise ValueError(f"{called}: the sheet is a PNG: give a name that ends so")
    root = getattr(source, "root", None)
    if root is not None and is_inside(path, root):
        raise ValueError(
            f"{called} lies in the folder of the images, {source.name}, and would be one of them: "
            "choose another folder"
        )
    check_output(path, PNG_START, option=option)


def write_sheet(path: Path, image: Image.Image) -> None:
    """Writes a sheet as PNG, whole or not at all.

    Raises:
        ValueError: see `check_sheet`.
        OSError: it cannot be written.
    """
    check_sheet(path)
    stream = io.BytesIO()
    image.save(stream, "PNG")
    write_whole(path, stream.getvalue())


def _rendered(
    source: Source, views: Views, samples: np.ndarray, seed: int, epoch: int
) -> tuple[list[Shown], list[BadImage]]:
    kind = ArrayRenderer if isinstance(source, ArraySource) else ThreadRenderer
    renderer = kind(source, views, seed=seed)
    renderer.submit(epoch, samples)
    crops, samples, bad = renderer.receive()
    renderer.close()
    if not len(samples):
        return [], bad
    photometric = photometric_kernel(torch.device("cpu"))
    channels = len(views.mean)
    zero, one = (f(channels, device="cpu") for f in (torch.zeros, torch.ones))
    pictures = []
    for number, (specification, pixels) in enumerate(zip(views.views, crops, strict=True)):
        parameters = draw(specification, seed, epoch, samples, number)
        rows = torch.from_numpy(parameters.photometric_rows(*pixels.shape[1:3]))
        finished = photometric(pixels, rows, zero, one, torch.float32)
        levels = (finished * 255).round().clamp(0, 255).to(torch.uint8)
        pictures.append(levels.permute(0, 2, 3, 1).contiguous().numpy())
    shown = []
    for row, index in enumerate(samples.tolist()):
        original = source.image(index).convert("RGB")
        frames, texts = [], []
        for number, specification in enumerate(views.views):
            mine = draw(specification, seed, epoch, samples[row : row + 1], number)
            frame = None
            if not specification.warped:
                frame = tuple(
                    windows(mine, specification, original.height, original.width)[0].tolist()
                )
            frames.append(frame)
            texts.append(describe(specification, mine, frame))
        images = [picture(view[row]).convert("RGB") for view in pictures]
        shown.append(Shown(index, _fitted(original), original.size, frames, images, texts))
    return shown, bad


def describe(
    specification: ViewSpecification,
    parameters: ViewParameters,
    frame: tuple[int, int, int, int] | None,
) -> list[str]:
    """What one view's parameters do to it, in short lines, in the order in which it is done.

    Args:
        specification: of the view.
        parameters: one row.
        frame: top, left, height, width in pixels of the image; None: the view is warped.
    """
    p = parameters
    if frame is not None:
        top, left, height, width = frame
        lines = [f"crop {width} x {height} at {left}, {top}"]
    else:
        lines = [
            f"crop {p.width[0]:.0%} x {p.height[0]:.0%}",
            f"turn {np.rad2deg(p.rotation[0]):+.0f}°, "
            f"shear {np.rad2deg(np.arctan(p.shear[0])):+.0f}°",
        ]
    if p.flip[0]:
        lines.append("mirrored")
    if specification.jitters and p.order[0] < 0:
        lines.append("colours kept")
    elif specification.jitters:
        values = (p.brightness[0], p.contrast[0], p.saturation[0], p.hue[0])
        words = [
            f"h {value:+.2f}" if which == 3 else f"{LETTERS[which]} {value:.2f}"
            for which, value in ((which, values[which]) for which in ORDERS[int(p.order[0])])
            if value != (0 if which == 3 else 1)
        ]
        lines.append(", ".join(words))
    effects = []
    if p.grayscale[0]:
        effects.append("gray")
    if p.blur_sigma[0] > 0:
        effects.append(f"blur {p.blur_sigma[0]:.2f}")
    if p.solarize[0]:
        effects.append(f"solarized at {int(p.solarize_threshold[0])}")
    if p.erase_side[0] > 0:
        effects.append(f"erased {p.erase_side[0]:.0%}")
    if effects:
        lines.append(", ".join(effects))
    return lines


def _drawn(source: Source, title: str, shown: list[Shown]) -> Image.Image:
    from PIL import ImageDraw

    names = [f"{source.identity(each.index)}{_class(source, each.index)}" for each in shown]
    described = [line for each in shown for texts in each.texts for line in texts]
    font, escaped = _font("".join([title, *names, *described]))
    columns = min(PER_BLOCK, len(shown))
    blocks = [shown[i : i + columns] for i in range(0, len(shown), columns)]
    # As tall as the longest text of each row needs.
    lines = [2] + [max(len(s.texts[v]) for s in shown) for v in range(len(shown[0].views))]
    heights = [TILE + LINE * n + GAP for n in lines]
    top = GAP + 2 * LINE + GAP
    width = max(NARROWEST, MARGIN + columns * (TILE + GAP))
    canvas = pillow().new("RGB", (width, top + len(blocks) * (sum(heights) + GAP)), BACKGROUND)
    pen = ImageDraw.Draw(canvas)
    pen.text((GAP, GAP), _short(pen, font, escaped(title), width - 2 * GAP), INK, font)
    pen.text((GAP, GAP + LINE), LEGEND, FAINT, font)
    y = top
    for block in blocks:
        for row, height in enumerate(heights):
            _label(pen, font, row, y)
            for column, sample in enumerate(block):
                x = MARGIN + column * (TILE + GAP)
                if row == 0:
                    _original(canvas, pen, sample, x, y)
                    identity = escaped(source.identity(sample.index))
                    name = escaped(_class(source, sample.index))
                    text = [_short(pen, font, line, TILE) for line in (identity, name)]
                else:
                    tile = _fitted(sample.views[row - 1])
                    canvas.paste(tile, (x, y))
                    edge = (x - 1, y - 1, x + tile.width, y + tile.height)
                    pen.rectangle(edge, outline=FRAMES[(row - 1) % len(FRAMES)])
                    text = map(escaped, sample.texts[row - 1])
                for number, line in enumerate(text):
                    pen.text((x, y + TILE + 1 + LINE * number), line, FAINT, font)
            y += height
        y += GAP
    return canvas


def _label(pen: ImageDraw.ImageDraw, font: ImageFont.ImageFont, row: int, y: int) -> None:
    text = "original" if row == 0 else f"view {row}"
    colour = INK if row == 0 else FRAMES[(row - 1) % len(FRAMES)]
    pen.text((GAP, y + TILE // 2), text, colour, font)


def _original(canvas: Image.Image, pen: ImageDraw.ImageDraw, sample: Shown, x: int, y: int) -> None:
    """The original and, in the colours of the views, the windows that they show."""
    tile = sample.original
    canvas.paste(tile, (x, y))
    across, down = tile.width / sample.size[0], tile.height / sample.size[1]
    for number, frame in enumerate(sample.frames):
        if frame is None:
            continue
        top, left, height, width = frame
        # At least one pixel, of a window that is smaller than that on the tile.
        x0 = x + min(round(left * across), tile.width - 1)
        y0 = y + min(round(top * down), tile.height - 1)
        x1 = max(x + round((left + width) * across) - 1, x0)
        y1 = max(y + round((top + height) * down) - 1, y0)
        pen.rectangle((x0, y0, x1, y1), outline=FRAMES[number % len(FRAMES)])


def _fitted(image: Image.Image) -> Image.Image:
    """As large as fits into a tile. Small images keep their pixels visible."""
    scale = TILE / max(image.size)
    size = tuple(max(1, round(side * scale)) for side in image.size)
    resampling = pillow().Resampling
    return image.resize(size, resampling.NEAREST if scale > 1 else resampling.LANCZOS)


def _short(pen: ImageDraw.ImageDraw, font: ImageFont.ImageFont, text: str, width: int) -> str:
    """The end of a text, as much as fits."""
    if pen.textlength(text, font) <= width:
        return text
    while text and pen.textlength("..." + text, font) > width:
        text = text[1:]
    return "..." + text


def _font(text: str) -> tuple[ImageFont.ImageFont, Callable[[str], str]]:
    """A font for a text, and what makes a part of it drawable with that font."""
    from PIL import ImageFont

    # Pillow's own font has no more than ASCII.
    other = "".join(c for c in text if not c.isascii())
    best = fonts.best_for(other) if other else None
    if best is not None and any(fonts.has(best, c) for c in other):
        with contextlib.suppress(ImportError, OSError):  # built without FreeType, or of one size
            font = ImageFont.truetype(best.fname, TEXT)
            return font, lambda part: fonts.drawable(part, lambda c: fonts.has(best, c))
    try:
        font = ImageFont.load_default(TEXT)
    except (ImportError, TypeError):  # built without FreeType, or older than its sizes
        font = ImageFont.load_default()
    return font, lambda part: fonts.drawable(part, str.isascii)


def _class(source: Source, index: int) -> str:
    label = source.label(index)
    if label < 0:
        return ""
    name = f" {source.classes[label]}" if source.classes else ""
    return f"class {label}{name}"
