"""Views on a CUDA device, run on the CPU: rows, problems, tables, files that need what is not
there."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

pytest.importorskip("torchvision")

from test_report import ORIGIN

from bench import results
from bench.devices import Cpu
from bench.floor import Peaks
from bench.gpu import sources, views
from bench.gpu.child import source_tree_environment
from bench.gpu.journal import finished
from bench.suites import views as suite
from bench.views import feeds, images

PEAKS = Peaks(gemm_fp32=100.0, gemm_bf16=200.0, copy=20.0)


class Example(Cpu):
    def peaks(self):
        return PEAKS

    def origin(self):
        return dict(ORIGIN, gpu="Example GPU")


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(views.sources, "fingerprint", lambda patterns: "0123456789ab")
    monkeypatch.setattr(views, "SECONDS", 0.01)
    monkeypatch.setattr(views, "ROUNDS", 2)
    monkeypatch.setattr(views, "KERNEL_CALLS", 2)
    monkeypatch.setattr(images.photographs, "__defaults__", (4, 8))
    monkeypatch.setattr(images.pixels, "__defaults__", (24,))


def chosen(*names):
    return [replace(views.CHOSEN[name], batch_size=4) for name in names]


@pytest.mark.slow
def test_loaders_and_the_kernel_have_rows(tmp_path):
    out = tmp_path / "rows.jsonl"
    given = Example(), out, chosen("kernel", "arrays-32", "photographs")
    summary = views.measure(*given)
    assert (summary.measured, summary.left, summary.failures) == (3, 0, {})
    rows = {row["peer"]: row for row in results.read(out)}
    # Triton cannot run here.
    assert set(rows) == {"kernel-aten-float32", "ours-arrays", "ours-pil"}
    assert all(row["median_per_s"] > 0 and row["device"] == "cuda" for row in rows.values())
    assert rows["kernel-aten-float32"]["unit"] == "views"
    again = views.measure(*given, resume=True, limit=0.0)
    assert (again.measured, again.left) == (0, 0)
    text = suite.tables(list(rows.values()), brief=True)
    assert "plain torch, with blur, to float32" in text
    assert "of our loaders alone" in text


def test_without_pillow_the_kernel_is_measured_on_random_pixels(tmp_path, monkeypatch):
    plain = views.importlib.util.find_spec
    monkeypatch.setattr(
        views.importlib.util, "find_spec", lambda name: None if name == "PIL" else plain(name)
    )
    out = tmp_path / "rows.jsonl"
    summary = views.measure(Example(), out, chosen("kernel", "photographs"))
    assert summary.failures == {}
    assert [row["peer"] for row in results.read(out)] == ["kernel-aten-float32"]


def test_what_the_time_does_not_allow_is_left(tmp_path):
    summary = views.measure(Example(), tmp_path / "rows.jsonl", chosen("kernel"), limit=1.0)
    assert (summary.measured, summary.left) == (0, 1)


def test_a_kernel_that_is_wrong_is_not_timed(tmp_path, monkeypatch):
    plain = views.kernels.load("aten").photometric
    calls = []

    def every_other(*arguments):
        calls.append(1)
        return plain(*arguments) + 0.01 * (len(calls) % 2)

    monkeypatch.setattr(views.kernels.load("aten"), "photometric", every_other)
    summary = views.measure(Example(), tmp_path / "rows.jsonl", chosen("kernel"))
    assert "levels from plain torch" in summary.failures["kernel kernel-aten-float32"]
    assert not (tmp_path / "rows.jsonl").exists()


def test_a_loader_that_disagrees_is_not_timed(tmp_path, monkeypatch):
    monkeypatch.setattr(views, "_disagreement", lambda loader, batch: "view 0 is wrong")
    summary = views.measure(Example(), tmp_path / "rows.jsonl", chosen("arrays-32"))
    assert summary.failures == {"arrays-32 arrays": "view 0 is wrong"}


def test_bytes_and_names_follow_the_type_of_the_output():
    case = feeds.CASES["kernel"]
    assert feeds.kernel_bytes(case, 2) == 224 * 224 * 3 * 3
    row = suite.row(case, "kernel-triton-bfloat16", [1000.0], 20.0, 2)
    assert row["fraction_of_copy"] == pytest.approx(224 * 224 * 9 * 1000 / 20e9, rel=1e-3)
    for backend in ("triton", "aten"):
        name = feeds.kernel_name(backend, False, torch.float32)
        assert name in feeds.TITLES


def test_the_bandwidth_is_judged():
    case = feeds.CASES["kernel"]
    names = [feeds.kernel_name("triton", sharp, torch.bfloat16) for sharp in (True, False)]
    rate = 20e9 / (224 * 224 * 9)
    rows = [suite.row(case, names[0], [0.8 * rate], 20.0, 2) | {"device": "cuda"}]
    assert "70% of the copy bandwidth is met." in suite.tables(rows, brief=True)
    rows.append(suite.row(case, names[1], [0.5 * rate], 20.0, 2) | {"device": "cuda"})
    text = suite.tables(rows, brief=True)
    assert "missed by: Triton, with blur, to bfloat16 (50%)." in text


def test_clouds_stand_in_for_photographs(tmp_path, monkeypatch):
    from PIL import Image

    def nothing():
        raise FileNotFoundError("photographs are taken from sklearn, which is not installed")

    monkeypatch.setattr(images, "sources", nothing)
    folder = images.photographs(tmp_path / "clouds", 3, 4)
    paths = sorted(folder.iterdir())
    assert len(paths) == 4
    for path in paths:
        assert Image.open(path).mode == "RGB"
        # About what photographs of that size take.
        assert 5_000 < path.stat().st_size < 200_000


@pytest.mark.slow
def test_a_file_of_tests_that_lacks_a_library_is_skipped_with_the_reason(tmp_path):
    (tmp_path / "test_lacking.py").write_text("import no_such_library\n")
    (tmp_path / "test_broken.py").write_text("import barlow_fast.no_such_module\n")
    (tmp_path / "test_good.py").write_text("def test_good():\n    pass\n")
    journal = tmp_path / "journal"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "bench.gpu.pytest_journal"]
    command += ["-p", "no:cacheprovider", "-o", "addopts=", "--continue-on-collection-errors"]
    command += ["--journal", str(journal), "--rootdir", str(tmp_path), str(tmp_path)]
    done = subprocess.run(
        command,
        env={**os.environ, **source_tree_environment()},
        cwd=sources.ROOT,
        capture_output=True,
        text=True,
    )
    entries = finished(journal)
    assert entries["test_lacking.py"]["text"] == "no_such_library is not installed"
    assert entries["test_lacking.py"]["outcome"] == "skipped"
    assert entries["test_good.py::test_good"]["outcome"] == "passed"
    # What our own code lacks is an error.
    assert done.returncode == 1
    assert "1 passed, 1 skipped, 1 error" in done.stdout
