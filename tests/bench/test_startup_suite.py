"""The suite `startup`: fresh processes in turns, right results only, tables that say who is
slower."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from invoked import invoke
from test_report import ORIGIN

from bench import peers, report, results
from bench import startup as child
from bench.inputs import VARIANTS
from bench.lifetime import ChildError
from bench.suites import startup as suite
from bench.suites.startup import COMPILED_OFFICIAL, STAGES, TORCH, Key, Stage, Visit

GRID = [((16, 32), VARIANTS["fp32"])]
SHAPE = (16, 32, "fp32")
CALLS, KERNELS, COMPILER = STAGES


@pytest.fixture
def started(monkeypatch):
    """Every process that would have been started; each reports made-up seconds at once."""
    seen = []

    def start(visit, deadline, cache=None):
        if cache is not None:
            assert Path(cache).is_dir()
        seen.append((visit.peer, cache))
        number = float(len(seen))
        found = {"torch": 1.0, "first": number, "second": 0.5, "kernels": number, "count": 5}
        return found | ({"import": 0.25} if visit.peer in suite.MODULES else {})

    monkeypatch.setattr(Visit, "start", start)
    monkeypatch.setattr(Stage, "unavailable", lambda stage, name, kind: None)
    return seen


def measured(stage, *names, repeats=None):
    return stage.measure(stage.visits("cpu", names, GRID), repeats, 1.0)


def test_a_fresh_process_reports_its_imports_and_its_calls():
    found = Visit("ours-aten", *SHAPE, "cpu").start(240.0)
    assert found["problem"] is None
    assert "import" not in found
    # Whatever else this machine does, importing torch takes longer than any of these.
    assert 0 < found["first"] < found["torch"]
    assert 0 < found["second"] < found["torch"]


def test_a_process_that_fails_is_reported_by_its_last_line():
    with pytest.raises(ChildError, match="KeyError: 'nobody'"):
        Visit("nobody", *SHAPE, "cpu").start(240.0)


def test_a_wrong_result_is_a_problem(monkeypatch):
    right = peers.discover()["official"]

    def build(n, d, dtype):
        loss = right.build(n, d, dtype)
        return lambda z_a, z_b: 1.01 * loss(z_a, z_b)

    wrong = replace(right, build=build)
    monkeypatch.setattr(peers, "discover", lambda kind: {"official": wrong})
    assert "off by" in child.call("official", *SHAPE, "cpu")["problem"]


def test_a_problem_of_a_process_is_raised(monkeypatch):
    reported = json.dumps({"torch": 1.0, "first": 1.0, "second": 1.0, "problem": "off by 1"})
    done = subprocess.CompletedProcess([], 0, f"printed by a library\n{reported}\n", "")
    monkeypatch.setattr(subprocess, "run", lambda *arguments, **options: done)
    with pytest.raises(ChildError, match="off by 1"):
        Visit("ours", *SHAPE, "cpu").start(1.0)


def test_caches_of_compilers_are_the_folders_that_are_given(monkeypatch, tmp_path):
    seen = {}

    def run(command, env, **options):
        seen.update(env)
        return subprocess.CompletedProcess(command, 0, "{}", "")

    monkeypatch.setattr(subprocess, "run", run)
    visit = Visit(COMPILED_OFFICIAL, *SHAPE, "cpu")
    visit.start(1.0, str(tmp_path))
    assert seen["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "inductor")
    assert seen["TRITON_CACHE_DIR"] == str(tmp_path / "triton")
    seen.clear()
    visit.start(1.0)
    assert seen.get("TRITON_CACHE_DIR") == os.environ.get("TRITON_CACHE_DIR")


def test_implementations_take_turns_after_a_round_that_does_not_count(started):
    names = ("ours", "official", "gram-plain")
    samples, failures = measured(CALLS, *names)
    assert failures == {}
    peers = [peer for peer, _ in started]
    rounds = [peers[i : i + 3] for i in range(0, len(peers), 3)]
    assert len(rounds) == CALLS.repeats + 1
    assert all(set(each) == set(names) for each in rounds)
    assert len({tuple(each) for each in rounds}) > 1  # in an order shuffled anew
    assert len(samples[Key("import", TORCH)]) == 3 * CALLS.repeats
    assert samples[Key("import", "ours")] == [0.25] * CALLS.repeats
    assert samples[Key("second-call", "official", *SHAPE)] == [0.5] * CALLS.repeats
    assert min(samples[Key("first-call", "ours", *SHAPE)]) > 3
    assert Key("import", "official") not in samples


def test_a_compiler_starts_twice_with_one_folder_that_goes_away(started):
    samples, _ = measured(COMPILER, "ours", COMPILED_OFFICIAL, repeats=2)
    folders = [cache for _, cache in started]
    assert folders[0] == folders[1] != folders[2] == folders[3]
    assert not any(Path(folder).exists() for folder in folders)
    assert samples == {
        Key("compiler-cold", COMPILED_OFFICIAL, *SHAPE): [1.0, 3.0],
        Key("compiler-warm", COMPILED_OFFICIAL, *SHAPE): [2.0, 4.0],
    }


def test_kernels_are_compiled_once_for_each_shape_where_there_is_no_gpu(started):
    samples, _ = measured(KERNELS, "ours", "official", repeats=1)
    assert samples == {Key("triton-kernels", "ours", 16, 32, "sm_90", 5): [1.0]}
    assert KERNELS.visits("cuda", ["ours"], GRID) == []
    assert measured(KERNELS, "official") == ({}, {})


def test_one_that_fails_has_no_times_and_stops_no_other(started, monkeypatch):
    plain = Visit.start

    def start(visit, *arguments):
        if visit.peer == "official":
            raise ChildError("off by 1")
        return plain(visit, *arguments)

    monkeypatch.setattr(Visit, "start", start)
    samples, failures = measured(CALLS, "ours", "official")
    assert failures == {"official": "off by 1"}
    assert {key.peer for key in samples} == {TORCH, "ours"}


def test_what_cannot_run_here_is_left_out_by_name(capsys):
    nobody = CALLS._replace(peers={"cpu": ("nobody",)})
    assert nobody.visits("cpu", ["ours", "nobody"], GRID) == []
    said = f"{CALLS}: nobody is left out: there is no such peer for cpu\n"
    assert capsys.readouterr().out == said


def test_kernels_of_a_step_are_compiled_once_each(monkeypatch):
    inspection = pytest.importorskip("barlow_fast.kernels.triton.inspection")
    seen = []
    monkeypatch.setattr(
        inspection, "compile_launch", lambda launch, capability: seen.append((launch, capability))
    )
    found = child.compile_kernels(256, 2048, 90)
    assert found["count"] == len(seen) == len({inspection.identity(each) for each, _ in seen})
    assert {capability for _, capability in seen} == {90}
    assert len(seen) > 1


def test_the_command_writes_rows_and_they_make_a_section(started, tmp_path):
    out = tmp_path / "cpu-example.jsonl"
    arguments = ["startup", "--shapes", "16x32", "--peers", "ours,official", "--repeats", "2"]
    cases = ["--cases", "import,first-call,second-call"]
    result = invoke([*arguments, *cases, "--out", str(out)])
    assert result.exit_code == 0, result.output
    rows = results.read(out)
    assert {(row["case"], row["peer"]) for row in rows} == {
        ("import", TORCH), ("import", "ours"),
        *((case, peer) for case in ("first-call", "second-call") for peer in ("ours", "official")),
    }  # fmt: skip
    for row in rows:
        assert row["p20_ms"] <= row["median_ms"] <= row["p80_ms"]
        assert row["provenance"]["cpu"]
        assert (row["n"], row["d"], row["dtype"]) in (SHAPE, (0, 0, ""))
    assert f"# {suite.SECTION}" in report.page("startup", report.machine_files(tmp_path))


def made_up(case, peer, seconds, shape=SHAPE):
    key = Key(case, peer) if case == "import" else Key(case, peer, *shape, kernels=5)
    samples = [0.9 * seconds, seconds, 1.1 * seconds]
    return suite.row(key, samples, "cpu") | {"provenance": ORIGIN}


def test_tables_show_ratios_to_torch_and_who_is_slower():
    rows = [
        made_up("import", TORCH, 2.0),
        made_up("import", "ours", 0.05),
        made_up("import", "lightly", 3.0),
        made_up("first-call", "ours", 0.04),
        made_up("second-call", "ours", 0.01),
        made_up("first-call", "official", 0.02),
        made_up("compiler-cold", COMPILED_OFFICIAL, 20.0),
        made_up("compiler-warm", COMPILED_OFFICIAL, 4.0),
        made_up("triton-kernels", "ours", 3.0, (16, 32, "sm_90")),
    ]
    text = suite.tables(rows)
    assert "| lightly: `lightly.loss` beyond torch | 3,000 | 2,820 to 3,180 (3) | 1.5× |" in text
    assert "`import barlow_fast` adds 2.5% to `import torch`." in text
    assert "It takes longer than" not in text
    ours = "40 | 37.6 to 42.4 (3) | 10 | 9.4 to 10.6 (3)"
    assert f"| barlow_fast | {ours} | – | – | – | – |" in text
    compiled = "20,000 | 18,800 to 21,200 (3) | 4,000 | 3,760 to 4,240 (3)"
    assert f"| official, compiled | – | – | – | – | {compiled} |" in text
    assert "slower than that of: official (0.50× the time)" in text
    assert "compiles the 5 kernels of one step at 16 × 32 for sm_90 in 3,000 ms" in text
    rows[1] = made_up("import", "ours", 4.0)
    text = suite.tables(rows[:5])
    assert "It takes longer than: lightly." in text
    assert "| barlow_fast | 40 | 37.6 to 42.4 (3) |" in text
