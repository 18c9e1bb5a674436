"""`python -m bench all`: who gets which options, shares of the time, failures, Ctrl-C."""

from __future__ import annotations

import argparse
import itertools
import os
import signal
import subprocess
import sys
import textwrap
from types import SimpleNamespace

import pytest
from ended import SECONDS, gone, running, until
from invoked import invoke

from bench import cli, everything, exits, provenance, results, runner, suites
from bench.everything import PARTS
from bench.runner import Context, Part
from bench.state import State
from bench.suites import compilation


def test_times_of_the_parts_fit_into_what_is_promised():
    assert sum(part.minutes for part in PARTS.values()) <= everything.MINUTES
    quick = [part.quick_minutes for part in PARTS.values() if part.quick_minutes is not None]
    assert sum(quick) <= everything.QUICK_MINUTES


@pytest.mark.parametrize("quick", [False, True])
def test_every_part_is_a_suite_that_takes_its_arguments(tmp_path, suites_run, quick):
    parts = everything.choose(None, quick, None)
    context = Context(tmp_path, tmp_path / "rows.jsonl", State({}), grace=everything.GRACE)
    assert runner.run(parts, context, 3600.0) == exits.COMPLETE
    commands = {name: given for name, *given in suites_run.commands}
    assert {"loss", "distributed", "memory", "views", "train", "startup"} <= set(commands)
    for name, given in commands.items():
        parser = argparse.ArgumentParser()
        cli.add(parser, suites.discover()[name].command)
        options = parser.parse_args(given)
        assert options.minutes > 0
        assert options.out == tmp_path / "rows.jsonl"
        assert ("--quick" in given) is (quick and "quick" in vars(options))


def test_a_suite_that_has_no_time_of_its_own_is_run_all_the_same():
    (part,) = everything.choose("scaling", False, None)
    assert part.run.takes == ["out"]
    assert part.run.file == results.FOLDER / "scaling.jsonl"
    assert part.seconds == 60 * everything.OTHER.minutes


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--suites", "losses"], "unknown suite 'losses'"),
        (["--suites", "all"], "unknown suite 'all'"),
        (["--minutes", "0"], "more than 0; got 0"),
        (["--minutes", "many"], "invalid float value: 'many'"),
        (["--suite", "loss"], "unrecognized arguments: --suite loss"),
    ],
)
def test_bad_options_are_refused_before_anything_runs(monkeypatch, given, message):
    monkeypatch.setattr(runner, "run_child", lambda *arguments: pytest.fail("something was run"))
    result = invoke(["all", *given])
    assert result.exit_code == 2
    assert message in result.output


@pytest.fixture
def called(monkeypatch):
    """Every suite that would have been run; `endings` says how some of them end."""
    calls = SimpleNamespace(seen=[], endings={})

    def run_child(command, log, limit, environment):
        suite, arguments = command[3], command[4:]
        calls.seen.append((suite, arguments, limit))
        ending = calls.endings.get(suite, exits.COMPLETE)
        if ending is KeyboardInterrupt:
            raise KeyboardInterrupt
        if "--out" in arguments:
            row = {"suite": suite, "n": 1, "d": 1, "dtype": "", "provenance": {}}
            path = arguments[arguments.index("--out") + 1]
            results.merge(everything.Path(path), [row])
        return ending

    monkeypatch.setattr(runner, "run_child", run_child)
    return calls


def test_a_failure_stops_no_other_suite_and_is_shown(called, tmp_path):
    called.endings |= {"loss": 3, "memory": exits.UNFINISHED}
    out = tmp_path / "rows.jsonl"
    result = invoke(["all", "--suites", "memory,loss,train", "--out", str(out)])
    assert result.exit_code == 1
    assert [suite for suite, _, _ in called.seen] == ["loss", "memory", "train"]
    ends = [" ".join(line.split()) for line in result.output.splitlines()[-3:]]
    assert ends == [
        "loss failed 0 s 1 rows; ended with 3", "memory partial 0 s 1 rows",
        "train complete 0 s 1 rows",
    ]  # fmt: skip
    assert len(results.read(out)) == 3


def test_what_a_share_of_the_time_did_not_allow_is_no_failure(called, tmp_path):
    called.endings["loss"] = exits.UNFINISHED
    given = ["all", "--suites", "loss", "--out", str(tmp_path / "rows.jsonl")]
    assert invoke(given).exit_code == 0


def test_a_quick_run_leaves_no_file(called, monkeypatch, tmp_path):
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    result = invoke(["all", "--quick"])
    assert result.exit_code == 0, result.output
    assert [suite for suite, _, _ in called.seen] == [
        name for name, part in PARTS.items() if part.quick_minutes is not None
    ]
    for _, given, _ in called.seen:
        assert not everything.Path(given[given.index("--out") + 1]).exists()
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_is_resumed_resumes_the_suites_that_can_be(called, tmp_path):
    given = ["all", "--resume", "--suites", "loss,startup", "--out", str(tmp_path / "rows.jsonl")]
    assert invoke(given).exit_code == 0
    assert {suite: "--resume" in each for suite, each, _ in called.seen} == {
        "loss": True, "startup": False,
    }  # fmt: skip


