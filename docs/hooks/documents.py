"""What the hooks share: the repository's documents, their sections, and the pages they became."""

import re
from pathlib import Path

from mkdocs.exceptions import PluginError

ROOT = Path(__file__).resolve().parents[2]
FENCE = re.compile(r"^ {0,3}(```|~~~)")

# Path in the repository -> page of the site.
page_of_source: dict[str, str] = {}


def headings(text):
    """(line number, level, title) of every heading outside of fences."""
    fenced = False
    for number, line in enumerate(text.splitlines()):
        if FENCE.match(line):
            fenced = not fenced
        elif not fenced and (found := re.match(r"(#{1,6}) +(.+)", line)):
            yield number, len(found[1]), found[2].strip()


def section(text, title, path):
    """The lines below the heading `title`, up to the next heading of its level or above."""
    found = list(headings(text))
    start = next(((n, level) for n, level, name in found if name == title), None)
    if start is None:
        known = [name for _, _, name in found]
        raise PluginError(f"{path} has no heading {title!r}; it has {known}")
    lines = text.splitlines()
    end = next((n for n, level, _ in found if n > start[0] and level <= start[1]), len(lines))
    return "\n".join(lines[start[0] + 1 : end]).strip()


def without_title(text):
    first = next(headings(text), None)
    if first is None or first[1] != 1:
        return text
    return "\n".join(text.splitlines()[first[0] + 1 :]).strip()
