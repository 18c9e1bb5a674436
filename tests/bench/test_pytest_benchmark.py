"""`pytest bench --benchmark-only`: pytest-benchmark's numbers are the samples of our suites."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from types import SimpleNamespace

import pytest
from ended import SECONDS

from bench import conftest as bench_conftest
from bench import provenance, replay
from bench.ranks import measurement
from bench.replay import Choice, Replay, Timed
from bench.startup import processes as startup_processes
from bench.startup.processes import TORCH, Key
from bench.timing import percentile

# The official loss is off by a hundredth; peaks take no time; measured peers are told.
WRAPPER = """
import dataclasses, sys
import pytest
from bench import floor
floor.GEMM_SHAPES, floor.COPY_MIB, floor.PEAK_SECONDS = ((64, 64, 64),), (1,), 0.05
from bench.peers import official
right = official.PEER.build
def wrong(n, d, dtype):
    loss = right(n, d, dtype)
    return lambda z_a, z_b: 1.01 * loss(z_a, z_b)
official.PEER = dataclasses.replace(official.PEER, build=wrong)
from bench.loss import measurement
plain = measurement.measure_group
def measure_group(n, d, variant, peers, *arguments, **options):
    print("measured together:", *(peer.name for peer in peers))
    return plain(n, d, variant, peers, *arguments, **options)
