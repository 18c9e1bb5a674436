"""The suite `views`: agreement first, the same work for all."""

from __future__ import annotations

import functools
import itertools
from dataclasses import replace

import numpy as np
import pytest
from ended import SECONDS
from invoked import invoke

pytest.importorskip("torchvision")

from test_report import ORIGIN, PEAKS

from barlow_fast.data import PRESETS, ViewLoader
from barlow_fast.data.sources import ArraySource, FolderSource
from bench import report, results
from bench.devices import Cpu
from bench.suites import views as suite
from bench.views import agreement, feeds, images, loading, recipes
from bench.views.agreement import DisagreementError
from bench.views.feeds import CASES, FEEDS, KERNELS, OFFICIAL

CPU = Cpu()


TINY = images.Photographs((40, 50), (30, 40), noise=2.0, max_side=32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return images.photographs(tmp_path_factory.mktemp("jpeg"), distinct=6, files=9)


@pytest.fixture(autouse=True)
def few_pixels(monkeypatch):
    monkeypatch.setattr(images.pixels, "__defaults__", (24,))


def small(case="photographs", **changes):
    return replace(CASES[case], **{"batch_size": 4, **changes})


def opened(name, case, folder):
    """A few counts of a feed, and its figures."""
    with feeds.open_feed(name, case, folder) as counts:
        return [next(counts) for _ in range(3)], counts.report()


def test_photographs_are_of_the_stated_size_and_differ(folder):
    from PIL import Image

    paths = sorted(folder.iterdir())
    assert len(paths) == 9
    assert len({path.read_bytes() for path in paths}) == 6
    for path in paths:
        width, height = Image.open(path).size
        assert 460 <= width <= 540
        assert 370 <= height <= 430


def test_the_recipe_has_the_parameters_of_the_paper():
    first, second = recipes.official(PRESETS["imagenet"], 224).transforms
    names = [type(step).__name__ for step in first.transforms]
    assert names == [
        "RandomResizedCrop", "RandomHorizontalFlip", "RandomApply", "RandomGrayscale",
        "RandomApply", "ToTensor", "Normalize",
    ]  # fmt: skip
    crop, flip, jitter, gray, blur = first.transforms[:5]
    assert (tuple(crop.scale), crop.size) == ((0.08, 1.0), (224, 224))
    assert crop.interpolation.value == "bicubic"
    assert (flip.p, jitter.p, gray.p, blur.p) == (0.5, 0.8, 0.2, 1.0)
    colour = jitter.transforms[0]
    assert colour.brightness == pytest.approx((0.6, 1.4))
    assert colour.saturation == pytest.approx((0.8, 1.2))
    assert colour.hue == pytest.approx((-0.1, 0.1))
    assert blur.transforms[0].sigma == (0.1, 2.0)
    assert second.transforms[4].p == 0.1
    solarize = second.transforms[5]
    assert (solarize.p, solarize.threshold) == (0.2, 128)


def test_large_photographs_have_noise_and_are_fewer(tmp_path):
    folder = images.photographs(tmp_path / "files", 10, 20, replace(TINY, share=0.2))
    assert len(list(folder.iterdir())) == 4
    shards = images.packed(folder, TINY)
    assert images.packed(folder, TINY) == shards
    source = loading.ShardSource(shards)
    assert len(source) == 4
    assert source.sizes(np.arange(4)).max() == 32


@pytest.mark.parametrize("case", [small(), small("arrays-28"), small("arrays-32")], ids=str)
def test_every_feed_makes_the_same_kind_of_views(case, tmp_path):
    """In this process: what each yields is checked by the feed itself."""
    folder = images.photographs(tmp_path / "files", 6, 9, TINY) if case.photographs else None
    for name in case.feeds:
        if FEEDS[name].unavailable(case, CPU.torch) is None and "dali" not in name:
            counts, figures = opened(name, case, folder)
            assert counts == [1 if name.startswith("decode-") else 4] * 3, name
            assert figures["first_batch_s"] > 0


def test_every_declared_feed_and_kernel_exists():
    for cases in feeds.BY_KIND.values():
        assert {name for case in cases.values() for name in case.feeds} <= set(feeds.COMPARED)
    assert set(feeds.QUICK) <= set(CASES)
    for _, ours, other, _ in itertools.chain.from_iterable(suite.TARGETS.values()):
        assert any(name.startswith(ours) for name in FEEDS)
        assert any(name.startswith(other) for name in FEEDS)


def test_smaller_decoding_has_its_error_as_a_figure(tmp_path):
    case = replace(small("large"), photographs=TINY, side=8)
    folder = images.photographs(tmp_path / "files", 4, 8, TINY)
    views = replace(case.views, views=tuple(replace(v, size=8) for v in case.views.views))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PRESETS, "imagenet", views)
        for name in ("ours-reduced", "reduced-1.0", "ours-packed"):
            _, figures = opened(name, case, folder)
            assert 0 < figures["error_levels"] < figures["largest_levels"] < 256
            assert 0 < figures["psnr_db"] < 60
            assert loading.files.reduction is loading.reduction
        _, figures = opened("ours-threads", case, folder)
        assert "error_levels" not in figures


