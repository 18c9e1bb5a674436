"""Features of whole data sets: of an encoder's output, and of its stages in the same pass.

Source of the stages' pooling: Goyal, Mahajan, Gupta, Misra, *Scaling and Benchmarking
Self-Supervised Visual Representation Learning* (ICCV 2019), section 4: every map is averaged on a
grid that leaves about 9000 numbers.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..data.render import normalise
from ..data.sources import Source
from ..models.finite import check_finite
from .images import ImageFormat, Reading, pictures

# The encoder's own output, beside the names of its stages.
AVERAGE_POOL = "average pool"
# Numbers that are kept of a stage's map, about.
STAGE_DIMENSIONS = 9000

# From an encoder to its stages by name.
FindStages = Callable[[nn.Module], Mapping[str, nn.Module]]


@torch.inference_mode()
def extract_features(
    encoder: nn.Module,
    images: Tensor,
    mean: float,
    std: float,
    device: torch.device | str = "cpu",
    chunk: int = 1024,
) -> Tensor:
    """The encoder's features of images as they are, without augmentation.

    Args:
        encoder: maps (B, C, H, W) float32 to (B, F); run in evaluation mode, and left in the mode
            it had.
        images: (N, C, H, W) uint8, on any device.
        mean, std: what the encoder was trained with, where white is 1.
        device: where the encoder is.
        chunk: images per pass.

    Returns:
        (N, F) float32 on `device`.

    Raises:
        RuntimeError: features that are not finite.
    """
    with evaluating(encoder):
        parts = [encoder(normalise(part.to(device), mean, std)) for part in images.split(chunk)]
    features = torch.cat(parts).float()
    check_finite(features, "the encoder's features")
    return features


@contextlib.contextmanager
def evaluating(encoder: nn.Module) -> Iterator[None]:
    """Evaluation mode, in which batch norm neither uses nor changes a batch's statistics; every
    module is left in the mode that it had."""
    modes = [(module, module.training) for module in encoder.modules()]
    encoder.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


class StageFeatures:
    """The outputs of an encoder and of its stages as vectors, from one forward pass.

        with StageFeatures(encoder, ["Feature1", "average pool"]) as extract:
            features = extract(images)  # {"Feature1": (B, F1), "average pool": (B, F)}

    Maps (B, C, h, w) are averaged on a grid of min(h, w, round(sqrt(dimensions / C))) positions a
    side; tokens (B, T, C) over all tokens. Gradients do not reach the encoder. A call raises
    RuntimeError for features that are not finite.

    Args:
        encoder: maps (B, C, H, W) float32 to (B, F), or to (B, F, 1, 1).
        names: of the stages, and `AVERAGE_POOL` for the encoder's output as it is.
        dimensions: numbers to keep of a map, about.
        stages: finds the stages of an encoder; None for `barlow_fast.models.stages`.

    Raises:
        ValueError: no names, a stage that the encoder lacks, dimensions below 1.
    """

    def __init__(
        self,
        encoder: nn.Module,
        names: Sequence[str] = (AVERAGE_POOL,),
        dimensions: int = STAGE_DIMENSIONS,
        stages: FindStages | None = None,
    ) -> None:
        if not names:
            raise ValueError("names must hold at least one stage")
        if dimensions < 1:
            raise ValueError(f"dimensions must be at least 1, got {dimensions}")
        self.encoder, self.names, self.dimensions = encoder, tuple(names), dimensions
        self._modules = {}
        if set(names) != {AVERAGE_POOL}:
            found = stages_of(encoder, stages)
            for name in names:
                if name != AVERAGE_POOL and name not in found:
                    raise ValueError(
                        f"the encoder has no stage {name!r}; there are {', '.join(found)}"
                    )
            self._modules = {name: found[name] for name in names if name != AVERAGE_POOL}
        self._seen: dict[str, Tensor] = {}

    def __enter__(self) -> StageFeatures:
        self._handles = [
            module.register_forward_hook(self._keeper(name))
            for name, module in self._modules.items()
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._seen.clear()

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            output = self.encoder(images)
            seen, self._seen = self._seen, {}
            missing = [name for name in self._modules if name not in seen]
            if missing:
                raise RuntimeError(f"the encoder's forward does not reach stage {missing[0]}")
            seen[AVERAGE_POOL] = output.flatten(1)
            features = {name: seen[name].float() for name in self.names}
            for name, values in features.items():
                check_finite(values, f"the encoder's features ({name})")
            return features

    def _keeper(self, name: str) -> Callable[[nn.Module, object, Tensor], None]:
        def keep(module: nn.Module, inputs: object, output: Tensor) -> None:
            # Now: an activation that works in place may change the map before the pass is over.
            self._seen[name] = pooled(output, self.dimensions)

        return keep


def stages_of(encoder: nn.Module, stages: FindStages | None = None) -> Mapping[str, nn.Module]:
    """The stages of an encoder by name, the first ones first."""
    if stages is None:
        from ..models import stages
    return stages(encoder)


def pooled(output: Tensor, dimensions: int = STAGE_DIMENSIONS) -> Tensor:
    """A stage's output as vectors: (B, C, h, w) or (B, T, C) or (B, F) -> (B, about `dimensions` at
    most), newly allocated.

    Raises:
        ValueError: another number of dimensions.
    """
    if output.dim() == 2:
        return output.clone()
    if output.dim() == 3:
        return output.mean(1)
    if output.dim() != 4:
        raise ValueError(f"a stage gives {tuple(output.shape)}, not (B, C, h, w) or (B, T, C)")
    channels, height, width = output.shape[1:]
    side = max(1, min(height, width, round(math.sqrt(dimensions / channels))))
    if (side, side) == (height, width):
        return output.flatten(1).clone()
    return functional.adaptive_avg_pool2d(output, side).flatten(1)


def features_of_source(
    encoder: nn.Module,
    source: Source,
    form: ImageFormat,
    reading: Reading,
    names: Sequence[str] = (AVERAGE_POOL,),
    *,
    dimensions: int = STAGE_DIMENSIONS,
    stages: FindStages | None = None,
    words: str = "features",
) -> tuple[dict[str, Tensor], Tensor]:
    """Features of every image of a source, without augmentation, all stages in one pass.

    Args:
        encoder: on the device of `reading`; run in evaluation mode, and left as it was.
        source: of the images, with labels.
        form: what the encoder takes.
        reading: how images are read.
        names, dimensions, stages: as for `StageFeatures`.
        words: for the progress.

    Returns:
        ({name: (N, F) float32}, (N,) int64 labels), on the device. N is less than the source's
        length by images that were skipped.

    Raises:
        ValueError: the features do not fit into the memory that is free.
        RuntimeError: features that are not finite.
        BadImageError: an image that cannot be read, under the policy 'error'.
    """
    features: dict[str, Tensor] = {}
    labels = torch.empty(len(source), dtype=torch.int64, device=reading.device)
    count = 0
    with (
        evaluating(encoder),
        StageFeatures(encoder, names, dimensions, stages) as extract,
        contextlib.closing(pictures(source, form, reading, words)) as parts,
    ):
        for images, part_labels in parts:
            part = extract(form.normalised(images.to(reading.device)))
            if not features:
                _check_memory(source, part, reading.device)
                features = {
                    name: values.new_empty(len(source), values.shape[1])
                    for name, values in part.items()
                }
            rows = slice(count, count + len(part_labels))
            for name, values in part.items():
                features[name][rows] = values
            labels[rows] = part_labels.to(reading.device)
            count = rows.stop
    return {name: values[:count] for name, values in features.items()}, labels[:count]


def _check_memory(source: Source, part: dict[str, Tensor], device: torch.device | str) -> None:
    """Check that the features fit into memory, before hours of work."""
    free = _free_memory(torch.device(device))
    # Once as they are, and once standardised for the classifier, a stage at a time.
    widths = [values.shape[1] for values in part.values()]
    needed = 4 * len(source) * (sum(widths) + max(widths))
    if free is not None and needed > free:
        raise ValueError(
            f"the features of {source.name} take {needed / 2**30:.1f} GiB with {sum(widths)} "
            f"dimensions of {len(source)} images, and {free / 2**30:.1f} GiB are free: train on "
            "augmented images instead (--features augmented), which keeps none, or keep less of "
            "each stage (--stage-dimensions)"
        )


def _free_memory(device: torch.device) -> int | None:
    """Bytes; None where it is unknown."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    with contextlib.suppress(OSError, ValueError, IndexError), open("/proc/meminfo") as file:
        for line in file:
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return None
