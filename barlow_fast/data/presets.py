"""The views of a data set: presets, and YAML files for everything else."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from ..inputs import needed_for, parse_yaml, read_yaml
from ..terminal import printable
from .views import ViewSpecification, shown

YAML_SUFFIXES = (".yaml", ".yml")


@dataclass(frozen=True)
class Views:
    """All that is done to an image before the encoder: one specification per view, then
    (value - mean) / std.

    `mean` and `std` have a number per channel, one or three, where white is 1. With
    `reduced_decoding` a JPEG is decoded with its sides divided by 2, 4 or 8 where that leaves every
    window of its views at least twice as large as the view (`windows.reduction`): faster for large
    photographs, and other pixels.

    Raises:
        ValueError: no views, views of the wrong type, or `mean` and `std` that do not belong
            together; the message begins with the field's name.
    """

    name: str
    views: tuple[ViewSpecification, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    reduced_decoding: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise ValueError(f"name must be a text that is not empty, got {shown(self.name)}")
        for field in ("views", "mean", "std"):
            values = getattr(self, field)
            if not isinstance(values, tuple | list):
                raise ValueError(f"{field} must be a list, got {shown(values)}")
            object.__setattr__(self, field, tuple(values))
        if not self.views or not all(isinstance(v, ViewSpecification) for v in self.views):
            raise ValueError("views must be at least one view specification")
        for field in ("mean", "std"):
            values = getattr(self, field)
            if len(values) not in (1, 3) or not all(_in_unit(value) for value in values):
                raise ValueError(
                    f"{field} must be one or three numbers in [0, 1], got {shown(values)}"
                )
        if len(self.mean) != len(self.std):
            raise ValueError(
                f"mean has {len(self.mean)} channels and std has {len(self.std)}; they must agree"
            )
        if not isinstance(self.reduced_decoding, bool):
            raise ValueError(
                f"reduced_decoding must be true or false, got {shown(self.reduced_decoding)}"
            )
        if min(self.std) == 0:
            raise ValueError(f"std must be above 0, got {self.std}")

    def fingerprint(self) -> str:
        """16 hexadecimal digits that stand for the views and their normalisation.

        The name is a label and does not count. Only what differs from a specification's defaults
        does, so a field that is added later, with a default that changes nothing, leaves old
        fingerprints as they are.
        """
        changed = [
            {
                field.name: getattr(view, field.name)
                for field in fields(view)
                if getattr(view, field.name) != field.default
            }
            for view in self.views
        ]
        content: dict[str, Any] = {"views": changed, "mean": self.mean, "std": self.std}
        if self.reduced_decoding:
            content["reduced_decoding"] = True
        content = json.dumps(_plain(content, float), sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def to_yaml(self) -> str:
        """All fields of all views as YAML, which `from_yaml` reads back to an equal `Views`.

        Raises:
            ImportError: PyYAML is missing (`pip install barlow-fast[train]`).
        """
        with needed_for("views as YAML"):
            import yaml

        content = {
            "name": self.name,
            "mean": self.mean,
            "std": self.std,
            "reduced_decoding": self.reduced_decoding,
            "views": tuple(
                {field.name: getattr(view, field.name) for field in fields(view)}
                for view in self.views
            ),
        }
        return yaml.safe_dump(_plain(content), sort_keys=False, default_flow_style=None)

    @classmethod
    def from_yaml(cls, source: str | Path) -> Views:
        """Views from YAML, with the keys `name`, `mean`, `std`, `reduced_decoding` and `views`, a
        list of mappings from a `ViewSpecification`'s fields to values; fields that are left out
        have their defaults.

        Anchors and merge keys (`<<: *first`) work, so a second view needs to say only what differs.

        Args:
            source: a path, or a string: a file's name if it ends in .yaml or .yml, else the YAML
                itself.

        Raises:
            ValueError: not YAML, a key that is unknown, missing or twice there, a value of the
                wrong type or out of its range; the message names file and key.
            OSError: the file cannot be read.
            ImportError: PyYAML is missing (`pip install barlow-fast[train]`).
        """
        file = isinstance(source, Path) or source.endswith(YAML_SUFFIXES)
        origin = printable(str(source)) if file else "YAML"
        try:
            content = read_yaml(Path(source)) if file else parse_yaml(source)
            return cls(**_arguments(content))
        except ValueError as error:
            raise ValueError(f"{origin}: {error}") from error


def _in_unit(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and 0 <= value <= 1


def _plain(value: Any, whole: Callable[[Any], Any] = int) -> Any:
    """The same in types that YAML and JSON know; whole numbers become what `whole` makes of them,
    because 1 and 1.0 are the same view."""
    if isinstance(value, dict):
        return {key: _plain(entry, whole) for key, entry in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(entry, whole) for entry in value]
    if isinstance(value, bool | str) or value is None:
        return value
    return whole(value) if isinstance(value, Integral) else float(value)


def _arguments(content: Any) -> dict[str, Any]:
    """What `Views` takes, from the content of a file."""
    _check_keys(content, Views, "")
    if not isinstance(content["views"], list):
        raise ValueError(f"views: must be a list, got {shown(content['views'])}")
    views = []
    for number, view in enumerate(content["views"]):
        place = f"views[{number}]"
        _check_keys(view, ViewSpecification, f"{place}.")
        try:
            views.append(ViewSpecification(**view))
        except ValueError as error:
            raise ValueError(f"{place}.{error}") from error
    return {**content, "views": tuple(views)}


def _check_keys(content: Any, kind: type, place: str) -> None:
    if not isinstance(content, dict):
        raise ValueError(
            f"{place.rstrip('.') or 'the whole'} must be a mapping of names to values, "
            f"got {shown(content)}"
        )
    known = {field.name: field for field in fields(kind)}
    for key in content:
        if key not in known:
            raise ValueError(
                f"{place}{printable(key[:80]) if isinstance(key, str) else shown(key)}: "
                f"unknown; there are {', '.join(known)}"
            )
    for name, field in known.items():
        if field.default is MISSING and name not in content:
            raise ValueError(f"{place}{name}: missing")


def _two_views(
    first: dict[str, Any], second: dict[str, Any], **both: Any
) -> tuple[ViewSpecification, ViewSpecification]:
    return ViewSpecification(**both, **first), ViewSpecification(**both, **second)


# Colour changes of Grill et al., *Bootstrap Your Own Latent* (NeurIPS 2020), appendix B, as Zbontar
# et al., *Barlow Twins* (ICML 2021), section 2.2, take them over.
_COLOUR: dict[str, Any] = {
    "flip": 0.5,
    "jitter": 0.8,
    "brightness": 0.4,
    "contrast": 0.4,
    "saturation": 0.2,
    "hue": 0.1,
    "random_order": True,
    "grayscale": 0.2,
}
_RANDOM_RESIZED_CROP: dict[str, Any] = {"crop_area": (0.08, 1.0), "crop_ratio": (3 / 4, 4 / 3)}

# The two views differ, as in the paper: there one is blurred always and the other rarely, and only
# the other is solarized.
PRESETS: dict[str, Views] = {
    "imagenet": Views(
        "imagenet",
        _two_views(
            {"blur": 1.0},
            {"blur": 0.1, "solarize": 0.2},
            size=224,
            blur_sigma=(0.1, 2.0),
            **_RANDOM_RESIZED_CROP,
            **_COLOUR,
        ),
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
    ),
    # Images of 32 x 32 pixels are too small for a blur.
    "cifar": Views(
        "cifar",
        _two_views({}, {"solarize": 0.2}, size=32, **_RANDOM_RESIZED_CROP, **_COLOUR),
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
    ),
    "fashion-mnist": Views(
        "fashion-mnist",
        _two_views(
            {"blur": 0.5},
            {"blur": 0.1, "erase": 0.2},
            crop_area=(0.7, 1.0),  # the best of `python -m bench speedrun`
            crop_ratio=(0.75, 1.33),
            flip=0.5,
            brightness=0.6,
            contrast=0.6,
        ),
        mean=(0.2860,),
        std=(0.3530,),
    ),
    # Mirrored digits are other characters, so no flip; 8 x 8 pixels are too small for a blur.
    "digits": Views(
        "digits",
        _two_views(
            {},
            {"erase": 0.3},
            crop_area=(0.6, 1.2),
            crop_ratio=(0.75, 1.33),
            rotation=15,
            shear=20,
            brightness=0.3,
            contrast=0.3,
        ),
        mean=(0.3064,),
        std=(0.3753,),
    ),
}
