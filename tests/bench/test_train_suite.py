"""The suite `train`: the same network for all, losses held against float64, rows and tables."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from ended import SECONDS
from invoked import invoke

pytest.importorskip("torchvision")

from test_report import ORIGIN

from barlow_fast.training import Trainer
from bench import exits, report, results, sources
from bench.devices import Cpu
from bench.session import Given, Session
from bench.suites import train as suite
from bench.training import cases, runs
from bench.training.cases import CASES, LIGHTLY, LIMIT, OFFICIAL, OURS
from bench.views import images, turns
from bench.views.agreement import DisagreementError

TINY = {"batch_size": 4, "encoder_widths": (4, 8), "projector": (16, 24)}


@pytest.fixture(autouse=True)
def few_pixels(monkeypatch):
    monkeypatch.setattr(images, "PIXELS", 24)
    monkeypatch.setattr(images.pixels, "__defaults__", (24,))
    monkeypatch.setattr(runs, "INSTALLED", {})


def tiny(name="fashion-mnist", **changes):
    return replace(CASES[name], changes=TINY | changes)


@pytest.mark.parametrize("peer", cases.PEERS)
@pytest.mark.parametrize("name", ["fashion-mnist", "arrays-32"])
def test_every_run_learns_and_reports_where_its_time_goes(name, peer):
    case = tiny(name)
    if cases.unavailable(peer, case) is not None:
        pytest.skip(cases.unavailable(peer, case))
    with runs.open_run(peer, case, "cpu", None) as steps:
        assert [next(steps) for _ in range(3)] == [4] * 3
        steps.settle()
        shares = steps.report()
        assert 0 <= shares["data_wait_share"] < 1
        assert ("loss_share" in shares) is (peer in (OURS, LIMIT))
        assert steps.report() == {}
        steps.rest()


def test_all_start_from_the_same_weights(monkeypatch):
    case, seen = tiny(), []
    plain = runs._check_loss

    def keep(criterion, model, pair, autocast):
        seen.append({name: value.clone() for name, value in model.state_dict().items()})
        plain(criterion, model, pair, autocast)
        for name, value in model.state_dict().items():
            assert torch.equal(value, seen[-1][name]), f"the check changed {name}"

    monkeypatch.setattr(runs, "_check_loss", keep)
    for peer in (OURS, OFFICIAL):
        with runs.open_run(peer, case, "cpu", None) as steps:
            next(steps)
    ours, official = seen
    assert ours.keys() == official.keys()
    assert all(torch.equal(ours[name], official[name]) for name in ours)


def test_a_wrong_loss_is_not_timed(monkeypatch):
    build = runs.official_peer.build
    monkeypatch.setattr(
        runs.official_peer,
        "build",
        lambda n, d, dtype: (
            build(n, d, dtype)
            if dtype == torch.float64
            else lambda a, b: 1.01 * build(n, d, dtype)(a, b)
        ),
    )
    with (
        runs.open_run(OFFICIAL, tiny(precision="fp32"), "cpu", None) as steps,
        pytest.raises(DisagreementError, match="should be"),
    ):
        next(steps)


def test_the_limit_repeats_a_few_batches(monkeypatch):
    seen = []
    plain = Trainer._backward

    def backward(self, batch):
        seen.append(batch.views[0].data_ptr())
        return plain(self, batch)

    monkeypatch.setattr(Trainer, "_backward", backward)
    with runs.open_run(LIMIT, tiny(), "cpu", None) as steps:
        for _ in range(2 * runs.READY):
            next(steps)
    assert len(set(seen)) == runs.READY
    assert seen[: runs.READY] == seen[runs.READY :]


def test_files_are_trained_on(tmp_path, monkeypatch):
    """The case of photographs, with a compact encoder on small views' worth of files."""
    folder = images.photographs(tmp_path / "files", distinct=4, files=8)
    case = replace(
        CASES["resnet50-224"], preset="files", changes=TINY | {"projector": (8, 8), "batch_size": 2}
    )
    for peer in (LIMIT, OFFICIAL):
        with runs.open_run(peer, case, "cpu", folder) as steps:
            assert next(steps) == 2


def test_cases_of_gpus_have_the_stated_networks():
    resnet50 = CASES["resnet50-224"].config()
    assert (resnet50.encoder, resnet50.projector, resnet50.batch_size) == (
        "resnet50", (8192, 8192, 8192), 256,
    )  # fmt: skip
    widths = [CASES[f"resnet18-32-{d}"].config().projector[-1] for d in (2048, 8192)]
    assert widths == [2048, 8192]
    assert [case.name for case in cases.parse(None, "cuda")] == [
        "resnet50-224", "resnet18-32-2048", "resnet18-32-8192",
    ]  # fmt: skip
    assert cases.parse(None, "cpu", quick=True)[0].config().batch_size == cases.QUICK_BATCH


def test_without_torchvision_the_encoder_is_timms(monkeypatch):
    def missing(*modules):
        return "torchvision is not installed" if "torchvision" in modules else None

    monkeypatch.setattr(cases.provenance, "missing", missing)
    case = CASES["resnet18-32-2048"]
    assert case.config().encoder == "timm:resnet18"
    assert cases.unavailable(OURS, case) is None
    assert cases.unavailable(OFFICIAL, case) == "torchvision is not installed"


def test_a_machine_without_any_encoder_is_reported(monkeypatch, tmp_path):
    monkeypatch.setattr(cases, "unavailable", lambda peer, case: "timm is not installed")
    found = invoke(["train", "--out", str(tmp_path / "rows.jsonl")])
    assert found.exit_code == exits.UNUSABLE
    assert found.output.splitlines()[-1] == "timm is not installed"


