"""The figures: what they show, marks that notice, rows that are hostile."""

from __future__ import annotations

import shutil
import xml.etree.ElementTree as ElementTree

import pytest
from invoked import invoke
from test_gpu_report import gpu_row
from test_report import ORIGIN, row

from bench import report, results
from bench.plots import figures
from bench.plots.figure import marked

HOSTILE = "<script>alert(1)</script>\"'`|\n\n</details><img src=https://example.org/x onerror=x>"
SVG = "{http://www.w3.org/2000/svg}"


def loss_rows():
    """Faster, slower, only ours, ours fails, not exact, no times."""
    failed = {"problem": "does not fit into memory", "median_ms": None}
    rows = [
        row("ours", 10.0), row("official", 1250.0), row("gram-plain", 25.0),
        row("fft", 1.0) | {"exact": False},
        row("ours", 8.0, n=1024, d=1024), row("official", 6.0, n=1024, d=1024),
        row("ours", 30.0, n=256, d=65536), row("official", 1.0, n=256, d=65536) | failed,
        row("ours", 1.0, n=64, d=64) | failed, row("official", 2.0, n=64, d=64),
        row("ours", 1.0, n=512, d=512),
    ]  # fmt: skip
    return [{k: v for k, v in each.items() if v is not None} for each in rows]


def picture(kind, rows, name="cpu-example.jsonl"):
    return next(p for p in figures.pictures({name: rows}) if p.name.startswith(kind))


def texts(svg, name):
    """The lines of the text with a name, in an SVG file."""
    tree = ElementTree.fromstring(svg)
    found = next(group for group in tree.iter(f"{SVG}g") if group.get("id") == name)
    return ["".join(each.itertext()).strip() for each in found.iter(f"{SVG}text")]


@pytest.fixture(scope="module")
def heat_map():
    return picture("speedup", loss_rows()).svg()


def test_cells_of_the_heat_map_hold_the_ratios(heat_map):
    assert texts(heat_map, "fastest-256x8192") == ["2.5×"]  # gram-plain; fft is not exact
    assert texts(heat_map, "official-256x8192") == ["125×"]
    assert texts(heat_map, "official-1024x1024") == ["0.75×", "slower"]
    assert texts(heat_map, "official-256x65536") == ["only", "ours"]
    assert texts(heat_map, "official-64x64") == ["ours", "fails"]
    # Nothing was compared there: the cell stays hatched.
    assert "512x512" not in heat_map
    assert "Against the fastest other: faster at 1 of 2" in heat_map
    assert "the fastest exact implementation at 1 of 2 shapes" in heat_map


def test_a_slower_result_never_rounds_to_one():
    rows = [row("ours", 10.0), row("official", 9.98)]
    assert texts(picture("speedup", rows).svg(), "fastest-256x8192") == ["0.998×", "slower"]


def test_a_gpu_is_compared_by_its_own_time_where_both_have_it():
    rows = [
        gpu_row("ours", 0.6, 0.5),
        gpu_row("official", 3.0, 2.0),
        gpu_row("gram-plain", 0.9, None),
    ]
    cells = picture("speedup", rows, "gpu-example.jsonl").data["compared"]
    assert cells["official"] == [{"n": 2048, "d": 8192, "ratio": 4.0, "peer": "official"}]
    assert cells["fastest"] == [{"n": 2048, "d": 8192, "ratio": 1.5, "peer": "gram-plain"}]


def test_break_even_states_the_ratio_from_which_ours_is_slower():
    cells = picture("speedup", loss_rows()).data["compared"]["fastest"]
    assert figures.break_even(figures.measured(cells)) == (
        "Break-even at N/D = 1: the fastest in all 1 shapes below it; at or above it slower in 1 "
        "of 1: 0.75× at 1024 × 1024."
    )
    faster = picture("speedup", loss_rows()[:2]).data["compared"]["fastest"]
    assert "the fastest up to N/D = 0.03125" in figures.break_even(faster)


def test_the_roofline_has_useful_operations_per_second_under_its_peaks():
    (panel,) = picture("roofline", loss_rows()).data["panels"]
    by_title = {line["title"]: line for line in panel["lines"]}
    assert not any("FFT" in title for title in by_title)
    # 6 · 256 · 8192 · 256 operations in 10 ms; 256 / 4 operations a byte.
    rate = 6 * 256 * 8192 * 256 / 10e-3 / 1e9
    ours = by_title["barlow_fast"]
    place = next(i for i, (x, _) in enumerate(ours["points"]) if abs(x / 64 - 1) < 0.2)
    middle = (rate + 6 * 256 * 65536 * 256 / 30e-3 / 1e9) / 2
    assert ours["points"][place][1] == pytest.approx(middle, 1e-3)
    assert ours["spread"][place][1] == pytest.approx(rate, rel=1e-3)
    roof = panel["lines"][0]["points"]
    assert all(y == min(100.0, 20.0 * x) for x, y in roof)
    most = 6 * 256 * 65536 * 256 / 30e-3 / 1e9  # at its other shape of as many operations a byte
    assert panel["reached"] == pytest.approx(most / 100, rel=1e-3)
    assert "fp32 GEMM 100 GFLOP/s, copy 20 GB/s" in picture("roofline", loss_rows()).svg()


