"""Encoders by name: the compact one, torchvision's classification networks, timm's."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from ..inputs import needed_for
from .small import SmallEncoder

Stem = Literal["auto", "imagenet", "small", "small-padding-2", "small-without-relu"]
STEMS = get_args(Stem)
SMALL_IMAGE = 64  # pixels a side up to which stem='auto' keeps the resolution
TIMM = "timm:"
# Given to a network that is to lose its head, so that the head is found by its size.
CLASSES = 1009


@dataclass(frozen=True)
class Architecture:
    """The arguments of `build_encoder`, with `stem` decided: `build(architecture)` makes another
    one of the same shape."""

    name: str
    channels: int
    image_size: int
    stem: str
    widths: tuple[int, ...] = ()  # of `small` alone
    grid: int = 0  # of `small` alone

    def arguments(self) -> dict[str, Any]:
        """For `build_encoder`."""
        values = asdict(self)
        if self.name != "small":
            del values["widths"], values["grid"]
        return values


class FeatureCount(int):
    """A number of features that leads on to the part of a network that is called `features`:
    torch.distributed.checkpoint walks from name to name through attributes."""

    part: nn.Module

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.part, name)

    def __reduce__(self) -> tuple:
        # A copy is a number and no more.
        return int, (int(self),)


class Encoder(nn.Module):
    """A network that calls one of its parts `features`, under our interface: here `features` is
    the number of features.

    Its parts, parameters and buffers are the network's own and have the network's names, so state
    dicts, optimizers and sharding see the network as it is.
    """

    def __init__(self, network: nn.Module, features: int) -> None:
        super().__init__()
        for own in ("_modules", "_parameters", "_buffers", "_non_persistent_buffers_set"):
            self.__dict__[own] = getattr(network, own)
        # Past nn.Module's bookkeeping, which would give every name a prefix.
        self.__dict__["network"] = network
        self._count = features

    @property
    def features(self) -> int:
        count = FeatureCount(self._count)
        count.part = self._modules.get("features")
        return count

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images)

    def train(self, mode: bool = True) -> Encoder:
        self.network.train(mode)
        return super().train(mode)


def build_encoder(
    name: str = "small",
    *,
    channels: int = 3,
    image_size: int = 224,
    stem: Stem = "auto",
    widths: Sequence[int] = (32, 64, 128),
    grid: int = 2,
    other_sizes: Sequence[int] = (),
) -> nn.Module:
    """An encoder with random weights: (B, channels, H, W) float -> (B, features).

    The module has the attributes `features`, the number of features, and `architecture`. The keys
    of its state dict are those of the library that it comes from, less the classifier's. ResNets
    start as identities in their residual branches (the last batch norm's weight is zero), as in
    the official code. A GoogLeNet or Inception has no auxiliary classifiers.

    Args:
        name: 'small' (`SmallEncoder`); a classification network of torchvision, such as
            'resnet50'; 'timm:NAME', or a name that timm alone has.
        channels: of the images. For other numbers than 3 the first convolution is replaced.
        image_size: pixels a side of the images to come. Networks with position embeddings are
            made for it; others are only tried with it.
        stem: of a ResNet. 'imagenet': 7 x 7 convolution with stride 2 and max-pool, as published;
            'small': 3 x 3 with stride 1 and no max-pool, which keeps the resolution of small
            images; 'auto': 'small' up to 64 pixels. 'small-padding-2' is solo-learn's variant,
            'small-without-relu' that of lightly's CIFAR-10 benches; both for reading their files.
            In `small`, 'imagenet' halves the image in its first stage, and 'auto' goes by the
            same 64 pixels. Other networks have one stem: 'auto' and 'imagenet' are the same there.
        widths: of the stages of `small`.
        grid: positions a side that `small` keeps.
        other_sizes: pixels a side of further images that come, such as small views. Transformers
            of timm then fit their position embeddings to the size of the image, where they can.

    Raises:
        ValueError: an unknown name, with the closest ones; a stem that the network cannot
            have; images that are too small for it, or of other sizes than it takes; numbers that
            are not positive.
        ModuleNotFoundError: torchvision or timm is needed and missing.
    """
    if stem not in STEMS:
        raise ValueError(f"stem must be one of {', '.join(STEMS)}, got {stem!r}")
    if min(channels, image_size) < 1:
        raise ValueError(
            f"channels and image_size must be positive, got {channels} and {image_size}"
        )
    if name == "small":
        if stem.startswith("small-"):
            raise ValueError(f"stem={stem!r} is for ResNets; encoder 'small' has its own stem")
        if stem == "auto":
            stem = "small" if image_size <= SMALL_IMAGE else "imagenet"
        encoder: nn.Module = SmallEncoder(channels, widths, grid, halve_first=stem == "imagenet")
        encoder.architecture = Architecture(name, channels, image_size, stem, tuple(widths), grid)
        encoder.removed_head = None
        return encoder
    dynamic = set(other_sizes) - {image_size} != set()
    network, head = _network(name, channels, image_size, dynamic)
    stem = _set_stem(network, name, stem, channels, image_size)
    features = _features(network, name, channels, image_size)
    for size in other_sizes:
        if _features(network, name, channels, size) != features:
            raise ValueError(f"{name!r} has another number of features at {size} pixels a side")
    if "features" in network._modules or hasattr(type(network), "features"):
        network = Encoder(network, features)
    else:
        network.features = features
    network.architecture = Architecture(name, channels, image_size, stem)
    network.removed_head = head
    return network


def stages(encoder: nn.Module) -> dict[str, nn.Module]:
    """The modules of an encoder whose outputs are its stages, in order: name -> module, for
    forward hooks. Every output is a map (B, channels, h, w).

    ResNets: Feature1, the stem after its max-pool, to Feature5. `SmallEncoder`: one for each
    width. Other convolutional networks: the last output of every resolution. Where there are no
    such maps (transformers), one entry, 'features': the encoder itself, (B, features).

    Raises:
        ValueError: not an encoder of `build_encoder`.
    """
    if isinstance(encoder, SmallEncoder):
        ends = [end - 1 for _, end in _small_stages(encoder)]
        return {f"Feature{number}": encoder[end] for number, end in enumerate(ends, 1)}
    network = getattr(encoder, "network", encoder)
    if _is_resnet(network):
        names = ("maxpool", "layer1", "layer2", "layer3", "layer4")
        return {f"Feature{n}": getattr(network, name) for n, name in enumerate(names, 1)}
    if not isinstance(getattr(encoder, "architecture", None), Architecture):
        raise ValueError(
            f"stages takes an encoder of build_encoder, got a {type(encoder).__name__}"
        )
    found = _resolutions(encoder)
    if len(found) < 2:
        return {"features": encoder}
    return {f"Feature{number}": module for number, module in enumerate(found, 1)}


def _small_stages(encoder: SmallEncoder) -> Iterator[tuple[int, int]]:
    """First and one past the last position of every stage in the sequence."""
    per_stage = 6  # convolution, batch norm and ReLU, twice
    for start in range(0, len(encoder) - 2, per_stage):
        yield start, start + per_stage


def _network(
    name: str, channels: int, image_size: int, dynamic: bool
) -> tuple[nn.Module, str | None]:
    """The network without its head, and the head's name in the state dict. `dynamic`: for images of
    other sizes too."""
    if name.startswith(TIMM):
        return _from_timm(name.removeprefix(TIMM), channels, image_size, dynamic)
    with needed_for(f"encoder {name!r}"):
        from torchvision import models

    names = models.list_models(module=models)
    if name in names:
        return _from_torchvision(name, channels, image_size)
    timm_names = _timm_names()
    if name in timm_names:
        return _from_timm(name, channels, image_size, dynamic)
    raise ValueError(_unknown(name, ["small", *names, *timm_names], timm_names != []))


def _unknown(name: str, names: list[str], with_timm: bool) -> str:
    close = difflib.get_close_matches(name, list(dict.fromkeys(names)), n=5, cutoff=0.6)
    advice = f"; did you mean {', '.join(close)}?" if close else ""
    absent = "" if with_timm else " (timm, which has more of them, is not installed)"
    return (
        f"unknown encoder {name!r}: 'small', a classification network of torchvision, or "
        f"'timm:NAME'{absent}{advice}"
    )


def _timm_names() -> list[str]:
    try:
        import timm
    except ModuleNotFoundError:
        return []
    return timm.list_models()


def _from_torchvision(name: str, channels: int, image_size: int) -> tuple[nn.Module, str]:
    from torchvision import models

    arguments = torchvision_arguments(name, image_size)
    arguments["num_classes"] = CLASSES
    if issubclass(_returned(name), models.ResNet):
        arguments["zero_init_residual"] = True
    try:
        network = models.get_model(name, weights=None, **arguments)
    except NotImplementedError:  # of the meta device, not of the size
        raise
    except (AssertionError, ValueError, RuntimeError) as error:
        raise _too_odd(name, image_size, error) from error
    head = _remove_head(network)
    if channels != 3:
        _replace_first_convolution(network, channels)
    return network, head


def torchvision_arguments(name: str, image_size: int) -> dict[str, Any]:
    """What `torchvision.models.get_model` needs for the network of this name and size."""
    if name in ("googlenet", "inception_v3"):
        # They warn unless `init_weights` is given.
        return {"aux_logits": False, "init_weights": False}
    if name.startswith("vit_"):
        return {"image_size": image_size}
    if name.startswith("maxvit_"):
        return {"input_size": (image_size, image_size)}
    return {}


def _returned(name: str) -> type:
    """The class of a torchvision network, from its builder's annotation."""
    import typing

    from torchvision import models

    return typing.get_type_hints(models.get_model_builder(name))["return"]


def _remove_head(network: nn.Module) -> str:
    """Puts an identity in the place of the layer that gives the classes."""
    path, _ = [
        (path, module)
        for path, module in network.named_modules()
        if getattr(module, "out_features", None) == CLASSES
        or getattr(module, "out_channels", None) == CLASSES
    ][-1]
    parent, _, own = path.rpartition(".")
    setattr(network.get_submodule(parent), own, nn.Identity())
    return path


def _replace_first_convolution(network: nn.Module, channels: int) -> None:
    path, old = next((p, m) for p, m in network.named_modules() if isinstance(m, nn.Conv2d))
    new = nn.Conv2d(
        channels,
        old.out_channels,
        old.kernel_size,
        old.stride,
        old.padding,
        bias=old.bias is not None,
    )
    nn.init.kaiming_normal_(new.weight, mode="fan_out", nonlinearity="relu")
    parent, _, own = path.rpartition(".")
    setattr(network.get_submodule(parent), own, new)


def _from_timm(
    name: str, channels: int, image_size: int, dynamic: bool
) -> tuple[nn.Module, str | None]:
    with needed_for(f"encoder 'timm:{name}'", "timm"):
        import timm
    names = timm.list_models()
    if name.split(".", 1)[0] not in names:
        raise ValueError(_unknown(name, names, True))
    arguments = {"pretrained": False, "num_classes": 0, "in_chans": channels}
    sized: list[dict[str, Any]] = [{"img_size": image_size}, {}]
    if dynamic:
        sized.insert(0, {"img_size": image_size, "dynamic_img_size": True})
    try:
        for size in sized:
            try:
                network = timm.create_model(name, **arguments, **size)
                break
            except TypeError:  # a network for any size has no such argument
                if not size:
                    raise
    except NotImplementedError:
        raise
    except (AssertionError, ValueError, RuntimeError) as error:
        raise _too_odd(name, image_size, error) from error
    head = network.pretrained_cfg.get("classifier")
    return network, head if isinstance(head, str) else None


def _is_resnet(network: nn.Module) -> bool:
    parts = ("conv1", "bn1", "maxpool", "layer1", "layer2", "layer3", "layer4")
    return all(isinstance(getattr(network, part, None), nn.Module) for part in parts)


def _set_stem(network: nn.Module, name: str, stem: str, channels: int, image_size: int) -> str:
    """Gives a ResNet the requested stem; returns which it has."""
    # A deep stem of timm's is a sequence: it is left as it is.
    changeable = _is_resnet(network) and isinstance(network.conv1, nn.Conv2d)
    if stem == "auto":
        stem = "small" if changeable and image_size <= SMALL_IMAGE else "imagenet"
    if stem == "imagenet":
        return stem
    if not changeable:
        raise ValueError(f"stem={stem!r} is for ResNets; {name!r} has one stem: 'imagenet'")
    padding = 2 if stem == "small-padding-2" else 1
    network.conv1 = nn.Conv2d(
        channels, network.conv1.out_channels, 3, stride=1, padding=padding, bias=False
    )
    nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
    network.maxpool = nn.Identity()
    if stem == "small-without-relu":
        # torchvision's name, or timm's.
        setattr(network, "relu" if hasattr(network, "relu") else "act1", nn.Identity())
    return stem


def _features(network: nn.Module, name: str, channels: int, image_size: int) -> int:
    """The number of features, from a forward pass that computes shapes alone."""
    try:
        output = _forward_shapes(network, channels, image_size)
    except Exception as error:
        # Not every operator of every library can do without data.
        try:
            output = _forward_one(network, channels, image_size)
        except Exception:
            raise _too_odd(name, image_size, error) from error
    if not isinstance(output, Tensor) or output.ndim != 2:
        shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ValueError(f"{name!r} cannot be an encoder: one image gives {shape}, not (1, F)")
    return output.shape[1]


def _forward_shapes(network: nn.Module, channels: int, image_size: int) -> Tensor:
    """One image through the network on the meta device."""
    state = {
        key: value.detach().to("meta")
        for own in (network.named_parameters, network.named_buffers)
        for key, value in own()
    }
    image = torch.empty(1, channels, image_size, image_size, device="meta")
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        # With gradients on, attention takes no shortcut that the meta device lacks.
        with torch.enable_grad():
            return torch.func.functional_call(network, state, (image.requires_grad_(),))
    finally:
        _set_modes(modes)


@torch.no_grad()
def _forward_one(network: nn.Module, channels: int, image_size: int) -> Tensor:
    device = next(network.parameters()).device
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        return network(torch.zeros(1, channels, image_size, image_size, device=device))
    finally:
        _set_modes(modes)


def _set_modes(modes: dict[nn.Module, bool]) -> None:
    for module, mode in modes.items():
        module.training = mode


def _too_odd(name: str, image_size: int, error: Exception) -> ValueError:
    reason = str(error).split("\n", 1)[0] or type(error).__name__
    return ValueError(f"{name!r} does not take images of {image_size} pixels a side: {reason}")


def _resolutions(encoder: nn.Module) -> list[nn.Module]:
    """The last module of every resolution, among those that a network names as its stages."""
    network = getattr(encoder, "network", encoder)
    described = getattr(network, "feature_info", None)
    if described:
        candidates = [network.get_submodule(entry["module"]) for entry in described]
    elif isinstance(network._modules.get("features"), nn.Sequential):
        candidates = list(network._modules["features"])
    else:
        return []
    sides: dict[nn.Module, int | None] = {}

    def note(module: nn.Module, _: Any, output: Any) -> None:
        # Images are square, so a map that is not has its channels elsewhere.
        is_map = isinstance(output, Tensor) and output.ndim == 4
        square = is_map and output.shape[2] == output.shape[3]
        sides[module] = output.shape[2] if square else None

    hooks = [module.register_forward_hook(note) for module in candidates]
    architecture = encoder.architecture
    try:
        _forward_shapes(network, architecture.channels, architecture.image_size)
    except Exception:
        return []
    finally:
        for hook in hooks:
            hook.remove()
    if None in sides.values() or len(sides) < len(candidates):
        return []
    last = dict(zip((sides[module] for module in candidates), candidates, strict=True))
    return [last[side] for side in sorted(last, reverse=True)]
