"""What a finished run leaves to be looked at: figures and a page, whatever the run was like."""

from __future__ import annotations

import base64
import html.parser
import math
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from barlow_fast.data import Views, ViewSpecification
from barlow_fast.data.sources import ArraySource
from barlow_fast.statistics.rank import entropy_rank
from barlow_fast.training import Trainer, configure, monitors
from barlow_fast.training.reporting import figures, page, report_run
from barlow_fast.training.reporting.figures import draw_map, draw_monitors, printable
from barlow_fast.training.reporting.page import render_page, time_table
from barlow_fast.training.reporting.projection import project
from barlow_fast.training.watching import MAPPED_IMAGES, Portrait

HOSTILE = "<script>alert(1)</script> & $x_ \\frac \"'\n{{ 7 * 7 }} \udc80"


class Outline(html.parser.HTMLParser):
    """Tags with attributes, and the text outside of style."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(source)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text += data


@pytest.fixture(scope="module")
def trained(small_digits) -> Trainer:
    config = configure(
        "digits", loss="barlow-twins",
        epochs=2, batch_size=32, encoder_widths=(8, 16), projector=(32, 64),
        warmup_epochs=1, evaluate_every=1,
    )  # fmt: skip
    trainer = Trainer(config, small_digits)
    trainer.run()
    trainer.checkpoint_path = Path("a folder") / "it's.pt"
    return trainer


@pytest.fixture(scope="module")
def reported(trained, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    report = report_run(trained, folder, HOSTILE)
    assert report.complaints == []
    assert report.files == {
        "figure": folder / "figure.png",
        "monitors": folder / "monitors.png",
        "map": folder / "map.png",
        "report": folder / "report.html",
    }
    return folder


@pytest.fixture(scope="module")
def source(reported) -> str:
    return (reported / "report.html").read_text(encoding="utf-8")


def test_only_whole_files_are_left(reported):
    names = sorted(path.name for path in reported.iterdir())
    assert names == ["figure.png", "map.png", "monitors.png", "report.html"]


@pytest.mark.parametrize(
    ("name", "size"),
    [("figure.png", (1500, 925)), ("monitors.png", (1500, 800)), ("map.png", (1500, 775))],
)
def test_figures_are_pictures_with_something_on_them(reported, name, size):
    from PIL import Image

    with Image.open(reported / name) as picture:
        assert picture.size == size
        histogram = picture.convert("L").histogram()
    assert histogram[255] < 0.98 * sum(histogram)
    assert sum(count > 0 for count in histogram) > 50


def test_the_page_is_one_file_that_requests_nothing(source):
    outline = Outline(source)
    assert outline.open == []
    tags = [tag for tag, _ in outline.tags]
    assert not {"script", "link", "iframe", "object"} & set(tags)
    assert tags.count("img") == 3
    for tag, attributes in outline.tags:
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("src", "href"):
                assert (tag, value[:22]) == ("img", "data:image/png;base64,")
    assert "url(" not in source
    assert "prefers-color-scheme: dark" in source
    assert "default-src 'none'" in source


def test_the_page_fits_a_narrow_screen(source):
    """A table scrolls by itself, and no cell is broken into characters."""
    tags = Outline(source).tags
    tables = [number for number, (tag, _) in enumerate(tags) if tag == "table"]
    assert len(tables) == 5
    for number in tables:
        assert tags[number - 1] == ("div", {"class": "scroll"})
    style = source[source.index("<style>") : source.index("</style>")]
    rules = dict(re.findall(r"^([^@{}]+?) \{([^{}]*)\}", style, re.MULTILINE))
    assert "overflow-x: auto" in rules[".scroll"]
    assert "white-space: nowrap" in rules["th, td"]
    assert "overflow-wrap" not in rules["th, td"]
    # Only where there is room for it.
    assert "width" not in rules["tbody th"]
    assert ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}) in tags
    # The plan is laid out in columns.
    (plan,) = re.findall(r"<pre>(.*?)</pre>", source, re.DOTALL)
    assert "\n  form       gram" in plan


def test_both_color_schemes_name_every_color(source):
    light, dark = (
        set(re.findall(r"--(\w+): #", block))
        for block in re.findall(r":root \{(.*?)\}", source, re.DOTALL)
    )
    assert light == dark == set(re.findall(r"var\(--(\w+)\)", source))
    assert ("meta", {"name": "color-scheme", "content": "light dark"}) in Outline(source).tags


def test_collapse_is_judged_by_its_criterion():
    good = {"embedding_std": 0.9, "effective_rank": 118.0}
    assert not monitors.has_collapsed(good)
    for bad in ({"embedding_std": 0.001}, {"effective_rank": 1.2}, {"effective_rank": math.nan}):
        assert monitors.has_collapsed(good | bad)
    verdict = page._collapse(portrait(monitors=good | {"effective_rank": 1.0}), portrait())
    assert verdict[0] == "collapsed"
    assert "effective rank 1 of at most 16 (" in verdict[2]


def test_the_pictures_of_the_page_are_the_files(reported, source):
    sources = [attributes["src"] for tag, attributes in Outline(source).tags if tag == "img"]
    inside = [base64.b64decode(each.split(",", 1)[1]) for each in sources]
    files = [(reported / f"{name}.png").read_bytes() for name in ("figure", "monitors", "map")]
    assert inside == files


def test_the_page_reports_the_run(source, trained):
    text = Outline(source).text
    last = trained.history[-1]
    for part in (
        "<script>alert(1)</script> & $x_",  # as words
        "{{ 7 * 7 }}",
        f"{100 * last['knn']:.2f} %",
        f"{100 * trained.before['before']:.2f} %",
        f"{100 * trained.before['raw']:.2f} %",
        f"{last['loss']:.2f}",
        f"{last['images_per_second']:,.0f}",
        "200 training and 100 test images",
        "32-64",
        "neighbour_images",
        f"torch {torch.__version__}",
        "form       gram",
        "waiting for views",
        f"{trained.before['before'] * 100:.1f} % with random weights",
        "no collapse",
        "It usually falls in a good run",
        monitors.CRITERION,
    ):
        assert part in text, part
    assert re.search(r"effective rank \d+ of at most 64 \(\d+ with random weights\)", text)


def test_the_weights_before_training_are_built_again(trained):
    """The figure's first portrait is of the model that training began with."""
    initial = trained.initial_model()
    portrait = trained.watcher.portrait(initial)
    assert torch.equal(portrait.correlation, trained.before["correlation"])
    after = trained.watcher.portrait(trained.plain_model(copied=True))
    assert torch.equal(after.correlation, trained.correlation())
    measured = {name: trained.history[-1][name] for name in monitors.MONITORS}
    assert after.monitors == pytest.approx(measured)
    rank = entropy_rank(after.singular_values)
    assert rank == pytest.approx(measured["effective_rank"])


