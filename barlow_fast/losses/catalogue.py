"""The losses that a run of the trainer can have: their weights among its settings, and their terms
in what it shows. Imports nothing: the command's help lists them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Term:
    """A term of a loss in a run's lines, tables and figures."""

    label: str  # in a progress line
    decimals: int  # there and in the report
    meaning: str


@dataclass(frozen=True)
class LossKind:
    """What a run knows of its loss."""

    title: str
    weights: tuple[str, ...]  # the settings that are its own, by the names of its arguments
    # By the names of the fields of what it returns as terms: of those that grow with the number of
    # dimensions, their means per dimension.
    terms: dict[str, Term]
    most_views: int | None = None  # None: any number


_PAIR = {
    "on_diagonal_mean": Term("on", 4, "on-diagonal term, the mean of (C_ii - 1)²"),
    "off_diagonal_mean": Term("off", 5, "off-diagonal term, the mean of C_ij²"),
}

BARLOW_TWINS, VICREG, MIXED, FROSSL = "barlow-twins", "vicreg", "mixed-barlow-twins", "frossl"

LOSSES: dict[str, LossKind] = {
    BARLOW_TWINS: LossKind("Barlow Twins", ("lambd",), _PAIR),
    VICREG: LossKind(
        "VICReg",
        ("invariance", "variance", "covariance"),
        {
            "invariance": Term("invariance", 4, "mean squared distance of two views"),
            "variance": Term("variance", 4, "mean by which standard deviations fall below 1"),
            "covariance_mean": Term("covariance", 5, "mean of squared covariances, of two views"),
        },
    ),
    MIXED: LossKind(
        "Mixed Barlow Twins",
        ("lambd", "mixing"),
        {**_PAIR, "mixing_mean": Term("mixing", 5, "regulariser of the mixed images, mean")},
        most_views=2,
    ),
    FROSSL: LossKind(
        "FroSSL",
        ("invariance",),
        {
            "invariance": Term("invariance", 4, "squared distances of views to their mean, summed"),
            "regularisation": Term(
                "regularisation", 4, "2 log of the Frobenius norm of K / tr K, summed over views"
            ),
        },
    ),
}
