"""The pages of bench/results, which `python -m bench report` makes from the measured rows: the
index, one page per suite, and their figures."""

import re

from documents import ROOT, page_of_source
from mkdocs.structure.files import File

RESULTS = ROOT / "bench" / "results"
LINK = re.compile(r"^- \[(.+)\]\((\w+\.md)\)$", re.M)


def on_config(config):
    index = (RESULTS / "README.md").read_text(encoding="utf-8")
    chapter = next(part["Benchmarks"] for part in config.nav if "Benchmarks" in part)
    chapter.append({"Results": "benchmarks/results.md"})
    chapter += [{title: f"benchmarks/{name}"} for title, name in LINK.findall(index)]
    return config


def on_files(files, config):
    for path in sorted(RESULTS.glob("*.md")):
        page = "benchmarks/results.md" if path.name == "README.md" else f"benchmarks/{path.name}"
        page_of_source[path.relative_to(ROOT).as_posix()] = page
        files.append(File.generated(config, page, content=path.read_text(encoding="utf-8")))
    for figure in sorted(RESULTS.rglob("*.svg")):
        place = f"benchmarks/{figure.relative_to(RESULTS).as_posix()}"
        files.append(File.generated(config, place, content=figure.read_bytes()))
    return files
