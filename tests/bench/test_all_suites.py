"""`python -m bench all`: who gets which options, shares of the time, failures, Ctrl-C."""

from __future__ import annotations

import datetime
import itertools
import os
import signal
import subprocess
import sys
import textwrap
from types import SimpleNamespace

import pytest
import typer
from ended import SECONDS, gone, running, until
from typer.testing import CliRunner

from bench import provenance, results, suites
from bench.__main__ import app
from bench.suites import all as every
from bench.suites import compilation
from bench.suites.all import INTERRUPTED, PARTS, Outcome, Part


def arguments(name, **given):
    options = {"device": "cpu", "quick": False, "dtypes": None, "shapes": None, "peers": None}
    return every.arguments_of(PARTS[name], **options | given)


def test_times_of_the_parts_fit_into_what_is_promised():
    assert sum(part.minutes for part in PARTS.values()) <= every.MINUTES
    quick = [part.quick_minutes for part in PARTS.values() if part.quick_minutes is not None]
    assert sum(quick) <= every.QUICK_MINUTES


@pytest.mark.parametrize("quick", [False, True])
def test_every_part_is_a_suite_that_takes_its_arguments(quick):
    commands = typer.main.get_command(app).commands
    parts = every.choose(None, "cpu", quick)
    assert {"loss", "distributed", "memory", "views", "train", "startup"} <= {p.name for p in parts}
    for part in parts:
        given = arguments(part.name, quick=quick, shapes="16x32", peers="ours", dtypes="fp32")
        given = [*given, *every.time_of(part.name, "cpu", 60.0), "--out", "rows.jsonl"]
        command = commands[part.name]
        _, rest, _ = command.make_parser(typer.Context(command)).parse_args(list(given))
        assert rest == []
        assert ("--quick" in given) is quick
    with_time = [p.name for p in parts if every.time_of(p.name, "cpu", 60.0) == ["--minutes", "1"]]
    assert {"loss", "distributed", "views", "train", "startup"} <= set(with_time)


def test_each_suite_gets_the_names_that_it_knows():
    assert arguments("loss", peers="official,ours")[-2:] == ["--peers", "ours,official"]
    layouts = "ours-features,ours-rows,ours-correlation,official"
    assert arguments("distributed", peers="ours,official")[-2:] == ["--peers", layouts]
    feeds = "ours-dali,ours-pil,official,ours-arrays"
    assert arguments("views", peers="ours,official")[-2:] == ["--feeds", feeds]
    assert arguments("loss", dtypes="bf16")[-2:] == ["--dtypes", "bf16-autocast,bf16-inputs"]
    assert arguments("distributed", dtypes="bf16")[-2:] == ["--dtypes", "bf16-autocast"]
    assert arguments("distributed", dtypes="bf16-inputs") == "it knows none of dtypes bf16-inputs"
    assert arguments("train", peers="gram-plain") == "it knows none of peers gram-plain"
    assert "--dtypes" not in arguments("train", dtypes="fp32")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--suites", "losses"], "unknown suite 'losses'"),
        (["--suites", "distributed", "--device", "cuda"], "runs on no GPU"),
        (["--suites", "all"], "unknown suite 'all'"),
        (["--peers", "nobody"], "unknown peer 'nobody'"),
        (["--dtypes", "fp8"], "unknown dtype 'fp8'"),
        (["--shapes", "16"], "a shape is NxD"),
        (["--minutes", "0"], "more than 0; got 0"),
        (["--device", "abacus"], "unknown device 'abacus'"),
    ],
)
def test_bad_options_are_refused_before_anything_runs(monkeypatch, given, message):
    monkeypatch.setattr(every, "call", lambda *arguments: pytest.fail("something was run"))
    result = CliRunner().invoke(app, ["all", *given])
    assert result.exit_code == 2
    assert message in " ".join(result.output.replace("│", " ").split())


@pytest.fixture
def called(monkeypatch):
    """Every suite that would have been run; `problems` says which of them fail."""
    calls = SimpleNamespace(seen=[], problems={})

    def call(suite, arguments, seconds):
        calls.seen.append((suite, list(arguments), seconds))
        problem = calls.problems.get(suite)
        if problem is KeyboardInterrupt:
            raise KeyboardInterrupt
        if "--out" in arguments:
            date = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
            row = {"suite": suite, "n": 1, "d": 1, "dtype": "", "provenance": {"date": date}}
            results.merge(every.Path(arguments[arguments.index("--out") + 1]), [row])
        return problem

    monkeypatch.setattr(every, "call", call)
    return calls


