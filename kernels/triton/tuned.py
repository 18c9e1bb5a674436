"""Rows that were tuned for one device and stored: `tuning.py` measures them."""

from __future__ import annotations

import functools
import json
import os
import re
import warnings
from pathlib import Path
from typing import Any

import torch
import triton

from ...files import write_whole
from .table import (
    OPERAND_ALIGNMENT,
    PATHS,
    SPLIT_SINGLE,
    SUM_ALIGNMENT,
    TABLE,
    Key,
    Product,
)

FORMAT = 1
# How every file of rows begins.
START = b'{\n "format": '
OLD_NAMES = {"bulk": "tma"}  # of paths, in files that earlier versions wrote


def file_of(device_name: str) -> Path:
    """Where a device's tuned rows are: in BARLOW_FAST_TUNING_DIR, else in the user's cache."""
    folder = os.environ.get("BARLOW_FAST_TUNING_DIR")
    if not folder:
        cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        folder = Path(cache) / "barlow_fast"
    slug = re.sub(r"[^a-z0-9]+", "-", device_name.lower()).strip("-") or "device"
    return Path(folder) / f"tuning-{slug}.json"


def load(device_name: str) -> dict[Key, Product]:
    """The stored rows for a device.

    None, with a warning if there is a file, when they are not valid, were made with another Triton
    or are of another format.
    """
    path = file_of(device_name)
    try:
        text = path.read_text()
    except OSError:
        return {}
    try:
        return parse(json.loads(text), device_name)
    except (ValueError, KeyError, TypeError) as error:
        warnings.warn(
            f"barlow_fast: the tuned configurations in {path} are ignored: {error}", stacklevel=2
        )
        return {}


rows_of = functools.cache(load)


def parse(content: Any, device_name: str) -> dict[Key, Product]:
    """The rows of a file's content, checked. ValueError states what is wrong."""
    if content["format"] != FORMAT or content["device"] != device_name:
        raise ValueError(f"made for {content['device']!r} in format {content['format']}")
    if content["triton"] != triton.__version__:
        raise ValueError(f"made with Triton {content['triton']}, this is {triton.__version__}")
    rows = {}
    for row in content["rows"]:
        key = (row["kernel"], row["architecture"], row["family"], row["size"])
        product = Product(*row["blocks"], OLD_NAMES.get(row["path"], row["path"]))
        problem = why_invalid(key, product)
        if problem:
            raise ValueError(f"{key}: {problem}")
        rows[key] = product
    return rows


def why_invalid(key: Key, row: Product) -> str | None:
    """None for a row that the kernels can run, else what is wrong with it."""
    if key not in TABLE:
        return "not a row of the table"
    kernel, _, family, size = key
    if row.path not in PATHS[kernel]:
        return f"path must be one of {PATHS[kernel]}, got {row.path!r}"
    for name, value in zip(Product._fields[:3], row[:3], strict=True):
        if not isinstance(value, int) or value not in (16, 32, 64, 128, 256, 512):
            return f"{name} must be a power of two from 16 to 512, got {value!r}"
    if row.warps not in (4, 8, 16) or not isinstance(row.stages, int) or not 1 <= row.stages <= 6:
        return f"warps must be 4, 8 or 16 and stages 1 to 6, got {row.warps!r} and {row.stages!r}"
    if row.block_k > SUM_ALIGNMENT:
        return f"block_k must be at most {SUM_ALIGNMENT}"
    if row.block_n > OPERAND_ALIGNMENT:
        return f"block_n must be at most {OPERAND_ALIGNMENT}"
    if kernel == "gram" and row.block_m != row.block_n:
        return "tiles of K are square"
    if kernel == "gram" and row.block_m < 64:
        return "tiles of K are at least 64 wide"
    if kernel in ("gram", "gram_gradients") and row.path == "owned" and row.block_m < size:
        return f"a program owns {row.block_m} rows, the row serves {size}"
    if family == SPLIT_SINGLE and row.path in ("tma", "stored"):
        return "sums of float32 quality are chunked, which this path does not do"
    return None


def save(path: Path, device_name: str, rows: dict[Key, tuple[Product, dict[str, Any]]]) -> None:
    """Writes rows with their measurements, at once or not at all."""
    content = {
        "format": FORMAT,
        "device": device_name,
        "triton": triton.__version__,
        "torch": torch.__version__,
        "rows": [
            dict(zip(("kernel", "architecture", "family", "size"), key, strict=True))
            | {"blocks": list(row[:5]), "path": row.path}
            | measured
            for key, (row, measured) in rows.items()
        ],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(content, indent=1))