def largest_row(peer, points, failed):
    return {
        "suite": "largest", "n": 256, "d": points[-1][0], "dtype": "fp32", "peer": peer,
        "limit_bytes": 20e9, "failed_d": failed, "problem": failed and "can't allocate",
        "points": [*points, *([[failed, None]] if failed else [])], "provenance": ORIGIN,
    }  # fmt: skip


def test_memory_goes_to_the_d_where_each_runs_out():
    rows = [
        largest_row("ours", [[8192, 10**8], [2**20, 10**10]], None),
        largest_row("official", [[8192, 10**9], [16384, 4 * 10**9]], 32768),
    ]
    found = picture("memory", rows)
    (panel,) = found.data["panels"]
    by_title = {line["title"]: line["points"] for line in panel["lines"]}
    assert by_title["official: 16,384"] == [[8192, 1.0], [16384, 4.0]]
    assert by_title["barlow_fast"][-1] == [2**20, 10.0]
    crosses = [each["points"] for each in panel["lines"] if each["style"].get("marker") == "x"]
    assert crosses == [[[16384, 4.0], [32768, 20.0]]]
    assert (
        "Within 20 GB, barlow_fast does D = 1,048,576, other exact ones at most 16,384"
        in found.svg()
    )
    measured = {
        "suite": "memory", "n": 256, "d": 4096, "dtype": "fp32", "peer": "ours",
        "input_bytes": 100, "peak_bytes": 50, "provenance": ORIGIN,
    }  # fmt: skip
    (panel,) = picture("memory", [measured]).data["panels"]
    assert panel["lines"][-1]["points"] == [[4096, 150 / 1e9]]
    assert list(figures.MEMORY.pictures({"x.jsonl": [measured | {"n": 512}]})) == []


def bar_rows():
    common = {"n": 256, "d": 1024, "dtype": "fp32", "provenance": ORIGIN}
    rates = {"median_per_s": 2000.0, "p20_per_s": 1900.0, "p80_per_s": 2100.0}
    slow = {"median_per_s": 500.0, "p20_per_s": 499.0, "p80_per_s": 501.0}
    distributed = {"suite": "distributed", "ranks": 2, "counted_bytes": 2**20, "median_s": 1.0}
    return [
        common | rates | {"suite": "train", "case": "new", "peer": "ours"},
        common | slow | {"suite": "train", "case": "new", "peer": "lightly"},
        common | rates | {"suite": "views", "case": "new", "peer": "ours-pil", "unit": "images"},
        common | slow | {"suite": "views", "case": "new", "peer": "official", "unit": "images"},
        common | {"suite": "startup", "case": "import", "peer": "ours", "median_ms": 12.5},
        common | distributed | {"peer": "ours-features"},
        common | distributed | {"peer": "official", "median_s": 3.0, "counted_bytes": 2**23},
    ]


def test_bars_and_ranks_show_their_medians_and_state_the_result():
    assert "Pretraining runs at 4.0× lightly's" in picture("training", bar_rows()).caption
    assert "Loaders make 4.0× the official recipe's" in picture("views", bar_rows()).caption
    assert "3.0× as fast as an all-reduce of C" in picture("ranks", bar_rows()).caption
    assert (
        "Example CPU, 2 cores. Whole steps, two views an image"
        in picture("training", bar_rows()).caption
    )
    assert texts(picture("training", bar_rows()).svg(), "bar-ours") == ["2,000 images/s"]
    assert texts(picture("views", bar_rows()).svg(), "bar-official") == ["500 images/s"]
    assert texts(picture("startup", bar_rows()).svg(), "bar-ours") == ["12.5 ms"]
    ranks = picture("ranks", bar_rows())
    seconds, sent = ranks.data["panels"]
    assert [line["points"] for line in seconds["lines"]] == [[[2, 1.0]], [[2, 3.0]]]
    assert [line["points"] for line in sent["lines"]] == [[[2, 1.0]], [[2, 8.0]]]
    assert "MiB sent by a rank" in ranks.svg()