def test_a_map_takes_images_from_everywhere(trained, small_digits):
    many = replace(
        small_digits,
        test_images=small_digits.test_images.repeat(9, 1, 1, 1),
        test_labels=torch.arange(900) // 90,
    )
    trainer = Trainer(trained.config, many)
    portrait = trainer.watcher.portrait(trainer.plain_model(copied=True))
    assert len(portrait.features) == len(portrait.labels) == MAPPED_IMAGES
    counts = portrait.labels.bincount()
    assert len(counts) == 10
    assert counts.max() - counts.min() <= 1


def test_a_run_without_labels_has_a_page_without_scores(
    trained, small_digits, tmp_path, monkeypatch
):
    config = replace(trained.config, epochs=1)
    trainer = Trainer(config, replace(small_digits, train_labels=None, test_labels=None))
    trainer.run()
    report = report_run(trainer, tmp_path, "digits")
    assert report.complaints == []
    assert "map" in report.files
    source = (tmp_path / "report.html").read_text(encoding="utf-8")
    text = Outline(source).text
    assert "k-NN accuracy on test images" not in text
    assert "<th>k-NN</th>" not in source
    drawn = []
    monkeypatch.setattr(figures, "_draw_scores", lambda *_: drawn.append("k-NN"))
    report_run(trainer, tmp_path, "digits")
    assert drawn == []
    # No checkpoint, no commands.
    assert "barlow-fast evaluate" not in text


def test_a_run_on_files_has_no_map(trained, small_digits, tmp_path):
    views = Views("little", (ViewSpecification(size=8),) * 2, (0.5,), (0.25,))
    (tmp_path / "views.yaml").write_text(views.to_yaml())
    config = replace(trained.config, epochs=1, views=str(tmp_path / "views.yaml"))
    trainer = Trainer(config, ArraySource.of_dataset(small_digits))
    trainer.run()
    report = report_run(trainer, tmp_path, "files")
    assert report.complaints == []
    assert sorted(report.files) == ["figure", "monitors", "report"]


# What fails costs no more than itself.


def failing(*_: object, **__: object) -> None:
    raise ValueError("no room\nfor ink")


