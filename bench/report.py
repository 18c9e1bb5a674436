"""Tables, figures and a page from the committed rows.

Into the folder of the rows go README.md, index.html and figures/; marked blocks of the README at
the root are rewritten. A figure is drawn anew only when its data or its code changed, which its
mark tells: another version of matplotlib alone makes nothing out of date.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

from barlow_fast.files import write_whole
from bench import page as html_page
from bench import plots, provenance, results, suites
from bench.optional import typer
from bench.plots import drawing
from bench.plots.drawing import Picture
from bench.results import Row

README = provenance.ROOT / "README.md"
PAGE, FIGURES = "index.html", "figures"
FIGURE_BLOCK = "figure-"
DRAWING = ("matplotlib", "jinja2")
# On the page: what is asked most comes first, what is not measured last.
FIRST = ("loss", "largest", "memory", "distributed", "train", "views", "startup", "accuracy")
LAST = ("scaling", "compilation")


def command(
    folder: Annotated[
        Path, typer.Option("--results", help="Folder of the JSON Lines files.")
    ] = results.FOLDER,
    readme: Annotated[Path, typer.Option(help="File whose marked blocks are rewritten.")] = README,
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; exit with 1 if anything is out of date.")
    ] = False,
) -> None:
    """Generate tables, figures and the page in HTML from the results."""
    lacking = [name for name in DRAWING if importlib.util.find_spec(name) is None]
    wanted = generated(folder, readme, draw=not check and not lacking)
    if lacking:
        wanted = {path: text for path, text in wanted.items() if not _is_drawn(path)}
    stale = {path: text for path, text in wanted.items() if _differs(path, text)}
    for path, text in stale.items():
        if not check:
            _write(path, text)
        done = "removed" if text is None else "written"
        typer.echo(f"{path} {'is out of date' if check else done}")
    if lacking:
        names = " and ".join(lacking)
        typer.echo(f"figures and the page are left as they are: they need {names}", err=True)
        raise typer.Exit(1)
    if check and stale:
        raise typer.Exit(1)
    if not stale:
        typer.echo("everything is up to date")


def generated(folder: Path, readme: Path, draw: bool = True) -> dict[Path, str | None]:
    """What each file should contain, given the rows in `folder`; None for a file that should go.

    With `draw` false, a figure that is out of date is told by its mark alone, and nothing is drawn.
    """
    files = machine_files(folder)
    if not files:
        return {}
    pictures = plots.pictures(files)
    texts = figures(folder, pictures, draw)
    drawn = {
        path.stem: text for path, text in texts.items() if text and text.lstrip().startswith("<")
    }
    texts[folder / "README.md"] = page(files)
    if importlib.util.find_spec("jinja2") is not None:
        texts[folder / PAGE] = html_page.render(files, sections(files), pictures, drawn, folder)
    if readme.exists():
        texts[readme] = with_blocks(readme.read_text(encoding="utf-8"), files)
    return texts


def figures(folder: Path, pictures: Sequence[Picture], draw: bool) -> dict[Path, str | None]:
    """The files of the figures; those that show the data already stay byte for byte."""
    texts: dict[Path, str | None] = {}
    for picture in pictures:
        path = folder / FIGURES / f"{picture.name}.svg"
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        if drawing.marked(text) != picture.mark:
            text = picture.svg() if draw else picture.mark
        texts[path] = text
    for path in sorted((folder / FIGURES).glob("*.svg")):
        # Figures of rows that are gone; what is not ours stays.
        if path not in texts and drawing.marked(path.read_text(encoding="utf-8")):
            texts[path] = None
    return texts


def sections(files: Mapping[str, Sequence[Row]]) -> list[tuple[str, str, list[tuple[str, str]]]]:
    """(suite, heading, [(file name, Markdown)]) of every suite that has rows, known here or not."""
    found = []
    known = suites.discover()
    for suite, module in known.items():
        texts = _machine_texts(suite, files, brief=False)
        if texts:
            found.append((suite, module.SECTION, texts))
    for suite in sorted({str(row["suite"]) for rows in files.values() for row in rows}):
        if suite not in known:
            rows_of = drawing.rows_of(files, suite)
            texts = [(name, html_page.plain_table(rows)) for name, rows in rows_of]
            found.append((suite, f"Suite {suite}", texts))
    order = {name: place for place, name in enumerate((*FIRST, "", *LAST))}
    return sorted(found, key=lambda section: order.get(section[0], order[""]))


def machine_files(folder: Path) -> dict[str, list[Row]]:
    """The rows of each file that has any, by file name."""
    files = {path.name: results.read(path) for path in sorted(folder.glob("*.jsonl"))}
    return {name: rows for name, rows in files.items() if rows}


def page(files: dict[str, list[Row]]) -> str:
    """All suites of all machines, with percentiles."""
    parts = [
        "# Results",
        "Generated by `python -m bench report` from the JSON Lines files here; do not edit.",
    ]
    pictures = plots.pictures(files)
    for name, suite in suites.discover().items():
        section = _suite_text(name, files, brief=False)
        if section:
            shown = [p for p in pictures if p.main and p.suite == name]
            parts += [f"## {suite.SECTION}", *_images(shown, FIGURES), section]
    return "\n\n".join(parts) + "\n"


def block(name: str, files: dict[str, list[Row]]) -> str:
    """What stands between `<!-- bench:NAME -->` and `<!-- /bench:NAME -->`: the tables of a suite,
    or the main figures of a kind, such as figure-speedup."""
    if name.startswith(FIGURE_BLOCK):
        kind = name.removeprefix(FIGURE_BLOCK)
        shown = [p for p in plots.pictures(files) if p.main and p.name.startswith(f"{kind}-")]
        text = "\n\n".join(_images(shown, f"bench/results/{FIGURES}"))
    else:
        text = _suite_text(name, files, brief=True)
    return f"\n{text or 'No results yet.'}\n"


def _images(pictures: Sequence[Picture], folder: str) -> list[str]:
    return [
        f"![{re.sub(r'[][]', '', picture.caption)}]({folder}/{picture.name}.svg)"
        for picture in pictures
    ]


def blocks(text: str) -> dict[str, str]:
    """The marked blocks of a text, by name; markers of what is not known are not ours."""
    found = {}
    kinds = {f"{FIGURE_BLOCK}{kind}" for kind in plots.kinds()}
    for name in (*suites.discover(), *sorted(kinds)):
        match = re.search(_pattern(name), text, re.DOTALL)
        if match:
            found[name] = match.group(2)
    return found


def with_blocks(text: str, files: dict[str, list[Row]]) -> str:
    """`text` with every block that it marks rewritten."""
    for name in blocks(text):
        new = block(name, files)
        text = re.sub(
            _pattern(name), lambda match, new=new: match[1] + new + match[3], text, flags=re.DOTALL
        )
    return text


def _pattern(suite: str) -> str:
    return rf"(<!-- bench:{suite} -->)(.*?)(<!-- /bench:{suite} -->)"


def _suite_text(suite: str, files: Mapping[str, Sequence[Row]], brief: bool) -> str:
    return "\n\n".join(text for _, text in _machine_texts(suite, files, brief))


def _machine_texts(
    suite: str, files: Mapping[str, Sequence[Row]], brief: bool
) -> list[tuple[str, str]]:
    """(file name, Markdown) of each file with rows of a suite."""
    module = suites.discover()[suite]
    # What was not measured on a machine says itself where it comes from.
    origin = getattr(module, "origin", machine)
    return [
        (name, f"{origin(rows, name)}\n\n{module.tables(rows, brief)}")
        for name, rows in drawing.rows_of(files, suite)
    ]


def machine(rows: list[Row], name: str) -> str:
    """Where the rows of one file come from, in words: one paragraph for each run, or for each
    version where a GPU was measured in parts."""
    if "gpu" in rows[0]["provenance"]:
        return _gpu_versions(rows, name)
    runs: dict[str, tuple[Row, Row]] = {}
    for row in rows:
        origin = row["provenance"]
        runs.setdefault(f"{origin['date']} {origin['command']}", (origin, row.get("peaks") or {}))
    return "\n\n".join(_run(origin, peaks, name) for origin, peaks in runs.values())


def _run(origin: Row, peaks: Row, name: str) -> str:
    lightly = f", lightly {origin['lightly']}" if origin["lightly"] else ""
    model = (
        f" (family/model/stepping {origin['cpu_family_model']})"
        if origin["cpu_family_model"]
        else ""
    )
    text = (
        f"Measured on {origin['date'][:10]} with `{origin['command']}` on {origin['cpu']}{model}, "
        f"{origin['cores']} cores, {origin['system']}; barlow_fast {origin['barlow_fast']} at "
        f"commit {origin['commit']}, kernels for {origin['instruction_set']}, "
        f"torch {origin['torch']}{lightly}, "
        f"Python {origin['python']}."
    )
    if peaks:
        text += (
            f" Peaks in this run: fp32 GEMM {peaks['gemm_fp32_gflops']:.0f} GFLOP/s, "
            f"bf16 GEMM {peaks['gemm_bf16_gflops']:.0f} GFLOP/s, "
            f"copy {peaks['copy_gbps']:.1f} GB/s (bytes read and written)."
        )
    return f"{text} Rows: `bench/results/{name}`."


def _gpu_versions(rows: list[Row], name: str) -> str:
    """A GPU is measured in parts: rows of the same sources and versions are one paragraph."""
    versions: dict[tuple, list[Row]] = {}
    for row in rows:
        origin = row["provenance"]
        same = tuple(origin.get(key) for key in ("sources", "commit", "torch", "gpu", "command"))
        versions.setdefault(same, []).append(row)
    return "\n\n".join(_gpu_version(each, name) for each in versions.values())


def _gpu_version(rows: list[Row], name: str) -> str:
    origin = rows[0]["provenance"]
    dates = sorted({row["provenance"]["date"][:10] for row in rows})
    when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    lightly = f", lightly {origin['lightly']}" if origin["lightly"] else ""
    text = (
        f"Measured on {when} with `{origin['command']}` on {origin['gpu']} "
        f"({origin['multiprocessors']} multiprocessors, {origin['memory_bytes'] / 2**30:.0f} GiB, "
        f"{origin['last_level_cache_bytes'] / 2**20:.0f} MiB of L2), driver {origin['driver']}, "
        f"CUDA {origin['cuda']}; barlow_fast {origin['barlow_fast']} at commit "
        f"{origin['commit'] or 'unknown'} (sources {origin['sources']}), torch {origin['torch']}, "
        f"Triton {origin['triton']}{lightly}, Python {origin['python']}."
    )
    peaks = [row["peaks"] for row in rows if row.get("peaks")]
    if peaks:
        text += f" Peaks: {_gpu_peaks(peaks)}."
    return f"{text} Rows: `bench/results/{name}`."


def _gpu_peaks(peaks: list[Row]) -> str:
    """The range over the runs, which each measured its own."""

    def span(key: str, scale: float, digits: int) -> str:
        values = sorted({f"{p[key] / scale:.{digits}f}" for p in peaks}, key=float)
        return values[0] if len(values) == 1 else f"{values[0]}–{values[-1]}"

    rates = ", ".join(
        f"{kind} GEMM {span(f'gemm_{kind}_gflops', 1e3, 0)}"
        for kind in ("fp32", "tf32", "bf16", "fp16")
    )
    return (
        f"{rates} TFLOP/s, copy {span('copy_gbps', 1e3, 2)} TB/s (bytes read and written), "
        f"one launch {span('launch_eager_us', 1, 1)} us from Python, "
        f"{span('launch_graph_us', 1, 1)} us in a graph"
    )


def _is_drawn(path: Path) -> bool:
    return path.parent.name == FIGURES or path.name == PAGE


def _differs(path: Path, text: str | None) -> bool:
    if text is None or not path.exists():
        return path.exists() or text is not None
    return path.read_text(encoding="utf-8") != text


def _write(path: Path, text: str | None) -> None:
    if text is None:
        path.unlink()
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, text)