def measure(out, chosen, names, **given):
    session = Session(Cpu(), Given(out=out, **given))
    suite.measure(session, chosen, names, (0.1, 1, SECONDS))
    return session


@pytest.mark.slow
def test_a_small_run(tmp_path, monkeypatch):
    """Processes, turns and rows, with a journal as `make gpu` has it, on the CPU."""
    monkeypatch.setattr(sources, "fingerprint", lambda: "0123456789ab")
    out, journal = tmp_path / "rows.jsonl", tmp_path / "journal"
    session = measure(out, [tiny()], (OURS, LIMIT), journal=journal)
    assert (session.measured, session.left, session.failures) == (1, [], {})
    ours, limit = results.read(out)
    assert ours["dtype"] in ("float32", "bfloat16")
    assert (ours["peer"], ours["n"], ours["d"]) == (OURS, 4, 24)
    assert ours["fraction_of_limit"] == pytest.approx(
        ours["median_per_s"] / limit["median_per_s"], rel=1e-3
    )
    assert limit["fraction_of_limit"] is None
    assert 0 <= ours["data_wait_share"] < 1
    assert 0 < ours["loss_share"] < 1
    again = measure(out, [tiny()], (OURS, LIMIT), journal=journal, resume=True, minutes=0.0)
    assert (again.measured, again.left) == (0, [])


def test_a_case_for_which_time_is_short_is_left(tmp_path):
    case = replace(tiny(), seconds=100.0)
    session = measure(tmp_path / "rows.jsonl", [case], (OURS,), minutes=1.0)
    assert (session.measured, session.left) == (0, ["fashion-mnist"])


def test_a_case_that_ended_an_earlier_process_is_named(tmp_path):
    journal = tmp_path / "journal"
    journal.write_text('{"start": "fashion-mnist"}\n')
    session = measure(tmp_path / "rows.jsonl", [tiny()], (OURS,), journal=journal)
    assert list(session.failures) == ["fashion-mnist"]


def made_up(name, peer, rate, wait=None, loss=None, kind="cpu"):
    figures = {"data_wait_share": wait, "loss_share": loss} if wait is not None else {}
    found = suite.row(CASES[name], peer, [0.9 * rate, rate, 1.1 * rate], figures, Cpu())
    return found | {"provenance": ORIGIN, "device": kind}


def test_tables_show_ratios_shares_and_targets():
    rows = [
        made_up("fashion-mnist", OURS, 900.0, 0.03, 0.125),
        made_up("fashion-mnist", LIMIT, 1000.0, 0.0, 0.2),
        made_up("fashion-mnist", OFFICIAL, 600.0),
        made_up("fashion-mnist", LIGHTLY, 400.0),
    ]
    suite.add_fractions(rows)
    text = suite.tables(rows)
    ours, *_, lightly = (row["source"] for row in rows)
    shares = "90.0% | 3.0% | 12.5% | 1.50× | 2.25×"
    assert f"| barlow_fast | **900** | 846 | 954 | 3 | {ours} | {shares} |" in text
    assert f"| lightly | 400 | 376 | 424 | 3 | {lightly} | 40.0% |  |  |  |  |" in text
    assert "batch 256, " in text
    assert "The target of 2 times lightly is met." in text
    assert "Slower" not in text
    rows[3] = made_up("fashion-mnist", LIGHTLY, 1000.0)
    text = suite.tables(rows[:1] + rows[3:])
    assert "is missed (0.90 times). Slower than lightly." in text


def test_a_gpu_is_judged_by_its_waiting():
    rows = [made_up("resnet50-224", OURS, 900.0, 0.05, 0.01, "cuda")]
    suite.add_fractions(rows)
    assert "less than 2% of a step waiting for data is missed (5.0%)" in suite.tables(rows)
    rows = [made_up("resnet50-224", OURS, 900.0, 0.01, 0.01, "cuda")]
    suite.add_fractions(rows)
    text = suite.tables(rows)
    assert "waiting for data is met." in text
    assert "as many workers as there are cores" in text


def test_rows_make_a_section(tmp_path):
    rows = [made_up("fashion-mnist", OURS, 900.0, 0.03, 0.125)]
    suite.add_fractions(rows)
    results.merge(tmp_path / "cpu-example.jsonl", rows)
    assert f"# {suite.SECTION}" in report.page("train", report.machine_files(tmp_path))


class Reporting:
    """A feed with all methods, in this process."""

    def __init__(self):
        self.log = []

    def __iter__(self):
        return self

    def __next__(self):
        self.log.append("step")
        return 10

    def settle(self):
        self.log.append("settle")

    def report(self):
        self.log.append("report")
        return {"share": 0.5}

    def rest(self):
        self.log.append("rest")


def test_a_turn_settles_around_its_clock_and_rests_after_it():
    feed = Reporting()
    count, elapsed, figures = turns._timed(feed, 0.0, ahead=1)
    assert feed.log == [
        "step", "settle", "report", *["step"] * turns.FEWEST, "settle", "report", "rest",
    ]  # fmt: skip
    assert (count, figures) == (10 * turns.FEWEST, {"share": 0.5})
    assert elapsed > 0


def test_committed_rows_meet_the_target_or_say_so():
    rows = [r for path in results.FOLDER.glob("*.jsonl") for r in results.read(path)]
    found = {
        r["peer"]: r["median_per_s"]
        for r in rows
        if r["suite"] == "train" and r["case"] == "fashion-mnist"
    }
    if LIGHTLY not in found:
        pytest.skip("no such rows are committed yet")
    ratio = found[OURS] / found[LIGHTLY]
    text = suite.tables([r for r in rows if r["suite"] == "train"])
    assert ("The target of 2 times lightly is met." in text) is (ratio >= 2)
