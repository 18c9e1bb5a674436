"""`pytest bench --benchmark-only`: pytest-benchmark times the peers itself."""

from __future__ import annotations

import dataclasses
import json

import pytest

from bench import provenance
from bench.peers import official

OPTIONS = ("-p", "no:cacheprovider", "--benchmark-warmup=off", "--benchmark-max-time=0.01")


class Outcomes:
    """A plugin that keeps the reports of the calls, by the name of the test."""

    def __init__(self):
        self.calls = {}

    def pytest_runtest_logreport(self, report):
        if report.when == "call" or report.skipped:
            self.calls[report.nodeid.partition("[")[2].rstrip("]")] = report


def run(tmp_path, *arguments):
    """(exit status, reports, the benchmarks of the JSON file) of a run in this process."""
    outcomes, file = Outcomes(), tmp_path / "results.json"
    command = [str(provenance.ROOT / "bench"), f"--rootdir={provenance.ROOT}", *OPTIONS]
    command += [f"--benchmark-json={file}", *arguments]
    status = pytest.main(command, plugins=[outcomes])
    found = json.loads(file.read_text())["benchmarks"] if file.exists() else []
    return status, outcomes.calls, found


def test_the_plugin_times_peers_that_are_right(tmp_path, monkeypatch, capfd):
    (right,) = official.PEERS

    def build(n, d, dtype):
        return lambda a, b: 1.01 * right.build(n, d, dtype)(a, b)

    monkeypatch.setattr(official, "PEERS", (dataclasses.replace(right, build=build),))
    options = ["--shapes", "16x32", "--dtypes", "fp32", "--peers", "ours-aten,official"]
    status, reports, found = run(tmp_path, "--benchmark-only", *options)
    assert status == 1
    assert reports["16x32-fp32-ours-aten"].passed
    assert "official is not timed: " in reports["16x32-fp32-official"].longreprtext
    (timed,) = found
    assert timed["params"]["shape"] == [16, 32]
    assert timed["group"] == "16 x 32 float32"
    assert timed["stats"]["rounds"] >= 5
    assert timed["stats"]["min"] > 0
    assert timed["extra_info"]["source"]
    assert "times one test after the other" in capfd.readouterr().out


def test_without_timing_nothing_is_measured(tmp_path):
    options = ["--shapes", "16x32", "--dtypes", "fp32", "--peers", "ours-aten"]
    status, reports, found = run(tmp_path, *options)
    assert status == 0
    assert "timing is switched off" in reports["16x32-fp32-ours-aten"].longrepr[2]
    assert found == []


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("--peers", "nobody"), "unknown peer 'nobody'; known are"),
        (("--dtypes", "fp8"), "unknown dtype 'fp8'"),
        (("--shapes", "16"), "a shape is NxD with N and D at least 2"),
        (("--device", "abacus"), "unknown device 'abacus'"),
    ],
)
def test_wrong_options_are_refused_before_anything_runs(tmp_path, capfd, given, message):
    status, reports, _ = run(tmp_path, "--benchmark-only", *given)
    assert status != 0
    assert reports == {}
    assert message in "".join(capfd.readouterr())
