"""Comparison of two sets of results: noise, drift and errors."""

from __future__ import annotations

import copy
import subprocess

import pytest
from invoked import invoke
from test_report import row

from bench import compare, results
from bench.compare import FAILS, FASTER, SAME, SLOWER, WORKS

TIMES = ("median_ms", "p20_ms", "p80_ms")


def group(factor=1.0, drift=1.0, **changes):
    """Ours and two peers that never change, on a machine that takes `drift` times as long."""
    rows = [row("ours", 10 * factor * drift), row("official", 100 * drift)]
    rows.append(row("lightly", 120 * drift))
    rows = copy.deepcopy(rows)
    for each in rows:
        # Narrow ranges: half a per cent either way.
        each["p20_ms"], each["p80_ms"] = each["median_ms"] * 0.995, each["median_ms"] * 1.005
        each["peaks"] = {key: value / drift for key, value in each["peaks"].items()}
        each["provenance"] |= changes
    return rows


def scaled(row, factor, keys=TIMES):
    return row | {key: row[key] * factor for key in keys}


def rates(median):
    return {"median_per_s": median, "p20_per_s": 0.99 * median, "p80_per_s": 1.01 * median}


def compared(a, b, threshold=0.03):
    return compare.compare(a, b, threshold)[0]


def verdicts(a, b, threshold=0.03):
    return {each["peer"]: each for each in compared(a, b, threshold)}


def test_a_slowdown_of_ours_is_found_and_comes_first():
    found = compared(group(), group(1.10))
    first = found[0]
    assert (first["peer"], first["verdict"]) == ("ours", SLOWER)
    assert first["ratio"] == pytest.approx(1.10)
    assert first["corrected"] == pytest.approx(1.10)
    assert [each["verdict"] for each in found].count(SLOWER) == 1
    assert {each["verdict"] for each in found[1:]} == {SAME}


def test_a_gain_is_found():
    ours = verdicts(group(1.10), group())["ours"]
    assert ours["verdict"] == FASTER
    assert ours["ratio"] == pytest.approx(1 / 1.10)


def test_a_difference_within_the_threshold_or_within_noise_is_none():
    assert verdicts(group(), group(1.02))["ours"]["verdict"] == SAME
    wide = group(1.10)
    wide[0]["p20_ms"] = 9.9  # overlaps with 9.95 to 10.05
    assert verdicts(group(), wide)["ours"]["verdict"] == SAME
    assert verdicts(group(), group(1.02), threshold=0.01)["ours"]["verdict"] == SLOWER


def test_drift_of_the_machine_is_taken_out():
    found = verdicts(group(), group(drift=1.4))
    assert {each["verdict"] for each in found.values()} == {SAME}
    assert found["ours"]["ratio"] == pytest.approx(1.4)
    assert found["ours"]["drift"] == pytest.approx(1.4)
    assert found["ours"]["corrected"] == pytest.approx(1.0)


def test_a_slowdown_that_a_faster_machine_hides_is_found():
    ours = verdicts(group(), group(1.25, drift=0.8))["ours"]
    assert ours["ratio"] == pytest.approx(1.0)
    assert ours["corrected"] == pytest.approx(1.25)
    assert ours["verdict"] == SLOWER


@pytest.mark.parametrize(
    ("a", "b", "verdict"),
    [
        # Rates are better when they are more.
        (rates(100), rates(120), FASTER),
        (rates(120), rates(100), SLOWER),
        # What measuring alone makes of memory and of the largest D is no difference.
        ({"extra_bytes": 2**20}, {"extra_bytes": 1.9 * 2**20}, SAME),
        ({"extra_bytes": 2**20}, {"extra_bytes": 2.1 * 2**20}, SLOWER),
        ({"d": 104, "failed_d": 109}, {"d": 100, "failed_d": 105}, SAME),
        ({"d": 106, "failed_d": 110}, {"d": 100, "failed_d": 105}, SLOWER),
    ],
)
def test_verdicts_of_rates_memory_and_the_largest_d(a, b, verdict):
    bare = {"suite": "largest", "n": 2, "d": 2, "dtype": "fp32", "peer": "ours"}
    (found,) = compared([bare | a], [bare | b])
    assert (found["verdict"], found["drift"]) == (verdict, None)


def test_an_implementation_does_not_correct_itself():
    """`official` alone gets slower: the other does not show that the machine did."""
    ours, official, lightly = group()
    changed = [ours, scaled(official, 1.5), lightly]
    assert verdicts(group(), changed)["official"]["verdict"] == SLOWER


