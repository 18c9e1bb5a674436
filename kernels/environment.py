"""Environment variables, read with errors that name them."""

from __future__ import annotations

import os


def whole_number(name: str, default: int, least: int = 0) -> int:
    """The number in an environment variable; `default` where it is not set or empty.

    Raises:
        ValueError: no whole number, or less than `least`.
    """
    text = os.environ.get(name, "").strip()
    if not text:
        return default
    # Digits alone: int() also takes underscores and other scripts.
    digits = text.removeprefix("-")
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 18) or int(text) < least:
        raise ValueError(
            f"the environment variable {name} must be a whole number of at least {least}, "
            f"got {text[:80]!r}"
        )
    return int(text)


def choice(name: str, accepted: tuple[str, ...]) -> str | None:
    """The value of an environment variable; None where it is not set or empty.

    Raises:
        ValueError: not one of `accepted`.
    """
    text = os.environ.get(name, "").strip()
    if text and text not in accepted:
        raise ValueError(
            f"the environment variable {name} must be one of {', '.join(accepted)}, "
            f"got {text[:80]!r}"
        )
    return text or None
