"""More views of an image than two: further ones of the same size, and small ones.

They are specifications like any others: one decoded image serves all of them, and each is a pure
function of (seed, epoch, sample, number of the view). So views 0 and 1 keep their bits whatever
comes after them, except that beside small views the large ones show no small part of the image.

Source of small views: Caron et al., *Unsupervised Learning of Visual Features by Contrasting
Cluster Assignments* (SwAV, NeurIPS 2020), section 3.2 and the authors' code: two views of 224
pixels that show 14 to 100 % of the image and six of 96 that show 5 to 14 %, with the same changes
of colour.
"""

from __future__ import annotations

from dataclasses import replace

from .presets import Views

# Shares of an image's area: below the boundary in small views, above it in the others.
SMALLEST_AREA, BOUNDARY_AREA = 0.05, 0.14
# Sides of small views, as a share of the large ones'.
SMALL_SIDE = 96 / 224


def of_count(views: Views, count: int) -> Views:
    """As many views of each image, by repeating what is drawn in turn: of two specifications A and
    B, views 0, 2, ... are drawn from A and views 1, 3, ... from B. So an even number keeps the
    balance of a recipe whose two views differ.

    Args:
        views: with at most `count` views.
        count: at least 2.

    Raises:
        ValueError: fewer views than two, or than there are specifications.
    """
    given = len(views.views)
    if count < max(2, given):
        least = "a loss compares two" if given <= 2 else f"{views.name!r} specifies {given}"
        raise ValueError(
            f"the number of views must be at least {max(2, given)} ({least}), got {count}"
        )
    if count == given:
        return views
    return replace(views, views=tuple(views.views[n % given] for n in range(count)))


def with_small(
    views: Views, count: int, size: int | None = None, shape: tuple[int, int] | None = None
) -> Views:
    """The views, and after them small ones of the same images: `SMALLEST_AREA` to `BOUNDARY_AREA`
    of the image each, with the colours of the large views in turn. The large ones show
    `BOUNDARY_AREA` or more of it, where their specification allows that.

    Args:
        views: the large ones.
        count: how many small ones; at least 1.
        size: of these, in pixels a side; None for 96/224 of the sides of the large ones.
        shape: (height, width) of large views whose specification states no size.

    Raises:
        ValueError: no small views; large ones without a size; small ones that are not smaller than
            every large one.
    """
    if count < 1:
        raise ValueError(f"the number of small views must be at least 1, got {count}")
    shapes = [view.shape or shape for view in views.views]
    if None in shapes:
        raise ValueError(
            f"small views need large ones of a known size, and {views.name!r} states none"
        )
    height, width = map(min, zip(*shapes, strict=True))
    small = (size, size) if size else tuple(max(1, round(SMALL_SIDE * s)) for s in (height, width))
    if small[0] >= height or small[1] >= width:
        raise ValueError(
            f"small views of {small[0]} x {small[1]} pixels must be smaller than the large ones, "
            f"which have {height} x {width}"
        )
    large = tuple(
        replace(view, crop_area=(max(low, BOUNDARY_AREA) if high > BOUNDARY_AREA else low, high))
        for view in views.views
        for low, high in [view.crop_area]
    )
    area = (SMALLEST_AREA, BOUNDARY_AREA)
    further = tuple(
        replace(views.views[n % len(large)], crop_area=area, size=small) for n in range(count)
    )
    return replace(views, views=large + further)
