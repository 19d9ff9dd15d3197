"""Which picture, question and box make up item `index` of the digit search task?

Real handwritten digits (scikit-learn's `load_digits`, 1,797 samples of 8x8) in eight colours, scattered over a noisy
grey scene. Questions are made in the manner of V*Bench: the target is small, the box round it holds all that is
needed, and options are lettered. Item `index` is a pure function of the fields of `DigitSearch` and of `index`.

Why nothing but the picture can answer:
- digit classes and colours are independent and uniform, with repetition, so a named attribute says nothing about the
  asked one, and a question is put only where its referent is unique;
- an option set is symmetric in its members and the gold one's letter is uniform, so text alone is at chance;
- train and test never share a digit sample (each class is split 70:30, always the same way).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import numpy as np
from PIL import Image

from lvr_jax.data.options import LETTERS, with_options
from lvr_jax.data.sample import Box, Sample
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


@functools.cache
def load_glyphs(digit_size: int) -> Glyphs:
    """Glyphs at `digit_size` px; made once a process, so that a source itself stays small enough to pickle."""
    from sklearn.datasets import load_digits  # here, because it takes a second to import

    digits = load_digits()
    sources = np.round(digits.images * (255 / 16)).astype(np.uint8)
    alpha = np.stack([np.asarray(Image.fromarray(d).resize((digit_size, digit_size), Image.Resampling.BICUBIC))
                      for d in sources])                # [N, S, S]
    alpha = np.where(alpha >= INK_THRESHOLD, alpha, 0).astype(np.uint8)
    rows, columns = alpha.any(2), alpha.any(1)          # [N, S] each
    ink = np.stack([columns.argmax(1), rows.argmax(1),
                    digit_size - columns[:, ::-1].argmax(1), digit_size - rows[:, ::-1].argmax(1)], 1)
    pools: dict[str, list[np.ndarray]] = {split: [] for split in SPLITS}
    for digit in range(10):
        # A fixed seed: whatever seed a run uses, its train digits are never another run's test digits.
        members = np.random.default_rng([20240112, digit]).permutation(np.flatnonzero(digits.target == digit))
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


@dataclasses.dataclass(frozen=True)
class Question:
    text: str
    answer: str
    likely: tuple[str, ...]         # wrong answers that the picture suggests: the first choice for distractors
    unlikely: tuple[str, ...]       # wrong answers that fill up the options
    targets: tuple[int, ...]        # numbers of the digits that the answer needs


def _unique(values: tuple[int, ...]) -> list[int]:
    return [n for n, value in enumerate(values) if values.count(value) == 1]


def _attribute_questions(scene: DigitScene, asked: tuple[int, ...], given: tuple[int, ...], names: tuple[str, ...],
                         text: Callable[[int], str]) -> list[Question]:
    visible = {names[value] for value in asked}
    questions = []
    for n in _unique(given):
        answer = names[asked[n]]
        questions.append(Question(text(n), answer,
                                  tuple(name for name in names if name in visible and name != answer),
                                  tuple(name for name in names if name not in visible), (n,)))
    return questions


def _colour_questions(scene: DigitScene) -> list[Question]:
    return _attribute_questions(scene, scene.colours, scene.classes, COLOUR_NAMES,
                                lambda n: f"What colour is the {scene.classes[n]}?")


def _digit_questions(scene: DigitScene) -> list[Question]:
    return _attribute_questions(scene, scene.classes, scene.colours, tuple("0123456789"),
                                lambda n: f"Which digit is {COLOUR_NAMES[scene.colours[n]]}?")


def _referents(scene: DigitScene) -> list[tuple[int, str]]:
    """Every way to name one digit without doubt: (number, name)."""
    return ([(n, f"the {scene.classes[n]}") for n in _unique(scene.classes)]
            + [(n, f"the {COLOUR_NAMES[scene.colours[n]]} digit") for n in _unique(scene.colours)])


def _centres(scene: DigitScene) -> np.ndarray:
    return (scene.ink[:, :2] + scene.ink[:, 2:]) / 2    # [N, 2] x, y px


SIDES = (("left", "right"), ("top", "bottom"))          # by axis, x then y
RELATIONS = (("left of", "right of"), ("above", "below"))


def _position_questions(scene: DigitScene) -> list[Question]:
    centres, extent = _centres(scene), scene.image.shape[1::-1]         # width, height
    margin = (scene.canvas[0, 2] - scene.canvas[0, 0]) / 4              # nearer to the middle, a person may disagree
    questions = []
    for n, name in _referents(scene):
        for axis, sides in enumerate(SIDES):
            offset = centres[n, axis] - extent[axis] / 2
            if abs(offset) >= margin:
                answer = int(offset > 0)
                questions.append(Question(f"Is {name} in the {sides[0]} or the {sides[1]} half of the picture?",
                                          sides[answer], (sides[1 - answer],), (), (n,)))
    return questions


def _relation_questions(scene: DigitScene) -> list[Question]:
    centres = _centres(scene)
    margin = (scene.canvas[0, 2] - scene.canvas[0, 0]) / 2
    questions = []
    referents = _referents(scene)
    for n, name in referents:
        for m, other in referents:
            for axis, relations in enumerate(RELATIONS):
                offset = centres[n, axis] - centres[m, axis]
                if n != m and abs(offset) >= margin:
                    answer = int(offset > 0)
                    questions.append(Question(f"Is {name} {relations[0]} or {relations[1]} {other}?",
                                              relations[answer], (relations[1 - answer],), (), (n, m)))
    return questions


KINDS: dict[str, Callable[[DigitScene], list[Question]]] = {
    "colour": _colour_questions,
    "digit": _digit_questions,
    "position": _position_questions,
    "relation": _relation_questions,
}
HARD_KINDS = ("relation",)              # a model of about 1 M parameters stayed at chance on these
PLACE_KINDS = ("position", "relation")  # a blacked-out digit still shows where it is


@dataclasses.dataclass(frozen=True)
class DigitSearch:
    """Digit search as a grain `RandomAccessDataSource`: `source[index] -> Sample`, deterministic by (seed, index).

    The defaults are a size that a model of about 1 M parameters has been seen to learn: 112x112 (16 merged tokens),
    four digits on a 14-px lattice with 2 px of jitter. Any size works whose lattice surely holds `digits` canvases.

    `kinds`: which questions, taken in turn by index: "colour" and "digit" (attributes), "position" (which half of
    the picture), "relation" (two digits, two boxes; hard, see HARD_KINDS). `options`: how many lettered options an
    attribute question has (the two place kinds have their two); 0 asks openly. The options are written into
    `Sample.question` as in V*Bench; `answer` is the word and `letter` the letter, and the answer format of the chat
    layout decides which of them is written. Wrong options are drawn from what the scene shows before anything else.

    `mask_box`: `input_images` holds the scene with the target's whole canvas black, while `images` (where latents
    come from) stays clean. The canvas contains the ink and is one square size for every digit, so that the shape of
    the hole does not tell a 1 from an 8; nothing outside it changes. Place kinds are refused then, as the hole would
    answer them.

    `index` beyond `size` is an IndexError; a bad setting is a ValueError that names it.
    """

    size: int
    split: str = "train"
    seed: int = 0
    height: int = 112
    width: int = 112
    digits: int = 4
    digit_size: int = 28                        # px, side of the square canvas of a digit
    lattice: int = 14                           # px between two places of a canvas
    jitter: int = 2                             # px, at most, off the lattice on each axis
    noise: int = 16                             # grey levels
    background: tuple[int, int] = (40, 90)      # grey levels, first and past the last
    kinds: tuple[str, ...] = ("colour", "digit")
    options: int = 4
    mask_box: bool = False

    def __post_init__(self):
        columns, rows, block = self._places()
        # A placed digit blocks at most (2 block - 1)^2 places, so this many digits fit however they fall.
        room = 1 + (columns * rows - 1) // (2 * block - 1) ** 2 if min(columns, rows) > 0 else 0
        shown = ", ".join(KINDS)
        for field, ok, expected in (
            ("size", self.size > 0, "at least 1"),
            ("split", self.split in SPLITS, "one of " + ", ".join(SPLITS)),
            ("seed", 0 <= self.seed < 2**63, "0 to 2**63 - 1"),
            ("digit_size", self.digit_size >= 8, "at least 8, the size of the original digits"),
            ("digits", 1 <= self.digits <= room,
             f"1 to {room}, what a {self.width}x{self.height} scene surely holds at digit_size {self.digit_size}"),
            ("jitter", 0 <= self.jitter, "at least 0"),
            ("noise", 0 <= self.noise <= 128, "0 to 128"),
            ("background", 0 <= self.background[0] < self.background[1] <= 128, "two rising levels within 0 to 128"),
            ("kinds", self.kinds and set(self.kinds) <= set(KINDS), f"one or more of {shown}"),
            ("kinds", "relation" not in self.kinds or self.digits > 1, "no relation with a single digit"),
            ("kinds", not (self.mask_box and set(self.kinds) & set(PLACE_KINDS)),
             f"none of {', '.join(PLACE_KINDS)} with mask_box: the hole would give the place away"),
            ("options", self.options == 0 or 2 <= self.options <= len(COLOURS), f"0, or 2 to {len(COLOURS)}"),
        ):
            if not ok:
                raise ValueError(f"DigitSearch.{field} = {getattr(self, field)!r}: expected {expected}")

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Sample:
        scene, question, rng = self._draw(index)
        wrong = [*_shuffled(rng, question.likely), *_shuffled(rng, question.unlikely)][:max(self.options - 1, 0)]
        letter, text, options = None, question.text, ()
        if self.options:
            slot = int(rng.integers(len(wrong) + 1))
            options = (*wrong[:slot], question.answer, *wrong[slot:])
            letter = LETTERS[slot]
            text = with_options(text, options)
        return Sample(
            id=f"digits-{self.split}-{self.seed}-{index}",
            images=(scene.image,),
            question=text,
            answer=question.answer,
            options=options,
            letter=letter,
            boxes=tuple(scene.normalised(n) for n in question.targets),
            category=self._kind(index),
            source="digit_search",
            input_images=(_blacked_out(scene, question.targets),) if self.mask_box else None,
        )

    def scene(self, index: int) -> DigitScene:
        """The picture of item `index` with every digit in it, for dense supervision and for tests."""
        return self._draw(index)[0]

    def target(self, index: int) -> tuple[int, ...]:
        """The numbers, within `scene(index)`, of the digits that item `index` asks about."""
        return self._draw(index)[1].targets

    def _places(self) -> tuple[int, int, int]:
        if self.lattice < 1:
            raise ValueError(f"DigitSearch.lattice = {self.lattice}: expected at least 1 px")
        return ((self.width - self.digit_size) // self.lattice + 1, (self.height - self.digit_size) // self.lattice + 1,
                -(-self.digit_size // self.lattice))

    def _kind(self, index: int) -> str:
        return self.kinds[index % len(self.kinds)]

    def _draw(self, index: int) -> tuple[DigitScene, Question, np.random.Generator]:
        if not 0 <= index < self.size:
            raise IndexError(f"digit search has {self.size} items, asked for {index}")
        key = np.array([2 * self.seed + SPLITS.index(self.split), index], np.uint64)
        rng = np.random.Generator(np.random.Philox(key=key))
        while True:
            scene = self._layout(rng)
            questions = KINDS[self._kind(index)](scene)
            if questions:       # else no referent is unique: draw anew, which keeps the asked attribute uniform
                break
        question = questions[rng.integers(len(questions))]
        _paint(scene, self, rng)
        return scene, question, rng

    def _layout(self, rng: np.random.Generator) -> DigitScene:
        """Everything about a scene but its pixels."""
        glyphs = load_glyphs(self.digit_size)
        classes = rng.integers(10, size=self.digits).tolist()
        colours = rng.integers(len(COLOURS), size=self.digits).tolist()
        pools = glyphs.pools[self.split]
        samples = [int(pools[c][int(u * len(pools[c]))]) for c, u in zip(classes, rng.random(self.digits).tolist())]
        corners = self._corners(rng)                                            # [N, 2] x, y
        canvas = np.concatenate([corners, corners + self.digit_size], 1)
        return DigitScene(np.empty((self.height, self.width, 3), np.uint8), tuple(classes), tuple(colours),
                          tuple(samples), canvas, np.tile(corners, 2) + glyphs.ink[samples])

    def _corners(self, rng: np.random.Generator) -> np.ndarray:
        """[N, 2] int64, x and y of the canvases: disjoint squares near the lattice."""
        columns, rows, block = self._places()
        free = np.ones((rows, columns), bool)
        places = []
        for _ in range(self.digits):
            choices = np.flatnonzero(free)
            row, column = divmod(int(choices[int(rng.random() * len(choices))]), columns)
            free[max(row - block + 1, 0):row + block, max(column - block + 1, 0):column + block] = False
            places.append([column * self.lattice, row * self.lattice])
        shifts = rng.integers(-self.jitter, self.jitter + 1, size=(self.digits, 2)).tolist()
        for n, (dx, dy) in enumerate(shifts):
            x = min(max(places[n][0] + dx, 0), self.width - self.digit_size)
            y = min(max(places[n][1] + dy, 0), self.height - self.digit_size)
            # A shift into a neighbour is dropped: on the lattice itself canvases cannot overlap.
            if all(m == n or abs(x - other_x) >= self.digit_size or abs(y - other_y) >= self.digit_size
                   for m, (other_x, other_y) in enumerate(places)):
                places[n] = [x, y]
        return np.array(places)


def _shuffled(rng: np.random.Generator, words: tuple[str, ...]) -> list[str]:
    return [words[n] for n in rng.permutation(len(words))]


def _paint(scene: DigitScene, config: DigitSearch, rng: np.random.Generator) -> None:
    """Fills in `scene.image`: grey noise, then each digit blended in by its alpha."""
    height, width = scene.image.shape[:2]
    grey = np.frombuffer(rng.bytes(height * width), np.uint8).reshape(height, width, 1)
    base = rng.integers(*config.background)
    scene.image[:] = (grey.astype(np.uint16) * config.noise >> 8) + base
    alphas = load_glyphs(config.digit_size).alpha
    for sample, colour, (x0, y0, x1, y1) in zip(scene.samples, scene.colours, scene.canvas.tolist()):
        alpha = alphas[sample, :, :, None].astype(np.uint16)
        under = scene.image[y0:y1, x0:x1]
        under[:] = (under * (255 - alpha) + PALETTE[colour] * alpha + 127) // 255       # fits 16 bits


def _blacked_out(scene: DigitScene, targets: tuple[int, ...]) -> np.ndarray:
    image = scene.image.copy()
    for x0, y0, x1, y1 in scene.canvas[list(targets)].tolist():
        image[y0:y1, x0:x1] = 0
    return image
