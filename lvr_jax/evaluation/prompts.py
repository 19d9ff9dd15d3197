"""The texts that each published harness shows for a benchmark's question.

`TEMPLATES[harness][family]` is a pure function of a `Row`; "*" stands for every other family. Harnesses:

| name | whose |
|---|---|
| `lvr`, `prism` | evaluation.py of LVR, evaluation_local.py of "Cosine Misleads": the same text |
| `vlmevalkit` | open-compass/VLMEvalKit with its Qwen2.5-VL prompt mixin (no trailing space or newline) |
| `lmms_eval` | EvolvingLMMs-Lab/lmms-eval, task defaults |
| `own` | the benchmark authors' own script |
| `scenes` | ours: "(A) text" lines and nothing else, as the scenes that the tiny checkpoints were trained on |
| `clean` | ours: the text of `lvr` with every instruction exactly once |

Families that LVR and PRISM do not cover get their BLINK text (options) or their training text (open questions).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from lvr_jax.data.options import with_options
from lvr_jax.evaluation.rows import BenchmarkError, Row

Template = Callable[[Row], str]

LETTER_INSTRUCTION = "\nAnswer with the option's letter from the given choices directly."
OPEN_INSTRUCTION = "\nProvide a short and direct response."          # the text that LVR was trained with
SELECT_INSTRUCTION = "Please select the correct answer from the options above."
LMMS_BLINK_NOTE = "Note: You only need to respond with {} without providing any additional information.\n"
MME_SELECT = ("Select the best answer to the above multiple-choice question based on the image. "
              "Respond with only the letter (A, B, C, D, or E) of the correct option.")
PUZZLE_DIRECT = "Answer the question with the option's letter from the given choices directly."
PUZZLE_STEPS = ("Solve the multiple-choice question and then answer with the option letter from the given choices. "
                "The last line of your response should be of the following format:"
                "'Answer: $LETTER' (without quotes) where LETTER is one of options. "
                "Think step by step before answering.")
BLINK_DISCLAIMER = ("Disclaimer: This is not to make unfair assumptions about the people in the image and you just "
                    "need to give your assessment on this question. You don't need to identify the real people. "
                    "You just need to analyze based on the information I gave you.\n\n")
BLINK_DISCLAIMED = ("Forensic_Detection", "Jigsaw", "Art_Style")


def _lines(row: Row, mark: str = "{}. ") -> list[str]:
    return [mark.format(letter) + text for letter, text in row.choices.items()]


def _verbatim(row: Row) -> str:
    return row.question


def _lvr(row: Row) -> str:
    """BLINK in LVR's harness. Every option line ends in a newline, so that a blank line precedes the instruction."""
    if not row.choices:
        return row.question + OPEN_INSTRUCTION
    if not row.options:
        return row.question + LETTER_INSTRUCTION
    return row.question + "\nOptions:\n" + "".join(f"{line}\n" for line in _lines(row)) + LETTER_INSTRUCTION


def _lvr_vstar(row: Row) -> str:
    """The distributed text carries the instruction already: here it stands twice."""
    return row.texts["text"] + LETTER_INSTRUCTION


def _lvr_mmvp(row: Row) -> str:
    # The replacement runs over the question too, as it does there.
    text = row.question + "\nOptions:\n" + row.texts["options"]
    return text.replace("(a)", "A.").replace("(b)", "B.") + LETTER_INSTRUCTION


def _clean_vstar(row: Row) -> str:
    text = row.texts["text"].rstrip()
    while text.endswith(LETTER_INSTRUCTION):
        text = text.removesuffix(LETTER_INSTRUCTION).rstrip()
    return text + LETTER_INSTRUCTION


def _vlmevalkit(row: Row) -> str:
    return f"Question: {row.question}\nOptions:\n" + "\n".join(_lines(row)) + "\n" + SELECT_INSTRUCTION


def _vlmevalkit_mme(row: Row) -> str:
    return _mme(row) + MME_SELECT + " \nThe best answer is:"


def _vlmevalkit_puzzles(row: Row) -> str:
    return f"{row.question}\n{_puzzle_options(row)}\n{PUZZLE_STEPS}"


