"""Settings of a run from a preset, a YAML file, options and `name=value`; and as YAML."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from ..checkpoints.training import load_checkpoint
from ..inputs import needed_for
from .config import PretrainConfig
from .images import is_path
from .presets import configure, find, fitting, override, preset_in, preset_of

# The first line of files of settings that this program writes: no others are replaced.
HEADER = "# settings of a run, for barlow-fast pretrain --config"


def configuration(
    choices: dict[str, Any],
    dim: int | None,
    preset: str | None,
    file: Path | None,
    assignments: list[str],
    resume: Path | None,
) -> PretrainConfig:
    """The preset, then the YAML file, then the options, then NAME=VALUE; with `resume` the
    checkpoint's settings, which choices must not contradict."""
    if dim is not None and choices["projector"] is not None:
        raise ValueError("--dim and --projector both set the embedding dimensions: give one")
    named = preset or (preset_in(file) if file is not None else None)
    if resume is not None:
        state = load_checkpoint(resume)
        base = PretrainConfig.from_dict(state.get("config"))
    else:
        base = configure(named or _preset(choices["dataset"] or "digits"))
    overridden, in_file = override(base, file)
    chosen = in_file | {name: value for name, value in choices.items() if value is not None}
    if dim is not None:
        chosen["projector"] = (*overridden.projector[:-1], dim)
    _, in_arguments = override(base, None, assignments)
    chosen |= in_arguments
    if resume is None:
        return _replaced(base, chosen)
    if named is not None:
        # Less what the choices derive, such as the warm-up of a short run, which was not requested.
        # Nor the length of the run, which its own command set.
        first = chosen | {"epochs": base.epochs}
        theirs, derived = find(named).to_dict(), fitting(find(named), first)
        chosen = {k: v for k, v in theirs.items() if derived.get(k, v) == v} | chosen
    refused = [
        f"{name} is {getattr(base, name)!r} there, {value!r} was requested"
        for name, value in chosen.items()
        if name not in base.MAY_CHANGE and _differ(value, getattr(base, name))
    ]
    if refused:
        raise ValueError(
            f"{resume} was made with other settings, which resuming keeps: {'; '.join(refused)}"
        )
    config = _replaced(base, {k: v for k, v in chosen.items() if k in base.MAY_CHANGE})
    if config.epochs < state.get("epoch", 0):
        raise ValueError(
            f"{resume} is of {state['epoch']} epochs: epochs must be at least that, got "
            f"{config.epochs}"
        )
    return config


def _replaced(base: PretrainConfig, chosen: dict[str, Any]) -> PretrainConfig:
    return replace(base, **fitting(base, chosen))


def _differ(ours: Any, theirs: Any) -> bool:
    as_list = (list(v) if isinstance(v, tuple) else v for v in (ours, theirs))
    return next(as_list) != next(as_list)


def _preset(dataset: str) -> str:
    """The preset of the settings for a data set's name or the path of files."""
    return "files" if is_path(dataset) else preset_of(dataset)


def as_yaml(config: PretrainConfig) -> str:
    """All settings, as `--config` takes them."""
    with needed_for("a run's file of settings"):
        import yaml

    return f"{HEADER}\n{yaml.safe_dump(config.to_dict(), sort_keys=False).rstrip()}"


def projector_widths(text: str | None) -> tuple[int, ...] | None:
    """The widths in a text such as 512-512-1024."""
    if text is None:
        return None
    try:
        return tuple(int(width) for width in text.split("-"))
    except ValueError:
        raise ValueError(f"--projector takes widths such as 512-512-1024, got {text!r}") from None
