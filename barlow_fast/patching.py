"""`patch("lightly")`: a library's own loss replaced by ours, for scripts that cannot be edited.

The class (or function) is replaced where it is defined, in every module of its package that is
imported and holds it, and in the package's registry of losses, if it has one. Modules imported
later find it replaced already. What was made of the original before stays the original: instances,
subclasses, and names that a script has imported into its own modules, which `patch` tells.
"""

from __future__ import annotations

import importlib
import inspect
import logging
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import ModuleType, TracebackType
from typing import Any, NamedTuple

__all__ = ["Patch", "patch", "unpatch"]

logger = logging.getLogger(__name__)


class Replacement(NamedTuple):
    module: str  # where the peer defines it
    attribute: str
    adapter: str  # module of barlow_fast.adapters that has the same attribute


@dataclass(frozen=True)
class Target:
    """A package, the versions that its adapter was tested with, and what is replaced."""

    package: str
    distribution: str  # what pip calls it
    oldest: str
    below: str  # the first version that was not tested
    replacements: tuple[Replacement, ...]
    registries: tuple[tuple[str, str], ...] = ()  # (module, path of a mapping in it)

    @property
    def range(self) -> str:
        return f"{self.oldest} <= version < {self.below}"


def _mm(package: str, oldest: str, below: str) -> Target:
    return Target(
        package,
        package,
        oldest,
        below,
        (
            Replacement(
                f"{package}.models.losses.cross_correlation_loss", "CrossCorrelationLoss", package
            ),
            Replacement(
                f"{package}.models.heads.latent_heads", "LatentCrossCorrelationHead", package
            ),
        ),
        ((f"{package}.registry", "MODELS._module_dict"),),
    )


TARGETS = {
    target.package: target
    for target in (
        Target(
            "lightly",
            "lightly",
            "1.5.26",
            "1.7",
            (Replacement("lightly.loss.barlow_twins_loss", "BarlowTwinsLoss", "lightly"),),
        ),
        Target(
            "monai",
            "monai",
            "1.4",
            "1.7",
            (Replacement("monai.losses.barlow_twins", "BarlowTwinsLoss", "monai"),),
        ),
        Target(
            "stable_pretraining",
            "stable-pretraining",
            "0.1.8",
            "0.1.9",
            (
                Replacement(
                    "stable_pretraining.losses.joint_embedding",
                    "BarlowTwinsLoss",
                    "stable_pretraining",
                ),
            ),
        ),
        Target(
            "solo",
            "solo-learn",
            "1.0.2",
            "1.0.7",
            (Replacement("solo.losses.barlow", "barlow_loss_func", "solo_learn"),),
        ),
        _mm("mmpretrain", "1.0", "1.3"),
        _mm("mmselfsup", "1.0", "1.1"),
        Target(
            "vissl",
            "vissl",
            "0.1.6",
            "0.1.7",
            (
                Replacement("vissl.losses.barlow_twins_loss", "BarlowTwinsCriterion", "vissl"),
                Replacement("vissl.losses.barlow_twins_loss", "BarlowTwinsLoss", "vissl"),
            ),
            (("classy_vision.losses", "LOSS_REGISTRY"),),
        ),
        Target(
            "catalyst",
            "catalyst",
            "22.4",
            "22.5",
            (Replacement("catalyst.contrib.losses.contrastive", "BarlowTwinsLoss", "catalyst"),),
        ),
        Target(
            "ptls",
            "pytorch-lifestream",
            "0.7",
            "0.8",
            (
                Replacement(
                    "ptls.frames.coles.losses.barlow_twins_loss", "BarlowTwinsLoss", "lifestream"
                ),
            ),
        ),
    )
}


class _Change(NamedTuple):
    place: str
    mapping: Any  # a module's namespace or a registry
    key: str
    original: Any
    ours: Any


