"""`patch("lightly")`: a library's own loss replaced by ours, for scripts that cannot be edited.

The class (or function) is replaced where it is defined, in every module of its package that is
imported and holds it, and in the package's registry of losses, if it has one. Modules imported
later find it replaced already. What was made of the original before stays the original: instances,
subclasses, and names that a script has imported into its own modules, which `patch` reports.

A class may call itself by name: `super(BarlowTwinsLoss, self).__init__()`. In its own module, and
wherever a subclass does so, the namespace keeps the original, for the code of that module, and the
module's attribute is ours, for everyone else. Elsewhere the name is rebound.

Processes that `multiprocessing` spawns are patched when they start, with the same options.
"""

from __future__ import annotations

import copyreg
import functools
import gc
import importlib
import inspect
import logging
import pkgutil
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from types import CodeType, FunctionType, ModuleType, TracebackType
from typing import Any, NamedTuple

__all__ = ["Patch", "patch", "unpatch"]

logger = logging.getLogger(__name__)


class Replacement(NamedTuple):
    module: str  # where the peer defines it
    attribute: str
    adapter: str  # module of barlow_fast.adapters that has the same attribute
    optional: bool = False  # whether tested versions may lack it


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
            (
                Replacement("lightly.loss.barlow_twins_loss", "BarlowTwinsLoss", "lightly"),
                Replacement("lightly.loss.vicreg_loss", "VICRegLoss", "lightly", True),
                Replacement("lightly.loss.vicreg_loss", "covariance_loss", "lightly", True),
                Replacement("lightly.loss.frossl_loss", "FroSSLLoss", "lightly", True),
            ),
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
                Replacement(
                    "stable_pretraining.losses.joint_embedding",
                    "VICRegLoss",
                    "stable_pretraining",
                    True,
                ),
                Replacement(
                    "stable_pretraining.losses.utils", "VCRegLoss", "stable_pretraining", True
                ),
            ),
        ),
        Target(
            "solo",
            "solo-learn",
            "1.0.2",
            "1.0.7",
            (
                Replacement("solo.losses.barlow", "barlow_loss_func", "solo_learn"),
                Replacement("solo.losses.vicreg", "vicreg_loss_func", "solo_learn", True),
                Replacement("solo.losses.frossl", "frossl_loss_func", "solo_learn", True),
            ),
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


class _Rebound(NamedTuple):
    """A name of a namespace, or a key of a registry, bound to the replacement."""

    place: str
    mapping: Any
    key: str
    original: Any
    ours: Any

    def undo(self) -> None:
        if self.mapping.get(self.key) is self.ours:
            self.mapping[self.key] = self.original


class _Fronted(NamedTuple):
    """An attribute of a module that is ours while the module's namespace keeps the original."""

    place: str
    module: ModuleType
    key: str
    original: Any
    ours: Any
    kind: type[ModuleType]  # the module's class since, whose property `key` is
    before: type[ModuleType]

    @property
    def mapping(self) -> dict[str, Any]:
        return vars(self.module)

    def undo(self) -> None:
        delattr(self.kind, self.key)
        if type(self.module) is self.kind:
            self.module.__class__ = self.before


def _front(place: str, module: ModuleType, key: str, original: Any, ours: Any) -> _Fronted:
    namespace, before = vars(module), type(module)

    def found(_: ModuleType) -> Any:
        present()
        return ours if namespace[key] is original else namespace[key]

    def put(_: ModuleType, value: Any) -> None:
        # What restores an attribute sets what it has read.
        namespace[key] = original if value is ours else value

    def remove(_: ModuleType) -> None:
        present()
        del namespace[key]

    def present() -> None:
        if key not in namespace:
            raise AttributeError(f"module {module.__name__!r} has no attribute {key!r}")

    kind = type(before.__name__, (before,), {key: property(found, put, remove)})
    module.__class__ = kind
    return _Fronted(place, module, key, original, ours, kind, before)


@dataclass
class Patch:
    """What `patch` replaced; print it to read it, `undo()` or leave its `with` block to end it.

    package, version: of the peer. replaced: the places that hold ours now. kept: those of them
    whose module's own code still has the original. left: places outside the package that still
    hold the original. subclasses: classes that were derived from an original and stay so.
    """

    package: str
    version: str
    left: list[str] = field(default_factory=list)
    subclasses: list[str] = field(default_factory=list)
    _changes: list[_Rebound | _Fronted] = field(default_factory=list, repr=False)
    _options: dict[str, bool] = field(default_factory=dict, repr=False)

    @property
    def replaced(self) -> list[str]:
        return [change.place for change in self._changes]

    @property
    def kept(self) -> list[str]:
        return [change.place for change in self._changes if isinstance(change, _Fronted)]

    def undo(self) -> None:
        """Puts the originals back wherever ours is still in place; once is enough."""
        for change in reversed(self._changes):
            change.undo()
            if copyreg.dispatch_table.get(change.original) is _pickled_by_name:
                del copyreg.dispatch_table[change.original]
        self._changes.clear()
        if _active.get(self.package) is self:
            del _active[self.package]
        if not _active and BaseProcess.__dict__.get("__reduce_ex__") is _reduce_process:
            del BaseProcess.__reduce_ex__

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
        if self.kept:
            lines.append("but not for the code of these modules, where a class calls it by name:")
            lines += [f"  {place}" for place in self.kept]
        if self.left:
            lines.append("not in, where the original was imported by name before:")
            lines += [f"  {place}" for place in self.left]
            lines.append("  (patch before these imports, or with everywhere=True)")
        if self.subclasses:
            lines.append("derived from the original, and left so:")
            lines += [f"  {name}" for name in self.subclasses]
        lines.append(
            "in processes that multiprocessing starts from now on too; others must call "
            "barlow_fast.patch themselves"
        )
        return "\n".join(lines)


_active: dict[str, Patch] = {}


def patch(name: str, *, everywhere: bool = False, force: bool = False) -> Patch:
    """Replaces the losses of an installed library by their drop-ins: Barlow Twins, and VICReg,
    VCReg and FroSSL where it has them.

        barlow_fast.patch("lightly")            # for the rest of the process
        with barlow_fast.patch("lightly"):      # or for a while
            ...

    Patching what is patched already is no error: the same handle comes back, and modules that have
    been imported since are looked through. There is one handle for a package, and its first `undo`
    (or end of a `with` block) ends it.

    Instances that were made before, and classes derived before, keep the original loss. After
    patching, `isinstance(x, lightly.loss.BarlowTwinsLoss)` tests for ours. An instance that was
    pickled before, or is pickled as an original, is ours when it is loaded while patched.

    Processes that `multiprocessing` spawns later (`torch.multiprocessing.spawn`, Lightning's
    `ddp_spawn`, workers of loaders and pools) are patched when they start. Others must call `patch`
    themselves, as a script that torchrun starts does.

    Args:
        name: 'lightly', 'monai', 'stable_pretraining', 'solo', 'mmpretrain', 'mmselfsup', 'vissl',
            'catalyst' or 'ptls', or what pip calls the package.
        everywhere: also replace it in modules outside the package that have imported it by name,
            such as the running script. Without it they are named in the handle and logged, and so
            are those whose own code keeps it, because a subclass there calls it by name.
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
    for option, given in (("everywhere", everywhere), ("force", force)):
        handle._options[option] = given or handle._options.get(option, False)
    handle.left, handle.subclasses = [], []
    for replacement, found in originals:
        _replace(handle, target, replacement, found, everywhere)
    _active[target.package] = handle
    BaseProcess.__reduce_ex__ = _reduce_process
    logger.info("%s", handle)
    if handle.left:
        logger.warning(
            "barlow_fast.patch(%r) left the original in %s, which imported it by name before; "
            "patch earlier%s",
            name,
            ", ".join(handle.left),
            "" if everywhere else ", or with everywhere=True",
        )
    return handle


def _replace(
    handle: Patch, target: Target, replacement: Replacement, found: Any, everywhere: bool
) -> None:
    ours = _ours(replacement)
    original = found
    if found is ours:
        place = f"{replacement.module}.{replacement.attribute}"
        original = next((c.original for c in handle._changes if c.place == place), ours)
        if original is ours:  # bound by other code
            return
    already = {(id(change.mapping), change.key) for change in handle._changes}
    derived = _derived(original)
    named = {use for kind in (original, *derived) for use in _globals_used(kind)}
    for place, holder, key, inside in _places(target, original):
        mapping = vars(holder) if isinstance(holder, ModuleType) else holder
        keeps = (id(mapping), key) in named
        if not inside and (keeps or not everywhere):
            handle.left.append(place)
        if (id(mapping), key) in already or not (inside or everywhere):
            continue
        if keeps:
            handle._changes.append(_front(place, holder, key, original, ours))
        else:
            mapping[key] = ours
            handle._changes.append(_Rebound(place, mapping, key, original, ours))
    if inspect.isclass(original):
        copyreg.dispatch_table.setdefault(original, _pickled_by_name)
    names = [f"{c.__module__}.{c.__qualname__}" for c in derived]
    handle.subclasses = list(dict.fromkeys(handle.subclasses + names))


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


class _Place(NamedTuple):
    """A class, pickled as the place where its library has it: ours is there while patched, and
    pickle refuses a class that is not found there."""

    kind: type

    def __reduce__(self) -> tuple[Any, ...]:
        return pkgutil.resolve_name, (f"{self.kind.__module__}:{self.kind.__qualname__}",)


class _New(functools.partial):
    """Makes an instance without its `__init__`, and is pickled without reference to barlow_fast."""

    def __reduce__(self) -> tuple[Any, ...]:
        kind, *arguments = self.args
        return functools.partial, (self.func, _Place(kind), *arguments)


def _pickled_by_name(instance: Any) -> tuple[Any, ...]:
    """What pickle and copy make of an instance of an original while it is replaced."""
    function, arguments, *rest = instance.__reduce_ex__(2)
    if function is copyreg.__newobj__:
        function, arguments = _New(function, *arguments), ()
    return function, arguments, *rest


def _reduce_process(process: BaseProcess, protocol: int) -> tuple[Any, ...]:
    """Processes that are spawned arrive as a pickle: the first thing that it makes is the patch."""
    function, arguments, *rest = object.__reduce_ex__(process, protocol)
    patches = {name: handle._options for name, handle in _active.items()}
    return _start_patched, (patches, function, arguments), *rest


def _start_patched(
    patches: dict[str, dict[str, bool]], function: Callable[..., BaseProcess], arguments: tuple
) -> BaseProcess:
    for name, options in patches.items():
        patch(name, **options)
    return function(*arguments)


def _target(name: str) -> Target:
    if isinstance(name, str):
        for target in TARGETS.values():
            if name.replace("-", "_") in (target.package, target.distribution.replace("-", "_")):
                return target
    raise ValueError(f"name must be one of {tuple(TARGETS)}, got {name!r}")


def _ours(replacement: Replacement) -> Any:
    module = importlib.import_module(f"barlow_fast.adapters.{replacement.adapter}")
    return getattr(module, replacement.attribute)


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
            if not replacement.optional:
                raise _elsewhere(target, replacement) from error
        except AttributeError as error:
            if not replacement.optional:
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
        ours = _ours(replacement)
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


def _derived(original: Any) -> list[type]:
    """All classes that have `original` among their bases, near ones first."""
    found: list[type] = []
    kinds = [original] if inspect.isclass(original) else []
    while kinds:
        kinds = [c for kind in kinds for c in type.__subclasses__(kind) if c not in found]
        found += dict.fromkeys(kinds)
    return found


def _globals_used(kind: Any) -> Iterator[tuple[int, str]]:
    """(id of the namespace, name) of what the functions of a class may look up in it, and with
    them the functions of that namespace that they call."""
    waiting = list(vars(kind).values()) if inspect.isclass(kind) else []
    seen: set[int] = set()
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        waiting += _wrapped(value)
        if isinstance(value, FunctionType):
            namespace = value.__globals__
            for name in _names(value.__code__):
                yield id(namespace), name
                called = namespace.get(name)
                if isinstance(called, FunctionType) and called.__globals__ is namespace:
                    waiting.append(called)


def _wrapped(value: Any) -> list[Any]:
    """What a function or descriptor calls that was passed to what made it."""
    if isinstance(value, FunctionType):
        # A decorator's function is in the closure of what it returned.
        return [part for cell in value.__closure__ or () for part in gc.get_referents(cell)]
    if isinstance(value, (staticmethod, classmethod)):
        return [value.__func__]
    if isinstance(value, property):
        return [value.fget, value.fset, value.fdel]
    if isinstance(value, (functools.cached_property, functools.partialmethod)):
        return [value.func]
    return []


def _names(code: CodeType) -> set[str]:
    """The global names and attributes that a function and those within it mention."""
    inner = (_names(c) for c in code.co_consts if isinstance(c, CodeType))
    return set(code.co_names).union(*inner)


def _places(target: Target, original: Any) -> Iterator[tuple[str, Any, str, bool]]:
    """(name, module or registry, key, whether it is the package's own) of all that holds the
    original: modules, then registries."""
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
                yield f"{name}.{key}", module, key, inside
    for module_name, path in target.registries:
        registry: Any = sys.modules.get(module_name)
        for part in path.split("."):
            registry = getattr(registry, part, None)
        for key, value in list((registry or {}).items()):
            if value is original:
                yield f"{module_name}.{path}[{key!r}]", registry, key, True
