"""Groups items that run together, in few compiled programs: sizes without decoding, a ladder of budgets, batches.

A program is compiled for one (rows, tokens, windows). Items are sorted by size and cut into a few rungs, each with the
budget of its largest item, so that little is padding and the number of programs is known before the first one runs.
The batches are a function of the items, the rows and the number of rungs alone: a resumed run makes the same ones.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from lvr_jax.data import images
from lvr_jax.data.chat import encode_prompt
from lvr_jax.data.packing import Budget, Geometry
from lvr_jax.data.sample import ImageSource, Sample
from lvr_jax.data.tokenizers import ChatTokenizer
from lvr_jax.files.image_io import open_image
from lvr_jax.models.layout import window_count

_BLANK = np.zeros((images.FACTOR, images.FACTOR, 3), np.uint8)          # an image of one merged token
_FINEST = 256                                                           # places that a rung may end at


@dataclasses.dataclass(frozen=True)
class ItemBatch:
    """Items, by index, that run together in a program of this budget."""

    budget: Budget
    items: tuple[int, ...]


def prompt_size(
    sample: Sample, tokenizer: ChatTokenizer, geometry: Geometry, *, min_pixels: int, max_pixels: int, protocol: str
) -> Budget:
    """The budget that the sample's prompt will take, from the headers of its images; no picture is decoded.

    Raises as encode_prompt does for what can be seen so early (a missing image, a reserved token in the question).
    """
    blank = dataclasses.replace(sample, images=(_BLANK,) * len(sample.images), input_images=None)
    text = encode_prompt(blank, tokenizer, min_pixels=images.FACTOR**2, max_pixels=images.FACTOR**2)
    merged = windows = 0
    for source in sample.images:
        height, width = image_size(source)
        try:
            for rule, limits in images.PROTOCOLS[protocol]:
                low, high = limits or (min_pixels, max_pixels)
                height, width = images.smart_resize(height, width, min_pixels=low, max_pixels=high, rule=rule)
        except images.ImageError as error:
            raise images.ImageError(f"sample {sample.id}: {error}") from error
        merged += height * width // images.FACTOR**2
        windows += window_count((1, height // images.PATCH, width // images.PATCH), geometry.merge, geometry.window)
    doubled = 1 if sample.input_images is None else 2                   # what latents are taken from travels too
    return Budget(len(text.tokens) - len(sample.images) + merged, windows * doubled)


def image_size(source: ImageSource) -> tuple[int, int]:
    """(height, width); whatever the header does not tell is left to `load_image`, which names the file."""
    if isinstance(source, np.ndarray):
        return source.shape[:2]
    try:
        with open_image(source) as image:
            return image.height, image.width
    except Exception:           # a decoder raises anything; the line below says it in one line
        return images.load_image(source).shape[:2]


def batches(sizes: Sequence[Budget], rows: int, programs: int = 4, slack: float = 1.1) -> list[ItemBatch]:
    """Items in batches of `rows` (the last one may be short) under at most `programs` budgets; largest first.

    The fewest rungs whose padded area is within `slack` of the best cut into `programs` rungs: a program costs minutes
    of compilation.
    """
    order = sorted(range(len(sizes)), key=lambda i: (-_area(sizes[i]), -sizes[i].tokens, i))
    stride = rows * max(-(-len(order) // rows // _FINEST), 1)
    cuts = [*range(0, len(order), stride), len(order)]
    best = _rungs([sizes[i] for i in order], cuts, rows, programs)
    chosen = next(ends for cost, ends in best if cost <= slack * best[-1][0])
    made = []
    for start, end in zip((0, *chosen), chosen):
        rung = order[start:end]
        budget = Budget(*(max(getattr(sizes[i], f.name) for i in rung) for f in dataclasses.fields(Budget)))
        made += [ItemBatch(budget, tuple(rung[at : at + rows])) for at in range(0, len(rung), rows)]
    return made


def rounded(size: Budget) -> Budget:
    """The next larger of a few sizes (four an octave), so that prompts of about one size share a program."""
    return Budget(_rung(size.tokens, 64), _rung(size.windows, 1), size.pooled)


def _rung(value: int, least: int) -> int:
    step = max(1 << max((value - 1).bit_length() - 3, 0), least)
    return -(-value // step) * step


def _area(size: Budget) -> int:
    """Positions that the network computes: tokens, and 16 merged tokens a window."""
    return size.tokens + 16 * size.windows


def _rungs(sizes: Sequence[Budget], cuts: Sequence[int], rows: int, programs: int) -> list[tuple[float, list[int]]]:
    """For 1, 2, ... rungs of the sorted sizes: the smallest padded area and where the rungs end."""
    tokens, windows = (np.array([getattr(s, f) for s in sizes]) for f in ("tokens", "windows"))
    points = np.array(cuts)
    cost = np.full((len(cuts), len(cuts)), np.inf)                      # of one rung from cut i to cut j
    for i, start in enumerate(cuts[:-1]):
        ends = points[i + 1 :]
        most = [np.maximum.accumulate(x[start:])[ends - start - 1] for x in (tokens, windows)]
        cost[i, i + 1 :] = -(-(ends - start) // rows) * rows * (most[0] + 16 * most[1])
    reached, found = cost[0], [[[0, j] for j in range(len(cuts))]]
    best = [(reached[-1], found[0][-1])]
    for _ in range(min(programs, len(cuts) - 1) - 1):
        through = reached[:, None] + cost                               # [last cut, this cut]
        last = through.argmin(0)
        found.append([[*found[-1][i], j] for j, i in enumerate(last)])
        reached = through.min(0)
        best.append((reached[-1], found[-1][-1]))
    # More rungs never cost more in padding, but an exact number of them may.
    running = np.minimum.accumulate([cost for cost, _ in best])
    best = [min(best[: k + 1], key=lambda each: each[0]) for k in range(len(running))]
    return [(float(cost), [cuts[j] for j in path[1:]]) for cost, path in best]
