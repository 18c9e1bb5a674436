"""`python -m bench ablations`: what is varied, rows, tables, the figure, refusals."""

from __future__ import annotations

import pytest
from invoked import invoke
from test_speedrun_suite import TINY, images

from bench import results
from bench.plots import figures
from bench.suites import ablations

pytest.importorskip("torchvision")
speedrun = pytest.importorskip("bench.training.speedrun")


def point(name, value, linear, **values):
    return {
        "suite": "ablations", "case": name, "value": value, "recipe": "speedrun", "n": 256,
        "d": 1024, "dtype": "auto", "peer": "ours", "epochs": 4, "images": 50_000,
        "judged_on": 10_000, "seeds": list(range(len(linear))), "linear": linear,
        "knn": [each - 2 for each in linear], "cpu_seconds": [100.0] * len(linear),
        "provenance": {"cpu": "CPU", "cores": 2},
    } | values  # fmt: skip


def planned(name, *changes):
    monkey = speedrun.Recipe("", ("loss=barlow-twins", *changes))
    speedrun.RECIPES["tested"] = monkey
    try:
        return {value: plan.config for _, value, plan in ablations.plans([name], None, "tested", 3)}
    finally:
        del speedrun.RECIPES["tested"]


def test_the_last_width_of_the_projector_is_varied():
    configs = planned("projector", "projector=[64,128,256]")
    assert list(configs) == [2**k for k in range(5, 15)]
    assert {config.projector[:2] for config in configs.values()} == {(64, 128)}
    assert [config.projector[2] for config in configs.values()] == list(configs)
    assert {config.epochs for config in configs.values()} == {3}


@pytest.mark.parametrize(
    ("optimizer", "ratio"), [("adamw", 2.0), ("muon", 2.0), ("lars", 4.0), ("sgd", 4.0)]
)
def test_learning_rates_follow_the_batch_size(optimizer, ratio):
    configs = planned("batch", f"optimizer={optimizer}", "batch_size=512", "learning_rate=0.1",
                      "bias_learning_rate=0.01")  # fmt: skip
    assert list(configs) == [config.batch_size for config in configs.values()]
    at = configs[2048].learning_rates
    assert at == pytest.approx((0.1 * ratio, 0.01 * ratio))
    assert configs[512].learning_rates == pytest.approx((0.1, 0.01))


def test_lambda_is_varied_alone():
    configs = planned("lambd")
    assert list(configs) == [config.lambd for config in configs.values()]
    assert len({config.projector for config in configs.values()}) == 1


def test_curves_are_sorted_and_summed_up():
    rows = [point("lambd", 0.01, [80.0, 82.0]), point("lambd", 0.001, [70.0, 72.0]),
            point("batch", 64, [60.0])]  # fmt: skip
    curves = ablations.curves(rows)
    assert list(curves) == ["batch", "lambd"]
    assert [each["value"] for each in curves["lambd"]] == [0.001, 0.01]
    text = ablations.summary("lambd", curves["lambd"])
    assert text == "λ: best linear accuracy 81.00 % at 0.01; -10.00 at 0.001"
    page = ablations.tables(rows)
    assert "| 0.01 | 81.00 ± 1.41 | 79.00 ± 1.41 | 2 | 100 |" in page
    assert "unlike in SimCLR" in page
    assert "16384" not in page


def test_the_figure_has_a_panel_for_each_curve():
    pytest.importorskip("matplotlib")
    rows = [point("lambd", value, [80.0, 81.0]) for value in (0.001, 0.01)]
    rows += [point("projector", value, [80.0, 81.0]) for value in (32, 64, 128)]
    rows += [point("batch", 32, [80.0])]  # one point is no curve
    pictures = figures.pictures({"ablations.jsonl": rows})
    (picture,) = [each for each in pictures if each.suite == "ablations"]
    panels = {panel["labels"][0]: panel["lines"] for panel in picture.data["panels"]}
    assert set(panels) == {"projector output D", "λ"}
    linear, knn = panels["λ"]
    assert linear["points"] == [[0.001, 80.5], [0.01, 80.5]]
    assert knn["points"] == [[0.001, 78.5], [0.01, 78.5]]
    assert linear["spread"][0] == pytest.approx([0.001, 80.5 - 0.5**0.5, 80.5 + 0.5**0.5])
    svg = picture.svg()
    assert "projector output D" in svg
    assert "batch size<" not in svg


def test_a_command_from_start_to_rows_and_again(monkeypatch, tmp_path):
    monkeypatch.setattr(speedrun, "images_of", lambda split, count: images())
    recipe = speedrun.Recipe("Tiny.", ("loss=barlow-twins", *TINY))
    monkeypatch.setitem(speedrun.RECIPES, "baseline", recipe)
    given = ["ablations", "--recipe", "baseline", "--parameters", "projector", "--values", "8,16",
             "--epochs", "1", "--seeds", "0,1", "--folder", str(tmp_path / "runs"),
             "--out", str(tmp_path / "rows.jsonl")]  # fmt: skip
    found = invoke(given)
    assert found.exit_code == 0, found.output
    rows = results.read(tmp_path / "rows.jsonl")
    assert [(row["value"], row["seeds"], len(row["linear"])) for row in rows] == [
        (8.0, [0, 1], 2), (16.0, [0, 1], 2),
    ]  # fmt: skip
    monkeypatch.setattr(speedrun, "judge", lambda *_: pytest.fail("done again"))
    assert invoke(given).exit_code == 0
    again = results.read(tmp_path / "rows.jsonl")
    assert [row["linear"] for row in again] == [row["linear"] for row in rows]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--parameters", "width"], "unknown parameter 'width'"),
        (["--values", "8"], "--values needs a single name"),
        (["--recipe", "best"], "unknown recipe 'best'"),
        (["--parameters", "lambd", "--values", "-1"], "lambd must be at least 0"),
    ],
)
def test_bad_options_are_refused(monkeypatch, given, message):
    monkeypatch.setattr(speedrun, "images_of", lambda split, count: images())
    found = invoke(["ablations", *given])
    assert found.exit_code == 2
    assert message in found.stderr