def test_a_failure_stops_no_other_suite_and_is_told(called, tmp_path):
    called.problems["loss"] = "exit status 1"
    out = tmp_path / "rows.jsonl"
    arguments = ["all", "--suites", "memory,loss,train", "--out", str(out), "--peers", "ours"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1
    assert [suite for suite, _, _ in called.seen] == ["loss", "memory", "train"]
    lines = [line for line in result.output.splitlines() if "failed" in line or "done" in line]
    assert "exit status 1" in lines[0]
    assert "1 failed" in lines[-1]
    assert "3" in lines[-1].split()  # rows of all of them
    assert len(results.read(out)) == 3


def test_a_quick_run_leaves_no_file(called, monkeypatch, tmp_path):
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    result = CliRunner().invoke(app, ["all", "--quick"])
    assert result.exit_code == 0, result.output
    assert [suite for suite, _, _ in called.seen] == [
        part.name for part in PARTS.values() if part.quick_minutes is not None
    ]
    for _, given, _ in called.seen:
        assert not every.Path(given[given.index("--out") + 1]).exists()
    assert list(tmp_path.iterdir()) == []


def test_time_that_one_leaves_over_is_the_next_ones(called):
    parts = [Part("loss", 1.0), Part("memory", 3.0)]
    given = {"loss": [], "memory": []}
    every.run(parts, given, None, False, "cpu", None, "cpu-example")
    loss, memory = (seconds - every.GRACE for _, _, seconds in called.seen)
    assert loss == pytest.approx(60.0, abs=1.0)
    assert memory == pytest.approx(240.0, abs=1.0)  # nothing was taken of the first minute
    called.seen.clear()
    every.run(parts, given, 2.0, False, "cpu", None, "cpu-example")
    assert called.seen[0][2] - every.GRACE == pytest.approx(30.0, abs=1.0)
    assert called.seen[0][1] == ["--minutes", "0.5"]


def test_after_ctrl_c_nothing_else_is_begun(called):
    called.problems["loss"] = KeyboardInterrupt
    parts = [PARTS["loss"], PARTS["memory"]]
    outcomes, status = every.run(parts, {"loss": [], "memory": []}, 1.0, False, "cpu", None, "cpu")
    assert status == INTERRUPTED
    assert [(each.name, each.problem) for each in outcomes] == [("loss", "interrupted")]


def test_rows_of_this_run_alone_are_counted(tmp_path):
    file = tmp_path / "rows.jsonl"
    dates = ("2026-01-01T00:00:00+00:00", "2026-01-02T00:00:00+00:00")
    results.merge(file, [
        {"suite": suite, "n": n, "d": 1, "dtype": "", "provenance": {"date": date}}
        for suite in ("loss", "memory") for n, date in enumerate(dates)
    ])  # fmt: skip
    assert every.rows_since(file, "loss", dates[1]) == 1
    assert every.rows_since(file, "loss", dates[0]) == 2
    assert every.rows_since(tmp_path / "nothing", "loss", dates[0]) == 0


def test_summary_names_what_was_left_out():
    left = Outcome("train", left_out="it knows none of peers nobody")
    assert left.words() == "left out: it knows none of peers nobody"
    assert Outcome("loss").words() == "done"


@pytest.mark.slow
def test_exit_status_and_time_limit_of_a_real_process(monkeypatch):
    python = [sys.executable, "-c"]
    monkeypatch.setattr(every, "command_of", lambda suite, _: [*python, "raise SystemExit(3)"])
    assert every.call("loss", [], SECONDS) == "exit status 3"
    monkeypatch.setattr(every, "command_of", lambda suite, _: [*python, "pass"])
    assert every.call("loss", [], SECONDS) is None
    monkeypatch.setattr(
        every, "command_of", lambda suite, _: [*python, "import signal; signal.pause()"]
    )
    assert "more than its time" in every.call("loss", [], 0.5)


def test_the_process_is_that_of_the_suite():
    command = every.command_of("loss", ["--quick"])
    assert command == [sys.executable, "-m", "bench", "loss", "--quick"]


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
from bench.suites import all as every
every.command_of = lambda suite, arguments: [sys.executable, "-c", {suite!r}, {pids!r}]
parts = [every.PARTS["loss"], every.PARTS["memory"]]
given = {{part.name: [] for part in parts}}
outcomes, status = every.run(parts, given, None, False, "cpu", None, "cpu-example")
print([(each.name, each.problem) for each in outcomes], flush=True)
sys.exit(status)
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
    assert driver.returncode == INTERRUPTED
    assert "[('loss', 'interrupted')]" in printed
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
    result = CliRunner().invoke(app, given)
    assert result.exit_code == 0, result.output
    assert f"left out, as time is over: {left}" in result.output
    assert not out.exists()


def test_single_architectures_leave_the_rows_of_others(monkeypatch, tmp_path):
    inspection = pytest.importorskip("barlow_fast.kernels.triton.inspection")
    seen = []

    def survey(architecture, workers):
        seen.append(architecture)
        return []

    monkeypatch.setattr(inspection, "survey", survey)
    clock = SimpleNamespace(monotonic=itertools.count().__next__)
    monkeypatch.setattr(compilation, "time", clock)
    out = tmp_path / "rows.jsonl"
    row = {"suite": "compilation", "n": 1, "d": 1, "dtype": "sm_80", "provenance": {}}
    results.merge(out, [row])
    run = CliRunner().invoke
    result = run(app, ["compilation", "--architectures", "sm_100,90", "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert seen == [90, 100]
    assert [r for r in results.read(out) if r["dtype"] == "sm_80"] == [row]
    seen.clear()
    result = run(app, ["compilation", "--minutes", "0.0001", "--out", str(out)])
    assert seen == [90]
    assert "left out, as 0.0001 minutes would not do: sm_80, sm_89, sm_100" in result.output
    assert [r for r in results.read(out) if r["dtype"] == "sm_80"] == [row]
    seen.clear()
    run(app, ["compilation", "--out", str(out)])
    assert sorted(seen) == [80, 89, 90, 100]
    assert not [r for r in results.read(out) if r["dtype"] == "sm_80"]  # a whole run replaces all
    assert run(app, ["compilation", "--architectures", "70"]).exit_code == 2


def test_architectures_are_parsed():
    known = [80, 89, 90, 100]
    assert compilation.parse_architectures(None, known) == [90, 80, 89, 100]
    with pytest.raises(ValueError, match=r"unknown architecture '70'; known are 80, 89, 90, 100"):
        compilation.parse_architectures("90,70", known)


def test_it_has_no_rows_of_its_own():
    assert suites.discover()["all"].tables([], brief=True) == ""
