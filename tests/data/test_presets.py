"""Views as YAML: what is written is read back, and what is wrong is named."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from barlow_fast.data import PRESETS, Views, ViewSpecification

yaml = pytest.importorskip("yaml")

GOOD = """
name: mine
mean: [0.5]
std: [0.25]
views:
  - &first
    size: [32, 48]
    crop_area: [0.2, 1]
    flip: 0.5
    interpolation: bilinear
    random_order: true
  - <<: *first
    flip: 0
    solarize: 0.2
"""


def test_what_is_left_out_has_its_default():
    views = Views.from_yaml(GOOD)
    first = ViewSpecification(
        crop_area=(0.2, 1), size=(32, 48), flip=0.5, interpolation="bilinear", random_order=True
    )
    second = dataclasses.replace(first, flip=0, solarize=0.2)
    assert views == Views("mine", (first, second), (0.5,), (0.25,))
    assert hash(views.views[0]) == hash(first)


@pytest.mark.parametrize("name", list(PRESETS))
def test_presets_survive_the_round_trip(name, tmp_path):
    preset = PRESETS[name]
    assert preset.name == name
    text = preset.to_yaml()
    assert Views.from_yaml(text) == preset
    path = tmp_path / "views.yml"
    path.write_text(text)
    for source in (path, str(path)):
        read = Views.from_yaml(source)
        assert read == preset
        assert read.fingerprint() == preset.fingerprint()
    # Every field is written out: a file keeps its meaning when a default changes.
    for view in yaml.safe_load(text)["views"]:
        assert list(view) == [field.name for field in dataclasses.fields(ViewSpecification)]


unit = st.floats(0, 1)
pair = st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)).map(sorted).map(tuple)
specifications = st.builds(
    ViewSpecification,
    crop_area=pair,
    crop_ratio=pair,
    rotation=st.floats(0, 180),
    shear=st.integers(0, 89),
    flip=unit,
    brightness=unit,
    contrast=unit,
    saturation=unit,
    hue=st.floats(0, 0.5),
    blur=unit,
    blur_sigma=pair,
    solarize=unit,
    erase=unit,
    erase_area=pair,
    size=st.none() | st.integers(1, 999) | st.tuples(st.integers(1, 99), st.integers(1, 99)),
    interpolation=st.sampled_from(["bicubic", "bilinear"]),
    jitter=unit,
    random_order=st.booleans(),
    grayscale=unit,
    solarize_threshold=st.integers(0, 255),
)


@settings(deadline=None)  # other processes may hold the cores
@given(
    st.builds(
        Views,
        name=st.text(min_size=1, alphabet=st.characters(codec="utf-8", exclude_categories=["C"])),
        views=st.lists(specifications, min_size=1, max_size=4).map(tuple),
        mean=st.tuples(unit, unit, unit),
        std=st.tuples(*[st.floats(0.01, 1)] * 3),
    )
)
def test_any_views_survive_the_round_trip(views):
    read = Views.from_yaml(views.to_yaml())
    assert read == views
    assert read.fingerprint() == views.fingerprint()


def changed(old: str, new: str) -> str:
    assert old in GOOD
    return GOOD.replace(old, new, 1)


# name -> (the text, what the message says)
WRONG = {
    "nothing": ("", "the whole must be a mapping"),
    "a sentence": ("views are nice", "the whole must be a mapping"),
    "a list": ("- 1\n- 2", "the whole must be a mapping"),
    "not YAML": ("name: [", "not YAML"),
    "tab": (changed("    size", "\tsize"), "not YAML"),
    "python object": (changed("mine", "!!python/object/apply:os.getcwd []"), "not YAML"),
    "two documents": (GOOD + "\n---\n" + GOOD, "not YAML"),
    "nested": ("[" * 3000, "nested|not YAML"),
    "unknown key": (changed("name:", "seed: 1\nname:"), "seed: unknown"),
    "unknown key of a view": (changed("flip:", "mirror:"), r"views\[0\]\.mirror: unknown"),
    "number as key": (changed("flip:", "7:"), r"views\[0\]\.7: unknown"),
    "missing name": (changed("name: mine", ""), "name: missing"),
    "missing mean": (changed("mean: [0.5]", ""), "mean: missing"),
    "missing views": (GOOD[: GOOD.index("views")], "views: missing"),
    "twice": (changed("flip: 0.5", "flip: 0.5\n    flip: 0.1"), "flip: twice"),
    "no views": (GOOD[: GOOD.index("views")] + "views: []", "views must be at least one"),
    "views as mapping": (GOOD[: GOOD.index("views")] + "views: {flip: 1}", "views: must be a list"),
    "view as number": (GOOD[: GOOD.index("views")] + "views: [3]", r"views\[0\] must be a mapping"),
    "empty view": (GOOD[: GOOD.index("views")] + "views:\n  -", r"views\[0\] must be a mapping"),
    "name as number": (changed("mine", "7"), "name must be a text"),
    "mean as number": (changed("[0.5]", "0.5"), "mean must be a list"),
    "mean of two": (changed("[0.5]", "[0.5, 0.5]"), "mean must be one or three"),
    "mean of words": (changed("[0.5]", "[gray]"), "mean must be one or three"),
    "mean in levels": (changed("[0.5]", "[128]"), "mean must be one or three"),
    "std of zero": (changed("[0.25]", "[0]"), "std must be above 0"),
    "std of another length": (changed("[0.25]", "[0.2, 0.2, 0.2]"), "mean has 1 channels"),
    "word for a number": (changed("flip: 0.5", "flip: often"), r"views\[0\]\.flip must be a num"),
    "truth for a number": (changed("flip: 0.5", "flip: yes"), "flip must be a number, got True"),
    "null for a number": (changed("flip: 0.5", "flip:"), "flip must be a number, got None"),
    "list for a number": (changed("flip: 0.5", "flip: [1, 2]"), "flip must be a number"),
    "not a number": (changed("flip: 0.5", "flip: .nan"), "flip is a probability, got nan"),
    "too likely": (changed("flip: 0.5", "flip: 1.5"), "flip is a probability, got 1.5"),
    "second view": (changed("flip: 0\n", "flip: -1\n"), r"views\[1\]\.flip is a probability"),
    "number for a pair": (changed("[0.2, 1]", "0.2"), "crop_area must be two numbers"),
    "pair of three": (changed("[0.2, 1]", "[0.2, 1, 1]"), "crop_area must be two numbers"),
    "pair the wrong way": (changed("[0.2, 1]", "[1, 0.2]"), "crop_area must be .low, high."),
    "endless pair": (changed("[0.2, 1]", "[0.2, .inf]"), "crop_area must be .low, high."),
    "no size": (changed("[32, 48]", "0"), "size must be pixels"),
    "half a pixel": (changed("[32, 48]", "31.5"), "size must be pixels"),
    "negative size": (changed("[32, 48]", "[32, -48]"), "size must be pixels"),
    "size beyond any view": (changed("[32, 48]", "[32, 40000]"), "sides of at most 32768"),
    "size of three": (changed("[32, 48]", "[32, 48, 3]"), "size must be pixels"),
    "size as word": (changed("[32, 48]", "large"), "size must be pixels"),
    "interpolation": (changed("bilinear", "nearest"), "interpolation must be one of bicubic, bili"),
    "interpolations": (changed("bilinear", "[bilinear]"), "interpolation must be one of"),
    "order": (changed("true", "1"), "random_order must be true or false"),
}


@pytest.mark.parametrize("case", list(WRONG))
def test_what_is_wrong_is_named(case, tmp_path):
    text, message = WRONG[case]
    with pytest.raises(ValueError, match=message):
        Views.from_yaml(text)
    path = tmp_path / "my views.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        Views.from_yaml(path)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 2000


def test_a_small_text_that_grows_is_not_written_out():
    # Nine levels of nine references each: a billion values if anybody printed them.
    levels = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    levels += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 10)]
    with pytest.raises(ValueError, match="more than 10000 values") as caught:
        Views.from_yaml("\n".join(levels))
    assert len(str(caught.value)) < 500
    inside = changed("flip: 0.5", "flip: *a9")
    aliases = "{" + ", ".join(levels) + "}"
    with pytest.raises(ValueError, match="more than 10000 values") as caught:
        Views.from_yaml(inside.replace("name: mine", f"name: {aliases}"))
    assert len(str(caught.value)) < 500


def test_numbers_with_an_exponent_are_numbers():
    # YAML 1.1 takes them for words.
    for text in ("5e-1", "5E-1", "0.05e+1", "5.e-1"):
        assert Views.from_yaml(changed("flip: 0.5", f"flip: {text}")) == Views.from_yaml(GOOD)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(FileNotFoundError):
        Views.from_yaml(tmp_path / "nothing.yaml")
    with pytest.raises(FileNotFoundError):
        Views.from_yaml("nothing.yaml")
    binary = tmp_path / "picture.yaml"
    binary.write_bytes(b"\xff\xd8\xff\xe0")
    with pytest.raises(ValueError, match=r"picture\.yaml: not a text"):
        Views.from_yaml(binary)


def test_fingerprints_distinguish_views():
    base = PRESETS["imagenet"]
    others = [
        dataclasses.replace(base, mean=(0.5, 0.5, 0.5)),
        dataclasses.replace(base, std=(0.5, 0.5, 0.5)),
        dataclasses.replace(base, views=base.views[::-1]),
        dataclasses.replace(base, views=base.views[:1]),
        *(
            dataclasses.replace(
                base, views=(dataclasses.replace(base.views[0], **change), base.views[1])
            )
            for change in ({"size": 192}, {"hue": 0.2}, {"interpolation": "bilinear"})
        ),
    ]
    fingerprints = {base.fingerprint(), *(views.fingerprint() for views in others)}
    assert len(fingerprints) == len(others) + 1
    # A name is a label; and numbers are the same whether a file says 1 or 1.0.
    assert dataclasses.replace(base, name="other").fingerprint() == base.fingerprint()
    for whole, broken in ((1, 1.0), (0, 0.0), (1, np.float32(1)), (0, np.int8(0))):
        a, b = (
            Views("v", (ViewSpecification(flip=value, crop_area=(0.5, 1)),), (0.5,), (0.5,))
            for value in (whole, broken)
        )
        assert a.fingerprint() == b.fingerprint()
        assert Views.from_yaml(b.to_yaml()) == a


def test_fingerprints_last():
    # As published: a resumed run compares against the one that it stored.
    assert {name: views.fingerprint() for name, views in PRESETS.items()} == {
        "imagenet": "34ec3622ee234cb9",
        "cifar": "fb24cf19acd36523",
        "fashion-mnist": "fa096bb5da3b0964",
        "digits": "4da8547d9ca712ae",
    }


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"views": ()}, "views must be at least one"),
        ({"views": "imagenet"}, "views must be a list"),
        ({"views": (1,)}, "views must be at least one view specification"),
        ({"mean": 0.5}, "mean must be a list"),
        ({"std": (0.1, 0.1)}, "std must be one or three"),
        ({"std": (0.1, 0.1, 0.1)}, "mean has 1"),
        ({"name": ""}, "name"),
    ],
)
def test_impossible_views_are_refused(wrong, message):
    right = {"name": "v", "views": (ViewSpecification(),), "mean": (0.5,), "std": (0.5,)}
    assert Views(**right).views == (ViewSpecification(),)
    with pytest.raises(ValueError, match=message):
        Views(**{**right, **wrong})


def test_the_presets_are_the_recipes():
    first, second = PRESETS["imagenet"].views
    assert first.size == 224
    assert first.interpolation == "bicubic"
    assert first.crop_area == (0.08, 1.0)
    assert first.crop_ratio == (3 / 4, 4 / 3)
    assert (first.blur, second.blur) == (1.0, 0.1)
    assert (first.solarize, second.solarize) == (0.0, 0.2)
    assert dataclasses.replace(second, blur=1.0, solarize=0.0) == first
    small, other = PRESETS["cifar"].views
    assert (small.size, small.blur, other.blur) == (32, 0, 0)
    assert (small.solarize, other.solarize) == (0.0, 0.2)
    assert small.jitter == first.jitter == 0.8
    # Mirrored digits are other characters.
    assert all(view.flip == 0 for view in PRESETS["digits"].views)
    assert all(view.flip == 0.5 for view in PRESETS["fashion-mnist"].views)


def test_views_need_no_yaml_until_it_is_requested():
    # PyYAML is an extra; so is Pillow, which nothing here may need either.
    code = (
        "import sys; sys.modules['yaml'] = None; from barlow_fast.data.presets import PRESETS;"
        "from barlow_fast.data.windows import windows; print(PRESETS['cifar'].fingerprint())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == PRESETS["cifar"].fingerprint()
