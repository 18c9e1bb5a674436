"""What defines a pretraining run: plain values, checked once, stored with every checkpoint."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from types import NoneType
from typing import Any, ClassVar, Optional

from ..losses.catalogue import BARLOW_TWINS, LOSSES

PRECISIONS = ("auto", "fp32", "bf16", "fp16")
MUON = "muon"
OPTIMIZERS = ("adamw", "lars", "sgd", MUON)
PARALLEL = ("ddp", "fsdp")
COMPILE = ("off", "default", "reduce-overhead", "max-autotune")
STEMS = ("auto", "imagenet", "small")

# Of annotations: what they accept, and what that is called.
_TYPES: dict[str, tuple[tuple[type, ...], str]] = {
    "str": ((str,), "text"),
    "bool": ((bool,), "true or false"),
    "int": ((int,), "a whole number"),
    "float": ((int, float), "a number"),
    "Optional[int]": ((int, NoneType), "a whole number, or null"),
    "Optional[float]": ((int, float, NoneType), "a number, or null"),
}


def check_type(name: str, value: Any, annotation: str) -> None:
    """Raises ValueError where a setting's value is not of its type."""
    if annotation == "tuple[int, ...]":
        if isinstance(value, (tuple, list)) and all(type(each) is int for each in value):
            return
        raise ValueError(f"{name} must be whole numbers such as [512, 512, 1024], got {value!r}")
    accepted, words = _TYPES[annotation]
    # True is a number to Python.
    if not isinstance(value, accepted) or (isinstance(value, bool) and bool not in accepted):
        raise ValueError(f"{name} must be {words}, got {value!r}")


