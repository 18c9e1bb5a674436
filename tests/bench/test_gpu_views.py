"""Views on a CUDA device, run on the CPU: rows, problems, tables, files that need what is not
there."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest

pytest.importorskip("torchvision")

from test_report import ORIGIN

from barlow_fast import kernels
from barlow_fast.data.rendering import dali
from bench import devices, results, sources
from bench.devices import Cpu
from bench.floor import Peaks
from bench.session import Given, Session
from bench.suites import views as suite
from bench.views import agreement, feeds, images, turns
from bench.views.agreement import DisagreementError

PEAKS = Peaks(gemm_fp32=100.0, gemm_bf16=200.0, copy=20.0)


class Example(Cpu):
    kind = "cuda"
    identity = devices.Cuda.identity

    def peaks(self):
        return PEAKS

    def origin(self):
        return dict(ORIGIN, gpu="Example GPU") | {"cpu": "CPU", "cores": 2, "load_average": 0.0}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(sources, "fingerprint", lambda: "0123456789ab")
    monkeypatch.setattr(suite, "KERNEL_CALLS", suite.Budget(repeats=2))
    monkeypatch.setattr(images.photographs, "__defaults__", (4, 8, images.SMALL))
    monkeypatch.setattr(images.pixels, "__defaults__", (24,))


def chosen(*names):
    return [replace(feeds.CUDA_CASES[name], batch_size=4, side=8) for name in names]


def measure(out, cases, **given):
    session = Session(Example(), Given(out=out, **given))
    suite.measure(session, cases, (0.01, 2, 0.0), 4)
    return session


def test_the_kernel_has_rows_and_loaders_are_run_in_turns(tmp_path, monkeypatch):
    seen = []

    def race(runners, rounds, seconds):
        seen.append(([runner.name for runner in runners], rounds, seconds))
        return {runner.name: [100.0, 110.0] for runner in runners}, {}, {}

    monkeypatch.setattr(turns, "race", race)
    monkeypatch.setattr(dali, "why_unusable", lambda: "DALI is not installed")
    out = tmp_path / "rows.jsonl"
    cases = chosen("kernel", "arrays-32", "photographs")
    session = measure(out, cases)
    assert (session.measured, session.left, session.failures) == (3, [], {})
    assert seen == [(["ours-arrays"], 2, 0.005), (["ours-threads"], 2, 0.005)]
    rows = {row["peer"]: row for row in results.read(out)}
    # Triton cannot run here.
    assert set(rows) == {"kernel-aten-float32", "ours-arrays", "ours-threads"}
    assert all(row["median_per_s"] > 0 and row["device"] == "cuda" for row in rows.values())
    assert rows["kernel-aten-float32"]["unit"] == "views"
    again = measure(out, cases, resume=True, minutes=0.0)
    assert (again.measured, again.left) == (0, [])
    text = suite.tables(list(rows.values()))
    assert "plain torch, with blur, to float32" in text
    assert "of our loaders alone" in text


def test_without_pillow_the_kernel_is_measured_on_random_pixels(tmp_path, monkeypatch):
    plain = suite.importlib.util.find_spec
    monkeypatch.setattr(
        suite.importlib.util, "find_spec", lambda name: None if name == "PIL" else plain(name)
    )
    monkeypatch.setattr(dali, "why_unusable", lambda: None)
    out = tmp_path / "rows.jsonl"
    assert measure(out, chosen("kernel", "photographs")).failures == {}
    assert [row["peer"] for row in results.read(out)] == ["kernel-aten-float32"]


def test_what_the_time_does_not_allow_is_left(tmp_path):
    session = measure(tmp_path / "rows.jsonl", chosen("kernel"), minutes=0.01)
    assert (session.measured, session.left) == (0, ["kernel"])


def test_a_kernel_that_is_wrong_is_not_timed(tmp_path, monkeypatch):
    plain = kernels.load("aten").photometric
    calls = []

    def every_other(*arguments):
        calls.append(1)
        return plain(*arguments) + 0.01 * (len(calls) % 2)

    monkeypatch.setattr(kernels.load("aten"), "photometric", every_other)
    session = measure(tmp_path / "rows.jsonl", chosen("kernel"))
    assert "levels from plain torch" in session.failures["kernel kernel-aten-float32"]
    assert not (tmp_path / "rows.jsonl").exists()


def test_a_case_that_ended_an_earlier_process_is_named(tmp_path):
    journal = tmp_path / "journal"
    journal.write_text('{"start": "arrays-32"}\n')
    session = measure(tmp_path / "rows.jsonl", chosen("arrays-32"), journal=journal)
    assert list(session.failures) == ["arrays-32"]


def test_a_loader_on_a_device_is_checked_and_waits_for_it(monkeypatch):
    waited = []
    monkeypatch.setattr(Example, "synchronize", lambda self: waited.append(1))
    monkeypatch.setattr(feeds.devices, "choose", lambda kind: Example())
    case = replace(feeds.CUDA_CASES["arrays-32"], batch_size=4)
    with feeds.open_feed("ours-arrays", case, None, "cuda") as counts:
        assert [next(counts) for _ in range(3)] == [4] * 3
        counts.settle()
    assert waited == [1]
    monkeypatch.setattr(agreement, "BOUND", -1.0)
    with (
        feeds.open_feed("ours-arrays", case, None, "cuda") as counts,
        pytest.raises(DisagreementError, match="view 0 of sample"),
    ):
        next(counts)


def test_bytes_and_names_follow_the_type_of_the_output():
    case = feeds.CASES["kernel"]
    assert feeds.KERNELS["kernel-triton-bfloat16"].bytes_moved(case) == 224 * 224 * 3 * 3
    row = suite.row(case, "kernel-triton-bfloat16", [1000.0], {}, 20.0, "cuda")
    assert row["fraction_of_copy"] == pytest.approx(224 * 224 * 9 * 1000 / 20e9, rel=1e-3)
    assert set(feeds.KERNELS) <= set(feeds.TITLES)


def test_the_bandwidth_is_judged():
    case = feeds.CASES["kernel"]
    names = ["kernel-triton-sharp-bfloat16", "kernel-triton-bfloat16"]
    rate = 20e9 / (224 * 224 * 9)
    rows = [suite.row(case, names[0], [0.8 * rate], {}, 20.0, "cuda")]
    assert "70% of the copy bandwidth is met." in suite.tables(rows)
    rows.append(suite.row(case, names[1], [0.5 * rate], {}, 20.0, "cuda"))
    text = suite.tables(rows)
    assert "is missed (Triton, with blur, to bfloat16 (50%))." in text


def test_noise_stands_in_for_photographs(tmp_path, monkeypatch):
    from PIL import Image

    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    folder = images.photographs(tmp_path / "noise", 3, 4)
    paths = sorted(folder.iterdir())
    assert len(paths) == 4
    for path in paths:
        assert Image.open(path).mode == "RGB"
        # About what photographs of that size take.
        assert 5_000 < path.stat().st_size < 200_000