def test_time_that_one_leaves_over_is_the_next_ones(called, monkeypatch, tmp_path):
    monkeypatch.setattr(runner, "time", SimpleNamespace(monotonic=lambda: 0.0))  # none takes any
    given = {"loss": 60.0, "memory": 180.0}
    parts = everything.choose("loss,memory", False, None)
    parts = [Part(part.name, given[part.name], part.run) for part in parts]
    context = Context(tmp_path, None, State({}), grace=everything.GRACE)
    runner.run(parts, context, 3600.0, carry=True)
    runner.run(parts, context, 3600.0)
    seconds = [each - everything.GRACE for _, _, each in called.seen]
    assert seconds == [60.0, 240.0, 60.0, 180.0]
    halves = everything.choose("loss,memory", False, 2.0)
    assert sum(part.seconds for part in halves) == pytest.approx(120.0)


def test_after_ctrl_c_nothing_else_is_begun(called, tmp_path):
    called.endings["loss"] = KeyboardInterrupt
    given = ["all", "--suites", "loss,memory", "--out", str(tmp_path / "rows.jsonl")]
    result = invoke(given)
    assert result.exit_code == exits.INTERRUPTED
    assert [suite for suite, _, _ in called.seen] == ["loss"]
    assert "interrupted" in result.output.splitlines()[-1]


# A suite that starts a process of its own, and neither ends by itself.
SUITE = """
import os, signal, subprocess, sys
with subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"]) as child:
    open(sys.argv[1] + ".partial", "w").write(f"{os.getpid()} {child.pid}")
    os.replace(sys.argv[1] + ".partial", sys.argv[1])
    signal.pause()
"""
DRIVER = """
import sys
from bench import everything, runner
runner.python = lambda *arguments: [sys.executable, "-c", {suite!r}, {pids!r}]
sys.exit(everything.command(chosen="loss,memory", quick=True))
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "killpg"), reason="needs POSIX")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_suite_and_what_it_started(tmp_path, number):
    pids = tmp_path / "pids"
    text = textwrap.dedent(DRIVER).format(suite=SUITE, pids=str(pids))
    command = [sys.executable, "-c", text]
    with running(command, cwd=provenance.ROOT, stdout=subprocess.PIPE) as driver:
        assert until(pids.exists)
        driver.send_signal(number)  # to this process alone
        printed, _ = driver.communicate(timeout=SECONDS)
    assert driver.returncode == exits.INTERRUPTED
    assert "interrupted" in printed.splitlines()[-1]
    assert "memory" not in printed
    for pid in map(int, pids.read_text().split()):
        assert gone(pid)


@pytest.mark.parametrize(
    ("suite", "given", "left"),
    [
        ("distributed", ["--shapes", "16x32", "--ranks", "2"], "16 x 32"),
        ("views", ["--cases", "arrays-32"], "arrays-32"),
        ("train", ["--cases", "fashion-mnist"], "fashion-mnist"),
    ],
)
def test_when_time_is_over_nothing_is_begun(tmp_path, suite, given, left):
    out = tmp_path / "rows.jsonl"
    given = [suite, *given, "--minutes", "0", "--out", str(out)]
    result = invoke(given)
    assert result.exit_code == 0, result.output
    assert f"left out, as beyond 0 minutes: {left}" in result.output
    assert not out.exists()


def test_single_architectures_leave_the_rows_of_others(monkeypatch, tmp_path):
    inspection = pytest.importorskip("barlow_fast.kernels.triton.inspection")
    seen = []

    def survey(architecture, workers):
        seen.append(architecture)
        return []

    monkeypatch.setattr(inspection, "survey", survey)
    other = {"suite": "compilation", "n": 2, "d": 2, "dtype": "sm_90 launches"}
    monkeypatch.setattr(compilation, "launches_of", lambda *arguments: [other])
    clock = SimpleNamespace(monotonic=itertools.count().__next__)
    monkeypatch.setattr(compilation, "time", clock)
    out = tmp_path / "rows.jsonl"
    row = {"suite": "compilation", "n": 1, "d": 1, "dtype": "sm_80", "provenance": {}}
    results.merge(out, [row])
    run = invoke
    result = run(["compilation", "--architectures", "sm_100,90", "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert seen == [90, 100]
    assert [r for r in results.read(out) if r["dtype"] == "sm_80"] == [row]
    seen.clear()
    result = run(["compilation", "--minutes", "0.0001", "--out", str(out)])
    assert seen == [90]
    assert "left out, as 0.0001 minutes would not do: sm_80, sm_89, sm_100" in result.output
    assert [r for r in results.read(out) if r["dtype"] == "sm_80"] == [row]
    seen.clear()
    run(["compilation", "--out", str(out)])
    assert sorted(seen) == [80, 89, 90, 100]
    assert not [r for r in results.read(out) if r["dtype"] == "sm_80"]  # a whole run replaces all
    assert run(["compilation", "--architectures", "70"]).exit_code == 2


def test_architectures_are_parsed():
    known = [80, 89, 90, 100]
    assert compilation.parse_architectures(None, known) == [90, 80, 89, 100]
    with pytest.raises(ValueError, match=r"unknown architecture '70'; known are 80, 89, 90, 100"):
        compilation.parse_architectures("90,70", known)