@dataclass(frozen=True)
class PretrainConfig:
    """Everything that the resulting weights depend on, besides the data, the device and the
    software, and how the run is watched.

    Raises:
        ValueError: a value out of its range; the message names it.
    """

    # What is learned from.
    dataset: str = "digits"  # a name, or the path of files
    views: str = ""  # a preset's name, or a YAML file; empty: those of the data set
    view_count: Optional[int] = None  # noqa: UP045 - of an image; None: as `views` specifies
    small_views: int = 0  # of an image, beside the others: see `barlow_fast.data.multicrop`
    small_size: Optional[int] = None  # noqa: UP045 - pixels a side; None: 96/224 of the others'
    reduced_decoding: bool = False  # of large JPEGs: see `Views`

    # The network.
    encoder: str = "small"  # `small`, or a model of torchvision or timm
    stem: str = "auto"  # `imagenet`, `small` (halves less), or by the size of the views
    encoder_widths: tuple[int, ...] = (32, 64, 128)  # of `small`
    encoder_grid: int = 2  # of `small`
    projector: tuple[int, ...] = (512, 512, 1024)
    # All views of a size in one forward pass, sharing batch norm's statistics.
    one_pass: bool = False

    # The loss, of all views of an image together. Weights that are None are the loss's own
    # defaults, and those that it does not have must be left as they are.
    loss: str = BARLOW_TWINS
    lambd: float = 0.0051  # of barlow-twins and mixed-barlow-twins
    mixing: Optional[float] = None  # noqa: UP045 - of mixed-barlow-twins
    invariance: Optional[float] = None  # noqa: UP045 - of vicreg and frossl
    variance: Optional[float] = None  # noqa: UP045 - of vicreg
    covariance: Optional[float] = None  # noqa: UP045 - of vicreg
    scale: float = 1.0
    backend: str = "auto"  # kernels of the loss

    # How it is learned.
    epochs: int = 100
    batch_size: int = 128  # over all ranks
    micro_batch_size: Optional[int] = None  # noqa: UP045 - per rank
    optimizer: str = "adamw"
    learning_rate: float = 2e-3  # peak, of weights
    bias_learning_rate: Optional[float] = None  # noqa: UP045 - of biases and norms
    reference_batch_size: Optional[int] = None  # noqa: UP045 - learning rates are per so many images
    momentum: float = 0.9  # of LARS, SGD and Muon
    trust_coefficient: float = 0.001  # of LARS
    weight_decay: float = 1e-4  # of weights; biases and norms have none
    warmup_epochs: int = 5
    final_learning_rate: float = 0.001  # of the last step, as a share of the peak
    seed: int = 0

    # How it is computed.
    precision: str = "auto"  # of encoder, projector and loss: fp32, or 16 bits by autocast
    compile: str = "off"  # torch.compile of encoder and projector: its mode, or `off`
    checkpoint_activations: bool = False  # compute them again in the backward pass
    sync_batch_norm: bool = True  # over all ranks
    parallel: str = "ddp"  # or fsdp, of several ranks

    # How it is watched.
    evaluate_every: int = 10  # epochs between k-NN scores; the last epoch always has one
    neighbours: int = 5
    neighbour_images: int = 10_000  # of training images, the candidates; of files also those scored
    checkpoint_every: Optional[int] = None  # noqa: UP045 - epochs; None: those that are scored
    checkpoint_minutes: float = 15.0  # and inside an epoch, after so much time
    keep_checkpoints: int = 2  # the newest and those before it

    # What may differ between a stop and the run that continues. The learning rates of the steps to
    # come are those of a run of the new number of epochs.
    MAY_CHANGE: ClassVar[frozenset[str]] = frozenset(
        {
            "epochs",
            "backend",
            "compile",
            "checkpoint_activations",
            "parallel",
            "neighbours",
            "neighbour_images",
            "evaluate_every",
            "checkpoint_every",
            "checkpoint_minutes",
            "keep_checkpoints",
        }
    )

    # Settings that files of earlier versions lack, with what those versions did.
    LATER: ClassVar[dict[str, Any]] = {
        "reduced_decoding": False, "view_count": None, "small_views": 0, "small_size": None,
        "loss": BARLOW_TWINS, "mixing": None, "invariance": None, "variance": None,
        "covariance": None,
    }  # fmt: skip

    def __post_init__(self) -> None:
        for field in fields(self):
            check_type(field.name, getattr(self, field.name), field.type)
        for name in ("encoder_widths", "projector"):
            widths = tuple(getattr(self, name))
            object.__setattr__(self, name, widths)
            if not widths or min(widths) < 1:
                raise ValueError(f"{name} must be positive widths, got {widths}")
        for name in (
            "epochs", "encoder_grid", "evaluate_every", "neighbours", "neighbour_images",
            "keep_checkpoints", "checkpoint_every", "micro_batch_size", "reference_batch_size",
            "small_size",
        ):  # fmt: skip
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.batch_size < 2:
            raise ValueError(
                f"batch_size must be at least 2, got {self.batch_size}: "
                "the loss standardises over the batch"
            )
        if self.micro_batch_size == 1:
            raise ValueError("micro_batch_size must be at least 2: batch norm needs two samples")
        for name, open_end in (
            ("learning_rate", True), ("bias_learning_rate", False), ("lambd", False),
            ("mixing", False), ("invariance", False), ("variance", False), ("covariance", False),
            ("scale", True), ("weight_decay", False), ("trust_coefficient", True),
            ("checkpoint_minutes", True),
        ):  # fmt: skip
            value = getattr(self, name)
            if value is None:
                continue
            if not math.isfinite(value) or value < 0 or (open_end and value == 0):
                raise ValueError(
                    f"{name} must be {'positive' if open_end else 'at least 0'}, got {value}"
                )
        for name in ("momentum", "final_learning_rate"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), got {getattr(self, name)}")
        if not 0 <= self.warmup_epochs <= self.epochs:
            raise ValueError(
                f"warmup_epochs must be in [0, epochs = {self.epochs}], got {self.warmup_epochs}"
            )
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"seed must be in [0, 2**64), got {self.seed}")
        for name, accepted in (
            ("precision", PRECISIONS), ("optimizer", OPTIMIZERS), ("parallel", PARALLEL),
            ("compile", COMPILE), ("stem", STEMS), ("loss", tuple(LOSSES)),
        ):  # fmt: skip
            if getattr(self, name) not in accepted:
                raise ValueError(f"{name} must be one of {accepted}, got {getattr(self, name)!r}")
        if self.optimizer == MUON and self.parallel == "fsdp":
            raise ValueError("optimizer muon updates whole matrices, which parallel=fsdp shards")
        self._check_views()
        self._check_weights()

    def _check_views(self) -> None:
        if self.view_count is not None and self.view_count < 2:
            raise ValueError(
                f"view_count must be at least 2, got {self.view_count}: the loss compares views"
            )
        if self.small_views < 0:
            raise ValueError(f"small_views must be at least 0, got {self.small_views}")
        if self.small_size is not None and not self.small_views:
            raise ValueError(f"small_size is {self.small_size}, and there are no small_views")
        most = LOSSES[self.loss].most_views
        if most is not None and (self.view_count or most) + self.small_views > most:
            raise ValueError(
                f"loss {self.loss} takes {most} views, got {self.view_count or most} and "
                f"{self.small_views} small ones"
            )

    def _check_weights(self) -> None:
        own = LOSSES[self.loss].weights
        defaults = {field.name: field.default for field in fields(self)}
        for name in {name for kind in LOSSES.values() for name in kind.weights} - set(own):
            if getattr(self, name) != defaults[name]:
                others = ", ".join(loss for loss, kind in LOSSES.items() if name in kind.weights)
                raise ValueError(
                    f"{name} is no weight of loss {self.loss}, which has {', '.join(own)}; got "
                    f"{getattr(self, name)}. Losses with {name}: {others}"
                )

    @property
    def learning_rates(self) -> tuple[float, float]:
        """(of weights, of biases and norms) at their peak, for this batch size."""
        scale = self.batch_size / (self.reference_batch_size or self.batch_size)
        biases = self.bias_learning_rate
        return (
            self.learning_rate * scale,
            (self.learning_rate if biases is None else biases) * scale,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain containers only, so that a checkpoint loads without running code."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> PretrainConfig:
        """The inverse of `to_dict`, also of an earlier version.

        Raises:
            ValueError: missing or unknown names, or a value out of its range.
        """
        if not isinstance(values, dict):
            raise ValueError(f"settings must be a dict of names to values, got {values!r}")
        values = cls.LATER | values
        names = {field.name for field in fields(cls)}
        if set(values) != names:
            raise ValueError(
                f"settings that differ from this version's: {sorted(set(values) ^ names)}"
            )
        return cls(**values)