def test_stages_add_up_and_are_named(tmp_path):
    reason = FEEDS["stages-1"].unavailable(CASES["photographs"], CPU.torch)
    if reason is not None:
        pytest.skip(reason)
    folder = images.photographs(tmp_path / "files", 4, 8, TINY)
    for name in ("stages-1", "stages-reduced-1"):
        _, figures = opened(name, small(batch_size=3), folder)
        assert {name for name in figures if name.endswith("_us")} == {
            f"{stage}_us" for stage in loading.STAGES
        }
        assert min(figures.values()) > 0


def test_crops_are_held_against_pillow(tmp_path, monkeypatch):
    folder = images.photographs(tmp_path / "files", 4, 8, TINY)
    case = small("crops")
    for name in case.feeds:
        if FEEDS[name].unavailable(case, CPU.torch) is None:
            counts, figures = opened(name, case, folder)
            assert counts == [8] * 3
            assert (figures["largest_levels"] == 0) == (name != "crop-interpolate-1")
    wrong = replace(FEEDS["crop-baseline"], make=functools.partial(
        loading.cropped, crop_resize=loading.interpolate, instruction_set="baseline"
    ))  # fmt: skip
    if wrong.unavailable(case, CPU.torch) is None:
        monkeypatch.setitem(FEEDS, "wrong", wrong)
        with pytest.raises(DisagreementError, match="levels from Pillow"):
            opened("wrong", case, folder)


@pytest.mark.parametrize("loader", ["threads", "dali"])
def test_ours_agrees_with_plain_views_of_photographs(folder, loader):
    reason = FEEDS[f"ours-{loader}"].unavailable(CASES["photographs"], CPU.torch)
    if reason is not None:
        pytest.skip(reason)
    loader = "pil" if loader == "threads" else loader
    source = FolderSource(folder)
    with ViewLoader(source, PRESETS["imagenet"], 8, loader=loader, workers=1) as feed:
        batch = next(iter(feed))
        agreement.check(feed, batch)
        for views, message in (
            ((batch.views[0], batch.views[0]), "view 1 of sample"),
            (tuple(view * float("nan") for view in batch.views), "nan levels"),
            (tuple(view.double() for view in batch.views), "should be float32"),
        ):
            with pytest.raises(DisagreementError, match=message):
                agreement.check(feed, batch._replace(views=views))


def test_ours_agrees_with_plain_views_of_small_images():
    for case in (CASES["arrays-32"], CASES["arrays-28"]):
        source = ArraySource(images.pixels(case.side, len(case.views.mean), 32))
        with ViewLoader(source, case.views, 32) as feed:
            agreement.check(feed, next(iter(feed)))


def test_a_feed_that_disagrees_is_not_timed(folder, monkeypatch):
    monkeypatch.setattr(agreement, "BOUND", 1e-9)
    case = small("arrays-28")
    with (
        feeds.open_feed("ours-arrays", case, None) as counts,
        pytest.raises(DisagreementError, match="levels from the plain"),
    ):
        next(counts)


def test_views_of_another_size_are_refused(folder):
    case = small(side=96)
    with (
        feeds.open_feed("ours-threads", case, folder) as counts,
        pytest.raises(DisagreementError, match="views are"),
    ):
        next(counts)


@pytest.mark.slow
def test_a_small_run(tmp_path):
    out = tmp_path / "rows.jsonl"
    arguments = ["views", "--cases", "arrays-28,kernel", "--feeds", "ours-arrays,kernel-aten"]
    arguments += ["--seconds", "0.1", "--rounds", "1", "--deadline", str(SECONDS)]
    result = invoke([*arguments, "--quick", "--out", str(out)])
    # --quick has no kernel-aten.
    assert result.exit_code == 2
    assert "unknown feed 'kernel-aten'" in result.output
    arguments[4] = "ours-arrays"
    result = invoke([*arguments, "--out", str(out)])
    assert result.exit_code == 0, result.output
    (row,) = results.read(out)
    assert (row["case"], row["peer"], row["unit"]) == ("arrays-28", "ours-arrays", "images")
    assert 0 < row["p20_per_s"] <= row["median_per_s"] <= row["p80_per_s"]
    assert row["provenance"]["command"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--cases", "films"], "unknown case 'films'"),
        (["--feeds", "tape"], "unknown feed 'tape'"),
    ],
)
def test_unknown_names_are_refused(arguments, message):
    result = invoke(["views", *arguments])
    assert result.exit_code == 2
    assert message in result.output


def made_up(case, peer, rate, **figures):
    rates, copy = [0.9 * rate, rate, 1.1 * rate], PEAKS["copy_gbps"]
    found = suite.row(CASES[case], peer, rates, figures, copy, "cpu")
    return found | {"peaks": PEAKS, "provenance": ORIGIN}


