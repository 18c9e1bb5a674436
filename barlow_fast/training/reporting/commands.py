"""Commands that a run prints. Each can be run as it is, from the folder that the run was started
in."""

from __future__ import annotations

import importlib.util
import shlex
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...data import DATASETS

if TYPE_CHECKING:
    from ..loop import Trainer

# Options of `pretrain` that `evaluate` has too.
EVALUATED_WITH = ("data_dir", "on_bad_image", "workers", "device")


def resume_command(trainer: Trainer, *arguments: str) -> str:
    """Continues a run from its checkpoint, with as many processes and the options of its command
    that no checkpoint holds."""
    ranks = trainer.ranks
    if ranks.alone:
        program = ["barlow-fast", "pretrain"]
    else:
        nodes = ["--nnodes", str(ranks.nodes)] if ranks.nodes > 1 else []
        each = ["--nproc_per_node", str(ranks.size // ranks.nodes)]
        program = ["torchrun", *nodes, *each, "-m", "barlow_fast", "pretrain"]
    resumed = ["--resume", str(trainer.checkpoint_path), *arguments]
    return shlex.join([*program, *resumed, *_words(trainer.options, trainer.options)])


def next_commands(trainer: Trainer) -> list[tuple[str, str]]:
    """(what it does, the command) for a run that came to its end; none without a checkpoint."""
    if trainer.checkpoint_path is None:
        return []
    file = str(trainer.checkpoint_path)
    commands: list[tuple[str, list[str]]] = []
    labelled = _labelled(trainer)
    if labelled is not None:
        options = _words(trainer.options, EVALUATED_WITH)
        commands += [
            (what, ["barlow-fast", "evaluate", protocol, file, *labelled, *options])
            for what, protocol in (
                ("score it by its neighbours", "knn"),
                ("train a linear classifier on it", "linear"),
            )
        ]
    if importlib.util.find_spec("safetensors") is not None:
        encoder = str(trainer.checkpoint_path.with_name("encoder.safetensors"))
        commands.append(
            ("export the encoder to other programs", ["barlow-fast", "export", file, encoder])
        )
    longer = ("--epochs", str(2 * trainer.config.epochs))
    return [
        *((what, shlex.join(words)) for what, words in commands),
        ("train it for as many epochs again", resume_command(trainer, *longer)),
    ]


def _labelled(trainer: Trainer) -> list[str] | None:
    """Where `evaluate` finds labelled images like those of the run; None where there are none."""
    name = trainer.config.dataset
    if trainer.dataset is not None:
        return ["--dataset", name] if name == trainer.dataset.name and name in DATASETS else None
    if trainer.watcher.splits is not None:
        return ["--data", name]
    folder = Path(name)
    # A folder with a split of its own beside the training images.
    candidates = [folder.parent, folder] if folder.name == "train" else [folder]
    return next((["--data", str(each)] for each in candidates if _splits(each)), None)


def _splits(folder: Path) -> bool:
    from ...evaluation import folder_splits

    if not folder.is_dir():
        return False
    try:
        folder_splits(folder)
    except (ValueError, OSError):
        return False
    return True


def _words(options: Mapping[str, Any], names: Collection[str]) -> list[str]:
    """Options as they are typed."""
    words: list[str] = []
    for name, value in options.items():
        option = name.replace("_", "-")
        if name not in names:
            continue
        if isinstance(value, bool):
            words.append(f"--{option}" if value else f"--no-{option}")
            continue
        for each in value if isinstance(value, (list, tuple)) else [value]:
            words += [f"--{option}", str(each)]
    return words
