"""Fonts for the names of files and classes in pictures. A character that no installed font has is
written as an escape: fonts show an empty box for it, the same one for all."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.ft2font import FT2Font

# The first comes with matplotlib. The others have Chinese, Japanese and Korean, and emoji.
FAMILIES = (
    "DejaVu Sans",
    "Noto Sans CJK JP",
    "Noto Sans CJK SC",
    "Noto Sans CJK KR",
    "Source Han Sans",
    "WenQuanYi Zen Hei",
    "WenQuanYi Micro Hei",
    "Droid Sans Fallback",
    "IPAGothic",
    "Hiragino Sans",
    "PingFang SC",
    "Apple SD Gothic Neo",
    "Microsoft YaHei",
    "Yu Gothic",
    "Malgun Gothic",
    "Arial Unicode MS",
    "Noto Emoji",
    "Segoe UI Emoji",
    "Symbola",
)


@functools.cache
def installed() -> dict[str, FT2Font]:
    """The fonts of `FAMILIES` that are here, by family; none without matplotlib."""
    try:
        from matplotlib import font_manager
        from matplotlib.ft2font import FT2Font
    except ImportError:
        return {}
    present = {entry.name for entry in font_manager.fontManager.ttflist}
    return {
        family: FT2Font(font_manager.findfont(family)) for family in FAMILIES if family in present
    }


def has(font: FT2Font, character: str) -> bool:
    """Whether a font has a picture of the character."""
    return font.get_char_index(ord(character)) != 0


def drawable(text: str, drawn: Callable[[str], bool]) -> str:
    """The text with escapes for the characters of which `drawn` is false."""
    return "".join(c if drawn(c) else ascii(c)[1:-1] for c in text)


def best_for(text: str) -> FT2Font | None:
    """The installed font that has the most characters of a text."""
    fonts = installed().values()
    return max(fonts, key=lambda font: sum(has(font, c) for c in set(text)), default=None)
