"""All results as one page of HTML that needs nothing else: no network, no other file."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench import markdown
from bench.page_template import SCRIPT, TEMPLATE
from bench.plots import drawing, speedup
from bench.plots.drawing import Picture
from bench.results import Row

FACTS = {
    "gpu": "GPU", "driver": "driver", "cuda": "CUDA", "multiprocessors": "multiprocessors",
    "memory_bytes": "memory, bytes", "cpu": "CPU", "cpu_family_model": "family/model/stepping",
    "cores": "cores", "threads": "threads", "flags": "flags",
    "last_level_cache_bytes": "last-level cache, bytes", "instruction_set": "kernels for",
    "system": "system", "python": "Python", "torch": "torch", "triton": "Triton",
    "lightly": "lightly", "barlow_fast": "barlow_fast", "commit": "commit", "sources": "sources",
    "date": "date", "load_average": "load before the run", "command": "command",
}  # fmt: skip


def render(
    files: Mapping[str, Sequence[Row]],
    sections: Sequence[tuple[str, str, Sequence[tuple[str, str]]]],
    pictures: Sequence[Picture],
    drawn: Mapping[str, str],
    folder: Path,
) -> str:
    """The page.

    Args:
        files: rows by file name.
        sections: (suite, heading, [(file name, Markdown)]) of each suite.
        pictures: all figures.
        drawn: SVG by name of a figure; one that is missing is told by its caption alone.
        folder: where images that the Markdown names lie.

    Raises:
        ImportError: without jinja2.
    """
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )

    def image(alternative: str, source: str) -> str:
        # The text may come from a row: nothing outside the folder is ever read.
        path = folder / Path(source).name
        if path.suffix != ".svg" or not path.exists():
            return f"<p>{markdown.inline(alternative)}</p>"
        return f"<figure>{embedded(path.read_text(encoding='utf-8'), path.stem)}</figure>"

    shown = [
        {
            "suite": suite,
            "heading": heading,
            "figures": [
                {
                    "machine": picture.machine,
                    "caption": picture.caption,
                    "svg": Markup(embedded(drawn[picture.name], picture.name))
                    if picture.name in drawn
                    else None,
                }
                for picture in pictures
                if picture.suite == suite
            ],
            "texts": [
                {"machine": name, "html": Markup(markdown.to_html(text, image))}
                for name, text in texts
            ],
        }
        for suite, heading, texts in sections
    ]
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    names = [name for name, rows in files.items() if _measured(rows)]
    return environment.from_string(TEMPLATE).render(
        script=Markup(SCRIPT),
        script_digest=f"'sha256-{digest}'",
        machines=[{"name": name, "device": drawing.device(files[name])} for name in names],
        summary=summary(pictures),
        provenance=provenance_table({name: files[name] for name in names}),
        sections=shown,
    )


def _measured(rows: Sequence[Row]) -> bool:
    """Whether rows come from a machine; models and compilers have none."""
    return any({"cpu", "gpu"} & set(row.get("provenance") or {}) for row in rows)


def summary(pictures: Sequence[Picture]) -> list[dict[str, Any]]:
    """Of each machine and dtype: how many shapes are faster and slower, the extremes, and where
    the break-even lies."""
    found = []
    for picture in pictures:
        if picture.draw is not speedup.draw:
            continue
        record: dict[str, Any] = {
            "machine": picture.machine,
            "device": picture.data["machine"],
            "dtype": picture.data["dtype"],
            "break_even": speedup.break_even(picture.data),
            "against": [],
        }
        for against, cells in picture.data["panels"].items():
            cells = [cell for cell in cells if "ratio" in cell]
            if cells:
                least, most = (f(cells, key=lambda cell: cell["ratio"]) for f in (min, max))
                slower = sum(cell["ratio"] < 1 for cell in cells)
                record["against"].append(
                    {
                        "heading": speedup.HEADINGS[against],
                        "faster": len(cells) - slower,
                        "slower": slower,
                        "least": _cell(least),
                        "most": _cell(most),
                    }
                )
        found.append(record)
    return found


def _cell(cell: Mapping[str, Any]) -> str:
    return f"{speedup.times(cell['ratio'])} at {cell['n']} × {cell['d']}"


def provenance_table(files: Mapping[str, Sequence[Row]]) -> list[tuple[str, list[str]]]:
    """(fact, its values in each file) side by side; facts that differ between runs are listed."""
    table = []
    for key, title in FACTS.items():
        cells = []
        for rows in files.values():
            values = [(row.get("provenance") or {}).get(key) for row in rows]
            texts = dict.fromkeys(_text(value) for value in values if value is not None)
            cells.append("\n".join(texts))
        if any(cells):
            table.append((title, cells))
    peaks = sorted({key for rows in files.values() for row in rows for key in _peaks(row)})
    for key in peaks:
        cells = []
        for rows in files.values():
            values = [value for row in rows if (value := drawing.number(_peaks(row).get(key)))]
            ends = (min(values), max(values)) if values else ()
            span = dict.fromkeys(f"{v:,.0f}" if v >= 1000 else f"{v:.4g}" for v in ends)
            cells.append("–".join(span))
        if any(cells):
            table.append((f"peak: {key}", cells))
    return table


def _peaks(row: Row) -> Row:
    peaks = row.get("peaks")
    return peaks if isinstance(peaks, dict) else {}


def _text(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def embedded(svg: str, name: str) -> str:
    """An SVG file as part of a page: its names are its own, its style reaches nothing else."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<defs>\s*<style[^>]*>.*?</style>\s*</defs>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r' id="([^"]*)"', rf' id="{name}-\1"', svg)
    svg = re.sub(r'href="#([^"]*)"', rf'href="#{name}-\1"', svg)
    svg = re.sub(r"url\(#([^)]*)\)", rf"url(#{name}-\1)", svg)
    # The page says how wide it is; the view box keeps the shape.
    return re.sub(r'<svg([^>]*?) width="[^"]*" height="[^"]*"', r'<svg\1 role="img"', svg, count=1)


def plain_table(rows: Sequence[Row]) -> str:
    """Markdown of rows whose suite is not known here: every field that is one value."""
    keys = list(
        dict.fromkeys(
            key
            for row in rows
            for key, value in row.items()
            if key != "suite" and not isinstance(value, (dict, list))
        )
    )
    lines = [keys, ["---"] * len(keys)]
    lines += [[_plain(row.get(key)) for key in keys] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _plain(value: Any) -> str:
    if value is None:
        return ""
    return re.sub(r"[|\s]+", " ", str(value))
