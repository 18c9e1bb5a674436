"""The runner, and `make gpu`: options, time, resuming, children, tests that survive a kill."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from typing import ClassVar

import pytest
import torch
from ended import SECONDS, alive

from bench import cli, everything, exits, lifetime, runner, sources, state, suites
from bench.gpu import __main__ as gpu
from bench.gpu import parts
from bench.runner import Context, Part, Suite
from bench.state import COMPLETE, FAILED, PARTIAL, SKIPPED, STOPPED, Progress, State

DEVICE = {"name": "Example GPU", "slug": "gpu-example-gpu", "torch": "2.11.0"}


def context(tmp_path, known=None, resume=True):
    (tmp_path / "scratch").mkdir(exist_ok=True)
    rows = tmp_path / f"{DEVICE['slug']}.jsonl"
    return Context(tmp_path / "scratch", rows, known or State(DEVICE), tmp_path, resume, "make gpu")


def run(chosen, context, seconds=100.0):
    return runner.run(chosen, context, seconds)


class Fake:
    """A part that counts its runs and ends as given."""

    def __init__(self, *outcomes):
        self.outcomes, self.seconds = list(outcomes), []

    def __call__(self, context, progress, seconds):
        self.seconds.append(seconds)
        outcome = self.outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        progress.status, progress.detail = outcome, f"was {outcome}"

    def part(self, name, seconds=50.0):
        return Part(name, seconds, self, ("barlow_fast/__init__.py",))


def test_parts_are_chosen_by_name_with_limits_in_their_usual_order():
    found = gpu.chosen("loss=100,doctor")
    assert [(part.name, part.seconds) for part in found] == [("doctor", 30), ("loss", 100.0)]
    assert [part.name for part in gpu.chosen("")] == [
        "compile", "kernels", "headline", "profile", "doctor", "tests", "loss", "tuning", "memory",
        "views", "train", "sanitizer", "compiled",
    ]  # fmt: skip
    with pytest.raises(ValueError, match="unknown part 'coffee'"):
        gpu.chosen("coffee")


@pytest.mark.parametrize("arguments", [["--parts", "coffee"], ["--parts", "loss=x"], ["--what"]])
def test_bad_options_are_refused(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        gpu.main(arguments)
    assert ended.value.code == 2
    assert "python -m bench.gpu" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_cuda_device_it_ends_at_once(tmp_path, python):
    done = python("-m", "bench.gpu", "--out", tmp_path / "out")
    assert done.returncode == exits.NO_DEVICE
    assert "needs a CUDA device" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_complete_part_is_not_run_again_and_a_partial_one_is(tmp_path):
    whole, half = Fake(COMPLETE), Fake(PARTIAL, COMPLETE)
    chosen = [whole.part("whole"), half.part("half")]
    known = State(DEVICE)
    run(chosen, context(tmp_path, known))
    assert runner.status(chosen, known) == exits.UNFINISHED
    again = state.load(tmp_path, DEVICE)
    run(chosen, context(tmp_path, again))
    assert (len(whole.seconds), len(half.seconds)) == (1, 2)
    assert runner.status(chosen, again) == exits.COMPLETE


def test_without_resume_everything_is_run(tmp_path):
    fake = Fake(COMPLETE, COMPLETE)
    known = State(DEVICE)
    for _ in range(2):
        run([fake.part("p")], context(tmp_path, known, False))
    assert len(fake.seconds) == 2


def test_a_change_of_the_sources_starts_a_part_anew(tmp_path, monkeypatch):
    fake = Fake(COMPLETE, COMPLETE)
    known = State(DEVICE)
    for name in ("a", "b"):
        monkeypatch.setattr(runner, "fingerprint", lambda patterns, name=name: name)
        run([fake.part("p")], context(tmp_path, known))
    assert len(fake.seconds) == 2
    assert known.parts["p"].sources == "b"


def test_the_state_of_another_device_does_not_count(tmp_path):
    known = State(DEVICE, {"p": Progress(COMPLETE, "s")})
    known.save(tmp_path)
    assert state.load(tmp_path, DEVICE).parts["p"].sources == "s"
    assert state.load(tmp_path, DEVICE | {"name": "Another GPU"}) is None
    (tmp_path / state.FILE).write_text("{")
    assert state.load(tmp_path, DEVICE) is None


def test_one_part_that_fails_does_not_stop_the_others(tmp_path, capsys):
    broken, other = Fake(RuntimeError("no such tool")), Fake(COMPLETE)
    chosen = [broken.part("broken"), other.part("other")]
    known = State(DEVICE)
    where = context(tmp_path, known)
    run(chosen, where)
    assert known.parts["broken"].status == FAILED
    assert known.parts["other"].status == COMPLETE
    assert runner.status(chosen, known) == exits.FAILED
    assert "RuntimeError: no such tool" in gpu.summary(chosen, where, 1.0)


def test_a_part_gets_no_more_than_what_is_left_and_none_is_begun_too_late(tmp_path):
    first, second = Fake(COMPLETE), Fake(COMPLETE)
    chosen = [first.part("first", 500.0), second.part("second", 30.0)]
    known = State(DEVICE)
    run(chosen[:1], context(tmp_path, known))
    assert 99 < first.seconds[0] <= 100
    run(chosen, context(tmp_path, known), runner.LEAST / 2)
    assert second.seconds == []
    assert known.parts["second"].status == PARTIAL
    assert "--resume continues" in gpu.summary(chosen, context(tmp_path, known), 1.0)


def test_skipped_parts_leave_the_whole_complete():
    known = State(DEVICE, {"p": Progress(SKIPPED), "q": Progress(COMPLETE)})
    chosen = [Fake().part("p"), Fake().part("q")]
    assert runner.status(chosen, known) == exits.COMPLETE


def test_rows_and_state_are_adopted_from_another_folder(tmp_path):
    earlier, out = tmp_path / "earlier", tmp_path / "out"
    earlier.mkdir()
    out.mkdir()
    State(DEVICE, {"p": Progress(COMPLETE, "s", finished={"t": {"outcome": "passed"}})}).save(
        earlier
    )
    (earlier / "gpu-example-gpu.jsonl").write_text('{"suite": "memory"}\n')
    found = gpu.adopt(out, (out, earlier), DEVICE)
    assert found.parts["p"].finished == {"t": {"outcome": "passed"}}
    assert (out / "gpu-example-gpu.jsonl").read_text() == '{"suite": "memory"}\n'


def test_a_child_that_takes_too_long_is_ended(tmp_path, monkeypatch):
    log, ended, stop = tmp_path / "log", [], lifetime.stop

    def stopped(process, *given):
        stop(process, *given)
        ended.append(process.pid)

    monkeypatch.setattr(lifetime, "stop", stopped)
    sleeper = [sys.executable, "-c", "import threading; threading.Event().wait()"]
    assert runner.run_child(sleeper, log, 0.0) == runner.LATE
    assert len(ended) == 1
    assert not alive(ended[0])
    assert runner.run_child([sys.executable, "-c", "raise SystemExit(7)"], log, SECONDS) == 7
    assert runner.run_child([sys.executable, "-c", "pass"], None, SECONDS) == 0


class Hanging:
    """A process that never ends by itself."""

    waited: ClassVar = []

    def __init__(self, command, **options):
        self.command = command

    def wait(self, seconds):
        self.waited.append(seconds)
        raise subprocess.TimeoutExpired(self.command, seconds)


@pytest.mark.parametrize("known", [parts.PARTS, everything.choose(None, False, None)])
def test_every_part_whose_child_hangs_ends_with_its_time(tmp_path, monkeypatch, known):
    ended = []
    monkeypatch.setattr(subprocess, "Popen", Hanging)
    monkeypatch.setattr(lifetime, "stop", lambda process, *given: ended.append(process))
    monkeypatch.setattr(parts, "sanitizer_tool", lambda: "compute-sanitizer")
    monkeypatch.setattr(Hanging, "waited", [])
    for number, part in enumerate(known, 1):
        where = replace(context(tmp_path, resume=False), grace=120.0)
        run([part], where, 10_000.0)
        assert where.state.parts[part.name].status == PARTIAL
        assert len(ended) == len(Hanging.waited) == number
        assert 0 < Hanging.waited[-1] <= part.seconds + where.grace


def test_a_child_that_breaks_but_gets_on_is_started_again(tmp_path):
    journal, log = tmp_path / "journal", tmp_path / "log"
    script = (
        "import pathlib, sys\n"
        f"path = pathlib.Path({str(journal)!r})\n"
        "count = len(path.read_text().splitlines()) if path.exists() else 0\n"
        "path.open('a').write('{}\\n')\n"
        f"sys.exit({exits.RESTART} if count < 2 else 0)\n"
    )
    command = [sys.executable, "-c", script]
    result = runner.persevere(lambda left: command, log, SECONDS, journal)
    assert result == exits.COMPLETE
    assert len(journal.read_text().splitlines()) == 3
    stuck = [sys.executable, "-c", f"raise SystemExit({exits.RESTART})"]
    result = runner.persevere(lambda left: stuck, log, SECONDS, journal)
    assert result == exits.RESTART


TESTS = """
import os, signal, sys, types, pytest