measurement.measure_group = measure_group
sys.exit(pytest.main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(finished process, what it wrote as JSON) of a small run with a wrong peer in it."""
    file = tmp_path_factory.mktemp("benchmark") / "results.json"
    options = ["--suite", "loss", "--shapes", "16x32,24x16", "--dtypes", "fp32"]
    options += ["--peers", "ours-aten,gram-plain,lightly-formula,official", "-k", "not lightly"]
    options += ["--benchmark-only", f"--benchmark-json={file}", "-p", "no:cacheprovider", "-s"]
    process = subprocess.run(
        [sys.executable, "-c", WRAPPER, "bench", *options],
        cwd=provenance.ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert file.exists(), process.stdout + process.stderr
    return process, json.loads(file.read_text())["benchmarks"]


def test_statistics_are_those_of_the_samples(run):
    _, benchmarks = run
    assert {(each["group"], each["params"]["peer"]) for each in benchmarks} == {
        (f"loss: {shape} fp32", peer)
        for shape in ("16x32", "24x16")
        for peer in ("ours-aten", "gram-plain")
    }
    for each in benchmarks:
        samples, extra = each["stats"]["data"], each["extra_info"]
        assert len(samples) == each["stats"]["rounds"] >= 5
        assert each["stats"]["median"] == statistics.median(samples)
        assert extra["median_ms"] == pytest.approx(1e3 * each["stats"]["median"], rel=1e-4)
        assert extra["p20_ms"] == pytest.approx(1e3 * percentile(samples, 20), rel=1e-4)
        assert extra["fraction_of_floor"] == pytest.approx(
            extra["floor_ms"] / extra["median_ms"], rel=1e-3
        )
        assert extra["provenance"]["cpu"]
        assert extra["source"]
        assert each["options"]["timer"] == "replay"


def test_a_wrong_peer_fails_with_its_reason_and_without_a_speed(run):
    process, benchmarks = run
    assert process.returncode == 1
    assert process.stdout.count("official is not timed: ") >= 2
    assert "is off by" in process.stdout
    assert "official" not in {each["params"]["peer"] for each in benchmarks}
    tables = [line for line in process.stdout.splitlines() if line.startswith("test_loss[")]
    assert len(tables) == 4
    assert not any("official" in line for line in tables)


def test_selected_peers_of_a_group_are_measured_together_and_once(run):
    process, _ = run
    measured = [line for line in process.stdout.splitlines() if "measured together:" in line]
    assert len(measured) == 2
    for line in measured:
        assert line.split("measured together: ")[1].split() == ["ours-aten", "gram-plain"]


def test_a_replay_tells_every_sample_once():
    samples = [0.1 + 0.2, 1e-9, 12.5]
    timer = Replay()
    timer.load(samples)
    found = []
    for _ in samples:
        start = timer()
        found.append(timer() - start)
    assert found == samples
    with pytest.raises(RuntimeError, match="has been replayed"):
        timer()


def options(**given):
    known = {"--suite": None, "--device": "cpu", "--dtypes": None, "--shapes": None}
    known |= {"--peers": None} | {f"--{name}": value for name, value in given.items()}
    return SimpleNamespace(getoption=known.__getitem__)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"suite": "losses"}, r"--suite: unknown suite 'losses'; there are distributed, loss"),
        ({"peers": "nobody"}, r"unknown peer 'nobody'; known are"),
        ({"suite": "train", "peers": "gram-plain"}, r"unknown peer 'gram-plain'"),
        ({"dtypes": "fp8"}, r"unknown dtype 'fp8'"),
        ({"shapes": "16"}, r"a shape is NxD with N and D at least 2"),
        ({"device": "abacus"}, r"unknown device 'abacus'"),
    ],
)
def test_bad_options_are_refused_before_anything_runs(given, message):
    with pytest.raises(ValueError, match=message):
        bench_conftest.chosen_groups(options(**given))


def test_groups_follow_the_options():
    found = bench_conftest.chosen_groups(options(suite="loss,distributed", shapes="16x32"))
    assert list(found) == ["loss", "distributed"]
    assert list(found["loss"]) == ["16x32 fp32", "16x32 bf16-autocast"]
    assert not any("compiled" in name for name in found["loss"]["16x32 fp32"])
    assert "official" in found["distributed"]["16x32 fp32, 2 ranks"]
    assert "official" not in found["distributed"]["16x32 bf16-autocast, 2 ranks"]
    found = bench_conftest.chosen_groups(options(suite="loss,startup", peers="ours,gram-compiled"))
    assert set(found["loss"]["256x2048 fp32"]) == {"ours", "gram-compiled"}
    assert found["startup"]["import"] == [TORCH, "ours"]


def test_every_suite_has_a_module_of_tests():
    folder = provenance.ROOT / "bench"
    tests = {path.stem.removeprefix("test_") for path in folder.glob("test_*.py")}
    assert tests == set(replay.discover())


def test_images_per_second_of_turns_become_seconds_of_an_image(monkeypatch):
    views, train = replay.discover()["views"], replay.discover()["train"]
    rates = {"ours-arrays": [100.0, 200.0, 125.0]}
    monkeypatch.setattr(views.feeds, "unavailable", lambda name: None)
    monkeypatch.setattr(views.suite, "race", lambda *_: (rates, {"official": "off by 1"}))
    (group,) = (name for name in views.groups(Choice()) if name.startswith("arrays-32"))
    found = views.measure(Choice(), group, ["ours-arrays", "official"])
    assert list(found["ours-arrays"].samples) == [0.01, 0.005, 0.008]
    assert found["ours-arrays"].told()["median_ms"] == 8.0
    assert found["official"] == Timed(problem="off by 1")

    reports = {"ours": [{"data_wait_share": 0.25}] * 2}
    monkeypatch.setattr(train.cases, "unavailable", lambda name, case: None)
    monkeypatch.setattr(
        train.suite, "race", lambda *_: ({"ours": [10.0, 20.0]}, {"official": "died"}, reports)
    )
    (group,) = train.groups(Choice())
    found = train.measure(Choice(), group, ["ours", "official"])
    assert list(found["ours"].samples) == [0.1, 0.05]
    assert found["ours"].extra["data_wait_share"] == 0.25
    assert found["official"].problem == "died"


def test_samples_of_ranks_are_those_that_the_processes_wrote(monkeypatch):
    distributed = replay.discover()["distributed"]
    rows = [{"peer": "ours-rows", **dict.fromkeys(distributed.TOLD, 1)}]
    written = {"rows": rows, "samples": [[0.25, 0.5]], "failures": {"official": "off by 1"}}

    def run(entry, ranks, arguments, seconds):
        assert entry is measurement.measure
        arguments[0].results.write_text(json.dumps(written))
        raise TimeoutError("time is up")

    monkeypatch.setattr(distributed.processes, "run", run)
    peers = ["ours-rows", "ours-features", "official"]
    found = distributed.measure(Choice(), "16x32 fp32, 2 ranks", peers)
    assert found["ours-rows"].samples == [0.25, 0.5]
    assert found["official"].problem == "off by 1"
    assert found["ours-features"].problem == "time is up"


def test_the_same_processes_tell_all_groups_of_startup(monkeypatch):
    startup = replay.discover()["startup"]
    calls = []

    def measure(kind, cases, names, grid, say):
        calls.append(names)
        shape = 16, 32, "fp32"
        yield {
            Key("import", TORCH): [2.0], Key("import", "ours"): [0.5],
            Key("first-call", "ours", *shape): [0.25], Key("second-call", "ours", *shape): [0.125],
        }, 0, {"official": "off by 1"}  # fmt: skip

    monkeypatch.setattr(startup_processes, "measure", measure)
    startup.everything.cache_clear()
    choice = Choice(shapes="16x32", peers="ours,official")
    groups = startup.groups(choice)
    assert list(groups) == ["import", "first-call 16x32 fp32", "second-call 16x32 fp32"]
    found = {group: startup.measure(choice, group, peers) for group, peers in groups.items()}
    assert found["import"][TORCH].samples == [2.0]
    assert found["second-call 16x32 fp32"]["ours"].samples == [0.125]
    assert found["first-call 16x32 fp32"]["official"].problem == "off by 1"
    assert calls == [["ours", "official"]]
    startup.everything.cache_clear()
