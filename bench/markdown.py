"""The Markdown that suites write, and its HTML: paragraphs, tables, lists, details, images.

Whatever is not one of these is text, and all text is escaped: rows may hold any string.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Sequence

DETAILS = re.compile(r"<details><summary>([^<>]*)</summary>")
IMAGE = re.compile(r"!\[(.*?)\]\((.*?)\)")
INLINE = (
    (re.compile(r"`([^`]+)`"), r"<code>\1</code>"),
    (re.compile(r"\*\*(\S(?:.*?\S)?)\*\*"), r"<strong>\1</strong>"),
    (re.compile(r"(?<![\w*])\*(\S(?:[^*]*?\S)?)\*(?![\w*])"), r"<em>\1</em>"),
)

Image = Callable[[str, str], str]


def table_line(cells: Sequence[str]) -> str:
    """One line of a table in Markdown."""
    return "| " + " | ".join(cells) + " |"


def to_html(text: str, image: Image) -> str:
    """HTML of a text.

    Args:
        text: in the Markdown of the suites; blocks are separated by empty lines.
        image: (alternative text, source) -> HTML of an image that stands alone.
    """
    parts, depth = [], 0
    for block in re.split(r"\n\s*\n", text.strip()):
        lines = block.splitlines()
        if opened := DETAILS.fullmatch(block.strip()):
            parts.append(f"<details><summary>{html.escape(opened[1])}</summary>")
            depth += 1
        elif block.strip() == "</details>":
            parts += ["</details>"] * (depth > 0)
            depth -= depth > 0
        elif found := IMAGE.fullmatch(block.strip()):
            parts.append(image(found[1], found[2]))
        elif len(lines) > 1 and lines[0].startswith("|") and _is_rule(lines[1]):
            parts.append(_table(lines))
        elif all(line.startswith("- ") for line in lines):
            items = "".join(f"<li>{inline(line[2:])}</li>" for line in lines)
            parts.append(f"<ul>{items}</ul>")
        else:
            parts.append(f"<p>{inline(' '.join(lines))}</p>")
    return "\n".join(parts + ["</details>"] * depth)


def inline(text: str) -> str:
    """A line: code, bold and emphasis; everything else as it is, escaped."""
    text = html.escape(text)
    for pattern, replacement in INLINE:
        # Code is taken apart first: nothing within it is emphasis.
        pieces = re.split(r"(<code>.*?</code>)", text)
        text = "".join(
            piece if piece.startswith("<code>") else pattern.sub(replacement, piece)
            for piece in pieces
        )
    return text


def _is_rule(line: str) -> bool:
    return re.fullmatch(r"\|(\s*:?-+:?\s*\|)+", line.strip()) is not None


def cells(line: str) -> list[str]:
    """Of a line of a table."""
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def _table(lines: Sequence[str]) -> str:
    heads, rules = cells(lines[0]), cells(lines[1])
    right = [rule.endswith(":") and not rule.startswith(":") for rule in rules]

    def line(tag: str, found: Sequence[str]) -> str:
        marks = (' class="number"' if index < len(right) and right[index] else ""
                 for index in range(len(found)))  # fmt: skip
        inner = (
            f"<{tag}{mark}>{inline(cell)}</{tag}>" for mark, cell in zip(marks, found, strict=True)
        )
        return f"<tr>{''.join(inner)}</tr>"

    body = "\n".join(line("td", cells(each)) for each in lines[2:])
    return (
        f'<div class="scroll"><table class="sortable"><thead>{line("th", heads)}</thead>\n'
        f"<tbody>\n{body}\n</tbody></table></div>"
    )
