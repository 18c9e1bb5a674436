"""Comparison of two sets of results: noise, drift, what cannot be compared, and errors."""

from __future__ import annotations

import copy
import json
import subprocess

import pytest
from invoked import invoke
from test_report import ORIGIN, row

from bench import compare, results

TIME = compare.MEASURES[0]
RATE = next(measure for measure in compare.MEASURES if measure.more_is_better)


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


def verdicts(a, b, threshold=0.03):
    found = compare.compare(a, b, threshold).comparisons
    return {each.key["peer"]: each for each in found}


def test_a_slowdown_of_ours_is_found_and_comes_first():
    found = compare.compare(group(), group(1.10), 0.03)
    first = found.comparisons[0]
    assert (first.key["peer"], first.verdict) == ("ours", compare.SLOWER)
    assert first.ratio == pytest.approx(1.10)
    assert first.corrected == pytest.approx(1.10)
    assert compare.counts(found)[compare.SLOWER] == 1
    assert {each.verdict for each in found.comparisons[1:]} == {compare.SAME}


def test_a_gain_is_found():
    ours = verdicts(group(1.10), group())["ours"]
    assert ours.verdict == compare.FASTER
    assert ours.ratio == pytest.approx(1 / 1.10)


def test_a_difference_within_the_threshold_or_within_noise_is_none():
    assert verdicts(group(), group(1.02))["ours"].verdict == compare.SAME
    wide = group(1.10)
    wide[0]["p20_ms"] = 9.9  # overlaps with 9.95 to 10.05
    assert verdicts(group(), wide)["ours"].verdict == compare.SAME
    assert verdicts(group(), group(1.02), threshold=0.01)["ours"].verdict == compare.SLOWER


def test_drift_of_the_machine_is_taken_out():
    found = verdicts(group(), group(drift=1.4))
    assert {each.verdict for each in found.values()} == {compare.SAME}
    assert found["ours"].ratio == pytest.approx(1.4)
    assert found["ours"].drift == pytest.approx(1.4)
    assert found["ours"].corrected == pytest.approx(1.0)


def test_a_slowdown_that_a_faster_machine_hides_is_found():
    ours = verdicts(group(), group(1.25, drift=0.8))["ours"]
    assert ours.ratio == pytest.approx(1.0)
    assert ours.corrected == pytest.approx(1.25)
    assert ours.verdict == compare.SLOWER


def test_estimates_of_drift_that_disagree_make_the_range_wider():
    a, b = (10.0, 9.95, 10.05), (11.0, 10.95, 11.05)
    assert compare.judge(TIME, a, b, [1.0, 1.0, 1.0], 0.03)[3] == compare.SLOWER
    ratio, drift, corrected, verdict = compare.judge(TIME, a, b, [0.9, 1.0, 1.12], 0.03)
    assert (drift, corrected, verdict) == (1.0, pytest.approx(1.1), compare.SAME)
    assert ratio == pytest.approx(1.1)
    assert compare.judge(TIME, a, b, [], 0.03)[1] is None


def test_rates_are_better_when_they_are_more():
    assert compare.judge(RATE, (100, 99, 101), (120, 119, 121), [], 0.03)[3] == compare.FASTER
    assert compare.judge(RATE, (120, 119, 121), (100, 99, 101), [], 0.03)[3] == compare.SLOWER


def test_an_implementation_does_not_correct_itself():
    """`official` alone gets slower: the others and the peaks say that the machine did not."""
    changed = group()
    for key in ("median_ms", "p20_ms", "p80_ms"):
        changed[1][key] *= 1.5
    assert verdicts(group(), changed)["official"].verdict == compare.SLOWER


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"cpu": "Other CPU"}, "other device: Example CPU 1/2/3, 2 cores → Other CPU 1/2/3"),
        ({"cores": 4}, "other device"),
        ({"torch": "2.16.0"}, "other versions: torch 2.15.0 → 2.16.0"),
        ({"python": "3.13.0"}, "other versions: Python 3.12.0 → 3.13.0"),
        ({"instruction_set": "avx512"}, "other versions: instruction_set avx2 → avx512"),
    ],
)
def test_other_devices_and_versions_are_named(changes, reason):
    ours = verdicts(group(), group(2.0, **changes))["ours"]
    assert ours.verdict == compare.NOT
    assert reason in ours.reason
    assert ours.ratio is None


def test_a_peer_of_another_version_neither_counts_nor_corrects():
    a, b = group(), group(1.1)
    for rows, version in ((a, "1.5.0"), (b, "1.6.0")):
        rows[2]["source"] = f"lightly {version}"
    for key in ("median_ms", "p20_ms", "p80_ms"):
        b[2][key] *= 3
    found = verdicts(a, b)
    assert found["lightly"].reason == "other versions: lightly 1.5.0 → 1.6.0"
    assert found["ours"].drift == pytest.approx(1.0)
    assert found["ours"].verdict == compare.SLOWER


def test_what_fails_now_is_worse_than_slow_and_missing_rows_are_counted():
    broken = group()
    for key in ("median_ms", "p20_ms", "p80_ms"):
        del broken[0][key]
    broken[0]["problem"] = "wrong: off by 3"
    found = compare.compare(group(), broken, 0.03)
    assert found.comparisons[0].verdict == compare.FAILS
    assert found.comparisons[0].reason == "wrong: off by 3"
    assert verdicts(broken, group())["ours"].verdict == compare.WORKS
    found = compare.compare(group(), [*group()[1:], row("ours", 3.0, n=64)], 0.03)
    assert (found.only_a, found.only_b) == (1, 1)


