"""Classes of packages from PyPI, measured where they are installed, with lambda matched. They are
imported when they are built, and not to find out whether they are there: some take seconds.

MONAI and stable-pretraining divide by the unbiased deviation plus an eps, catalyst by the root of
the unbiased variance plus one. MONAI holds lambda in float32 whatever the inputs are.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from typing import Any

import torch

from bench import provenance
from bench.peers.mathematics import LAMBD, PAPER, Mathematics
from bench.peers.peer import Loss, Peer

MONAI = Mathematics(unbiased=True, eps=1e-6, eps_on="deviation", lambd=torch.tensor(LAMBD).item())
STABLE_PRETRAINING = Mathematics(unbiased=True, eps=1e-5, eps_on="deviation")
CATALYST_EPS = 1e-12


def is_installed(module: str) -> bool:
    """Whether a module of this name can be found."""
    return importlib.util.find_spec(module) is not None


def why_missing(module: str, command: str) -> str | None:
    """None, or that the module is not installed and the `command` that changes it."""
    return None if is_installed(module) else f"{module} is not installed ({command})"


def why_formula_is_left_out(module: str, name: str) -> str | None:
    """None, or that the class itself is measured instead of the formula that stands in for it."""
    return f"{name} itself is installed" if is_installed(module) else None


def build(path: str, options: dict[str, Any], n: int, d: int, dtype: torch.dtype) -> Loss:
    """The class at a dotted path."""
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)(**options)


def _peer(
    name: str,
    path: str,
    options: dict[str, Any],
    mathematics: Mathematics = PAPER,
    title: str | None = None,
    command: str | None = None,
) -> Peer:
    title, module = title or name, path.partition(".")[0]
    return Peer(
        name=name,
        title=title,
        source=f"{title} {provenance.version(name) or '(not installed)'}, {path}",
        build=functools.partial(build, path, options),
        mathematics=mathematics,
        unavailable=functools.partial(why_missing, module, command or f"pip install {name}"),
    )


LIGHTLY = _peer(
    "lightly", "lightly.loss.BarlowTwinsLoss", {"lambda_param": LAMBD},
    command="pip install 'barlow-fast[bench]'",
)  # fmt: skip
PEERS = (
    LIGHTLY,
    _peer("monai", "monai.losses.BarlowTwinsLoss", {"lambd": LAMBD}, MONAI, "MONAI"),
    _peer(
        "stable-pretraining", "stable_pretraining.losses.BarlowTwinsLoss", {"lambd": LAMBD},
        STABLE_PRETRAINING,
    ),
    _peer(
        "catalyst", "catalyst.contrib.losses.BarlowTwinsLoss",
        {"offdiag_lambda": LAMBD, "eps": CATALYST_EPS},
        Mathematics(unbiased=True, eps=CATALYST_EPS),
    ),
)  # fmt: skip
