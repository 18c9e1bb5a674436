"""One page per section of bench/results/README.md, which `python -m bench report` makes from the
measured rows, the figures beside it, and the page that holds all of them."""

import re

from documents import ROOT, page_of_source
from mkdocs.structure.files import File

RESULTS = ROOT / "bench" / "results"
OVERVIEW = RESULTS / "index.html"  # complete in itself


def sections():
    """(title, name of its page, text) of every section."""
    parts = re.split(r"^## (.+)$", (RESULTS / "README.md").read_text(encoding="utf-8"), flags=re.M)
    for title, text in zip(parts[1::2], parts[2::2], strict=True):
        name = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
        yield title.strip(), f"benchmarks/{name}.md", text.strip()


def on_config(config):
    chapter = next(part["Benchmarks"] for part in config.nav if "Benchmarks" in part)
    chapter += [{title: page} for title, page, _ in sections()]
    return config


def on_files(files, config):
    page_of_source["bench/results/README.md"] = next(page for _, page, _ in sections())
    for title, page, text in sections():
        # What stands one level below the section is one level below the page's title.
        content = re.sub(r"^#(#+ )", r"\1", text, flags=re.M)
        origin = (
            "Made by `python -m bench report` from the rows in `bench/results`; "
            "how they are measured: [method](method.md)."
        )
        if OVERVIEW.is_file():
            origin += " All figures and rows [on one page](overview.html)."
        files.append(File.generated(config, page, content=f"# {title}\n\n{origin}\n\n{content}\n"))
    for figure in sorted(RESULTS.rglob("*.svg")):
        place = f"benchmarks/{figure.relative_to(RESULTS).as_posix()}"
        files.append(File.generated(config, place, content=figure.read_bytes()))
    if OVERVIEW.is_file():
        # Its one link leads to bench/README.md, which is the page of the method here.
        overview = OVERVIEW.read_text(encoding="utf-8")
        overview = overview.replace('href="../README.md"', 'href="method.html"')
        files.append(File.generated(config, "benchmarks/overview.html", content=overview))
    return files
