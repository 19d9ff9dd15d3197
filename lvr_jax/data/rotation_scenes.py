"""Makes picture and question of item `index` of the rotation analogy task.

"Shape 1 is to shape 2 as shape 3 is to what?" with polyominoes: shape 2 is shape 1 turned by 90, 180 or 270 degrees
clockwise, the answer is shape 3 under the same turn, and four options are drawn. Here a latent can hold what the input
does not show: the solution. After the "Tetris" diagnostic of arXiv 2605.18445; the
layout is our own:

    [ shape 1 ][ shape 2 ][ shape 3 ][ solution ]
    [ option A][ option B][ option C][ option D ]

How the solution is carried: latents are cut from a picture of the same size as the input (the Example contract), so
the solution strip is a panel of the picture itself. In `images` (where latents come from) it shows the solution, white
on black; in `input_images` (what the model sees) it is empty; the box is that panel, and every panel is made of whole
merged tokens. A second image for the solution would have to be shown to the model as a blank one.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import numpy as np

from lvr_jax.data import polyominoes
from lvr_jax.data.options import LETTERS, with_options
from lvr_jax.data.polyominoes import GRID, Cells, rotate
from lvr_jax.data.sample import Box, Sample
from lvr_jax.data.scene_colours import COLOURS

SPLITS = ("train", "validation", "test", "test_hard")
VALIDATION_SHARE = 0.05
ORDINALS = ("first", "second", "third", "fourth")
DEGREES = ("90", "180", "270")
ASKS = ("solution", "turn", "place")
SOLUTION_BOX: Box = (0.75, 0.0, 1.0, 0.5)
TURNED_BOX: Box = (0.25, 0.0, 0.5, 0.5)
TOKEN = 28                      # px a side of a merged token

PIECES = np.array([rgb for name, rgb in COLOURS.items() if name != "white"], np.uint8)      # [7, 3]
BACKGROUND, FRAME, DIVIDER, SOLUTION = 16, 60, 130, 255                                     # grey levels


@dataclasses.dataclass(frozen=True)
class Analogy:
    """One item without its colours."""

    first: Cells                    # shape 1 as drawn; shape 2 is this turned by `quarters`
    third: Cells                    # shape 3 as drawn
    quarters: int                   # 1, 2 or 3, clockwise
    options: tuple[Cells, ...]      # four, as drawn
    slot: int                       # which of them is right

    @property
    def solution(self) -> Cells:
        return rotate(self.third, self.quarters)


def _pools(split: str) -> tuple[tuple[Cells, ...], tuple[Cells, ...]]:
    """What shape 1 and shape 3 are drawn from."""
    unseen = polyominoes.held_out_shapes()
    return {"train": (polyominoes.training_shapes(),) * 2,
            "validation": (polyominoes.training_shapes(),) * 2,
            "test": (unseen, unseen),
            "test_hard": (unseen, polyominoes.asymmetric_shapes(polyominoes.HARD_SIZE))}[split]


@functools.cache
def _pairs(split: str) -> tuple[tuple[Cells, Cells], ...]:
    """All (shape 1, shape 3) of different families, that is numbers of cells."""
    firsts, thirds = _pools(split)
    return tuple((a, c) for a in firsts for c in thirds if len(a) != len(c))


@functools.cache
def _order(split: str, seed: int) -> np.ndarray:
    """[configurations] int64, shuffled: pair x orientation of shape 1 (4) x turn (3) x orientation of shape 3 (4)."""
    numbers = np.arange(len(_pairs(split)) * 48)
    if split in ("train", "validation"):        # the same shapes, but no configuration in both; the same in every run
        numbers = np.random.default_rng(20240112).permutation(numbers)
        cut = round(VALIDATION_SHARE * len(numbers))
        numbers = numbers[:cut] if split == "validation" else numbers[cut:]
    return np.random.default_rng([seed, SPLITS.index(split)]).permutation(numbers)


# What wrong options may be, in the order in which one kind stands in for another that has none left. Each maps the
# solution as drawn, and the split, to pieces as drawn; cached, as there are few solutions.
@functools.cache
def _other_rotations(solution: Cells, split: str) -> tuple[Cells, ...]:
    return tuple(rotate(solution, quarters) for quarters in (1, 2, 3))


@functools.cache
def _one_cell_off(solution: Cells, split: str) -> tuple[Cells, ...]:
    fewer = (tuple(cell for cell in solution if cell != gone) for gone in solution)
    more = ((*solution, cell) for cell in sorted(polyominoes.neighbours(solution)))
    edited = (polyominoes.normalise(cells) for cells in (*fewer, *more) if polyominoes.connected(cells))
    return tuple(cells for cells in edited if polyominoes.fits(cells)
                 and (split.startswith("test") or not polyominoes.is_held_out(cells)))


@functools.cache
def _any_shape(solution: Cells, split: str) -> tuple[Cells, ...]:
    own = polyominoes.shape_of(solution)
    return tuple(rotate(shape, quarters) for shape in _pools(split)[1] if shape != own for quarters in range(4))


@functools.cache
def _same_family(solution: Cells, split: str) -> tuple[Cells, ...]:
    return tuple(cells for cells in _any_shape(solution, split) if len(cells) == len(solution))


DISTRACTORS: dict[str, Callable[[Cells, str], tuple[Cells, ...]]] = {
    "rotation": _other_rotations,       # shape 3 turned otherwise
    "cell": _one_cell_off,              # the solution with one cell more or less
    "family": _same_family,             # another shape of as many cells
    "random": _any_shape,
}


@dataclasses.dataclass(frozen=True)
class RotationAnalogies:
    """Rotation analogies as a grain `RandomAccessDataSource`, deterministic by (seed, index).

    All shapes have four distinct rotations and fit 4x4 cells; shapes 1 and 3 differ in their number of cells. Every
    panel's colour is drawn independently, the right option's place cycles A, B, C, D (exactly 25 % each), options are
    always different as drawn, and pieces are always centred, so that no option is another one shifted.

    `split`: "train" and "validation" share shapes of 4 to 6 cells, but no (shape 1, its orientation, turn, shape 3, its
    orientation). "test" has none but held-out shapes of 5 and 6 cells, "test_hard" has heptominoes as shape 3; no
    training picture has a held-out shape in it, mirrored or not. Configurations repeat, in other colours, once `index`
    passes their number.

    `distractors`: the kind of each of the three wrong options, see DISTRACTORS. The default are the three other
    rotations of shape 3, which the published order of kinds comes to (a shape always has three). One of them is shape
    3 as drawn, which is never the answer: who knows that, and ignores shapes 1 and 2, is right one time in three.

    `panel`: px, a multiple of 28. The picture is 4 x 2 panels: at the default of 28 that is 8 merged tokens and a box
    of one latent, at 56 it is 32 and 4. `state_rotation` names the turn in the question.

    `asks`: "solution", the analogy; or a step of it, of the same pictures: "turn", by how many degrees shape 2 is
    turned (its panel is the box then), "place", which option is shape 3 turned by so many.

    `mask_box`: the model's input does not show the solution (the point of the task). False leaves it in the input,
    where a latent is redundant. `mask_query` empties shape 3 in the input as well: with the default distractors the
    input then cannot tell the answer, and only an oracle latent can.

    `index` beyond `size` is an IndexError; a bad setting is a ValueError that names it.
    """

    size: int
    split: str = "train"
    seed: int = 0
    panel: int = TOKEN
    distractors: tuple[str, str, str] = ("rotation", "rotation", "rotation")
    state_rotation: bool = False
    mask_box: bool = True
    mask_query: bool = False
    asks: str = "solution"

    def __post_init__(self):
        for field, ok, expected in (
            ("size", self.size > 0, "at least 1"),
            ("split", self.split in SPLITS, "one of " + ", ".join(SPLITS)),
            ("seed", 0 <= self.seed < 2**61, "0 to 2**61 - 1"),
            ("panel", self.panel > 0 and self.panel % TOKEN == 0, f"a multiple of {TOKEN}"),
            ("distractors", len(self.distractors) == 3 and set(self.distractors) <= set(DISTRACTORS),
             "three of " + ", ".join(DISTRACTORS)),
            ("mask_query", self.mask_box or not self.mask_query, "False unless mask_box hides the solution"),
            ("asks", self.asks in ASKS, "one of " + ", ".join(ASKS)),
            ("state_rotation", self.asks == "solution" or not self.state_rotation,
             "False where a step alone is asked for"),
        ):
            if not ok:
                raise ValueError(f"RotationAnalogies.{field} = {getattr(self, field)!r}: expected {expected}")

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Sample:
        analogy, rng = self._draw(index)
        colours = PIECES[rng.integers(len(PIECES), size=7)]
        image = _frames(self.panel).copy()
        drawn = (analogy.first, rotate(analogy.first, analogy.quarters), analogy.third, *analogy.options)
        for place, (cells, colour) in zip((0, 1, 2, 4, 5, 6, 7), zip(drawn, colours)):
            _panel(image, place, self.panel)[piece_mask(cells, self.panel)] = colour
        seen = image.copy()
        _panel(image, 3, self.panel)[piece_mask(analogy.solution, self.panel)] = SOLUTION
        if self.mask_query:
            _panel(seen, 2, self.panel)[piece_mask(analogy.third, self.panel)] = BACKGROUND
        sample = Sample(
            id=f"rotation-{self.split}-{self.seed}-{index}",
            images=(image,),
            question=self._question(analogy),
            answer=ORDINALS[analogy.slot],
            options=ORDINALS,
            letter=LETTERS[analogy.slot],
            boxes=(SOLUTION_BOX,),
            category=f"turn_{90 * analogy.quarters}",
            source="rotation_analogies",
            input_images=(seen,) if self.mask_box else None,
        )
        if self.asks == "turn":
            turn = analogy.quarters - 1
            sample = dataclasses.replace(
                sample, answer=DEGREES[turn], options=DEGREES, letter=LETTERS[turn], boxes=(TURNED_BOX,)
            )
        return sample if self.asks == "solution" else dataclasses.replace(sample, id=f"{sample.id}-{self.asks}")

    def _question(self, analogy: Analogy) -> str:
        if self.asks == "turn":
            return with_options("By how many degrees clockwise is shape 2 shape 1 turned?", DEGREES)
        if self.asks == "place":
            return with_options(f"Which is turned by {90 * analogy.quarters}?", ORDINALS)
        text = "Shape 1 is to shape 2 as shape 3 is to what?"
        if self.state_rotation:
            text += f" Shape 2 is shape 1 turned by {90 * analogy.quarters} degrees clockwise."
        return with_options(f"{text} Which shape of the bottom row, from left to right, is it?", ORDINALS)

    def analogy(self, index: int) -> Analogy:
        """The shapes of item `index`, for tests and for interventions that need another option's shape."""
        return self._draw(index)[0]

    def _draw(self, index: int) -> tuple[Analogy, np.random.Generator]:
        if not 0 <= index < self.size:
            raise IndexError(f"rotation analogies have {self.size} items, asked for {index}")
        key = np.array([len(SPLITS) * self.seed + SPLITS.index(self.split), index], np.uint64)
        rng = np.random.Generator(np.random.Philox(key=key))
        order = _order(self.split, self.seed)
        pair, rest = divmod(int(order[index % len(order)]), 48)
        first, third = _pairs(self.split)[pair]
        analogy = Analogy(rotate(first, rest // 12), rotate(third, rest % 4), 1 + rest // 4 % 3, (), index % 4)
        options = self._wrong_options(analogy, rng)
        options.insert(analogy.slot, analogy.solution)
        return dataclasses.replace(analogy, options=tuple(options)), rng

    def _wrong_options(self, analogy: Analogy, rng: np.random.Generator) -> list[Cells]:
        kinds = list(DISTRACTORS)
        chosen: list[Cells] = []
        for wanted in self.distractors:
            usable = ([cells for cells in DISTRACTORS[kind](analogy.solution, self.split) if cells not in chosen]
                      for kind in kinds[kinds.index(wanted):])
            left = next(filter(None, usable))           # the last kind always has some
            chosen.append(left[rng.integers(len(left))])
        return [chosen[n] for n in rng.permutation(3)]


@functools.cache
def _frames(panel: int) -> np.ndarray:
    """[2 panel, 4 panel, 3] uint8: the empty panels."""
    image = np.full((2 * panel, 4 * panel, 3), BACKGROUND, np.uint8)
    for place in range(8):
        frame = _panel(image, place, panel)
        frame[[0, -1]] = frame[:, [0, -1]] = FRAME
    image[:panel, 2 * panel - 1:2 * panel + 1] = DIVIDER        # "is to ... as": between the pairs
    return image


def _panel(image: np.ndarray, place: int, panel: int) -> np.ndarray:
    row, column = divmod(place, 4)
    return image[row * panel:(row + 1) * panel, column * panel:(column + 1) * panel]


@functools.lru_cache(maxsize=16384)
def piece_mask(cells: Cells, panel: int) -> np.ndarray:
    """[panel, panel] bool: the piece centred, to a whole cell, on a GRID x GRID board with a gap between cells."""
    unit = (panel - 4) // GRID
    margin = (panel - unit * GRID) // 2
    top = (GRID - 1 - max(r for r, _ in cells)) // 2
    left = (GRID - 1 - max(c for _, c in cells)) // 2
    mask = np.zeros((panel, panel), bool)
    for r, c in cells:
        y, x = margin + unit * (top + r), margin + unit * (left + c)
        mask[y:y + unit - 1, x:x + unit - 1] = True
    return mask