def test_forward_bytes_memory_and_the_largest_d_are_compared_too():
    a = [row("ours", 10.0) | {"forward_ms": 4.0, "forward_p20_ms": 3.9, "forward_p80_ms": 4.1}]
    a[0]["suite"], b = "loss", copy.deepcopy(a)
    for key in ("forward_ms", "forward_p20_ms", "forward_p80_ms"):
        b[0][key] *= 2
    memory = {"suite": "memory", "n": 512, "d": 64, "dtype": "fp32", "peer": "ours",
              "extra_bytes": 10 << 20, "provenance": ORIGIN}  # fmt: skip
    largest = {"suite": "largest", "n": 256, "d": 4096, "dtype": "fp32", "peer": "ours",
               "provenance": ORIGIN}  # fmt: skip
    a += [memory, largest]
    b += [memory | {"extra_bytes": 15 << 20}, largest | {"d": 8192}]
    found = {each.measure: each.verdict for each in compare.compare(a, b, 0.03).comparisons}
    assert found == {
        "forward": compare.SLOWER, "memory": compare.SLOWER, "largest D": compare.FASTER,
        "time": compare.SAME,
    }  # fmt: skip


def test_what_measuring_alone_makes_of_memory_and_of_the_largest_d_is_no_difference():
    memory = next(measure for measure in compare.MEASURES if measure.suite == "memory")
    largest = next(measure for measure in compare.MEASURES if measure.suite == "largest")
    assert compare.judge(memory, (2**20,), (1.9 * 2**20,), [], 0.03)[3] == compare.SAME
    assert compare.judge(memory, (2**20,), (2.1 * 2**20,), [], 0.03)[3] == compare.SLOWER
    assert compare.judge(largest, (104,), (100,), [], 0.03)[3] == compare.SAME
    assert compare.judge(largest, (106,), (100,), [], 0.03)[3] == compare.SLOWER


@pytest.fixture
def files(tmp_path):
    results.merge(tmp_path / "a.jsonl", group())
    slower = group(1.10)
    slower[0]["case"] = slower[1]["case"] = slower[2]["case"] = "[bold]hostile[/] \x1b"
    results.merge(tmp_path / "b.jsonl", group(1.10))
    results.merge(tmp_path / "c.jsonl", slower)
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
    assert run(a, b, "--fail-on-slower", "--threshold", "20%").exit_code == 0
    assert "[bold]hostile[/]" in " ".join(run(c, c).stdout.split())


def test_json_holds_every_figure(files):
    found = json.loads(run(files / "a.jsonl", files / "b.jsonl", "--json").stdout)
    assert found["counts"][compare.SLOWER] == 1
    ours = found["comparisons"][0]
    assert ours["key"] == {"suite": "loss", "n": 256, "d": 8192, "dtype": "fp32", "peer": "ours"}
    assert ours["a"] == pytest.approx([10.0, 9.95, 10.05])
    assert ours["verdict"] == "slower"


def test_errors_take_one_line(files):
    (files / "broken.jsonl").write_text("not json\n")
    (files / "empty.jsonl").write_text("")
    other = [dict(each, suite="train") for each in group()]
    results.merge(files / "train.jsonl", other)
    a = files / "a.jsonl"
    for arguments, words in (
        ((a, files / "none.jsonl"), "no such file"),
        ((a, "no-such-branch"), "'no-such-branch' is neither a file nor a commit"),
        ((a, files / "broken.jsonl"), "is not a file of rows"),
        ((a, files / "empty.jsonl"), "has no rows"),
        ((a, files / "train.jsonl"), "no row of"),
        ((a, a, "--suite", "los"), "unknown suite 'los'; the rows have loss"),
        ((a, a, "--threshold", "much"), "such as 3% or 0.03; got 'much'"),
    ):
        outcome = run(*arguments)
        assert outcome.exit_code == 2
        assert words in outcome.stderr
        assert len(outcome.stderr.strip().splitlines()) == 1


def test_commits_have_the_rows_stored_with_them_and_measured_at_them(tmp_path):
    def git(*arguments):
        configured = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
        command = ["git", "-C", str(tmp_path), *configured, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    path = tmp_path / "bench" / "results" / "cpu.jsonl"
    git("init", "-q")
    git("commit", "-q", "--allow-empty", "-m", "nothing yet")
    results.merge(path, group())
    git("add", ".")
    git("commit", "-q", "-m", "rows")
    head = git("rev-parse", "HEAD")
    results.merge(path, group(2.0, commit=head[:12]))
    git("commit", "-q", "-a", "-m", "rows measured at the commit before")
    old = compare.side("HEAD~1", tmp_path)
    # Measured at that very commit: they replace what was stored with it.
    assert [each["median_ms"] for each in old.rows] == [20.0, 100.0, 120.0]
    assert f"3 rows of bench/results at commit {head[:12]}, 3 measured at it" in old.origin
    results.merge(path, group(3.0, commit=f"{head[:12]}+changes"))
    # A tree with changes is no commit.
    assert compare.side("HEAD~1", tmp_path).rows[0]["median_ms"] == 10.0
    assert compare.side("HEAD", tmp_path).rows[0]["median_ms"] == 20.0
    with pytest.raises(ValueError, match="has no rows in bench/results"):
        compare.side("HEAD~2", tmp_path)
