"""Finds the merged vision tokens that a box covers, and brings boxes of other conventions to normalised xyxy.

Everything is float64: a few two-decimal boxes land on other tokens in float32. `box_to_tokens` is the reference's pure
arithmetic, which accepts any numbers; `validate` and `normalise` are where bad boxes are refused.
Source: cosine-misleads `src/dataset/lvr_sft_dataset_packed.py`, `src/dataset/lvr_sft_dataset.py`, `src/lvr_utils.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from lvr_jax.data.sample import Box, DataError

Span = tuple[int, int]


class BoxError(DataError):
    """A box that is empty, out of range, not a number, or of another convention than said."""


def _packed_span(low: float, high: float, patches: int) -> Span:
    """Round outwards on the 14-px grid, then to merged tokens. What LVR and all its variants were trained with."""
    first = max(0, min(math.floor(low * patches), patches - 1))
    last = max(0, min(math.ceil(high * patches), patches))
    return first // 2, (last + 1) // 2


def _merged_span(low: float, high: float, patches: int) -> Span:
    """Round outwards on the merged grid itself, at least one token. The non-packed data set of the same code.

    Two of its habits are left out: guessing that values above 1 are pixels, and an index behind the grid for a box
    that starts at 1.0 (here the last token).
    """
    tokens = patches // 2
    first = min(math.floor(max(0.0, low) * tokens), tokens - 1)
    last = min(math.ceil(min(1.0, high) * tokens), tokens)
    return first, max(last, first + 1)


RULES: dict[str, Callable[[float, float, int], Span]] = {"packed": _packed_span, "merged": _merged_span}


def box_to_tokens(box: Sequence[float], grid: Sequence[int], rule: str = "packed") -> np.ndarray:
    """Normalised xyxy -> int32 [S] raster indices (row-major) into the merged tokens of its own image.

    grid: (t, h, w) or (h, w) in 14-px patches. Pure arithmetic of the named rule, silly boxes included: a box without
    area on an even grid line covers nothing under "packed". Callers that want a sound box ask `validate` first.
    """
    if rule not in RULES:
        raise BoxError(f"box rule {rule!r}: expected one of {', '.join(RULES)}")
    x0, y0, x1, y1 = (float(v) for v in box)
    h, w = int(grid[-2]), int(grid[-1])
    (left, right), (top, bottom) = RULES[rule](x0, x1, w), RULES[rule](y0, y1, h)
    rows, columns = np.arange(top, bottom, dtype=np.int32), np.arange(left, right, dtype=np.int32)
    return (rows[:, None] * (w // 2) + columns).reshape(-1)


def expand(box: Sequence[float], factor: float) -> Box:
    """Scales a normalised box about its centre and clips it to the image (the context box of P-LVR has factor 1.5)."""
    x0, y0, x1, y1 = (float(v) for v in box)
    x, y = (x0 + x1) / 2, (y0 + y1) / 2
    width, height = (x1 - x0) * factor, (y1 - y0) * factor
    return max(0.0, x - width / 2), max(0.0, y - height / 2), min(1.0, x + width / 2), min(1.0, y + height / 2)


def _four(box: Sequence[float], what: str) -> list[float]:
    try:
        # a string would iterate into digits
        values = [float(v) for v in (None if isinstance(box, str) else box)]
    except (TypeError, ValueError) as error:
        raise BoxError(f"box {box!r}: expected four numbers, {what}") from error
    if len(values) != 4:
        raise BoxError(f"box {box!r}: {len(values)} values, expected four, {what}")
    if not all(math.isfinite(v) for v in values):
        raise BoxError(f"box {values}: not a finite number, expected {what}")
    return values


def _check_area(xyxy: Sequence[float], values: list[float], what: str) -> None:
    x0, y0, x1, y1 = xyxy
    if x1 <= x0 or y1 <= y0:
        raise BoxError(f"box {values}: no area (expected x0 < x1 and y0 < y1), read as {what}")


def validate(box: Sequence[float]) -> Box:
    """A sound normalised xyxy box as float64, or BoxError that names the values and what was expected."""
    what = "normalised x0, y0, x1, y1 in [0, 1]"
    values = _four(box, what)
    if max(values) > 2:
        raise BoxError(f"box {values}: looks like pixels, expected {what} (name the format: {', '.join(FORMATS)})")
    if min(values) < 0 or max(values) > 1:
        raise BoxError(f"box {values}: out of range, expected {what}")
    _check_area(values, values, what)
    return tuple(values)


def _pixels_xyxy(values: list[float], width: int, height: int) -> list[float]:
    x0, y0, x1, y1 = values
    return [x0 / width, y0 / height, x1 / width, y1 / height]


def _pixels_xywh(values: list[float], width: int, height: int) -> list[float]:
    x, y, w, h = values
    return _pixels_xyxy([x, y, x + w, y + h], width, height)


def _padded_square(values: list[float], width: int, height: int) -> list[float]:
    """Undoes the padding of the short axis: shifted by (long - short) // 2 pixels, divided by the long side."""
    side = max(width, height)
    left, top = (side - width) // 2, (side - height) // 2
    return _pixels_xyxy([v * side - (left, top)[i % 2] for i, v in enumerate(values)], width, height)