@dataclass
class Patch:
    """What `patch` replaced; print it to read it, `undo()` or leave its `with` block to end it.

    package, version: of the peer. replaced: the places that hold ours now. left: places outside the
    package that still hold the original. subclasses: classes that were derived from the original
    and stay so.
    """

    package: str
    version: str
    left: list[str] = field(default_factory=list)
    subclasses: list[str] = field(default_factory=list)
    _changes: list[_Change] = field(default_factory=list, repr=False)

    @property
    def replaced(self) -> list[str]:
        return [change.place for change in self._changes]

    def undo(self) -> None:
        """Puts the originals back wherever ours is still in place; once is enough."""
        for change in reversed(self._changes):
            if change.mapping.get(change.key) is change.ours:
                change.mapping[change.key] = change.original
        self._changes.clear()
        if _active.get(self.package) is self:
            del _active[self.package]

    def __enter__(self) -> Patch:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.undo()

    def __str__(self) -> str:
        if not self._changes:
            return f"barlow_fast replaces nothing in {self.package} {self.version} (undone)"
        lines = [f"barlow_fast replaces in {self.package} {self.version}:"]
        lines += [f"  {place}" for place in self.replaced]
        if self.left:
            lines.append("not in, where the original was imported by name before:")
            lines += [f"  {place}" for place in self.left]
            lines.append("  (patch before these imports, or with everywhere=True)")
        if self.subclasses:
            lines.append("derived from the original, and left so:")
            lines += [f"  {name}" for name in self.subclasses]
        return "\n".join(lines)


_active: dict[str, Patch] = {}


def patch(name: str, *, everywhere: bool = False, force: bool = False) -> Patch:
    """Replaces the Barlow Twins loss of an installed library by its drop-in.

        barlow_fast.patch("lightly")            # for the rest of the process
        with barlow_fast.patch("lightly"):      # or for a while
            ...

    Patching what is patched already is no error: the same handle comes back, and modules that have
    been imported since are looked through. There is one handle for a package, and its first `undo`
    (or end of a `with` block) ends it.

    Instances that were made before, and classes derived before, keep the original loss. After
    patching, `isinstance(x, lightly.loss.BarlowTwinsLoss)` asks for ours.

    Args:
        name: 'lightly', 'monai', 'stable_pretraining', 'solo', 'mmpretrain', 'mmselfsup', 'vissl',
            'catalyst' or 'ptls', or what pip calls the package.
        everywhere: also replace it in modules outside the package that have imported it by name,
            such as the running script. Without it they are named in the handle and logged.
        force: patch versions that the drop-in was not tested with, too.

    Returns:
        The handle, which says what was replaced.

    Raises:
        ValueError: a name that is not among these.
        ImportError: the library is not installed, or cannot be imported.
        RuntimeError: a version outside the tested range, or a loss that takes other arguments than
            the drop-in; nothing is replaced then.
    """
    target = _target(name)
    originals = _originals(target)
    handle = _active.get(target.package)
    if handle is None:
        version = _version(target)
        if not force:
            _check(target, version, originals)
        handle = Patch(target.package, version)
    already = {(id(change.mapping), change.key) for change in handle._changes}
    known = {change.place: change for change in handle._changes}
    handle.left = []
    for replacement, found in originals:
        ours = getattr(
            importlib.import_module(f"barlow_fast.adapters.{replacement.adapter}"),
            replacement.attribute,
        )
        original = found
        if found is ours:
            place = f"{replacement.module}.{replacement.attribute}"
            original = known[place].original
        for place, mapping, key, inside in _places(target, original):
            if not (inside or everywhere):
                handle.left.append(place)
            elif (id(mapping), key) not in already:
                mapping[key] = ours
                handle._changes.append(_Change(place, mapping, key, original, ours))
        if inspect.isclass(original):
            handle.subclasses = [
                f"{c.__module__}.{c.__qualname__}" for c in original.__subclasses__()
            ]
    _active[target.package] = handle
    logger.info("%s", handle)
    if handle.left:
        logger.warning(
            "barlow_fast.patch(%r) left the original in %s, which imported it by name before; "
            "patch earlier, or with everywhere=True",
            name,
            ", ".join(handle.left),
        )
    return handle


