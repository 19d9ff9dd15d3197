"""Lays out the patches and tokens of a row: index arrays for the device, computed on the host.

NumPy only, so that the input pipeline can use it without loading a network. The vision tower works on dense windows
[W, S] (S = 64 patches of one 112-px window, as 16 merged tokens of 4 patches): the host puts patches straight into
their window slots, so window attention on the device is a reshape and not a gather. A slot that an edge window leaves
empty has segment 0.

Raster order below means the order in which the Hugging Face processor emits patches: frame, merged row, merged
column, then the 2 x 2 patches of a merged token.
"""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np


class LayoutError(ValueError):
    """Tokens, grids or budgets that do not fit together."""


@dataclasses.dataclass(frozen=True)
class VisionLayout:
    """The window slots of one row's images and videos.

    patch_slot:  [P] int32, raster patch -> slot in [0, W * S)
    merged_slot: [M] int32, raster merged token -> merged slot in [0, W * S / merge^2)
    segments:    [W, S] int32, 1 + running number of the frame that a slot belongs to; 0 for an empty slot
    rotary_ids:  [W, S, 2] int32, row and column of a slot's patch inside its frame
    """

    patch_slot: np.ndarray
    merged_slot: np.ndarray
    segments: np.ndarray
    rotary_ids: np.ndarray

    def place(self, patches: np.ndarray) -> np.ndarray:
        """Patches [P, C] in raster order -> [W, S, C] in window slots, empty slots zero."""
        W, S = self.segments.shape
        if len(patches) != len(self.patch_slot):
            raise LayoutError(f"{len(patches)} patches for grids of {len(self.patch_slot)} patches")
        placed = np.zeros((W * S, patches.shape[-1]), patches.dtype)
        placed[self.patch_slot] = patches
        return placed.reshape(W, S, -1)


