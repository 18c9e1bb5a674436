"""Whether a table of cases names every option of an entry point."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pytest


def names_of(entry: Any) -> tuple[str, ...]:
    """The options of a dataclass, a Click command, a function, a class, or names as they are."""
    if isinstance(entry, type) and dataclasses.is_dataclass(entry):
        return tuple(field.name for field in dataclasses.fields(entry) if field.init)
    if hasattr(entry, "params"):
        return tuple(parameter.name for parameter in entry.params)
    if callable(entry):
        variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        parameters = inspect.signature(entry).parameters
        return tuple(n for n, p in parameters.items() if n != "self" and p.kind not in variadic)
    return tuple(entry)


def assert_covered(
    entry: Any, cases: Iterable[str], exempt: Mapping[str, str] | None = None
) -> None:
    """Every option has a case or a reason to have none, and every case and reason an option.

    Args:
        entry: see `names_of`.
        cases: names of the options that are seen to have their effect.
        exempt: {name of an option: why it has no case, such as that it is what is computed on}.
    """
    names, cases, exempt = set(names_of(entry)), set(cases), dict(exempt or {})
    called = getattr(entry, "__qualname__", None) or getattr(entry, "name", "the entry point")
    missing = names - cases - set(exempt)
    assert not missing, f"{called}: no case shows the effect of {sorted(missing)}"
    unknown = (cases | set(exempt)) - names
    assert not unknown, f"{called} has no option {sorted(unknown)}"
    assert not cases & set(exempt), f"both a case and exempt: {sorted(cases & set(exempt))}"
    assert all(exempt.values()), f"exempt without a reason: {sorted(exempt)}"


def record_calls(
    monkeypatch: Any, owner: Any, name: str, stand_in: Any = None
) -> list[dict[str, Any]]:
    """From now on the arguments of every call of `owner.name`, by name, defaults included; the
    call itself continues to it, or to `stand_in`."""
    plain = getattr(owner, name)
    signature, calls = inspect.signature(plain), []

    def recording(*arguments: Any, **options: Any) -> Any:
        bound = signature.bind(*arguments, **options)
        bound.apply_defaults()
        calls.append(dict(bound.arguments))
        return (stand_in or plain)(*arguments, **options)

    monkeypatch.setattr(owner, name, recording)
    return calls


class Cases:
    """The cases of one file: by function, what shows the effect of each of its options."""

    def __init__(self) -> None:
        self.table: dict[Any, dict[str, Callable[..., None]]] = {}
        self.exempt: dict[Any, dict[str, str]] = {}

    def case(
        self, function: Any, *options: str
    ) -> Callable[[Callable[..., None]], Callable[..., None]]:
        """Registers a function that shows the effect of some options of `function`."""

        def register(shown: Callable[..., None]) -> Callable[..., None]:
            cases = self.table.setdefault(function, {})
            assert not set(options) & set(cases)
            cases.update(dict.fromkeys(options, shown))
            return shown

        return register

    def operands(self, function: Any, *names: str) -> None:
        """Arguments that are no options."""
        self.exempt[function] = dict.fromkeys(names, "what is computed on")

    def shown(self) -> list[Any]:
        """Every case once, called by the options that it shows."""
        words: dict[Callable[..., None], list[str]] = {}
        for function, cases in self.table.items():
            for option, case in cases.items():
                words.setdefault(case, []).append(f"{function.__name__}.{option}")
        return [pytest.param(case, id=",".join(options)) for case, options in words.items()]
