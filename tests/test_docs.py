"""The site builds without warnings and without a network, is complete, and what its pages claim in
code is run."""

from __future__ import annotations

import ast
import html.parser
import importlib.util
import inspect
import json
import re
import sys
import urllib.parse
from pathlib import Path

import pytest
import torch
from ended import completed

import barlow_fast

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(page for page in DOCS.rglob("*.md"))
# Fetched when a page is shown; a link (`a`) is followed by its reader.
RESOURCES = {"link": "href", "script": "src", "img": "src", "source": "src", "iframe": "src"}


class Page(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.resources: list[str] = []
        self.links: list[str] = []
        self.identifiers: set[str] = set()
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.tags.add(tag)
        self.identifiers.add(values.get("id") or "")
        if tag == "a":
            self.links.append(values.get("href") or "")
        if tag in RESOURCES and values.get("rel") != "canonical":
            self.resources.append(values.get(RESOURCES[tag]) or "")


def read(path: Path) -> Page:
    page = Page()
    page.feed(path.read_text(encoding="utf-8"))
    return page


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("mkdocs", reason="the site's tools are not installed: extra 'docs'")
    pytest.importorskip("latex2mathml", reason="the site's tools are not installed: extra 'docs'")
    folder = tmp_path_factory.mktemp("site")
    # A proxy that refuses every connection: whatever wants the network fails here.
    closed = dict.fromkeys(("http_proxy", "https_proxy", "all_proxy"), "http://127.0.0.1:9")
    build = ["mkdocs", "build", "--strict", "--site-dir", folder]
    done = completed(sys.executable, "-m", *build, cwd=ROOT, **closed, NO_MKDOCS_2_WARNING="1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stderr, done.stderr
    return folder


def test_pages_fetch_nothing_from_elsewhere(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) > 30
    for path in pages:
        outside = [r for r in read(path).resources if re.match(r"(\w+:)?//", r)]
        assert not outside, f"{path.relative_to(site)} fetches {outside}"
    outside = re.compile(r"(?:url\(|@import)\s*[\"']?((?:https?:)?//[^\"')]+)")
    for sheet in site.rglob("*.css"):
        fetched = outside.findall(sheet.read_text(encoding="utf-8"))
        assert not fetched, f"{sheet.relative_to(site)} fetches {fetched}"


def test_links_within_the_site_lead_somewhere(site):
    for path in site.rglob("*.html"):
        page = read(path)
        for link in {*page.links, *page.resources}:
            target = urllib.parse.urlsplit(link)
            if target.scheme or target.netloc or not target.path:
                continue
            relative = urllib.parse.unquote(target.path)
            # 404.html is shown at any address, so its links start at the root.
            start = site if relative.startswith("/") else path.parent
            found = start / relative.lstrip("/")
            assert found.exists(), f"{path.relative_to(site)} links to {link}"


def public_names() -> dict[str, list[str]]:
    """Every public module and the names that it declares, asked of Python itself."""
    modules = ["barlow_fast"]
    for path in sorted((ROOT / "barlow_fast").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if path.name == "__init__.py" and len(parts) > 2:
            modules.append(".".join(parts[:-1]))
        elif parts[1] == "adapters" or path.name in ("hub.py", "lightning.py"):
            modules.append(".".join(parts))
    for library, module in (
        ("lightning", "training.lightning"),
        ("huggingface_hub", "checkpoints.hub"),
    ):
        if importlib.util.find_spec(library) is None:
            modules.remove(f"barlow_fast.{module}")
    named = {name: getattr(importlib.import_module(name), "__all__", ()) for name in modules}
    return {name: list(names) for name, names in named.items() if names}


def test_every_public_name_is_in_the_reference(site):
    declared = public_names()
    assert {"barlow_fast", "barlow_fast.data", "barlow_fast.adapters.lightly"} <= declared.keys()
    for module, names in declared.items():
        page = site / "reference" / f"{module}.html"
        assert page.is_file(), f"no page of {module}"
        missing = {f"{module}.{name}" for name in names} - read(page).identifiers
        assert not missing, f"{page.name} lacks {sorted(missing)}"


@pytest.mark.parametrize("name", ["BarlowTwinsLoss", "barlow_twins_loss", "explain", "warmup"])
def test_every_parameter_of_the_loss_has_a_type_and_a_text(site, name):
    rows = parameters_of(site, name)
    parameters = inspect.signature(getattr(barlow_fast, name)).parameters
    documented = {each for names in rows for each in names.replace("`", "").split(", ")}
    assert set(parameters) <= documented
    for names, (kind, text) in rows.items():
        assert kind, f"{name}({names}) has no type"
        assert len(text) > 10, f"{name}({names}) has no text"


def parameters_of(site: Path, name: str) -> dict[str, tuple[str, str]]:
    """The table of parameters on the reference page: (type, text) by name."""
    page = (site / "reference" / "barlow_fast.html").read_text(encoding="utf-8")
    start = page.index(f'id="barlow_fast.{name}"')
    table = re.search(r"<tbody>(.*?)</tbody>", page[start : page.find("<h2", start)], re.S)
    assert table, f"{name} has no table of parameters"
    rows = re.findall(r"<tr.*?</tr>", table[1], re.S)
    cells = [re.findall(r"<td.*?</td>", row, re.S) for row in rows]
    texts = [[re.sub(r"<[^>]*>", "", cell).strip() for cell in row] for row in cells]
    return {row[0]: (row[1], row[2]) for row in texts}


def test_attributes_are_listed_with_a_text(site):
    """Fields have the text of their comments; what a constructor keeps is its parameter."""
    page = read(site / "reference" / "barlow_fast.html")
    assert "barlow_fast.BarlowTwinsLoss.lambd" not in page.identifiers
    text = (site / "reference" / "barlow_fast.html").read_text(encoding="utf-8")
    start = text.index('id="barlow_fast.Plan.n"')
    assert "samples of the batch" in text[start : text.index('id="barlow_fast.Plan.d"')]


def test_the_site_follows_the_colours_of_the_system(site):
    text = (site / "index.html").read_text(encoding="utf-8")
    modes = re.findall(r'data-md-color-media="(.*?)" data-md-color-scheme="(.*?)"', text)
    assert modes[0][0] == "(prefers-color-scheme)", "what is shown before anybody chooses"
    assert ("(prefers-color-scheme: light)", "default") in modes
    assert ("(prefers-color-scheme: dark)", "slate") in modes


def test_notebooks_are_pages_of_their_cells(site):
    for path in (ROOT / "examples").glob("*.ipynb"):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        text = (site / "examples" / f"{path.stem}.html").read_text(encoding="utf-8")
        headings = [cell["source"][0] for cell in cells if cell["cell_type"] == "markdown"]
        assert all(heading.strip("# \n") in text for heading in headings)
        assert text.count('<div class="highlight"') + text.count('class="language-python') >= len(
            [cell for cell in cells if cell["cell_type"] == "code"]
        )


def test_figures_and_formulas_are_there(site):
    results = ROOT / "bench" / "results"
    figures = list(results.rglob("*.svg"))
    assert figures
    for figure in figures:
        copied = site / "benchmarks" / figure.relative_to(results)
        assert copied.read_bytes() == figure.read_bytes()
    assert "math" in read(site / "mathematics.html").tags
    text = (site / "mathematics.html").read_text(encoding="utf-8")
    assert "Compensated means" in text  # from kernels/README.md
    assert "<!-- include" not in text


def test_benchmark_pages_hold_every_page_of_the_results(site):
    pages = sorted((ROOT / "bench" / "results").glob("*.md"))
    assert len(pages) > 5
    for path in pages:
        title = path.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")
        name = "results" if path.name == "README.md" else path.stem
        page = (site / "benchmarks" / f"{name}.html").read_text(encoding="utf-8")
        assert f"<title>{title} - " in page
    navigation = (site / "index.html").read_text(encoding="utf-8")
    assert all(f"benchmarks/{path.stem}.html" in navigation for path in pages[1:])


def test_every_environment_variable_is_in_the_table():
    table = set(re.findall(r"^\| `([A-Z_]+)` \|", (ROOT / "CONTRIBUTING.md").read_text(), re.M))
    sources = [ROOT / "setup.py"]
    for folder in ("barlow_fast", "kernels", "bench"):
        sources += (ROOT / folder).rglob("*.py")
    # Quoted, so that macros of the C++ sources and names in running text are not meant.
    quoted = re.compile(r"[\"'](BARLOW_FAST_[A-Z_]+)[\"']")
    used = {name for source in sources for name in quoted.findall(source.read_text())}
    assert {"BARLOW_FAST_NATIVE", "BARLOW_FAST_CPU_INSTRUCTION_SET"} <= used
    assert not used - table, f"not in the table of CONTRIBUTING.md: {sorted(used - table)}"


def blocks(page: Path) -> list[tuple[int, str]]:
    """(line, code) of every ```python block; ```py marks code that is shown and not run."""
    found, start, lines = [], None, []
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        if start is None and line.strip() == "```python":
            start, lines = number, []
        elif start is not None and line.strip() == "```":
            found.append((start, "\n".join(lines)))
            start = None
        elif start is not None:
            lines.append(line)
    assert start is None, f"{page}:{start}: block without an end"
    return found


NEEDS = {"checkpoints": ("safetensors", "torchvision", "huggingface_hub")}
WITH_CODE = [page for page in PAGES if blocks(page)]


@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: page.stem)
def test_code_of_the_page_runs(page, tmp_path, monkeypatch):
    """The blocks of a page run one after the other, as a reader would type them."""
    for library in NEEDS.get(page.stem, ()):
        pytest.importorskip(library)
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names: dict[str, object] = {"__name__": "__main__"}
    for line, code in blocks(page):
        padded = "\n" * line + code  # so that a traceback has the page's line
        exec(compile(padded, str(page.relative_to(ROOT)), "exec"), names)


def test_pages_that_explain_have_code_that_runs():
    required = {"index", "start", "forms", "distributed", "questions", "migrating", "checkpoints"}
    assert required <= {page.stem for page in WITH_CODE}


def test_shown_code_is_python():
    shown = re.compile(r"^```py\n(.*?)^```$", re.M | re.S)
    for page in PAGES:
        for code in shown.findall(page.read_text(encoding="utf-8")):
            ast.parse(code)


def test_every_promise_names_a_test_that_is_there():
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", (DOCS / "promises.md").read_text())
    assert len(named) > 30
    for path, test in named:
        assert f"\ndef {test}(" in (ROOT / path).read_text(), f"{path}::{test}"