@pytest.mark.parametrize("changes", [{"cpu": "Other CPU"}, {"cores": 4}])
def test_rows_of_other_machines_are_not_compared(changes):
    assert compare.compare(group(), group(**changes), 0.03) == ([], (3, 3))


def test_a_peer_of_another_version_does_not_correct():
    (*a, lightly), (*b, later) = group(), group(1.1)
    a.append(lightly | {"source": "lightly 1.5.0"})
    b.append(scaled(later, 3) | {"source": "lightly 1.6.0"})
    ours = verdicts(a, b)["ours"]
    assert ours["drift"] == pytest.approx(1.0)
    assert ours["verdict"] == SLOWER


def test_what_fails_now_is_worse_than_slow_and_missing_rows_are_counted():
    ours, *others = group()
    broken = {key: value for key, value in ours.items() if key not in TIMES}
    broken = [broken | {"problem": "wrong: off by 3"}, *others]
    first = compared(group(), broken)[0]
    assert (first["verdict"], first["reason"]) == (FAILS, ": wrong: off by 3")
    assert verdicts(broken, group())["ours"]["verdict"] == WORKS
    _, alone = compare.compare(group(), [*others, row("ours", 3.0, n=64)], 0.03)
    assert alone == (1, 1)


def test_each_figure_of_a_row_is_compared():
    keys = ("forward_ms", "forward_p20_ms", "forward_p80_ms")
    ours = row("ours", 10.0) | dict(zip(keys, (4.0, 3.9, 4.1), strict=True))
    found = compared([ours], [scaled(ours, 2, keys)])
    verdicts = {each["measure"].name: each["verdict"] for each in found}
    assert verdicts == {"forward": SLOWER, "time": SAME}


@pytest.fixture
def files(tmp_path):
    results.merge(tmp_path / "a.jsonl", group())
    results.merge(tmp_path / "b.jsonl", group(1.10))
    hostile = [each | {"case": "[bold]hostile[/] \x1b"} for each in group(1.10)]
    results.merge(tmp_path / "c.jsonl", hostile)
    return tmp_path


def run(*arguments):
    return invoke(["compare", *map(str, arguments)])


def test_the_table_and_the_exit_status(files):
    a, b, c = (files / name for name in ("a.jsonl", "b.jsonl", "c.jsonl"))
    outcome = run(a, b)
    assert outcome.exit_code == 0
    assert "1 slower, 2 same within noise" in outcome.stdout
    assert "(9.95–10.05)" in outcome.stdout
    assert run(a, b, "--fail-on-slower").exit_code == 1
    assert run(b, a, "--fail-on-slower").exit_code == 0
    assert run(a, b, "--fail-on-slower", "--threshold", "0.2").exit_code == 0
    assert "[bold]hostile[/]" in " ".join(run(c, c).stdout.split())


def test_errors_take_one_line(files):
    (files / "broken.jsonl").write_text("not json\n")
    (files / "empty.jsonl").write_text("")
    results.merge(files / "train.jsonl", [dict(each, suite="train") for each in group()])
    a = files / "a.jsonl"
    for arguments, words in (
        ((a, files / "none.jsonl"), "none.jsonl' is no file of rows, nor one of a commit"),
        ((a, "no-such-branch"), "'no-such-branch' is no file of rows, nor one of a commit"),
        ((a, files / "broken.jsonl"), "is not a file of rows"),
        ((a, files / "empty.jsonl"), "has no rows"),
        ((a, files / "train.jsonl"), "no row of"),
        ((a, a, "--suite", "los"), "unknown suite 'los'; known are loss"),
    ):
        outcome = run(*arguments)
        assert outcome.exit_code == 2
        assert words in outcome.stderr
        assert len(outcome.stderr.strip().splitlines()) == 1


def test_files_of_commits_are_named_as_git_names_them(tmp_path):
    def git(*arguments):
        configured = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
        subprocess.run(["git", "-C", str(tmp_path), *configured, *arguments], check=True)

    git("init", "-q")
    for factor in (1.0, 2.0):
        results.merge(tmp_path / "cpu.jsonl", group(factor))
        git("add", ".")
        git("commit", "-q", "-m", "rows")
    rows = compare.side("HEAD~1:cpu.jsonl", tmp_path)
    assert [each["median_ms"] for each in rows] == [10.0, 100.0, 120.0]
    assert compare.side("HEAD:cpu.jsonl", tmp_path)[0]["median_ms"] == 20.0
    with pytest.raises(ValueError, match="is no file of rows"):
        compare.side("HEAD~2:cpu.jsonl", tmp_path)
    with pytest.raises(ValueError, match="is not a file of rows"):
        compare.side("HEAD", tmp_path)