@pytest.mark.parametrize(
    ("module", "function", "missing"),
    [
        (figures, "draw_figure", "figure.png"),
        (figures, "draw_monitors", "monitors.png"),
        (figures, "draw_map", "map.png"),
        (page, "render_page", "report.html"),
    ],
)
def test_a_part_that_fails_is_reported_and_the_rest_is_there(
    trained, tmp_path, monkeypatch, module, function, missing
):
    monkeypatch.setattr(module, function, failing)
    if module is figures:
        (tmp_path / missing).write_bytes(b"of an earlier run")
    report = report_run(trained, tmp_path, "digits")
    assert report.complaints == [f"no {missing}: no room for ink; the weights are saved"]
    files = {"figure.png", "monitors.png", "map.png", "report.html"} - {missing}
    assert sorted(report.files) == sorted(name.split(".")[0] for name in files)
    if module is figures:
        outline = Outline((tmp_path / "report.html").read_text(encoding="utf-8"))
        assert [tag for tag, _ in outline.tags].count("img") == 2
    else:
        assert not (tmp_path / missing).exists()


def test_without_matplotlib_there_is_a_page(trained, tmp_path, monkeypatch):
    for name in ("matplotlib", "matplotlib.figure", "matplotlib.backends.backend_agg"):
        monkeypatch.setitem(sys.modules, name, None)
    report = report_run(trained, tmp_path, "digits")
    assert sorted(report.files) == ["report"]
    assert len(report.complaints) == 3
    assert "matplotlib" in report.complaints[0]


def test_a_folder_that_went_away_loses_nothing_else(trained, tmp_path):
    report = report_run(trained, tmp_path / "gone", "digits")
    assert (report.files, len(report.complaints)) == ({}, 4)


