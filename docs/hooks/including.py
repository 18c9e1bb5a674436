"""A document lives once, beside the code it describes; pages include it when the site is built.

A line `<!-- include: kernels/README.md -->` stands for that file without its first heading, and
`<!-- include: CONTRIBUTING.md # Environment variables -->` for one section of it. Where the name of
an included file or of an example is written as code (`kernels/README.md`), it becomes a link.
"""

import posixpath
import re
from pathlib import Path

from documents import FENCE, ROOT, page_of_source, section, without_title
from mkdocs.exceptions import PluginError

MARKER = re.compile(r"^<!-- include: (?P<path>[\w./-]+)(?: # (?P<heading>.+?))? -->$", re.M)
COMMENT = re.compile(r"^<!--.*-->\n?", re.M)


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
        lines.append(line if code else re.sub(r"(?<!\[)`([\w./-]+\.(?:md|py))`", link, line))
    return "\n".join(lines)


def on_files(files, config):
    page_of_source.clear()
    parts = {}
    for file in files.documentation_pages():
        text = Path(file.abs_src_path).read_text(encoding="utf-8") if file.abs_src_path else ""
        for found in MARKER.finditer(text):
            kind = page_of_source if found["heading"] is None else parts
            kind.setdefault(found["path"], file.src_uri)
    # The page of a whole file comes before one that holds a section of it.
    for path, page in parts.items():
        page_of_source.setdefault(path, page)
    return files


def on_page_markdown(markdown, page, config, files):
    return linked(MARKER.sub(included, markdown), page.file.src_uri)


def on_serve(server, config, builder):
    for path in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", *page_of_source):
        server.watch(str(ROOT / path))
    return server