# What the four numbers are, and how they become plain normalised xyxy.
FORMATS: dict[str, tuple[str, Callable[[list[float], int, int], list[float]]]] = {
    "normalised_xyxy": ("x0, y0, x1, y1 divided by the image's width and height", lambda v, width, height: list(v)),
    "pixel_xyxy": ("x0, y0, x1, y1 in pixels", _pixels_xyxy),
    "pixel_xywh": ("x, y, width, height in pixels", _pixels_xywh),
    "padded_square_xyxy": ("x0, y0, x1, y1 of the image padded to a square, divided by its side", _padded_square),
}


def normalise(
    box: Sequence[float], box_format: str, *, width: int | None = None, height: int | None = None, clip: bool = False
) -> Box:
    """A box in a NAMED format -> sound plain normalised xyxy, float64.

    width, height: the image's, needed by every format but "normalised_xyxy". clip=True cuts what lies outside the
    image (Visual-CoT has such boxes); a box wholly outside is refused all the same, and so are pixel values under a
    normalised format: a format is never guessed. Rounding to three decimals can push a padded-square box out by less
    than 0.001 of the side: that much is always cut.
    """
    if box_format not in FORMATS:
        raise BoxError(f"box format {box_format!r}: expected one of {', '.join(FORMATS)}")
    what, convert = FORMATS[box_format]
    values = _four(box, what)
    pixels = box_format.startswith("pixel")
    if box_format != "normalised_xyxy" and not (width and height and width > 0 and height > 0):
        raise BoxError(f"box {values}: {box_format} needs the image's size, got width {width}, height {height}")
    if not pixels and max(values) > 2:
        raise BoxError(f"box {values}: looks like pixels, expected {what}")
    if pixels and max(values) <= 1 and any(v != int(v) for v in values):
        raise BoxError(f"box {values}: looks normalised, expected {what}")
    converted = convert(values, width or 1, height or 1)
    _check_area(converted, values, what)
    slack = 1e-3 * max(width, height) / min(width, height) if box_format == "padded_square_xyxy" else 0.0
    if not clip and (min(converted) < -slack or max(converted) > 1 + slack):
        size = "" if box_format == "normalised_xyxy" else f" of an image of {width} x {height} (width x height)"
        raise BoxError(f"box {values}: outside the image, expected {what}{size}")
    clipped = [min(max(v, 0.0), 1.0) for v in converted]
    if clipped[2] <= clipped[0] or clipped[3] <= clipped[1]:
        raise BoxError(f"box {values}: lies wholly outside the image, expected {what}")
    return tuple(clipped)
