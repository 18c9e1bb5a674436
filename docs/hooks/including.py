"""A document lives once, beside the code it describes; pages include it when the site is built.

A line `<!-- include: kernels/README.md -->` stands for that file without its first heading, and
`<!-- include: CONTRIBUTING.md # Environment variables -->` for one section of it. Where the name of
an included file is written as code (`kernels/README.md`), it becomes a link to its page.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.exceptions import PluginError

ROOT = Path(__file__).resolve().parents[2]
MARKER = re.compile(r"^<!-- include: (?P<path>[\w./-]+)(?: # (?P<heading>.+?))? -->$", re.M)
FENCE = re.compile(r"^ {0,3}(```|~~~)")
COMMENT = re.compile(r"^<!--.*-->\n?", re.M)

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


def included(found):
    path, heading = ROOT / found["path"], found["heading"]
    if not path.is_file():
        raise PluginError(f"included file {found['path']} does not exist")
    text = path.read_text(encoding="utf-8")
    text = section(text, heading, found["path"]) if heading else without_title(text)
    return COMMENT.sub("", text)


def linked(text, page):
    """Names of included files, written as code outside of fences, as links to their pages."""

    def link(found):
        target = page_of_source.get(found[1])
        if target is None or target == page:
            return found[0]
        return f"[{found[0]}]({posixpath.relpath(target, posixpath.dirname(page) or '.')})"

    lines, fenced = [], False
    for line in text.splitlines():
        if FENCE.match(line):
            fenced = not fenced
        code = fenced or line.startswith(("    ", "#"))
        lines.append(line if code else re.sub(r"(?<!\[)`([\w./-]+\.md)`", link, line))
    return "\n".join(lines)


def on_files(files, config):
    page_of_source.clear()
    for file in files.documentation_pages():
        text = Path(file.abs_src_path).read_text(encoding="utf-8") if file.abs_src_path else ""
        for found in MARKER.finditer(text):
            if found["heading"] is None:
                page_of_source[found["path"]] = file.src_uri
    return files


def on_page_markdown(markdown, page, config, files):
    return linked(MARKER.sub(included, markdown), page.file.src_uri)


def on_serve(server, config, builder):
    for path in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", *page_of_source):
        server.watch(str(ROOT / path))
    return server