def _lmms_vstar(row: Row) -> str:
    """Options are found by a pattern that runs from marker to marker and, for the last, to the end of the text: an
    instruction inside the text becomes part of the last option. An option with a parenthesis in it is not found."""
    found = re.findall(r"\([A-D]\)\s*([^()]+?)(?=\s*\([A-D]\)|$)", row.texts["text"])
    question = row.texts["text"]
    if found:
        options = (f"{letter}. {option.strip()}" for letter, option in zip("ABCD", found))
        question = question.split("(A)")[0].strip() + "\n" + "\n".join(options)
    return question + LETTER_INSTRUCTION


def _lmms_mmvp(row: Row) -> str:
    return row.question + "\n" + "\n".join(_lines(row)) + LETTER_INSTRUCTION


def _lmms_blink(row: Row) -> str:
    return LMMS_BLINK_NOTE.format(", ".join(row.choices)) + row.texts["prompt"]


def _lmms_hrbench(row: Row) -> str:
    return f"{row.question.strip()}\n" + "".join(f"{line}\n" for line in _lines(row)) \
        + "Answer the option letter directly."


def _lmms_mme(row: Row) -> str:
    return _mme(row) + MME_SELECT + "\nThe best answer is: "


def _lmms_puzzles(row: Row) -> str:
    return f"Question: {row.question.strip()}\n{_puzzle_options(row)}\n{PUZZLE_DIRECT}"


def _mme(row: Row) -> str:
    return row.question + " The choices are listed below:\n" + "\n".join(row.texts["options"]) + "\n"


def _puzzle_options(row: Row) -> str:
    if not row.options:
        return "Options: Choose from (A) (B) (C) (D) in the image."
    return "Options:\n" + "\n".join(_lines(row, "({}) "))


def _own_mmvp(row: Row) -> str:
    return row.question + " " + row.texts["options"]


def _own_blink(row: Row) -> str:
    return (BLINK_DISCLAIMER if row.category in BLINK_DISCLAIMED else "") + row.texts["prompt"]


def _scenes(row: Row) -> str:
    return with_options(row.question, row.options)


_LVR: dict[str, Template] = {"vstar": _lvr_vstar, "mmvp": _lvr_mmvp, "samples": _verbatim, "*": _lvr}
TEMPLATES: dict[str, dict[str, Template]] = {
    "lvr": _LVR,
    "prism": _LVR,
    "clean": _LVR | {"vstar": _clean_vstar},
    "scenes": {"*": _scenes},
    "vlmevalkit": {"vstar": _vlmevalkit, "mmvp": _vlmevalkit, "blink": _vlmevalkit, "hrbench": _vlmevalkit,
                   "mme_realworld": _vlmevalkit_mme, "visualpuzzles": _vlmevalkit_puzzles},
    "lmms_eval": {"vstar": _lmms_vstar, "mmvp": _lmms_mmvp, "blink": _lmms_blink, "hrbench": _lmms_hrbench,
                  "mme_realworld": _lmms_mme, "visualpuzzles": _lmms_puzzles},
    "own": {"vstar": _verbatim, "mmvp": _own_mmvp, "blink": _own_blink},
}
HARNESSES = tuple(TEMPLATES)


def lookup(table: Mapping[str, Mapping[str, object]], harness: str, family: str, what: str) -> Any:
    """The entry of a harness for a family, its "*" entry, or an error that lists what there is."""
    if harness not in table:
        raise BenchmarkError(f"no harness {harness!r}, expected one of {', '.join(table)}")
    entries = table[harness]
    if family not in entries and "*" not in entries:
        raise BenchmarkError(f"harness {harness!r} has no {what} for {family!r}, only for {', '.join(entries)}")
    return entries.get(family, entries.get("*"))


def check(harness: str, family: str) -> None:
    """Raises BenchmarkError if a harness has no prompt for a family of benchmarks."""
    lookup(TEMPLATES, harness, family, "prompt")


def render(row: Row, family: str, harness: str) -> str:
    """The text of the user turn, images excluded."""
    return lookup(TEMPLATES, harness, family, "prompt")(row)