def window_count(grid: Sequence[int], merge: int = 2, window: int = 4) -> int:
    """Windows that one image or video of `grid` (t, h, w in patches) takes; `window` is its side in merged tokens."""
    t, h, w = (int(x) for x in grid)
    return t * -(-h // merge // window) * -(-w // merge // window)


def _check_grid(t: int, h: int, w: int, merge: int) -> None:
    if min(t, h, w) < 1 or h % merge or w % merge:
        raise LayoutError(f"grid {(t, h, w)}: height and width must be positive multiples of {merge} patches")


def vision_layout(
    grids: np.ndarray, *, merge: int = 2, window: int = 4, budget: int | None = None
) -> VisionLayout:
    """Lays the images and videos of one row out in windows.

    grids: [n, 3], (t, h, w) in patches; window: side of a window in merged tokens; budget: W to pad to.
    Raises LayoutError if a grid does not divide into merged tokens or the windows exceed the budget. Rows of the same
    grids share one layout, whose arrays are read-only.
    """
    key = tuple(map(tuple, np.asarray(grids, np.int64).reshape(-1, 3).tolist()))
    return _vision_layout(key, merge, window, budget)


@functools.lru_cache(maxsize=64)
def _vision_layout(grids: tuple[tuple[int, ...], ...], merge: int, window: int, budget: int | None) -> VisionLayout:
    S = (window * merge) ** 2
    patch_slots, merged_slots, frames, ids = [], [], [], []
    windows = frame = 0
    for t, h, w in grids:
        _check_grid(t, h, w, merge)
        across = -(-(w // merge) // window)
        down = -(-(h // merge) // window)
        f, r, c = np.meshgrid(np.arange(t), np.arange(h // merge), np.arange(w // merge), indexing="ij")
        own_window = windows + (f * down + r // window) * across + c // window
        slot = (own_window * window + r % window) * window + c % window              # [t, h/2, w/2] merged slots
        inner_row, inner_col = np.divmod(np.arange(merge**2), merge)
        merged_slots.append(slot.reshape(-1))
        patch_slots.append((slot[..., None] * merge**2 + np.arange(merge**2)).reshape(-1))
        ids.append(np.stack([r[..., None] * merge + inner_row, c[..., None] * merge + inner_col], -1).reshape(-1, 2))
        frames.append(np.broadcast_to(frame + f[..., None] + 1, (*f.shape, merge**2)).reshape(-1))
        windows += t * down * across
        frame += t
    W = windows if budget is None else budget
    if windows > W:
        raise LayoutError(f"the images take {windows} windows of {S} patches, the budget is {W}")
    joined = lambda parts, width=(): np.concatenate(parts) if parts else np.zeros((0, *width), np.int64)  # noqa: E731
    patch_slot = joined(patch_slots)
    segments, rotary_ids = np.zeros(W * S, np.int32), np.zeros((W * S, 2), np.int32)
    segments[patch_slot] = joined(frames)
    rotary_ids[patch_slot] = joined(ids, (2,))
    arrays = (
        patch_slot.astype(np.int32), joined(merged_slots).astype(np.int32), segments.reshape(W, S),
        rotary_ids.reshape(W, S, 2),
    )  # fmt: skip
    for array in arrays:
        array.flags.writeable = False
    return VisionLayout(*arrays)


@dataclasses.dataclass(frozen=True)
class TemporalRule:
    """How seconds become temporal positions; differs between versions of transformers and touches videos only.

    whole_seconds: seconds per grid step are cut to an integer before the product, so that 0.5 gives no time at all
    after_all_axes: text goes on after the largest position on any axis, not only after height and width
    """

    whole_seconds: bool
    after_all_axes: bool


# The stack that the papers pin (golden A5), and today's.
TRANSFORMERS_4_54 = TemporalRule(whole_seconds=True, after_all_axes=True)
TRANSFORMERS_5 = TemporalRule(whole_seconds=False, after_all_axes=False)


def mrope_positions(
    tokens: np.ndarray,
    grids: np.ndarray,
    *,
    image_token_id: int,
    video_token_id: int | None = None,
    merge: int = 2,
    tokens_per_second: float = 2,
    seconds_per_grid: Sequence[float] = (),
    rule: TemporalRule = TRANSFORMERS_4_54,
) -> tuple[np.ndarray, int]:
    """M-RoPE position ids of one unpadded sequence, and the position that the next token gets.

    tokens: [T] with placeholders already repeated; grids: [n, 3] of images and videos in order of appearance;
    seconds_per_grid: one number a video. Returns (int32 [3, T] for time, height, width, next position).
    Latents are text: their positions go on by one. Raises LayoutError if placeholders and grids disagree.
    """
    tokens = np.asarray(tokens)
    is_video = tokens == video_token_id if video_token_id is not None else np.zeros(tokens.shape, bool)
    placeholders = np.flatnonzero((tokens == image_token_id) | is_video)
    seconds = iter(seconds_per_grid)
    positions = np.empty((3, len(tokens)), np.int32)
    at = start = used = 0  # index of the next token, position that it gets, placeholders so far
    for t, h, w in np.asarray(grids, np.int64).reshape(-1, 3).tolist():
        _check_grid(t, h, w, merge)
        count = t * h * w // merge**2
        own = placeholders[used : used + count]
        first = int(own[0]) if len(own) else len(tokens)
        if len(own) < count or own[-1] != first + count - 1:
            raise LayoutError(f"grid {(t, h, w)} needs {count} placeholders from token {first} on")
        positions[:, at:first] = np.arange(start, start + first - at)
        start += first - at
        interval = 1.0
        if is_video[first]:
            step = next(seconds, 1.0)
            interval = tokens_per_second * (int(step) if rule.whole_seconds else step)
        block = _grid_positions(t, h // merge, w // merge, interval)
        positions[:, first : first + count] = start + block
        start += 1 + int(block.max()) if rule.after_all_axes else max(h, w) // merge
        at, used = first + count, used + count
    if used < len(placeholders):
        raise LayoutError(f"token {placeholders[used]} is a placeholder without a grid")
    positions[:, at:] = np.arange(start, start + len(tokens) - at)
    # Both versions decode from the largest position on, though transformers 5 may place text after a video below it.
    return positions, int(positions.max(initial=-1)) + 1


@functools.lru_cache(maxsize=256)
def _grid_positions(times: int, rows: int, columns: int, interval: float) -> np.ndarray:
    """Of the merged tokens of one image or video, from 0 on: int32 [3, times * rows * columns], not to be changed."""
    block = np.empty((3, times, rows, columns), np.int32)
    block[0] = (np.arange(times) * interval).astype(np.int32)[:, None, None]
    block[1], block[2] = np.arange(rows)[:, None], np.arange(columns)
    return block.reshape(3, -1)