def test_rows_without_figures_and_no_rows_at_all_draw_nothing():
    assert figures.pictures({}) == []
    suites = ("loss", "memory", "largest", "distributed", "train", "views", "startup")
    bare = {"n": 256, "d": 64, "dtype": "fp32", "peer": "ours", "ranks": 2, "case": "x"}
    rows = [bare | {"suite": suite, "problem": "no"} for suite in suites]
    assert figures.pictures({"x.jsonl": rows}) == []


def test_marks_depend_on_the_data_alone():
    one, same = (picture("speedup", loss_rows()) for _ in range(2))
    assert one.mark == same.mark
    changed = loss_rows()
    changed[1]["median_ms"] = 1300.0
    assert picture("speedup", changed).mark != one.mark
    assert marked(one.svg()) == one.mark
    assert one.svg() == same.svg()


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reported")
    hostile = [
        row("ours", 12.5, d=16) | {"peer": "ours"},
        row(HOSTILE, 77.25, d=16) | {"source": HOSTILE},
    ]
    for each in hostile:
        each["provenance"] = ORIGIN | {"cpu": f"CPU {HOSTILE}", "command": HOSTILE}
    results.merge(folder / "cpu-hostile.jsonl", hostile)
    unknown = {"suite": "later", "n": 3, "d": 4, "dtype": "fp32", "peer": HOSTILE, "figure": 4.375}
    results.merge(
        folder / "cpu-example.jsonl", [*loss_rows()[:3], unknown | {"provenance": ORIGIN}]
    )
    outcome = invoke(arguments(folder))
    assert outcome.exit_code == 0, outcome.output
    return folder


def arguments(folder, *more):
    return ["report", "--results", str(folder), "--readme", str(folder / "TOP.txt"), *more]


@pytest.fixture
def folder(reported, tmp_path):
    return shutil.copytree(reported, tmp_path / "copy")


def check(folder):
    return invoke(arguments(folder, "--check"))


def test_check_notices_changed_rows_and_lost_files(folder):
    assert check(folder).exit_code == 0
    rows = results.read(folder / "cpu-example.jsonl")
    rows[1]["median_ms"] = 1300.0
    results.merge(folder / "cpu-example.jsonl", rows)
    stale = check(folder)
    assert stale.exit_code == 1
    for name in ("figures/speedup-cpu-example-fp32.svg", "README.md", "loss.md"):
        assert f"{folder / name} is out of date" in stale.output
    assert "cpu-hostile" not in stale.output


def test_check_compares_marks_and_not_bytes(folder):
    path = folder / "figures" / "speedup-cpu-example-fp32.svg"
    path.write_text(path.read_text().replace("Matplotlib v", "Matplotlib v0."))
    assert check(folder).exit_code == 0
    path.write_text(path.read_text().replace(marked(path.read_text()), "no mark"))
    assert f"{path} is out of date" in check(folder).output


def test_without_matplotlib_there_are_still_tables(folder, monkeypatch):
    found = report.importlib.util.find_spec
    monkeypatch.setattr(
        report.importlib.util,
        "find_spec",
        lambda name: None if name == "matplotlib" else found(name),
    )
    rows = results.read(folder / "cpu-example.jsonl")
    rows[1]["median_ms"] = 1333.0
    results.merge(folder / "cpu-example.jsonl", rows)
    outcome = invoke(arguments(folder))
    assert outcome.exit_code == 1
    assert "left as they are: they need matplotlib" in outcome.stderr
    assert "1333" in (folder / "loss.md").read_text()


def test_figures_and_pages_of_removed_rows_are_removed(folder):
    other = folder / "figures" / "drawn-by-hand.svg"
    other.write_text("<svg/>")
    notes = folder / "notes.md"
    notes.write_text("by hand")
    (folder / "views.md").write_text((folder / "loss.md").read_text())
    (folder / "cpu-hostile.jsonl").unlink()
    assert check(folder).exit_code == 1
    assert invoke(arguments(folder)).exit_code == 0
    assert not list((folder / "figures").glob("*hostile*"))
    assert not (folder / "views.md").exists()
    assert other.exists()
    assert notes.exists()
    assert check(folder).exit_code == 0


def test_the_committed_figures_are_those_of_the_committed_rows():
    files = report.machine_files(results.FOLDER)
    if not files:
        pytest.skip("no results are committed yet")
    wanted = report.generated(results.FOLDER, results.FOLDER / "none", draw=False)
    stale = [path.name for path, text in wanted.items() if report._differs(path, text)]
    assert stale == [], "run: python -m bench report"
    for path in wanted:
        assert path.stat().st_size < 200_000
