"""Questions that can be put about a digit search scene, with their answers: only such as have one referent."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from lvr_jax.data.digit_pictures import COLOUR_NAMES, DigitScene


@dataclasses.dataclass(frozen=True)
class Question:
    """A question about a scene, with its answer and wrong answers to offer."""

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
