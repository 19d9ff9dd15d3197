"""Draws the pictures of digit search scenes: handwritten digits enlarged, coloured and blended in."""

from __future__ import annotations

import dataclasses
import functools
import gzip
import importlib.util
from pathlib import Path

import numpy as np
from PIL import Image

from lvr_jax.data.sample import Box
from lvr_jax.data.scene_colours import COLOURS

COLOUR_NAMES = tuple(COLOURS)
PALETTE = np.array(list(COLOURS.values()), np.uint16)                  # [8, 3]
SPLITS = ("train", "test")

HELD_OUT_SHARE = 0.3
INK_THRESHOLD = 48     # of 255: fainter pixels of an enlarged digit are dropped, so that "ink" has a sharp edge


@dataclasses.dataclass(frozen=True)
class Glyphs:
    """The digit samples enlarged to one canvas size, with the tight box of their ink."""

    alpha: np.ndarray                                   # [N, S, S] uint8, 0 where there is no ink
    ink: np.ndarray                                     # [N, 4] int64, x0, y0, x1, y1 in canvas pixels, end-exclusive
    pools: dict[str, tuple[np.ndarray, ...]]            # split -> for each class, the sample numbers it may draw


def _digits() -> tuple[np.ndarray, np.ndarray]:
    """Reads images [N, 8, 8], 0 to 16, and classes [N] of scikit-learn's `load_digits` from the library's data file.

    Importing the library instead takes as long as compiling the tiny network.
    """
    place = Path(importlib.util.find_spec("sklearn").origin).parent / "datasets" / "data" / "digits.csv.gz"
    if not place.is_file():         # where another version keeps it elsewhere
        from sklearn.datasets import load_digits

        digits = load_digits()
        return digits.images, digits.target
    with gzip.open(place, "rt") as file:
        table = np.loadtxt(file, delimiter=",")
    return table[:, :-1].reshape(-1, 8, 8), table[:, -1].astype(np.int64)


@functools.cache
def load_glyphs(digit_size: int) -> Glyphs:
    """Glyphs at `digit_size` px; made once a process, so that a source itself stays small enough to pickle."""
    images, classes = _digits()
    sources = np.round(images * (255 / 16)).astype(np.uint8)
    alpha = np.stack([np.asarray(Image.fromarray(d).resize((digit_size, digit_size), Image.Resampling.BICUBIC))
                      for d in sources])                # [N, S, S]
    alpha = np.where(alpha >= INK_THRESHOLD, alpha, 0).astype(np.uint8)
    rows, columns = alpha.any(2), alpha.any(1)          # [N, S] each
    ink = np.stack([columns.argmax(1), rows.argmax(1),
                    digit_size - columns[:, ::-1].argmax(1), digit_size - rows[:, ::-1].argmax(1)], 1)
    pools: dict[str, list[np.ndarray]] = {split: [] for split in SPLITS}
    for digit in range(10):
        # A fixed seed: whatever seed a run uses, its train digits are never another run's test digits.
        members = np.random.default_rng([20240112, digit]).permutation(np.flatnonzero(classes == digit))
        held_out = round(HELD_OUT_SHARE * len(members))
        pools["test"].append(np.sort(members[:held_out]))
        pools["train"].append(np.sort(members[held_out:]))
    return Glyphs(alpha, ink, {split: tuple(pool) for split, pool in pools.items()})


@dataclasses.dataclass(frozen=True, eq=False)
class DigitScene:
    """One picture and all there is to know about it; N digits."""

    image: np.ndarray           # [H, W, 3] uint8
    classes: tuple[int, ...]    # N digits, 0..9
    colours: tuple[int, ...]    # N numbers into COLOUR_NAMES
    samples: tuple[int, ...]    # N sample numbers in load_digits
    canvas: np.ndarray          # [N, 4] int64, x0, y0, x1, y1 px: the disjoint squares in which the digits were drawn
    ink: np.ndarray             # [N, 4] int64, x0, y0, x1, y1 px, end-exclusive: the tight boxes of their ink

    def normalised(self, n: int) -> Box:
        """Digit n's ink box as normalised xyxy."""
        height, width = self.image.shape[:2]
        x0, y0, x1, y1 = self.ink[n].tolist()
        return x0 / width, y0 / height, x1 / width, y1 / height


def paint(scene: DigitScene, noise: int, background: tuple[int, int], rng: np.random.Generator) -> None:
    """Fills in `scene.image`: grey noise, then each digit blended in by its alpha."""
    height, width = scene.image.shape[:2]
    noisy = np.frombuffer(rng.bytes(height * width), np.uint8).reshape(height, width)
    levels = (np.arange(256, dtype=np.uint16) * noise >> 8) + rng.integers(*background)
    grey = levels.astype(np.uint8)[noisy]
    for channel in range(3):
        scene.image[:, :, channel] = grey
    # Lines of 3 S values, as NumPy loops over the last axis: of three colours it would take longer than their sums.
    lines = scene.image.reshape(height, 3 * width)
    alphas = load_glyphs(int(scene.canvas[0, 2] - scene.canvas[0, 0])).alpha
    alpha = np.repeat(alphas[list(scene.samples)], 3, axis=2).astype(np.uint16)                      # [N, S, 3 S]
    inked = np.tile(PALETTE[list(scene.colours)], alphas.shape[2])[:, None] * alpha + 127
    clear = 255 - alpha
    for (x0, y0, x1, y1), ink, rest in zip(scene.canvas.tolist(), inked, clear):
        under = lines[y0:y1, 3 * x0 : 3 * x1]
        under[:] = (under * rest + ink) // 255          # fits 16 bits


CELLS = 7       # a side: a canvas is blacked out cell by cell


def blacked_out(scene: DigitScene, targets: tuple[int, ...], share: float, key: tuple[int, ...]) -> np.ndarray:
    """The picture with a share of the canvases of `targets` black: of CELLS x CELLS cells the first ones of an order
    that `key` draws, so that what a smaller share hides a larger one hides too."""
    image = scene.image.copy()
    for n in targets:
        x, y = scene.canvas[n, :2].tolist()
        edges = np.arange(CELLS + 1) * int(scene.canvas[n, 2] - x) // CELLS
        order = np.random.default_rng([*key, n]).permutation(CELLS**2)
        for row, column in zip(*np.divmod(order[: round(share * CELLS**2)], CELLS)):
            image[y + edges[row] : y + edges[row + 1], x + edges[column] : x + edges[column + 1]] = 0
    return image