def test_tables_show_ratios_and_targets():
    rows = [
        made_up("photographs", "ours-dali", 400.0),
        made_up("photographs", OFFICIAL, 200.0),
        made_up("photographs", "lightly", 500.0),
        made_up("photographs", "crops-dali", 600.0),
        made_up("arrays-32", "ours-arrays", 4000.0),
        made_up("arrays-32", OFFICIAL, 1000.0),
        made_up("kernel", "kernel-cpu", 1000.0),
    ]
    text = suite.tables(rows)
    ours, official, lightly, crops, *_, kernel = (row["source"] for row in rows)
    assert f"| barlow_fast, DALI on the CPU | **400** | 376 | 424 | 3 | {ours} | 2.00× |" in text
    assert f"| lightly | 500 | 470 | 530 | 3 | {lightly} | 2.50× |" in text
    assert f"| DALI: decoded and cropped only | 600 | 564 | 636 | 3 | {crops} |  |" in text
    assert "The target of 6 times the official recipe is missed (2.00 times)." in text
    assert "first batch, s" not in text
    assert "Slower: barlow_fast, DALI on the CPU than lightly." in text
    assert "The target of 5 times the official recipe is missed (4.00 times)." in text
    share = 224 * 224 * 3 * 5 * 1000 / 1e9 / PEAKS["copy_gbps"]
    assert f"| barlow_fast | 1,000 | 940 | 1,060 | 3 | {kernel} | {share:.0%} |" in text
    assert f"| official recipe | 200 | 188 | 212 | 3 | {official} |  |" in text


def test_stages_and_decoders_have_their_tables():
    stages = dict.fromkeys((f"{name}_us" for name in loading.STAGES), 100.0)
    rows = [
        made_up("photographs", "ours-threads", 1000.0, first_batch_s=0.5),
        made_up("photographs", "decode-simplejpeg", 2000.0, first_batch_s=0.1),
        made_up("photographs", OFFICIAL, 100.0, first_batch_s=3.0),
        made_up("photographs", "ours-threads-1", 500.0, first_batch_s=0.6),
        made_up("photographs", "official-1", 50.0, first_batch_s=3.0),
        made_up("photographs", "decode-simplejpeg-1", 1000.0, first_batch_s=0.1),
        made_up("photographs", "stages-1", 510.0, **stages),
        made_up("large", "ours-threads", 10.0),
        made_up("large", "ours-reduced", 100.0, error_levels=2.5),
    ]
    text = suite.tables(rows)
    ours = [line for line in text.splitlines() if line.startswith("| barlow_fast")]
    assert ours[0].endswith("| 10.00× | 50% | 0.50 |")
    assert ours[1].startswith("| barlow_fast, one core")
    assert ours[1].endswith("| 10.00× | 50% | 0.60 |")
    assert "0.45 times the fastest decoder is met." in text
    assert "| rest | 1500 | 75% |" in text
    assert "| left to the limit | 1000 | 50% |" in text
    assert "The target of 6 times whole decoding, by reduced decoding, is met." in text
    assert ours[-1].endswith("| 2.50 |")


def test_rows_of_cases_are_groups_of_their_own(tmp_path):
    file = tmp_path / "cpu-example.jsonl"
    kernel = made_up("kernel", "kernel-cpu", 1.0)
    results.merge(file, [made_up("photographs", OFFICIAL, 200.0), kernel])
    results.merge(file, [made_up("kernel", "kernel-aten", 2.0)])
    assert [row["peer"] for row in results.read(file)] == [OFFICIAL, "kernel-aten"]
    text = report.page("views", report.machine_files(tmp_path))
    assert f"# {suite.SECTION}" in text
    assert "copy 20.0 GB/s" in text


@pytest.mark.parametrize("path", sorted(results.FOLDER.glob("cpu-*.jsonl")), ids=lambda p: p.stem)
def test_committed_rows_meet_the_targets_or_say_so(path):
    rows = [r for r in results.read(path) if r["suite"] == "views"]
    if not rows:
        pytest.skip("it has no rows of views")
    text = suite.tables(rows)
    for case in {r["case"] for r in rows}:
        found = {r["peer"]: r["median_per_s"] for r in rows if r["case"] == case}
        ours = [rate for name, rate in found.items() if name.startswith("ours-")]
        for times, *names, words in suite.TARGETS.get(case, ()):
            if names == ["ours-", OFFICIAL]:
                met = max(ours) >= times * found[OFFICIAL]
                said = f"The target of {times:g} times {words} is "
                assert said + ("met" if met else "missed") in text
        if "kernel-cpu" in found:
            (row,) = (r for r in rows if r["peer"] == "kernel-cpu")
            moved = KERNELS["kernel-cpu"].bytes_moved(CASES[case]) * row["median_per_s"] / 1e9
            fraction = moved / row["peaks"]["copy_gbps"]
            assert row["fraction_of_copy"] == pytest.approx(fraction, rel=2e-3)
