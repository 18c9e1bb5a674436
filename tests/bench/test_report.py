"""Rows in, Markdown out; and the README of this repository against its own data."""

from __future__ import annotations

import json

import pytest
from invoked import invoke

from bench import report, results
from bench.suites import loss as tables

ORIGIN = {
    "cpu": "Example CPU", "cpu_family_model": "1/2/3", "cores": 2, "system": "Linux x86_64",
    "barlow_fast": "0.1.0", "commit": "abc", "instruction_set": "avx2", "torch": "2.15.0",
    "lightly": None, "python": "3.12.0", "date": "2026-01-02T03:04:05+00:00",
    "command": "python -m bench loss",
}  # fmt: skip
PEAKS = {"gemm_fp32_gflops": 100.0, "gemm_bf16_gflops": 200.0, "copy_gbps": 20.0}


def row(peer, median, n=256, d=8192, dtype="fp32"):
    return {
        "suite": "loss", "n": n, "d": d, "dtype": dtype, "peer": peer, "repeats": 5,
        "median_ms": median, "p20_ms": median * 0.9, "p80_ms": median * 1.1, "floor_ms": 10.0,
        "fraction_of_floor": 10.0 / median, "peaks": PEAKS, "provenance": ORIGIN,
    }  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    rows = [row("ours", 12.5), row("official", 1250.0), row("gram-plain", 10.0)]
    results.merge(tmp_path / "cpu-example.jsonl", rows)
    return tmp_path


def test_page_states_machine_date_command_and_every_number(folder):
    text = report.page("loss", report.machine_files(folder))
    for part in ("Example CPU", "2026-01-02", "`python -m bench loss`", "fp32 GEMM 100 GFLOP/s"):
        assert part in text
    assert "| 256 × 8192 | 10 | **12.5** | 80% |" in text
    assert "1250 (100×)" in text
    assert "slower at: 256 × 8192 (1.25× the time of Gram form, plain torch)" in text
    assert "| 256 × 8192 | official | 1250 | 1125 | 1375 | 5 | 0.8% |" in text


def test_missing_peers_leave_a_dash(folder):
    results.merge(folder / "cpu-example.jsonl", [row("ours", 3.0, n=64, d=64)])
    assert "| 64 × 64 | 10 | **3** | 333% | – | – |" in report.page(
        "loss", report.machine_files(folder)
    )


def test_measuring_again_replaces_the_whole_group(folder):
    path = folder / "cpu-example.jsonl"
    results.merge(path, [row("ours", 11.0), row("ours", 5.0, dtype="bf16-autocast")])
    rows = [(r["peer"], r["dtype"], r["median_ms"]) for r in results.read(path)]
    assert rows == [("ours", "fp32", 11.0), ("ours", "bf16-autocast", 5.0)]


def test_the_overview_is_rewritten_and_nothing_else(folder):
    readme = folder / "TOP.txt"
    readme.write_text("before\n<!-- bench:overview -->\nold\n<!-- /bench:overview -->\nafter\n")
    command = ["report", "--results", str(folder), "--readme", str(readme)]
    assert invoke([*command, "--check"]).exit_code == 1
    assert "old" in readme.read_text()
    assert invoke(command).exit_code == 0
    text = readme.read_text()
    assert text.startswith("before\n<!-- bench:overview -->\n")
    assert text.endswith("<!-- /bench:overview -->\nafter\n")
    assert "old" not in text
    assert "**12.5**" in text
    assert "Percentiles" not in text
    assert invoke([*command, "--check"]).exit_code == 0


def test_the_overview_has_all_machines_side_by_side(folder):
    results.merge(folder / "cpu-other.jsonl", [row("ours", 10.0), row("vissl", 50.0)])
    text = tables.overview(report.machine_files(folder))
    assert "| N × D | Example CPU, 2 cores: barlow_fast | fastest other | official |" in text
    assert "| 256 × 8192 | **12.5** | 1250 (100×) | 1250 (100×) | **10** | 50 (5.0×) | – |" in text
    assert "| 1024 × 1024 | – | – | – | – | – | – |" in text
    assert "Rows: `bench/results/cpu-example.jsonl`, `bench/results/cpu-other.jsonl`." in text


def test_memory_table(folder):
    rows = {
        "suite": "memory", "n": 512, "d": 65536, "dtype": "fp32", "peer": "ours",
        "input_bytes": 256 << 20, "extra_bytes": 64 << 20, "extra_over_inputs": 0.25,
        "provenance": ORIGIN,
    }  # fmt: skip
    results.merge(folder / "cpu-example.jsonl", [rows])
    text = report.page("memory", report.machine_files(folder))
    assert "| 512 × 65536 | 256 MiB, float32 | barlow_fast | 64.0 | 0.25 |" in text


def test_the_index_links_suites_with_rows_and_sums_up_the_speedups(folder):
    text = report.index(report.machine_files(folder))
    assert "- [Loss: forward + backward](loss.md)" in text
    assert "memory.md" not in text
    official = "| Example CPU, 2 cores | float32 | Against the official one | 1 | 0 |"
    assert f"{official} 100× at 256 × 8192 | 100× at 256 × 8192 |" in text
    assert "0.80× at 256 × 8192" in text
    assert "- Example CPU, 2 cores, float32: Slower from the least N/D on" in text


def test_the_committed_tables_are_those_of_the_committed_rows():
    files = report.machine_files(results.FOLDER)
    if not files:
        pytest.skip("no results are committed yet")
    for path, text in report.generated(results.FOLDER, results.FOLDER / "none", False).items():
        if path.suffix == ".md":
            assert path.read_text(encoding="utf-8") == text, "run: python -m bench report"
    if not report.README.exists():
        pytest.skip("there is no README")
    readme = report.README.read_text(encoding="utf-8")
    assert report.OVERVIEW.search(readme)
    assert report.with_overview(readme, files) == readme, "run: python -m bench report"


def test_rows_are_one_json_object_a_line(folder):
    lines = (folder / "cpu-example.jsonl").read_text().splitlines()
    assert [json.loads(line)["peer"] for line in lines] == ["ours", "official", "gram-plain"]
