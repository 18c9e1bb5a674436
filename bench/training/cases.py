"""What is trained in a comparison: encoder, images, batch."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from barlow_fast.losses.catalogue import BARLOW_TWINS
from barlow_fast.training import PretrainConfig, configure
from bench import cli, provenance

OURS, LIMIT, OFFICIAL, LIGHTLY = "ours", "limit", "official", "lightly"
PEERS = (OURS, LIMIT, OFFICIAL, LIGHTLY)
TITLES = {
    OURS: "barlow_fast",
    LIMIT: "barlow_fast, views ready on the device",
    OFFICIAL: "official recipe",
    LIGHTLY: "lightly",
}
LONG = 1_000_000  # epochs: no run ends


@dataclass(frozen=True)
class Case:
    """One network on images of one kind.

    Attributes:
        name: what `--cases` and the rows call it.
        title: what the tables call it.
        kind: of the device: 'cpu' or 'cuda'.
        preset: of the settings.
        views: preset of the views.
        side: of the views, in pixels.
        changes: of the preset's settings.
        dataset: a data set that is trained on where it is installed; random pixels stand in for it.
        seconds: that the case takes at most, with a machine to itself; 0 where it is begun while
            any time is left.
    """

    name: str
    title: str
    kind: str
    preset: str
    views: str
    side: int
    changes: dict[str, Any] = field(default_factory=dict, hash=False)
    dataset: str = ""
    seconds: float = 0.0

    def __str__(self) -> str:
        return self.name

    @property
    def files(self) -> bool:
        """Whether the images are files."""
        return self.views == "imagenet"

    def config(self) -> PretrainConfig:
        """The settings of all runs of this case: views, optimizer, precision, widths."""
        changes = dict(self.changes)
        encoder = changes.get("encoder", "")
        if encoder and provenance.missing("torchvision"):
            changes["encoder"] = f"timm:{encoder}"
        return configure(
            self.preset, epochs=LONG, views=self.views, loss=BARLOW_TWINS, encoder_grid=2, **changes
        )


_SMALL = "a compact encoder"
# Of the preset before the experiments of the speedrun, so that rows stay comparable.
COMPACT = {
    "stem": "imagenet", "encoder_widths": (32, 64, 128), "optimizer": "adamw",
    "momentum": 0.9, "learning_rate": 4e-3,
}  # fmt: skip
CASES = {
    case.name: case
    for case in (
        Case(
            "fashion-mnist", f"28 × 28 × 1 in memory, {_SMALL}, D = 1024", "cpu", "fashion-mnist",
            "fashion-mnist", 28, COMPACT, dataset="fashion-mnist",
        ),
        Case(
            "arrays-32", f"32 × 32 × 3 in memory, {_SMALL}, D = 1024", "cpu", "fashion-mnist",
            "cifar", 32, COMPACT,
        ),
        Case(
            "photographs-224", f"224 × 224 from JPEG files of about 500 × 400, {_SMALL}, D = 1024",
            "cpu", "files", "imagenet", 224,
        ),
        Case(
            "resnet50-224", "224 × 224 from JPEG files of about 500 × 400, ResNet-50, D = 8192",
            "cuda", "imagenet-100ep", "imagenet", 224, {"encoder": "resnet50"},
            seconds=180.0,
        ),
        Case(
            "resnet18-32-2048", "32 × 32 × 3 in memory, ResNet-18, D = 2048", "cuda", "cifar10",
            "cifar", 32, {"encoder": "resnet18"}, seconds=80.0,
        ),
        Case(
            "resnet18-32-8192", "32 × 32 × 3 in memory, ResNet-18, D = 8192", "cuda", "cifar10",
            "cifar", 32, {"encoder": "resnet18", "projector": (8192, 8192, 8192)},
            seconds=80.0,
        ),
    )
}  # fmt: skip
QUICK_BATCH = 64
QUICK = {"cpu": ("fashion-mnist",), "cuda": ("resnet18-32-2048",)}


def parse(text: str | None, kind: str, quick: bool = False) -> list[Case]:
    """Cases of a comma-separated list, or all of a kind of device; in smaller batches for a quick
    look. ValueError for a name that is unknown there."""
    known = {name: case for name, case in CASES.items() if kind == case.kind}
    changes = {"batch_size": QUICK_BATCH} if quick else {}
    return [
        replace(known[name], changes=known[name].changes | changes)
        for name in cli.listed(text, known, "case", QUICK[kind] if quick else None)
    ]


def unavailable(peer: str, case: Case) -> str | None:
    """Why an implementation cannot run here."""
    encoder = case.config().encoder
    packages = ["timm" if encoder.startswith("timm:") else "torchvision"] * (encoder != "small")
    packages += ["PIL"] if case.files else []
    packages += ["torchvision", "PIL"] if peer in (OFFICIAL, LIGHTLY) else []
    packages += ["lightly"] if peer == LIGHTLY else []
    return provenance.missing(*packages)
