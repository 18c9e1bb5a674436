"""Rows of a GPU in, Markdown out, beside those of a CPU."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
from test_report import row as cpu_row
from torch.profiler import ProfilerActivity

from bench import report, results
from bench.devices import Cpu
from bench.gpu import profile
from bench.inputs import VARIANTS
from bench.peers import choose
from bench.suites.loss import short_problem

ORIGIN = {
    "gpu": "Example GPU", "multiprocessors": 100, "memory_bytes": 80 << 30,
    "last_level_cache_bytes": 50 << 20, "driver": "580.1", "cuda": "13.0", "triton": "3.6.0",
    "barlow_fast": "0.1.0", "commit": "abc", "sources": "0123456789ab", "torch": "2.11.0",
    "lightly": None, "python": "3.12.0", "date": "2026-01-02T03:04:05+00:00",
    "command": "make gpu",
}  # fmt: skip
PEAKS = {
    "gemm_fp32_gflops": 50e3, "gemm_tf32_gflops": 390e3, "gemm_bf16_gflops": 790e3,
    "gemm_fp16_gflops": 780e3, "copy_gbps": 3000.0, "launch_eager_us": 4.0,
    "launch_graph_us": 1.25, "fp32_floor_rate": "TF32 GEMM / 3",
}  # fmt: skip


def gpu_row(peer, called, replayed, n=2048, d=8192, dtype="bf16-inputs", **changes):
    row = {
        "suite": "loss", "device": "Example GPU", "n": n, "d": d, "dtype": dtype, "peer": peer,
        "repeats": 100, "graph_repeats": 90, "floor_ms": 0.4, "problem": None,
        "graph_problem": None if replayed else "it synchronises", "peaks": PEAKS,
        "provenance": ORIGIN, "median_ms": called, "graph_ms": replayed,
    }  # fmt: skip
    for prefix, median in (("", called), ("graph_", replayed)):
        row[f"{prefix}p20_ms"] = median and median * 0.9
        row[f"{prefix}p80_ms"] = median and median * 1.1
        row[f"{prefix}fraction_of_floor"] = median and 0.4 / median
    return row | changes


@pytest.fixture
def folder(tmp_path):
    rows = [
        gpu_row("ours", 0.6, 0.5),
        gpu_row("official", 3.0, 2.5),
        gpu_row("gram-plain", 0.55, None),
        gpu_row("lightly-formula", None, None, problem="out of memory (requested 64.00 GiB)"),
    ]
    results.merge(tmp_path / "gpu-example-gpu.jsonl", rows)
    results.merge(tmp_path / "cpu-example.jsonl", [cpu_row("ours", 12.5)])
    return tmp_path


def test_the_page_shows_a_gpu_beside_a_cpu_with_both_times(folder):
    text = report.page("loss", report.machine_files(folder))
    for part in (
        "Example CPU", "Example GPU (100 multiprocessors, 80 GiB, 50 MiB of L2), driver 580.1",
        "with `make gpu`", "commit abc (sources 0123456789ab)", "Triton 3.6.0",
        "fp32 GEMM 50, tf32 GEMM 390, bf16 GEMM 790, fp16 GEMM 780 TFLOP/s, copy 3.00 TB/s",
        "| 256 × 8192 | 10 | **12.5** | 80% |",
        "| 2048 × 8192 | 0.4 | **0.6 / 0.5** | 80% | 0.55 / – (0.92×) | no memory |",
        "| no memory | 3 / 2.5 (5.0×) |",
        "slower at: 2048 × 8192 called (1.09× the time of Gram form, plain torch, within noise).",
        "- 2048 × 8192, lightly (formula): out of memory (requested 64.00 GiB)",
        "- 2048 × 8192, Gram form, plain torch, replayed: it synchronises",
        "| 2048 × 8192 | official | 3 | 2.7 | 3.3 | 100 | 2.5 | 2.25 | 2.75 | 90 | 16.0% |",
    ):  # fmt: skip
        assert part in text


def test_parts_of_one_version_are_one_paragraph_with_the_range_of_peaks(folder):
    later = ORIGIN | {"date": "2026-01-05T00:00:00+00:00"}
    peaks = PEAKS | {"gemm_bf16_gflops": 800e3}
    path = folder / "gpu-example-gpu.jsonl"
    results.merge(path, [gpu_row("ours", 1.0, 0.9, n=256, provenance=later, peaks=peaks)])
    other = ORIGIN | {"sources": "ba9876543210"}
    results.merge(path, [gpu_row("ours", 1.0, 0.9, n=64, provenance=other)])
    text = report.machine(results.read(path), path.name)
    assert "2026-01-02 to 2026-01-05" in text
    assert "bf16 GEMM 790–800," in text
    assert text.count("Measured on") == 2


def test_every_dtype_has_its_tables(folder):
    path = folder / "gpu-example-gpu.jsonl"
    results.merge(path, [gpu_row("ours", 9.0, 8.0, n=1024, d=512)])
    results.merge(path, [gpu_row("ours", 9.0, 8.0, dtype="fp16-inputs")])
    page = report.page("loss", report.machine_files(folder))
    assert "**0.6 / 0.5**" in page
    assert "1024 × 512" in page
    assert "**float16 inputs" in page


def test_without_rows_of_a_gpu_no_gpu_is_mentioned(tmp_path):
    results.merge(tmp_path / "cpu-example.jsonl", [cpu_row("ours", 12.5)])
    page = report.page("loss", report.machine_files(tmp_path))
    assert "**12.5**" in page
    assert not any(word in page for word in ("GPU", "CUDA", "replayed"))


def test_memory_of_a_gpu(folder):
    row = {
        "suite": "memory", "device": "Example GPU", "n": 512, "d": 65536, "dtype": "bf16-inputs",
        "peer": "ours", "input_bytes": 128 << 20, "extra_bytes": 32 << 20,
        "extra_over_inputs": 0.25, "problem": None, "provenance": ORIGIN,
    }  # fmt: skip
    problem = {k: v for k, v in row.items() if "extra" not in k and "bytes" not in k}
    problem |= {"peer": "official", "problem": "out of memory (requested 8.00 GiB)"}
    results.merge(folder / "gpu-example-gpu.jsonl", [row, problem])
    text = report.page("memory", report.machine_files(folder))
    inputs = "128 MiB, bfloat16 inputs under bfloat16 autocast"
    assert f"| 512 × 65536 | {inputs} | barlow_fast | 32.0 | 0.25 |" in text
    assert f"| 512 × 65536 | {inputs} | official | no memory | – |" in text
    assert "torch's allocator" in text


@pytest.mark.parametrize(
    ("problem", "short"),
    [
        ("out of memory (requested 1 GiB)", "no memory"),
        ("fp32: loss 1 is off by 0.1 (allowed 0.001), gradients by 0 (allowed 0.001)", "wrong"),
        ("RuntimeError: no such kernel", "fails"),
    ],
)
def test_problems_in_short(problem, short):
    assert short_problem(problem) == short


def test_a_profile_is_a_table_under_its_title_and_what_fails_is_its_reason(monkeypatch):
    monkeypatch.setattr(profile, "ProfilerActivity", SimpleNamespace(CUDA=ProfilerActivity.CPU))
    (peer,), fp32 = choose("gram-plain"), VARIANTS["fp32"]
    title, *lines = profile.text_of(peer, 16, 32, fp32, Cpu()).splitlines()
    assert title == "Gram form, plain torch 16 x 32 fp32, 5 passes"
    assert any(line.split()[:1] == ["aten::mm"] for line in lines)
    broken = replace(peer, build=lambda n, d, dtype: None)
    assert "fp32: TypeError: " in profile.text_of(broken, 16, 32, fp32, Cpu())
