"""Views from cropped bytes: colours, blur and normalisation, in four launches whatever is asked.

    photometric_means:     bytes -> sums of gray values where an image's contrast is due
    photometric_colours:   bytes -> the output, or, of an image that is blurred, float32 planes
    photometric_sideways:  planes -> planes blurred along rows
    photometric_downwards: planes -> blurred along columns, the output

Nothing waits for the device: what an image needs is read from its row of the parameters by each
program of it, and programs of images that have nothing to do in a launch return at once. A program
works on one image, so its choices are scalars and branches never diverge. Sums run in an order that
depends on the size of the image alone: bits do not depend on what else is in the batch.

The planes between the launches are float32: float16 would be off by 2.4e-4 of white, 24 times what
the contract allows. An image that becomes gray has one plane.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import photometry
from ..photometry import LARGEST_SIGMA, PARAMETERS, Parameter
from . import configurations
from .arithmetic import cast
from .launch import cdiv, launch

# Offsets within an image are 32-bit.
LARGEST_IMAGE = 2**30

_COLUMNS = tl.constexpr(PARAMETERS)
_FLIP = tl.constexpr(int(Parameter.FLIP))
_ORDER = tl.constexpr(int(Parameter.ORDER))
_FACTORS = tl.constexpr(int(Parameter.BRIGHTNESS))  # of the four operations, one behind the other
_GRAY = tl.constexpr(int(Parameter.GRAY))
_SIGMA = tl.constexpr(int(Parameter.BLUR_SIGMA))
_SOLARIZE = tl.constexpr(int(Parameter.SOLARIZE))
_TOP = tl.constexpr(int(Parameter.ERASE_TOP))
_LEFT = tl.constexpr(int(Parameter.ERASE_LEFT))
_BOTTOM = tl.constexpr(int(Parameter.ERASE_BOTTOM))
_RIGHT = tl.constexpr(int(Parameter.ERASE_RIGHT))

_BRIGHTNESS = tl.constexpr(photometry.BRIGHTNESS)
_CONTRAST = tl.constexpr(photometry.CONTRAST)
_SATURATION = tl.constexpr(photometry.SATURATION)
_LARGEST_ORDER = tl.constexpr(len(photometry.ORDERS) - 1)

_RED_WEIGHT, _GREEN_WEIGHT, _BLUE_WEIGHT = (tl.constexpr(w) for w in photometry.GRAY_WEIGHTS)

_LARGEST_SIGMA = tl.constexpr(LARGEST_SIGMA)
_LARGEST_RADIUS = tl.constexpr(photometry.blur_radius(LARGEST_SIGMA))
# Below, all weights beside the middle one are zero in float32.
_SMALLEST_SIGMA = tl.constexpr(0.05)

# A byte over 255, rounded as the division rounds it, so that a threshold means the same here and
# there: the first factor has so few bits that its product is exact, the second is what it lacks.
_MOST = tl.constexpr(float.fromhex("0x1.0101p-8"))
_REST = tl.constexpr(1 / 255 - float.fromhex("0x1.0101p-8"))


# ---- colours ------------------------------------------------------------------------------------


@triton.jit
def _pixels(crop, at, inside, C: tl.constexpr):
    """The channels of the pixels `at`; three equal ones where the image has one."""
    red = _from_bytes(tl.load(crop + at * C, mask=inside, other=0))
    if C == 3:
        green = _from_bytes(tl.load(crop + at * C + 1, mask=inside, other=0))
        blue = _from_bytes(tl.load(crop + at * C + 2, mask=inside, other=0))
    else:
        green = red
        blue = red
    return red, green, blue


@triton.jit
def _from_bytes(x):
    x = x.to(tl.float32)
    return x * _MOST + x * _REST


@triton.jit
def _within_unit(x):
    return tl.minimum(tl.maximum(x, 0.0), 1.0)


@triton.jit
def _gray_of(red, green, blue, C: tl.constexpr):
    gray = red
    if C == 3:
        gray = red * _RED_WEIGHT + green * _GREEN_WEIGHT + blue * _BLUE_WEIGHT
    return gray


@triton.jit
def _operations(row):
    """The image's order as (how many operations, four hexadecimal digits: the first one lowest).

    Orders are numbered as permutations are in a dictionary: of what is left, every digit of the
    number, in the factorial system, is the one that comes next.
    """
    order = tl.load(row + _ORDER)
    # NaN is no order either.
    jitters = order >= 0
    index = tl.where(jitters, tl.minimum(order, _LARGEST_ORDER), 0).to(tl.int32)
    at = 4 * (index // 6)
    code = (0x3210 >> at) & 15
    left = (0x3210 & ((1 << at) - 1)) | ((0x3210 >> (at + 4)) << at)
    at = 4 * (index % 6 // 2)
    code |= ((left >> at) & 15) << 4
    left = (left & ((1 << at) - 1)) | ((left >> (at + 4)) << at)
    at = 4 * (index % 2)
    code |= ((left >> at) & 15) << 8
    left = (left & ((1 << at) - 1)) | ((left >> (at + 4)) << at)
    code |= left << 12
    return tl.where(jitters, 4, 0), code


@triton.jit
def _contrast_position(code):
    """How many operations come before the contrast."""
    third = ((code >> 8) & 15 != _CONTRAST).to(tl.int32)
    second = ((code >> 4) & 15 != _CONTRAST).to(tl.int32)
    first = (code & 15 != _CONTRAST).to(tl.int32)
    return first * (1 + second * (1 + third))


@triton.jit
def _jittered(red, green, blue, row, count, code, mean_gray, C: tl.constexpr):
    """After the first `count` operations of `code`."""
    for step in range(count):
        operation = (code >> (4 * step)) & 15
        factor = tl.load(row + _FACTORS + operation)
        if operation == _BRIGHTNESS:
            red = _within_unit(red * factor)
            green = _within_unit(green * factor)
            blue = _within_unit(blue * factor)
        elif operation == _CONTRAST:
            rest = (1 - factor) * mean_gray
            red = _within_unit(red * factor + rest)
            green = _within_unit(green * factor + rest)
            blue = _within_unit(blue * factor + rest)
        elif C == 3:
            if operation == _SATURATION:
                gray = (1 - factor) * _gray_of(red, green, blue, C)
                red = _within_unit(red * factor + gray)
                green = _within_unit(green * factor + gray)
                blue = _within_unit(blue * factor + gray)
            else:
                red, green, blue = _turned(red, green, blue, factor)
    return red, green, blue


@triton.jit
def _turned(red, green, blue, turns):
    """Turns the hue. Its angle in sixths of a circle is (g - b) / chroma about red, (b - r) /
    chroma about green (2) and (r - g) / chroma about blue (4); a channel is below the value by a
    part of the chroma that rises and falls linearly with the angle's distance from the channel's
    own."""
    value = tl.maximum(tl.maximum(red, green), blue)
    chroma = value - tl.minimum(tl.minimum(red, green), blue)
    is_red, is_green = value == red, value == green
    difference = tl.where(is_red, green - blue, tl.where(is_green, blue - red, red - green))
    # From 1/6 to 7/6: angles begin at -1, and so, turned, at 0.
    turns -= tl.floor(turns)
    turns += tl.where(turns < 1 / 6, 1.0, 0.0)
    centre = tl.where(is_red, 0.0, tl.where(is_green, 2.0, 4.0)) + 6 * turns
    # Of a gray pixel the difference is zero too.
    angle = centre + difference / tl.maximum(chroma, 1e-30)
    angle = tl.where(angle >= 6, angle - 6, angle)
    red = value - chroma * _within_unit(2 - tl.abs(angle - 3))
    green = value - chroma * _within_unit(tl.abs(angle - 2) - 1)
    blue = value - chroma * _within_unit(tl.abs(angle - 4) - 1)
    return red, green, blue


# ---- what all kernels do with a pixel -----------------------------------------------------------


@triton.jit
def _sigma(row):
    """Of the blur; 0 where there is none. NaN is none."""
    sigma = tl.load(row + _SIGMA)
    return tl.where(sigma > 0, tl.minimum(sigma, _LARGEST_SIGMA), 0.0)


@triton.jit
def _sources(row, pixel, width):
    """(y, x, where the pixel lies in the crop) of pixels of the output."""
    y = pixel // width
    x = pixel - y * width
    flip = tl.load(row + _FLIP) > 0.5
    return y, x, tl.where(flip, y * width + (width - 1 - x), pixel)


@triton.jit
def _store(out_ptr, red, green, blue, row, mean_ptr, std_ptr, y, x, at, inside, C: tl.constexpr):
    """Solarizes, erases, normalises and stores pixels; y, x: their places, which broadcast."""
    inside_rows = (y >= tl.load(row + _TOP)) & (y < tl.load(row + _BOTTOM))
    erased = inside_rows & (x >= tl.load(row + _LEFT)) & (x < tl.load(row + _RIGHT))
    # As plain torch rounds it: bytes on the threshold are on it exactly.
    threshold = tl.div_rn(tl.load(row + _SOLARIZE), 255.0)
    _store_channel(out_ptr, red, erased, threshold, mean_ptr, std_ptr, at, inside, 0, C)
    if C == 3:
        _store_channel(out_ptr, green, erased, threshold, mean_ptr, std_ptr, at, inside, 1, C)
        _store_channel(out_ptr, blue, erased, threshold, mean_ptr, std_ptr, at, inside, 2, C)


@triton.jit
def _store_channel(
    out_ptr,
    value,
    erased,
    threshold,
    mean_ptr,
    std_ptr,
    at,
    inside,
    CHANNEL: tl.constexpr,
    C: tl.constexpr,
):
    value = tl.where(value >= threshold, 1 - value, value)
    value = tl.where(erased, 0.0, value)
    value = (value - tl.load(mean_ptr + CHANNEL)) * (1 / tl.load(std_ptr + CHANNEL))
    tl.store(out_ptr + at * C + CHANNEL, cast(value, out_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["blocks"])
def photometric_means_kernel(
    crops_ptr, parameters_ptr, sums_ptr, height, width, blocks, C: tl.constexpr,
    PIXELS: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """sums (B, PARTS): the gray values of every PARTS-th of `blocks` blocks of PIXELS pixels of an
    image, as they are when its contrast is due."""
    image = (tl.program_id(0) // PARTS).to(tl.int64)
    part = tl.program_id(0) % PARTS
    row = parameters_ptr + image * _COLUMNS
    count, code = _operations(row)
    if count == 0:
        return
    count = _contrast_position(code)
    size = height * width
    crop = crops_ptr + image * (size * C)
    total = tl.zeros([PIXELS], tl.float32)
    for block in range(part, blocks, PARTS):
        # Mirrored images have the same mean.
        pixel = block * PIXELS + tl.arange(0, PIXELS)
        inside = pixel < size
        red, green, blue = _pixels(crop, pixel, inside, C)
        # Black beyond the end, which no operation before the contrast changes.
        red, green, blue = _jittered(red, green, blue, row, count, code, 0.0, C)
        total += _gray_of(red, green, blue, C)
    tl.store(sums_ptr + image * PARTS + part, tl.sum(total, axis=0))


@triton.jit(do_not_specialize=["blocks"])
def photometric_colours_kernel(
    crops_ptr, parameters_ptr, sums_ptr, mean_ptr, std_ptr, planes_ptr, out_ptr, height, width,
    blocks, C: tl.constexpr, PIXELS: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """One of `blocks` blocks of PIXELS pixels of an image: mirrored, jittered, gray; finished where
    it is not blurred, else to planes (B, C, H, W)."""
    image = (tl.program_id(0) // blocks).to(tl.int64)
    row = parameters_ptr + image * _COLUMNS
    size = height * width
    pixel = tl.program_id(0) % blocks * PIXELS + tl.arange(0, PIXELS)
    inside = pixel < size
    y, x, source = _sources(row, pixel, width)
    red, green, blue = _pixels(crops_ptr + image * (size * C), source, inside, C)
    count, code = _operations(row)
    if count > 0:
        mean_gray = tl.sum(tl.load(sums_ptr + image * PARTS + tl.arange(0, PARTS)), axis=0) / size
        red, green, blue = _jittered(red, green, blue, row, count, code, mean_gray, C)
    if tl.load(row + _GRAY) > 0.5:
        red = _gray_of(red, green, blue, C)
        green = red
        blue = red
    if _sigma(row) > 0:
        plane = planes_ptr + image * (size * C)
        tl.store(plane + pixel, red, mask=inside)
        if C == 3:
            colourful = tl.load(row + _GRAY) <= 0.5
            if colourful:
                tl.store(plane + size + pixel, green, mask=inside)
                tl.store(plane + 2 * size + pixel, blue, mask=inside)
    else:
        to = out_ptr + image * (size * C)
        _store(to, red, green, blue, row, mean_ptr, std_ptr, y, x, pixel, inside, C)


# ---- blur ---------------------------------------------------------------------------------------


@triton.jit
def _radius(sigma):
    """4 sigma, rounded up."""
    radius = (4 * sigma).to(tl.int32)
    return radius + (radius < 4 * sigma).to(tl.int32)


@triton.jit
def _weight(distance, sigma):
    """Of a neighbour, where the middle has 1."""
    scaled = distance / tl.maximum(sigma, _SMALLEST_SIGMA)
    return tl.exp(-0.5 * scaled * scaled)


@triton.jit
def _mirrored(at, size, radius):
    """Where positions from -radius to size - 1 + radius lie when borders are mirrors: -1, -2, ...
    are 1, 2, ..., back and forth."""
    if radius < size:
        at = tl.abs(at)
        at = size - 1 - tl.abs(size - 1 - at)
    else:
        period = tl.maximum(2 * size - 2, 1)
        at = (at + _LARGEST_RADIUS * period) % period
        at = tl.where(at < size, at, period - at)
    # What lies beyond the image in a block is read from within it.
    return tl.minimum(tl.maximum(at, 0), size - 1)


@triton.jit
def _tile(tile, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """(y, x) of the pixels of a tile of an image, row by row.

    One dimension: of two, Triton 3.6 lays neighbouring threads along columns where it does not see
    which elements are neighbours in memory, and none of their loads would be shared.
    """
    across = tl.cdiv(width, COLUMNS)
    at = tl.arange(0, ROWS * COLUMNS)
    return tile // across * ROWS + at // COLUMNS, tile % across * COLUMNS + at % COLUMNS


@triton.jit(do_not_specialize=["tiles"])
def photometric_sideways_kernel(
    parameters_ptr, planes_ptr, out_ptr, height, width, tiles, C: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):  # fmt: skip
    """One of `tiles` tiles of a plane, blurred along its rows."""
    plane = (tl.program_id(0) // tiles).to(tl.int64)
    row = parameters_ptr + plane // C * _COLUMNS
    sigma = _sigma(row)
    needed = (plane % C == 0) | (tl.load(row + _GRAY) <= 0.5)
    if (sigma > 0) & needed:
        y, x = _tile(tl.program_id(0) % tiles, width, ROWS, COLUMNS)
        inside = (y < height) & (x < width)
        line = planes_ptr + plane * (height * width) + tl.minimum(y, height - 1) * width
        radius = _radius(sigma)
        column = tl.minimum(x, width - 1)
        value = tl.load(line + column)
        total = tl.full([], 1.0, tl.float32)
        for k in range(1, radius + 1):
            weight = _weight(k, sigma)
            before = tl.load(line + _mirrored(x - k, width, radius))
            after = tl.load(line + _mirrored(x + k, width, radius))
            value += (before + after) * weight
            total += 2 * weight
        # Of the clamped columns the compiler does not know that they are neighbours. Else a thread
        # would own four of them, to store them at once, and a warp's loads of any other column,
        # one value each, would lie 16 bytes apart.
        to = out_ptr + plane * (height * width)
        tl.store(to + y * width + column, value / total, mask=inside)


@triton.jit
def _downwards(plane, y, x, height, width, sigma, radius):
    """A tile blurred along columns."""
    column = plane + tl.minimum(x, width - 1)
    value = tl.load(column + tl.minimum(y, height - 1) * width)
    total = tl.full([], 1.0, tl.float32)
    for k in range(1, radius + 1):
        weight = _weight(k, sigma)
        before = tl.load(column + _mirrored(y - k, height, radius) * width)
        after = tl.load(column + _mirrored(y + k, height, radius) * width)
        value += (before + after) * weight
        total += 2 * weight
    return value / total


@triton.jit(do_not_specialize=["tiles"])
def photometric_downwards_kernel(
    parameters_ptr, planes_ptr, mean_ptr, std_ptr, out_ptr, height, width, tiles, C: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """One of `tiles` tiles of an image, blurred along columns and finished."""
    image = (tl.program_id(0) // tiles).to(tl.int64)
    row = parameters_ptr + image * _COLUMNS
    sigma = _sigma(row)
    if sigma > 0:
        y, x = _tile(tl.program_id(0) % tiles, width, ROWS, COLUMNS)
        size = height * width
        plane = planes_ptr + image * (size * C)
        radius = _radius(sigma)
        red = _downwards(plane, y, x, height, width, sigma, radius)
        green = red
        blue = red
        if C == 3:
            colourful = tl.load(row + _GRAY) <= 0.5
            if colourful:
                green = _downwards(plane + size, y, x, height, width, sigma, radius)
                blue = _downwards(plane + 2 * size, y, x, height, width, sigma, radius)
        inside = (y < height) & (x < width)
        to = out_ptr + image * (size * C)
        _store(to, red, green, blue, row, mean_ptr, std_ptr, y, x, y * width + x, inside, C)


# ---- on the host --------------------------------------------------------------------------------


def photometric(
    crops: Tensor, parameters: Tensor, mean: Tensor, std: Tensor, dtype: torch.dtype
) -> Tensor:
    """As `photometry.photometric`, and as its arguments are checked there.

    The values of `parameters` are on the device, and looking at them would wait for it: an order
    beyond the last one is the last one, sigma ends at `LARGEST_SIGMA`, NaN means no jitter and no
    blur, and a factor that is not finite makes an image of no meaning, all within its own output.

    Beyond the output two float32 images per crop are allocated, whether crops are blurred or not.

    Raises:
        TypeError, ValueError: see `photometry.check_arguments`.
    """
    photometry.check_arguments(crops, parameters, mean, std, dtype)
    count, height, width, channels = crops.shape
    if height * width * channels > LARGEST_IMAGE:
        raise ValueError(
            f"the triton kernels take images of up to {LARGEST_IMAGE} values, got "
            f"{height} x {width} x {channels}; backend='aten' takes any number"
        )
    out = torch.empty(tuple(crops.shape), dtype=dtype, device=crops.device)
    if out.numel() == 0:
        return out.permute(0, 3, 1, 2)
    crops = crops.contiguous()
    parameters, mean, std = (x.float().contiguous() for x in (parameters, mean, std))
    colours, blur = configurations.COLOURS, configurations.BLUR

    def planes() -> Tensor:
        shape = (count, channels, height, width)
        return torch.empty(shape, dtype=torch.float32, device=crops.device)

    blocks = cdiv(height * width, colours.pixels)
    parts = min(colours.parts, triton.next_power_of_2(blocks))
    sums = torch.empty((count, parts), dtype=torch.float32, device=crops.device)
    sharp, sideways = planes(), planes()
    tiles = cdiv(height, blur.rows) * cdiv(width, blur.columns)
    size = (height, width)
    # Bytes are those of a batch that is jittered and blurred throughout.
    by_pixels = {
        "C": channels, "PIXELS": colours.pixels, "PARTS": parts, "warps": colours.warps,
    }  # fmt: skip
    by_tiles = {"C": channels, "ROWS": blur.rows, "COLUMNS": blur.columns, "warps": blur.warps}
    launch(
        photometric_means_kernel, (count * parts,), crops, parameters, sums, *size, blocks,
        **by_pixels, moved=crops.nbytes,
    )  # fmt: skip
    launch(
        photometric_colours_kernel, (count * blocks,), crops, parameters, sums, mean, std, sharp,
        out, *size, blocks, **by_pixels, moved=crops.nbytes + sharp.nbytes,
    )  # fmt: skip
    launch(
        photometric_sideways_kernel, (count * channels * tiles,), parameters, sharp, sideways,
        *size, tiles, **by_tiles, moved=2 * sharp.nbytes,
    )  # fmt: skip
    launch(
        photometric_downwards_kernel, (count * tiles,), parameters, sideways, mean, std, out,
        *size, tiles, **by_tiles, moved=sharp.nbytes + out.nbytes,
    )  # fmt: skip
    return out.permute(0, 3, 1, 2)