def test_ranks_other_than_the_first_write_nothing(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(trained, "ranks", replace(trained.ranks, rank=1))
    assert report_run(trained, tmp_path, "digits").files == {}
    assert list(tmp_path.iterdir()) == []


# Parts.


def portrait(features: torch.Tensor | None = None, labels=None, **changes) -> Portrait:
    generator = torch.Generator().manual_seed(0)
    z_a, z_b = torch.randn(2, 40, 16, generator=generator).unbind()
    values = {
        "correlation": z_a[:8].T @ z_b[:8] / 8,
        "monitors": monitors.collapse_monitors(z_a, z_b),
        "singular_values": monitors.singular_values(z_a),
        "features": features,
        "labels": labels,
    }
    return Portrait(**{**values, **changes})


def test_collapsed_and_broken_embeddings_can_be_drawn(trained, tmp_path):
    nothing = dict.fromkeys(monitors.MONITORS, 0.0)
    broken = dict.fromkeys(monitors.MONITORS, math.nan)
    collapsed = portrait(monitors=nothing, singular_values=torch.zeros(40))
    bad = portrait(monitors=broken, singular_values=torch.zeros(0))
    path = tmp_path / "monitors.png"
    draw_monitors(path, "collapsed", trained.history[:1], collapsed, bad)
    assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("classes", [1, 3, 20, 200])
def test_maps_of_any_number_of_classes(tmp_path, classes: int):
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(400, 3, generator=generator)[: max(12, classes)]
    labels = torch.arange(len(features)) % classes
    names = tuple(f"_{HOSTILE} {i}" for i in range(classes))
    drawn = portrait(features, labels)
    path = tmp_path / "map.png"
    draw_map(path, HOSTILE, drawn, drawn, names)
    assert path.read_bytes().startswith(b"\x89PNG")


def test_features_that_are_no_numbers_have_no_place(tmp_path):
    features = torch.full((40, 4), math.nan)
    with pytest.raises(ValueError, match="not finite"):
        project(features)


def test_a_map_keeps_clusters_apart():
    generator = torch.Generator().manual_seed(2)
    centres = 6 * torch.eye(3, 20)
    labels = torch.arange(120) % 3
    features = centres[labels] + 0.3 * torch.randn(120, 20, generator=generator)
    places, method = project(features)
    assert method == "t-SNE"
    assert places.shape == (120, 2)
    assert torch.equal(places, project(features)[0])
    nearest = torch.cdist(places, places).fill_diagonal_(math.inf).argmin(1)
    assert torch.equal(labels[nearest], labels)
    threads = torch.get_num_threads()
    project(features)
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("shape", [(1, 5), (2, 1), (10, 4), (40, 2), (50, 1)])
def test_few_features_are_placed_by_their_variance(shape):
    features = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    places, method = project(features)
    assert method == "principal components"
    assert places.shape == (shape[0], 2)
    # All of the variance where two dimensions hold it.
    if shape[1] <= 2:
        unit = torch.nn.functional.normalize(features.double(), dim=1)
        assert places.square().sum() == pytest.approx(((unit - unit.mean(0)) ** 2).sum().item())


@pytest.mark.parametrize("rounding", [0.0, 1e-8])
def test_one_feature_vector_for_all_images_is_one_place(rounding: float):
    """A collapsed encoder's, on which scikit-learn's t-SNE crashes the process."""
    noise = torch.randn(60, 8, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    places, method = project(torch.ones(60, 8, dtype=torch.float64) + rounding * noise)
    assert method == "principal components"
    torch.testing.assert_close(places, torch.zeros_like(places), rtol=0, atol=1e-7)


def test_a_few_vectors_for_many_images_are_placed():
    features = torch.eye(4, 8).repeat_interleave(20, 0)
    places, method = project(features)
    assert method == "t-SNE"
    assert places.isfinite().all()


def test_without_scikit_learn_the_map_is_linear(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.manifold", None)
    assert project(torch.randn(60, 8))[1] == "principal components"


def test_the_time_table_weighs_epochs_by_their_seconds():
    history = [
        {"step": 10, "seconds": 1.0, "data_wait_share": 0.5, "loss_share": 0.1},
        {"step": 20, "seconds": 3.0, "data_wait_share": 0.1, "loss_share": 0.1},
    ]
    rows = {row["name"]: row for row in time_table(history)}
    assert rows["waiting for views"]["share"] == pytest.approx(0.2)
    assert rows["loss and its gradient"]["share"] == pytest.approx(0.1)
    # 4 seconds over 20 steps.
    assert rows["waiting for views"]["milliseconds"] == pytest.approx(40)
    rest = rows["encoder, projector and optimizer"]
    assert rest["share"] == pytest.approx(0.7)
    assert sum(row["milliseconds"] for row in rows.values()) == pytest.approx(200)


def test_the_time_table_has_every_phase_that_records_tell():
    shares = {"data_wait": 0.1, "forward": 0.3, "loss": 0.1, "backward": 0.4, "update": 0.1}
    record = {"step": 5, "seconds": 2.0, **{f"{k}_share": v for k, v in shares.items()}}
    rows = time_table([record])
    assert [row["share"] for row in rows] == pytest.approx(list(shares.values()))
    assert time_table([]) == []
    assert time_table([record | {"seconds": 0.0}]) == []
    assert time_table([record | {"step": 0}]) == []


def empty_figure():
    return pytest.importorskip("matplotlib.figure").Figure()


def test_pictures_of_matrices_show_all_of_minus_one_to_one():
    figure = empty_figure()
    # Summed in another order, the squares of a diagonal matrix may be less than its diagonal's.
    diagonal = torch.rand(55, generator=torch.Generator().manual_seed(1)).diag()
    figures._draw_matrices(figure, torch.eye(4), diagonal)
    images = [axes.images[0] for axes in figure.axes if axes.images]
    titles = [axes.get_title() for axes in figure.axes[:2]]
    assert all("elsewhere 0.00 (rms)" in title for title in titles)
    assert [image.get_clim() for image in images] == [(-1, 1), (-1, 1)]


def test_many_classes_take_the_whole_circle_of_colours():
    axes = empty_figure().subplots()
    classes = figures.MOST_LISTED + 5
    labels = torch.arange(classes)
    assert figures._draw_places(axes, torch.rand(classes, 2), labels) == []
    (points,) = axes.collections
    assert points.get_array().tolist() == pytest.approx([i / classes for i in range(classes)])


def test_spectra_have_a_legend_where_there_are_lines():
    axes = empty_figure().subplots()
    figures._draw_spectrum(axes, torch.zeros(3), torch.zeros(3))
    assert axes.get_legend() is None
    figures._draw_spectrum(axes, torch.ones(3), torch.ones(3))
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [
        "before", "after training",
    ]  # fmt: skip


def test_a_forgotten_value_of_the_page_is_an_error():
    from jinja2 import UndefinedError

    with pytest.raises(UndefinedError):
        render_page({"title": "half a page"})


@pytest.mark.parametrize(
    ("text", "shown"),
    [("digits", "digits"), ("a\nb\x1b[31m", "a?b?[31m"), ("\udc80", "?"), ("字", "字")],
)
def test_names_are_made_printable(text: str, shown: str):
    assert printable(text) == shown
    assert printable(text).encode("utf-8")
