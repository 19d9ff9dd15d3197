"""Makes picture, question and box of item `index` of the digit search task.

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
import itertools

import numpy as np

from lvr_jax.data.digit_pictures import COLOUR_NAMES, SPLITS, DigitScene, blacked_out, load_glyphs, paint
from lvr_jax.data.digit_questions import KINDS, PLACE_KINDS, Question
from lvr_jax.data.options import LETTERS, with_options
from lvr_jax.data.sample import Sample


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
    answer them. `mask_share`: of the canvas only so much is black, in cells of a seventh of its side that the item
    draws; of one item, more share hides what less does, and more.

    `questions`: how many are put about each picture, the kinds in turn; those after the first are `Sample.more`. One
    that is alone in its kind is put again with other options.

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
    mask_share: float = 1.0
    questions: int = 1

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
            ("mask_share", 0 < self.mask_share <= 1, "above 0, at most 1"),
            ("mask_share", self.mask_box or self.mask_share == 1, "1 without mask_box"),
            ("questions", self.questions >= 1, "at least 1"),
            ("questions", self.questions == 1 or not self.mask_box, "1 with mask_box: each hides what it asks for"),
            ("options", self.options == 0 or 2 <= self.options <= len(COLOUR_NAMES), f"0, or 2 to {len(COLOUR_NAMES)}"),
        ):
            if not ok:
                raise ValueError(f"DigitSearch.{field} = {getattr(self, field)!r}: expected {expected}")

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Sample:
        scene, asked, rng = self._draw(index)
        first, *more = [self._sample(index, scene, n, question, rng) for n, question in enumerate(asked)]
        return dataclasses.replace(first, more=tuple(more)) if more else first

    def counterfactual(self, index: int) -> Sample | None:
        """Item `index` with the asked attribute of its target changed to that of a wrong option, and nothing else.

        The same question about the same scene, down to the noise, with another answer; of several questions the first.
        None for the place kinds, whose answer changes only if something moves.
        """
        scene, (question, *_), rng = self._sketch(index)
        kind = self._kind(index)
        if kind in PLACE_KINDS:
            return None
        original = self[index]
        wrong = [o for o in original.options or (*question.likely, *question.unlikely) if o != question.answer]
        draw = np.random.default_rng([self.seed, SPLITS.index(self.split), index, 1])
        answer = wrong[int(draw.integers(len(wrong)))]
        scene = self._changed(scene, question.targets[0], kind, answer, draw)
        paint(scene, self.noise, self.background, rng)
        return dataclasses.replace(
            original, id=f"{original.id}-counterfactual", images=(scene.image,), answer=answer,
            letter=LETTERS[original.options.index(answer)] if original.options else None,
            boxes=tuple(scene.normalised(n) for n in question.targets),
            input_images=self._input_images(index, scene, question), more=(),
        )  # fmt: skip

    def _changed(self, scene: DigitScene, n: int, kind: str, answer: str, draw: np.random.Generator) -> DigitScene:
        """The scene, not yet painted, with digit n of another colour or class."""
        put = lambda values, value: (*values[:n], value, *values[n + 1:])  # noqa: E731
        if kind == "colour":
            return dataclasses.replace(scene, colours=put(scene.colours, COLOUR_NAMES.index(answer)))
        glyphs = load_glyphs(self.digit_size)
        pool = glyphs.pools[self.split][int(answer)]
        sample, ink = int(pool[int(draw.integers(len(pool)))]), scene.ink.copy()
        ink[n] = np.tile(scene.canvas[n, :2], 2) + glyphs.ink[sample]
        return dataclasses.replace(scene, classes=put(scene.classes, int(answer)), samples=put(scene.samples, sample),
                                   ink=ink)

    def _sample(
        self, index: int, scene: DigitScene, number: int, question: Question, rng: np.random.Generator
    ) -> Sample:
        """Question `number` about the scene."""
        wrong = [*_shuffled(rng, question.likely), *_shuffled(rng, question.unlikely)][:max(self.options - 1, 0)]
        letter, text = None, question.text
        options: tuple[str, ...] = ()
        if self.options:
            slot = int(rng.integers(len(wrong) + 1))
            options = (*wrong[:slot], question.answer, *wrong[slot:])
            letter = LETTERS[slot]
            text = with_options(text, options)
        return Sample(
            id=f"digits-{self.split}-{self.seed}-{index}" + (f"-{number}" if number else ""),
            images=(scene.image,),
            question=text,
            answer=question.answer,
            options=options,
            letter=letter,
            boxes=tuple(scene.normalised(n) for n in question.targets),
            category=self._kind(index + number),
            source="digit_search",
            input_images=self._input_images(index, scene, question),
        )

    def _input_images(self, index: int, scene: DigitScene, question: Question) -> tuple[np.ndarray] | None:
        key = self.seed, SPLITS.index(self.split), index, 2
        return (blacked_out(scene, question.targets, self.mask_share, key),) if self.mask_box else None

    def scene(self, index: int) -> DigitScene:
        """The picture of item `index` with every digit in it, for dense supervision and for tests."""
        return self._draw(index)[0]

    def target(self, index: int) -> tuple[int, ...]:
        """The numbers, within `scene(index)`, of the digits that item `index`, its first question, asks about."""
        return self._draw(index)[1][0].targets

    def _places(self) -> tuple[int, int, int]:
        if self.lattice < 1:
            raise ValueError(f"DigitSearch.lattice = {self.lattice}: expected at least 1 px")
        return ((self.width - self.digit_size) // self.lattice + 1, (self.height - self.digit_size) // self.lattice + 1,
                -(-self.digit_size // self.lattice))

    def _kind(self, index: int) -> str:
        return self.kinds[index % len(self.kinds)]

    def _draw(self, index: int) -> tuple[DigitScene, list[Question], np.random.Generator]:
        scene, asked, rng = self._sketch(index)
        paint(scene, self.noise, self.background, rng)
        return scene, asked, rng

    def _sketch(self, index: int) -> tuple[DigitScene, list[Question], np.random.Generator]:
        """Scene and questions before anything is painted; the generator goes on with the pixels."""
        if not 0 <= index < self.size:
            raise IndexError(f"digit search has {self.size} items, asked for {index}")
        key = np.array([2 * self.seed + SPLITS.index(self.split), index], np.uint64)
        rng = np.random.Generator(np.random.Philox(key=key))
        kinds = [self._kind(index + number) for number in range(self.questions)]
        while True:
            scene = self._layout(rng)
            possible = {kind: KINDS[kind](scene) for kind in dict.fromkeys(kinds)}
            if all(possible.values()):      # else no referent is unique: draw anew: the asked attribute stays uniform
                break
        if len(kinds) == 1:
            (questions,) = possible.values()
            return scene, [questions[rng.integers(len(questions))]], rng
        turns = {kind: itertools.cycle(rng.permutation(len(found)).tolist()) for kind, found in possible.items()}
        return scene, [possible[kind][next(turns[kind])] for kind in kinds], rng

    def _layout(self, rng: np.random.Generator) -> DigitScene:
        """Everything about a scene but its pixels."""
        glyphs = load_glyphs(self.digit_size)
        classes = rng.integers(10, size=self.digits).tolist()
        colours = rng.integers(len(COLOUR_NAMES), size=self.digits).tolist()
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
