"""The merged vision tokens that a region covers: boxes moved elsewhere, random crops, slots on the device.

Host side and NumPy. A region is an array of raster indices of merged tokens, counted over all images of an example;
`slots` turns them into places in the vision tower's output, where `latents.sources` reads features. Whatever is random
depends on (seed, item number) alone.
"""

from collections.abc import Sequence

import numpy as np

from lvr_jax.models.layout import vision_layout


class RegionError(ValueError):
    """A region that does not lie in its image."""


def slots(
    raster: np.ndarray, grids: np.ndarray, *, merge: int = 2, window: int = 4, elsewhere: bool = False
) -> np.ndarray:
    """Raster indices -> merged slots of the row (data.packing.collate with one example a row).

    grids: [n, 3] of the example's images, in patches; elsewhere: the features are those of `target_patches`, which
    follow the images that the model sees. Raises RegionError for an index outside the images.
    """
    grids = np.asarray(grids, np.int64).reshape(-1, 3)
    total = int(grids.prod(1).sum()) // merge**2
    raster = np.asarray(raster, np.int64)
    if raster.size and not 0 <= raster.min() <= raster.max() < total:
        raise RegionError(f"region of tokens {raster.min()}..{raster.max()}, the images have {total}")
    layout = vision_layout(np.concatenate([grids, grids]) if elsewhere else grids, merge=merge, window=window)
    return layout.merged_slot[raster + (total if elsewhere else 0)]


def rectangle(grid: Sequence[int], top: int, left: int, rows: int, columns: int, first: int = 0) -> np.ndarray:
    """Raster indices of a rectangle of merged tokens. grid: (rows, columns) of the image, `first` its first index."""
    if min(top, left) < 0 or min(rows, columns) < 1 or top + rows > grid[0] or left + columns > grid[1]:
        raise RegionError(f"rectangle {rows}x{columns} at ({top}, {left}) is outside an image of {tuple(grid)} tokens")
    r, c = np.meshgrid(np.arange(top, top + rows), np.arange(left, left + columns), indexing="ij")
    return (first + r * grid[1] + c).reshape(-1)


def moved(raster: np.ndarray, grid: Sequence[int], item: int, seed: int, first: int = 0) -> np.ndarray:
    """The wrong box: the region's bounding rectangle at a random other place of its image, overlapping as little as
    possible (not at all where there is room)."""
    r, c = np.divmod(np.asarray(raster, np.int64) - first, grid[1])
    rows, columns = int(np.ptp(r)) + 1, int(np.ptp(c)) + 1
    tops, lefts = np.arange(grid[0] - rows + 1), np.arange(grid[1] - columns + 1)
    down = np.maximum(rows - np.abs(tops - r.min()), 0)
    across = np.maximum(columns - np.abs(lefts - c.min()), 0)
    overlap = down[:, None] * across[None]
    places = np.argwhere(overlap == overlap.min())
    top, left = places[np.random.default_rng([seed, item]).integers(len(places))]
    return rectangle(grid, int(top), int(left), rows, columns, first)


def random_crop(
    grid: Sequence[int], item: int, seed: int, sides: tuple[float, float] = (0.2, 0.6), first: int = 0
) -> np.ndarray:
    """A rectangle whose sides are random shares of the image's, at a random place (LanteRn's control without boxes)."""
    rng = np.random.default_rng([seed, item])
    rows, columns = (int(np.clip(round(side * rng.uniform(*sides)), 1, side)) for side in grid)
    top, left = (int(rng.integers(side - size + 1)) for side, size in zip(grid, (rows, columns)))
    return rectangle(grid, top, left, rows, columns, first)
