"""`python -m bench speedrun`: recipes, splits, logs that continue, rows, tables, refusals."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from invoked import invoke

from barlow_fast.checkpoints.training import earlier, load_checkpoint
from barlow_fast.data import ImageDataset, Views
from barlow_fast.models import build_encoder
from bench import results
from bench.suites import speedrun as suite

pytest.importorskip("torchvision")
speedrun = pytest.importorskip("bench.training.speedrun")
TINY = ("encoder_widths=[4,4]", "projector=[16]", "batch_size=32", "epochs=2")


def images(count: int = 240, side: int = 12) -> ImageDataset:
    """Squares whose brightness is their class."""
    labels = torch.arange(count) % 10
    noise = torch.from_numpy(np.random.default_rng(0).integers(0, 20, (count, 1, side, side)))
    pixels = (noise + 20 * labels[:, None, None, None]).to(torch.uint8)
    return ImageDataset(
        "fashion-mnist", "made up", pixels, labels, pixels[:50], labels[:50], classes=10
    )


def run(tmp_path, *changes, **values):
    plan = speedrun.planned(speedrun.RECIPES["baseline"], [*TINY, *changes])
    given = {"seed": 0, "minutes": None, "peer": speedrun.OURS, "folder": tmp_path} | values
    return speedrun.Run(plan, images(), **given)


def test_changes_reach_settings_views_and_features():
    changes = ["lambd=0.01", "views.flip=0.0", "views.crop_area=[0.2,1.0]",
               "features=[Feature1,output]"]  # fmt: skip
    plan = speedrun.planned(speedrun.RECIPES["baseline"], changes)
    assert plan.config.lambd == 0.01
    assert plan.features == ("Feature1", "output")
    views = Views.from_yaml(plan.views)
    assert [view.flip for view in views.views] == [0.0, 0.0]
    assert [view.crop_area for view in views.views] == [(0.2, 1.0)] * 2
    # What is not named stays as the preset has it.
    assert [view.blur for view in views.views] == [0.5, 0.1]


def test_runs_differ_by_the_content_of_their_views(monkeypatch, tmp_path):
    """A preset of views may change between two runs of the same name."""
    before = run(tmp_path).name()
    preset = speedrun.named_views(speedrun.CASE)
    other = replace(preset, views=tuple(replace(view, flip=0.25) for view in preset.views))
    monkeypatch.setattr(speedrun, "named_views", lambda name: other)
    assert run(tmp_path).name() != before


def test_of_one_setting_the_last_change_counts():
    recipe = speedrun.Recipe("", ("loss=barlow-twins", "lambd=0.01", "views.flip=0.1"))
    plan = speedrun.planned(recipe, ["lambd=0.02", "views.flip=0.3"])
    assert plan.config.lambd == 0.02
    assert Views.from_yaml(plan.views).views[0].flip == 0.3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("lamda=0.1", "unknown setting 'lamda'"),
        ("views.flop=0.1", "unknown field of a view: flop;"),
        ("views.flip=2", "flip is a probability"),
        ("features=output", "features must be names of stages"),
        ("average=0", "average must be a number of epochs from 1 on, got 0"),
        ("average=true", "average must be a number of epochs"),
        ("sizes=16", r"sizes must be pixels such as \[16,20,28\], got 16"),
        ("sizes=[16,0]", "sizes must be pixels"),
        ("epochs", "name=value"),
    ],
)
def test_unknown_changes_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        speedrun.planned(speedrun.RECIPES["baseline"], [change])


def test_every_recipe_can_be_planned():
    for recipe in speedrun.RECIPES.values():
        assert speedrun.planned(recipe).config.dataset == speedrun.CASE
        assert recipe.sentence.endswith(".")


def test_validation_divides_the_training_images_and_shows_no_test_image():
    whole = images()
    whole = replace(whole, test_images=torch.full_like(whole.test_images, 255))
    data = speedrun.validation(whole)
    assert (len(data.train_images), len(data.test_images)) == (200, 40)
    assert torch.bincount(data.test_labels).tolist() == [4] * 10
    assert not (data.test_images == 255).any()
    together = torch.cat([data.train_images, data.test_images]).flatten(1)
    assert torch.equal(together.unique(dim=0), whole.train_images.flatten(1).unique(dim=0))
    again = speedrun.validation(whole)
    assert torch.equal(again.test_images, data.test_images)


def test_a_part_of_the_images_is_balanced(monkeypatch, tmp_path):
    monkeypatch.setattr(speedrun, "SYSTEM_FASHION_MNIST", tmp_path)
    monkeypatch.setattr(speedrun, "load_fashion_mnist", lambda folder: images())
    data = speedrun.images_of(speedrun.VALIDATION, 100)
    assert torch.bincount(data.train_labels).tolist() == [10] * 10
    assert len(data.test_labels) == 40
    assert len(speedrun.images_of(speedrun.TEST).train_labels) == 240
    with pytest.raises(ValueError, match="200 images to learn from, not 201"):
        speedrun.images_of(speedrun.VALIDATION, 201)


def test_pretraining_is_shown_no_labels_and_no_image_that_is_judged_on():
    data = images()
    data = replace(data, test_images=torch.full_like(data.test_images, 255))
    bare = speedrun.unlabelled(data)
    assert bare.train_labels is None
    assert bare.test_labels is None
    assert not (bare.test_images == 255).any()


def test_a_run_writes_a_log_of_every_epoch_and_is_not_repeated(tmp_path):
    first = run(tmp_path, about={"provenance": {"commit": "abc"}})
    end = first.finish()
    lines = (tmp_path / first.name() / "log.jsonl").read_text().splitlines()
    log = [json.loads(line) for line in lines]
    assert [line["event"] for line in log] == ["start", "epoch", "epoch", "end"]
    assert log[0]["settings"]["projector"] == [16]
    assert log[0]["provenance"] == {"commit": "abc"}
    assert all(
        {"loss", "seconds", "cpu_seconds", "learning_rate"} <= set(line) for line in log[1:3]
    )
    assert 10 < end["linear"] <= 100
    assert end["seconds"] == pytest.approx(sum(line["seconds"] for line in log[1:3]))
    assert run(tmp_path).finish() == end
    assert len((tmp_path / first.name() / "log.jsonl").read_text().splitlines()) == 4


def test_an_interrupted_run_ends_with_the_same_result(tmp_path, monkeypatch):
    whole = run(tmp_path / "whole").finish()
    add = speedrun.Log.add

    def stop(self, event, **values):
        line = add(self, event, **values)
        if event == "epoch":
            raise KeyboardInterrupt
        return line

    with monkeypatch.context() as patch:
        patch.setattr(speedrun.Log, "add", stop)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "cut").finish()
    end = run(tmp_path / "cut").finish()
    assert (end["linear"], end["knn"]) == (whole["linear"], whole["knn"])
    log = speedrun.Log(tmp_path / "cut" / run(tmp_path).name() / "log.jsonl")
    assert [line["epoch"] for line in log.epochs()] == [1, 2]
    assert len([line for line in log.lines if line["event"] == "start"]) == 1


def test_other_features_are_judged_without_another_training(tmp_path, monkeypatch):
    plain = run(tmp_path).finish()
    steps = []
    trained = speedrun.Trainer.train_step
    monkeypatch.setattr(
        speedrun.Trainer, "train_step", lambda self: (steps.append(1), trained(self))[1]
    )
    other = run(tmp_path, "features=[Feature1,output]").finish()
    assert not steps
    assert other["features"] == "Feature1 output"
    assert (other["epochs"], plain["epochs"]) == (2, 2)


def test_the_weights_of_the_last_epochs_are_averaged(tmp_path):
    last, both = run(tmp_path), run(tmp_path, "average=2")
    assert last.name() != both.name()
    both.finish()
    path = tmp_path / both.name() / "checkpoint.pt"
    new, old = (load_checkpoint(earlier(path, number))["model"] for number in (0, 1))
    mean = speedrun.averaged([path, earlier(path, 1)])
    changed = 0
    for name, value in mean.items():
        if value.is_floating_point():
            torch.testing.assert_close(value, (new[name] + old[name]) / 2)
            changed += not torch.equal(new[name], old[name])
        else:
            assert torch.equal(value, new[name])
    assert changed > 4


def test_what_is_judged_has_the_averaged_weights(tmp_path, monkeypatch):
    judged, judge = [], speedrun.judge
    monkeypatch.setattr(
        speedrun, "judge", lambda *given: (judged.append(given[0]), judge(*given))[1]
    )
    # More epochs than there are: all of them.
    average = run(tmp_path, "average=5")
    average.finish()
    path = tmp_path / average.name() / "checkpoint.pt"
    mean = speedrun.averaged([path, earlier(path, 1)])
    for name, value in judged[0].state_dict().items():
        assert torch.equal(value, mean[f"encoder.{name}"]), name


def test_views_have_the_sizes_of_their_epochs(tmp_path, monkeypatch):
    seen = []
    backward = speedrun.Trainer._backward

    def note(trainer, batch):
        seen.append((trainer.epoch, *{view.shape[-1] for view in batch.views}))
        assert all(view.is_contiguous(memory_format=torch.channels_last) for view in batch.views)
        return backward(trainer, batch)

    monkeypatch.setattr(speedrun.Trainer, "_backward", note)
    resized = run(tmp_path, "epochs=3", "sizes=[8,12]")
    resized.finish()
    assert sorted(set(seen)) == [(0, 8), (1, 12), (2, 12)]
    assert resized.name() != run(tmp_path, "epochs=3").name()
    with pytest.raises(ValueError, match="give --epochs"):
        run(tmp_path, "sizes=[8,12]", minutes=1.0).finish()
    with pytest.raises(ValueError, match="views of one size"):
        run(tmp_path, "sizes=[8,12]", peer=speedrun.LIGHTLY).finish()


def test_lightly_has_no_checkpoints_to_average(tmp_path):
    pytest.importorskip("bench.training.quality")
    with pytest.raises(ValueError, match="no checkpoints whose weights"):
        run(tmp_path, "average=2", peer=speedrun.LIGHTLY).finish()


def test_lightly_trains_by_its_own_loss_alone(tmp_path):
    with pytest.raises(ValueError, match=r"BarlowTwinsLoss, not by frossl: add --changes loss="):
        run(tmp_path, "loss=frossl", peer=speedrun.LIGHTLY).finish()
    assert not list(tmp_path.iterdir())


def test_features_side_by_side_have_unit_length_each():
    encoder = build_encoder("small", channels=1, image_size=12, widths=(4, 6), grid=2)
    found = speedrun.SideBySide(encoder.eval(), ["Feature1", "output"])(torch.randn(3, 1, 12, 12))
    assert found.shape == (3, 4 * 12 * 12 + 6 * 4)
    norms = found[:, : 4 * 144].norm(dim=1), found[:, 4 * 144 :].norm(dim=1)
    torch.testing.assert_close(torch.stack(norms), torch.ones(2, 3))


def test_a_budget_gives_the_epochs_that_fit(tmp_path, monkeypatch):
    monkeypatch.setattr(speedrun, "epoch_seconds", lambda *_: 20.0)
    end = run(tmp_path, minutes=1.2).finish(say=lambda line: None)
    assert end["epochs"] == 3  # 72 s, of which 3 % are kept back
    assert not end["over_budget"]
    monkeypatch.setattr(speedrun, "epoch_seconds", lambda *_: pytest.fail("timed again"))
    assert run(tmp_path, minutes=1.2).finish() == end


def test_a_run_over_its_budget_is_marked(tmp_path, monkeypatch):
    monkeypatch.setattr(speedrun, "epoch_seconds", lambda *_: 1e-9)
    monkeypatch.setattr(speedrun.math, "floor", lambda _: 1)
    assert run(tmp_path, minutes=1e-6).finish(say=lambda line: None)["over_budget"]


@pytest.mark.parametrize("taken", [(30.0, 30.0, 30.0), (30.0, 20.0, 30.0)])
def test_a_machine_slower_than_timed_ends_the_run_within_its_budget(tmp_path, monkeypatch, taken):
    monkeypatch.setattr(speedrun, "epoch_seconds", lambda *_: 20.0)
    add, times = speedrun.Log.add, iter(taken)
    monkeypatch.setattr(
        speedrun.Log, "add", lambda self, event, **values: add(
            self, event, **values | ({"seconds": next(times)} if event == "epoch" else {})
        ),
    )  # fmt: skip
    end = run(tmp_path, minutes=1.2).finish(say=lambda line: None)
    assert end["epochs"] == 2  # of three: all would be more than 72 s
    assert sum(taken[:2]) <= end["seconds"] < 72
    assert not end["over_budget"]
    # Judged once more, it is not trained further.
    other = run(tmp_path, "features=[Feature1,output]", minutes=1.2).finish()
    assert (other["epochs"], other["seconds"]) == (2, end["seconds"])


def test_a_budget_that_is_too_small_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(speedrun, "epoch_seconds", lambda *_: 20.0)
    with pytest.raises(ValueError, match=r"an epoch takes 20\.0 s, --minutes is 0\.3"):
        run(tmp_path, minutes=0.3).finish()


@pytest.mark.parametrize(("start", "step"), [(0.0, 0.5), (3.0, 0.5)])
def test_an_epoch_is_timed_apart_from_its_start(monkeypatch, start, step):
    quality = pytest.importorskip("bench.training.quality")

    def trained(config, data, say):
        steps = len(data.train_images) // config.batch_size
        return None, len(data.train_images) / (start + step * steps)

    monkeypatch.setattr(quality, "ours", trained)
    config = speedrun.planned(speedrun.RECIPES["baseline"], ["batch_size=2"]).config
    seconds = speedrun.epoch_seconds(config, images(), speedrun.OURS)
    assert seconds == pytest.approx(start + 120 * step)


def trial(linear, changes=(), against=(), prediction="", **values):
    return {
        "suite": "speedrun", "split": "validation", "recipe": "baseline", "sentence": "Base.",
        "changes": list(changes), "against": list(against), "prediction": prediction,
        "peer": "ours", "images": 1000, "judged_on": 100, "minutes": None, "per_run": 4,
        "linear": linear, "knn": linear, "cpu_seconds": [20.0], "seconds": [20.0],
        "epochs": [4], "seeds": list(range(len(linear))), "over_budget": False,
        "provenance": {"date": "2026-01-01T00:00:00", "commit": "abc", "torch": "2.14",
                       "cpu": "CPU", "cores": 2, "command": "python -m bench speedrun"},
    } | values  # fmt: skip


def test_trials_state_differences_with_their_errors(monkeypatch):
    kept = speedrun.Recipe("Kept.", ("lambd=0.01",))
    monkeypatch.setitem(speedrun.RECIPES, "speedrun", kept)
    rows = [
        trial([80.0, 81.0, 82.0]),
        trial([84.0, 85.0, 86.0], ["lambd=0.01"], prediction="+1"),
        trial([90.0], ["lambd=0.01", "epochs=2"]),
        trial([81.5], ["batch_size=64"]),
        trial([70.0], ["lambd=0.01", "views.flip=0"], against=["lambd=0.01"]),
        # By these two seeds' own deviation, 0, this would be clear.
        trial([82.5, 82.5], ["seed=5"]),
        # Another table, with a noise of its own: none is known.
        trial([90.0], per_run=8),
        trial([99.0], ["lambd=0.01"], per_run=8),
    ]
    text = suite.tables(rows)
    # The pooled deviation is sqrt((2 + 2 + 0) / 5) = 0.894.
    assert "| the recipe | `lambd=0.01` | +1 | 85.00 ± 1.00 | 85.00 ± 1.00 | +4.00 ± 0.73" in text
    assert text.count("better; kept") == 2  # epochs that make times equal are no part of a recipe
    assert "| 81.50 | 81.50 | +0.50 ± 1.03 | +0.50 ± 1.03 | 20 | within the noise; dropped" in text
    assert "| `lambd=0.01` | `views.flip=0` | – | 70.00 | 70.00 | -15.00 ± 1.03" in text
    assert "worse; dropped" in text
    assert "+1.50 ± 0.82 | +1.50 ± 0.82 | 20 | within the noise; dropped" in text
    assert "### Recipe `baseline`, 1,000 images, 4 epochs" in text
    assert "| 90.00 | 90.00 | – | – | 20 | – |" in text
    assert "| 99.00 | 99.00 | +9.00 | +9.00 | 20 | noise not known; kept" in text


def test_records_are_higher_than_all_before_with_enough_seeds_within_the_budget():
    def record(day, linear, seeds=5, **values):
        row = trial([linear] * seeds, split="test", minutes=15.0, **values)
        row["provenance"] = row["provenance"] | {"date": f"2026-01-{day:02}T00:00:00"}
        return row

    rows = [
        record(3, 91.0), record(1, 90.0), record(2, 89.0), record(4, 95.0, seeds=3),
        record(5, 96.0, over_budget=True), record(6, 80.0, peer="lightly"),
    ]  # fmt: skip
    lines = suite.tables(rows).splitlines()[2:]
    assert [line.split(" | ")[0].strip("| ") for line in lines] == [
        f"2026-01-0{day}" for day in range(1, 7)
    ]
    assert ["**" in line for line in lines] == [True, False, True, False, False, False]
    assert "(over the budget)" in lines[4]
    assert "lightly's loss, transforms and loader." in lines[5]


def test_a_row_replaces_that_of_the_same_experiment(tmp_path):
    path = tmp_path / "rows.jsonl"
    results.put(path, trial([80.0]), suite.identity)
    results.put(path, trial([81.0], ["lambd=0.01"]), suite.identity)
    results.put(path, trial([82.0]), suite.identity)
    assert [row["linear"] for row in results.read(path)] == [[82.0], [81.0]]


def test_experiments_of_a_file_gain_one_seed_at_a_time(monkeypatch, tmp_path):
    monkeypatch.setattr(speedrun, "images_of", lambda split, count: images())
    monkeypatch.setitem(
        speedrun.RECIPES, "baseline", speedrun.Recipe("Tiny.", ("loss=barlow-twins", *TINY))
    )
    file = tmp_path / "trials.yaml"
    file.write_text(
        "- {prediction: reference}\n"
        "- {changes: lambd=0.01 views.flip=0, prediction: level, against: ''}\n"
    )
    order, judge = [], speedrun.judge
    monkeypatch.setattr(
        speedrun, "judge", lambda encoder, data, config, features: (
            order.append((config.lambd, config.seed)), judge(encoder, data, config, features)
        )[1],
    )  # fmt: skip
    given = [
        "speedrun", "--recipe", "baseline", "--epochs", "1", "--seeds", "0,1",
        "--trials", str(file), "--folder", str(tmp_path), "--out", str(tmp_path / "rows.jsonl"),
    ]  # fmt: skip
    assert invoke(given).exit_code == 0
    assert order == [(0.0051, 0), (0.01, 0), (0.0051, 1), (0.01, 1)]
    rows = results.read(tmp_path / "rows.jsonl")
    assert [(row["changes"], row["prediction"], row["seeds"]) for row in rows] == [
        ([], "reference", [0, 1]), (["lambd=0.01", "views.flip=0"], "level", [0, 1]),
    ]  # fmt: skip
    assert rows[1]["against"] == []


@pytest.mark.parametrize(
    "text", ["a", "- {changes: lambd=1}", "- {prediction: 1}", "- {prediction: x, why: y}"]
)
def test_files_of_experiments_without_predictions_or_with_other_names_are_refused(tmp_path, text):
    (tmp_path / "trials.yaml").write_text(text)
    found = invoke(["speedrun", "--trials", str(tmp_path / "trials.yaml")])
    assert found.exit_code == 2
    assert "an experiment has texts named changes, prediction, against" in found.stderr


@pytest.mark.parametrize(
    ("name", "recipe"),
    [
        ("trials.yaml", "baseline"),
        ("longer_trials.yaml", "baseline"),
        ("longest_trials.yaml", "muon"),
    ],
)
def test_the_experiments_of_the_repository_can_be_planned(name, recipe):
    trials = suite.read_trials(Path(speedrun.__file__).with_name(name))
    assert len({each.changes for each in trials}) == len(trials)
    for each in trials:
        speedrun.planned(speedrun.RECIPES[recipe], ["epochs=4", *each.changes.split()])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--trials", "x.yaml", "--changes", "lambd=1"], "--trials states the changes"),
        (["--trials", "none.yaml"], "none.yaml"),
        (["--recipe", "best"], "unknown recipe 'best'; known are baseline, speedrun"),
        (["--split", "train"], "unknown split 'train'"),
        (["--peer", "timm"], "unknown peer 'timm'"),
        (["--seeds", "a"], "invalid literal"),
        (["--split", "test", "--epochs", "2"], "the budget is fixed"),
        (["--changes", "lamda=1"], "unknown setting 'lamda'"),
        (["--images", "10"], "10 is less than 1000"),
    ],
)
def test_bad_options_are_refused(given, message):
    found = invoke(["speedrun", *given])
    assert found.exit_code == 2
    assert message in found.stderr


def test_without_the_images_the_package_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(speedrun, "SYSTEM_FASHION_MNIST", tmp_path / "none")
    found = invoke(["speedrun"])
    assert found.exit_code == 2
    assert "dataset-fashion-mnist" in found.stderr


def test_without_lightly_its_absence_is_named(monkeypatch):
    monkeypatch.setattr(suite.provenance, "missing", lambda *names: f"{names[0]} is not installed")
    found = invoke(["speedrun", "--peer", "lightly"])
    assert found.exit_code == 2
    assert "lightly is not installed" in found.stderr


def test_a_command_from_start_to_row(monkeypatch, tmp_path):
    monkeypatch.setattr(speedrun, "images_of", lambda split, count: images())
    given = ["speedrun", "--recipe", "baseline", "--epochs", "2", "--seeds", "0,1",
             "--changes", " ".join(TINY),
             "--folder", str(tmp_path / "runs"), "--out", str(tmp_path / "rows.jsonl")]  # fmt: skip
    found = invoke(given)
    assert found.exit_code == 0, found.output
    (row,) = results.read(tmp_path / "rows.jsonl")
    assert row["seeds"] == [0, 1]
    assert len(row["linear"]) == len(row["knn"]) == 2
    assert row["changes"] == list(TINY)
    assert row["prediction"] == ""
    assert row["provenance"]["command"].startswith("python -m bench")
    assert str(tmp_path) not in json.dumps(row["settings"])
    # A budget in minutes, on images that stand for the test images.
    monkeypatch.setattr(speedrun, "epoch_seconds", lambda *_: 40.0)
    more = [*given[:3], "--split", "test", "--minutes", "2", *given[5:]]
    found = invoke(more)
    assert found.exit_code == 0, found.output
    assert [row["split"] for row in results.read(tmp_path / "rows.jsonl")] == ["validation", "test"]