pytestmark = pytest.mark.gpu

def test_good():
    assert True

@pytest.mark.parametrize("what", ["a b", "c"])
def test_bad(what):
    assert False, "seen failing"

def test_skipped():
    pytest.skip("no such device")

def test_breaks_the_context():
    def synchronize():
        raise RuntimeError("an illegal memory access was encountered")

    cuda = types.SimpleNamespace(is_initialized=lambda: True, synchronize=synchronize)
    sys.modules["torch"] = types.SimpleNamespace(cuda=cuda)
    assert False, "seen breaking"

def test_dies():
    os.kill(os.getpid(), signal.SIGKILL)

def test_last():
    with open(os.environ["RAN"], "a") as file:
        file.write("last ")
"""
FILES = {
    "test_some.py": TESTS,
    "test_lacking.py": "import no_such_library",
    "test_broken.py": "import bench.no_such_module",  # what our own code lacks is a failure
}


def with_xdist():
    pytest.importorskip("xdist", reason="pytest-xdist is not installed")
    return ["-n", "2", "--dist", "worksteal"]


@pytest.fixture(params=[list, with_xdist], ids=["one process", "two processes"])
def tested(request, tmp_path, monkeypatch):
    """Runs the part of the tests on FILES; its progress."""
    options = request.param()
    monkeypatch.setattr(parts, "in_parallel", lambda: options)
    for name, text in (FILES | {"pytest.ini": "[pytest]"}).items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(parts, "gpu_test_files", lambda kernels: list(FILES))
    monkeypatch.setattr(runner, "ROOT", tmp_path)  # where children run
    monkeypatch.setenv("PYTHONPATH", str(sources.ROOT))
    monkeypatch.setenv("RAN", str(tmp_path / "ran"))
    progress = Progress()

    def run(seconds=SECONDS):
        shutil.rmtree(tmp_path / "scratch", ignore_errors=True)
        parts.tests(context(tmp_path), progress, seconds, "tests")
        return progress

    return run


def test_tests_resume_where_a_process_ended_and_failed_ones_are_tried_again(tested, tmp_path):
    progress = tested()
    found = {name.removeprefix("test_some.py::"): e for name, e in progress.finished.items()}
    assert {name: each["outcome"] for name, each in found.items()} == {
        "test_good": "passed", "test_bad[a b]": "failed", "test_bad[c]": "failed",
        "test_breaks_the_context": "failed", "test_skipped": "skipped", "test_dies": "failed",
        "test_last": "passed", "test_lacking.py": "skipped", "test_broken.py": "failed",
    }  # fmt: skip
    assert "seen failing" in found["test_bad[a b]"]["text"]
    assert found["test_dies"]["text"] == STOPPED or "crashed" in found["test_dies"]["text"]
    assert "no such device" in found["test_skipped"]["text"]
    assert found["test_lacking.py"]["text"] == "no_such_library is not installed"
    assert "No module named 'bench.no_such_module'" in found["test_broken.py"]["text"]
    assert (tmp_path / "ran").read_text() == "last "
    assert progress.status == FAILED
    assert progress.detail == "2 passed, 2 skipped, 5 failed"
    some = tmp_path / "test_some.py"
    some.write_text(TESTS.replace("os.kill(os.getpid(), signal.SIGKILL)", "pass"))
    assert tested().detail == "3 passed, 2 skipped, 4 failed"
    assert (tmp_path / "ran").read_text() == "last "
    assert "an illegal memory access" in (tmp_path / "gpu-log.txt").read_text()
    mended = some.read_text().replace("assert False", "assert True")
    some.write_text(mended.replace("raise RuntimeError", "print"))
    (tmp_path / "test_broken.py").write_text("")
    assert tested().status == COMPLETE
    suite = ElementTree.parse(tmp_path / "gpu-tests.xml").getroot()[0]
    assert (suite.attrib["failures"], suite.attrib["skipped"]) == ("0", "2")


def test_the_part_of_the_tests_writes_junit(tmp_path, monkeypatch):
    where = context(tmp_path)
    progress = Progress(finished={"tests/a.py::good": {"outcome": "passed", "text": ""}})
    where.state.parts["tests"] = progress

    def persevere(command, log, seconds, watched, environment):
        assert environment["TEST_OUTCOMES"] == str(watched)
        assert [each["test"] for each in state.read_lines(watched)] == ["tests/a.py::good"]
        with watched.open("a") as file:
            for name, text in (("bad", "twice\x00"), ("broke", STOPPED)):
                entry = {"test": f"tests/a.py::{name}", "outcome": "failed", "text": text}
                file.write(json.dumps(entry) + "\n")
        return results.pop(0)

    monkeypatch.setattr(runner, "persevere", persevere)
    results = [exits.FAILED, runner.LATE]
    parts.tests(where, progress, 60.0, "tests")
    assert progress.status == FAILED
    assert progress.detail == "1 passed, 2 failed"
    assert progress.finished["tests/a.py::broke"]["text"] == STOPPED
    suite = ElementTree.parse(tmp_path / "gpu-tests.xml").getroot()[0]
    assert suite.attrib["failures"] == "2"
    messages = {case.attrib["name"]: case[0].text for case in suite if len(case)}
    assert messages == {"bad": "twice?", "broke": STOPPED}
    # A process that was ended because time was up did not break on the test it was at.
    parts.tests(where, progress, 60.0, "tests")
    assert "tests/a.py::broke" not in progress.finished


def test_files_with_gpu_tests_are_found_without_importing_them():
    kernels, found = parts.gpu_test_files(kernels=True), parts.gpu_test_files(kernels=False)
    assert "tests/triton_kernels/test_gpu_photometric.py" in kernels
    assert all(path.startswith("tests/triton_kernels/") for path in kernels)
    assert not set(kernels) & set(found)
    for path in ("tests/loss/test_gpu.py",
                 "tests/distributed/test_gpu_ranks.py", "tests/training/test_lars.py",
                 "tests/test_microbatch.py", "tests/data/test_array_rendering.py"):  # fmt: skip
        assert path in found
    assert "tests/data/test_views.py" not in found


def test_a_change_of_a_kernel_starts_all_anew_and_one_of_a_test_the_tests():
    known = {
        part.name: {path for pattern in part.sources for path in sources.ROOT.glob(pattern)}
        for part in parts.PARTS
    }
    for file in ("kernels/triton/photometric.py", "barlow_fast/training/lars.py"):
        assert all(sources.ROOT / file in files for files in known.values())
    changed = sources.ROOT / "tests/test_microbatch.py"
    assert {name for name, files in known.items() if changed in files} == {"kernels", "tests"}


def test_a_missing_sanitizer_is_skipped(tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "sanitizer_tool", lambda: None)
    progress = Progress()
    parts.sanitizer(context(tmp_path), progress, 10.0)
    assert (progress.status, progress.detail) == (SKIPPED, "compute-sanitizer: not found")


def test_a_suite_is_resumed_after_a_restart_and_judged_by_its_exit(tmp_path, monkeypatch):
    commands = []

    def persevere(command, log, seconds, journal):
        commands.append(command(100.0))
        journal.write_text("")
        commands.append(command(50.0))
        return exits.UNFINISHED

    monkeypatch.setattr(runner, "persevere", persevere)
    where, progress = context(tmp_path, resume=False), Progress()
    where = replace(where, options={"loss": ["--compiled-shapes", "none"]})
    rows = [{"suite": "loss", "problem": None}, {"suite": "loss", "problem": "out of memory"}]
    where.rows.write_text("".join(json.dumps(row) + "\n" for row in rows))
    Suite("loss", ("--device", "cuda"))(where, progress, 100.0)
    assert ["--resume" in command for command in commands] == [False, True]
    text = " ".join(commands[0])
    assert "-m bench loss --compiled-shapes none --device cuda --minutes 1.5 --out" in text
    assert "--command make gpu" in text
    assert f"--journal {where.scratch / 'loss.jsonl'}" in text
    assert (progress.status, progress.detail) == (PARTIAL, "2 rows, 1 with a problem")


def test_a_suite_that_cannot_run_here_is_skipped_with_its_reason(tmp_path, suites_run):
    where, progress = context(tmp_path), Progress()
    where.log.write_text("...\ntorchvision is not installed\n")
    suites_run.ends = exits.UNUSABLE
    Suite("train")(where, progress, 100.0)
    assert (progress.status, progress.detail) == (SKIPPED, "torchvision is not installed")


def test_the_source_tree_is_imported_from_anywhere(tmp_path, python):
    code = (
        "import barlow_fast, barlow_fast.kernels.aten, bench.gpu\n"
        "print(barlow_fast.__file__, barlow_fast.kernels.__file__, barlow_fast.kernels.aten.NAME)"
    )
    environment = os.environ | runner.source_tree_environment()
    done = python("-c", code, cwd=tmp_path, env=environment, check=True)
    package, kernels, name = done.stdout.split()
    assert package == str(sources.ROOT / "barlow_fast" / "__init__.py")
    assert kernels == str(sources.ROOT / "kernels" / "__init__.py")
    assert name == "aten"


def test_a_fingerprint_reports_contents_and_names(tmp_path):
    (tmp_path / "a.py").write_text("1")
    first = sources.fingerprint(("*.py",), tmp_path)
    (tmp_path / "a.txt").write_text("no part of it")
    assert sources.fingerprint(("*.py",), tmp_path) == first
    (tmp_path / "a.py").rename(tmp_path / "b.py")
    second = sources.fingerprint(("*.py",), tmp_path)
    (tmp_path / "b.py").write_text("2")
    assert len({first, second, sources.fingerprint(("*.py",), tmp_path)}) == 3


def test_the_runner_needs_the_standard_library_only(python):
    code = (
        "import sys\nbefore = set(sys.modules)\nimport bench.gpu.__main__\n"
        "print(sorted({'torch', 'typer', 'rich', 'numpy'} & (set(sys.modules) - before)))"
    )
    assert python("-c", code, check=True).stdout.strip() == "[]"
    assert gpu.__doc__


def test_every_part_that_is_a_suite_takes_its_arguments(tmp_path, suites_run):
    suites_of = [part for part in parts.PARTS if isinstance(part.run, Suite)]
    known = State(DEVICE)
    assert run(suites_of, context(tmp_path, known), 1000.0) == exits.COMPLETE
    names = [given[0] for given in suites_run.commands]
    assert names == ["loss", "loss", "memory", "views", "train", "loss"]
    for name, *given in suites_run.commands:
        parser = argparse.ArgumentParser()
        cli.add(parser, suites.discover()[name].command)
        options = parser.parse_args(given)
        assert (options.device, options.resume, options.command) == ("cuda", True, "make gpu")
        assert options.journal.parent == tmp_path / "scratch"
        assert options.minutes * 60 <= 330


def test_what_a_suite_does_not_take_is_not_passed_and_it_has_a_grace(tmp_path, suites_run):
    where, progress = replace(context(tmp_path), out=None, grace=120.0), Progress()
    Suite("startup", ("--quick",), ("minutes", "out"))(where, progress, 60.0)
    given = ["startup", "--quick", "--minutes", "1", "--out", str(where.rows)]
    assert (suites_run.commands, suites_run.given) == ([given], [(180.0, None)])
    assert (progress.status, progress.detail) == (COMPLETE, "0 rows")