def unpatch(name: str) -> bool:
    """Undoes `patch(name)`; whether there was anything to undo.

    Raises:
        ValueError: a name that `patch` does not take.
    """
    handle = _active.get(_target(name).package)
    if handle is None:
        return False
    handle.undo()
    return True


def _target(name: str) -> Target:
    if isinstance(name, str):
        for target in TARGETS.values():
            if name.replace("-", "_") in (target.package, target.distribution.replace("-", "_")):
                return target
    raise ValueError(f"name must be one of {tuple(TARGETS)}, got {name!r}")


def _originals(target: Target) -> list[tuple[Replacement, Any]]:
    found = []
    for replacement in target.replacements:
        try:
            module = importlib.import_module(replacement.module)
            found.append((replacement, getattr(module, replacement.attribute)))
        except ModuleNotFoundError as error:
            if error.name == target.package:
                raise ImportError(
                    f"{target.package} is not installed: pip install {target.distribution}"
                ) from None
            if error.name and error.name.partition(".")[0] != target.package:
                raise ImportError(
                    f"{target.package} is installed but cannot be imported: {error}"
                ) from error
            raise _elsewhere(target, replacement) from error
        except AttributeError as error:
            raise _elsewhere(target, replacement) from error
    return found


def _elsewhere(target: Target, replacement: Replacement) -> RuntimeError:
    return RuntimeError(
        f"{target.package} {_version(target)} has no {replacement.module}.{replacement.attribute}; "
        f"barlow_fast was tested with {target.range}"
    )


def _version(target: Target) -> str:
    version = getattr(sys.modules.get(target.package), "__version__", None)
    if isinstance(version, str):
        return version
    from importlib import metadata

    try:
        return metadata.version(target.distribution)
    except metadata.PackageNotFoundError:
        return "of unknown version"


def _numbers(version: str) -> tuple[int, ...]:
    """The release of a version: (1, 5, 26) of '1.5.26rc1+cpu'; empty if there is none."""
    release = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in release[0].split(".")) if release else ()


def _check(target: Target, version: str, originals: list[tuple[Replacement, Any]]) -> None:
    """RuntimeError unless the version was tested and the loss takes the drop-in's arguments."""
    if not _numbers(target.oldest) <= _numbers(version) < _numbers(target.below):
        raise RuntimeError(
            f"{target.package} {version} is not among the versions that barlow_fast was tested "
            f"with ({target.range}): its loss may differ. force=True replaces it nevertheless"
        )
    for replacement, original in originals:
        ours = getattr(
            importlib.import_module(f"barlow_fast.adapters.{replacement.adapter}"),
            replacement.attribute,
        )
        theirs = _arguments(original)
        if original is not ours and theirs != _arguments(ours):
            raise RuntimeError(
                f"{replacement.module}.{replacement.attribute} of {target.package} {version} takes "
                f"{theirs}, the drop-in {_arguments(ours)}. force=True replaces it nevertheless"
            )


def _arguments(thing: Any) -> list[tuple[str, Any]]:
    """Names and defaults of what can be passed by position."""
    by_position = (
        inspect.Parameter.POSITIONAL_ONLY,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
    )
    return [
        (p.name, "required" if p.default is p.empty else p.default)
        for p in inspect.signature(thing).parameters.values()
        if p.kind in by_position
    ]


def _places(target: Target, original: Any) -> Iterator[tuple[str, Any, str, bool]]:
    """(name, mapping, key, whether it is the package's own) of all that holds the original:
    modules, then registries."""
    seen = set()
    for name, module in list(sys.modules.items()):
        # One module may go by two names: a script is `__main__` and what it was started as.
        if not isinstance(module, ModuleType) or id(module) in seen:
            continue
        seen.add(id(module))
        inside = name.partition(".")[0] == target.package
        namespace = vars(module)
        for key, value in list(namespace.items()):
            if value is original:
                yield f"{name}.{key}", namespace, key, inside
    for module_name, path in target.registries:
        registry: Any = sys.modules.get(module_name)
        for part in path.split("."):
            registry = getattr(registry, part, None)
        for key, value in list((registry or {}).items()):
            if value is original:
                yield f"{module_name}.{path}[{key!r}]", registry, key, True
