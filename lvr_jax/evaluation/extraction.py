"""Reads the chosen letter from a reply: one function per published rule, selectable by harness and benchmark.

A rule takes the reply, as decoded with its special tokens, and the choices (letter -> option text), and returns what
its source compares with the gold letter: mostly a letter, None where nothing was found, and now and then something
that equals no letter ("(" under `first_character`, "Z" under VLMEvalKit's matcher). Odd verdicts are the source's own
and are kept: tests/evaluation/test_extraction.py holds a table of them for every rule.

Where a source falls back to a language model or to a random letter, ours returns None (counted wrong): a score that
needs an API or a die cannot be reproduced.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import numpy as np

from lvr_jax.evaluation.declared import declared, named
from lvr_jax.evaluation.prompts import lookup
from lvr_jax.evaluation.rows import BenchmarkError

Choices = Mapping[str, str]
Rule = Callable[[str, Choices], str | None]


# LVR and PRISM ------------------------------------------------------------------------------------------------------

def _first_character(text: str) -> str:
    return text.strip().split(" ")[0][:1]


def first_character(reply: str, choices: Choices) -> str | None:
    """`accuracy_reward` of LVR and of PRISM's accuracy runs: first character after the last `<answer>`, or of the
    whole reply if there is no tag. Case-sensitive; "(A)" gives "("."""
    return _first_character(reply.split("<answer>")[-1].split("</answer")[0]) or None


def strict_tag(reply: str, choices: Choices) -> str | None:
    """`_parse_answer_letter` of PRISM's probes and corruption runs: nothing without `<answer>`. The corruption script
    upper-cases both sides before comparing, which is done here."""
    if "<answer>" not in reply:
        return None
    return _first_character(reply.split("<answer>")[-1].split("</answer>")[0]).upper() or None


# BLINK's own script --------------------------------------------------------------------------------------------------

def blink_official(reply: str, choices: Choices) -> str | None:
    """`analyze_answer` of BLINK: a bare letter, else the only "(X)" word of the last paragraph or of the reply. Where
    it would ask GPT-3.5 ("**(A) dog**" is no such word), None."""
    if re.fullmatch(r"[A-E]|\([A-E]\)", reply):
        return reply.strip("()")
    marks = {f"({letter})" for letter in choices}
    whole, last = marks.intersection(reply.split()), marks.intersection(reply.split("\n\n")[-1].split())
    if not whole or (len(whole) != 1 and len(last) != 1):
        return None
    return (last if len(last) == 1 else whole).pop().strip("()")


# VLMEvalKit ----------------------------------------------------------------------------------------------------------

REFUSALS = ("Sorry, I can't help with images of people yet.", "I can't process this file.",
            "I'm sorry, but without the image provided", "Cannot determine the answer")
_PUNCTUATION = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))


def _only_word(reply: str, choices: Choices, within: int | None) -> str | None:
    """The one option letter that stands as a word, if its first place is among the last `within` words."""
    words = reply.translate(_PUNCTUATION).split()
    found = [letter for letter in choices if letter in words]
    if len(found) == 1 and (within is None or words.index(found[0]) >= len(words) - within):
        return found[0]
    return "Z" if not found and "Z" in words else None


def _only_text(reply: str, choices: Choices) -> str | None:
    found = [letter for letter, text in choices.items() if text and text.lower() in reply.lower()]
    return found[0] if len(found) == 1 else None


def vlmevalkit_match(reply: str, choices: Choices) -> str | None:
    """`can_infer` under exact matching: refusal -> Z; a lone letter among the last four words; "answer is X"; a lone
    option text in a reply at most twice as long as all option texts together; else Z."""
    reply = reply.strip()
    if any(refusal in reply for refusal in REFUSALS):
        return "Z"
    letter = _only_word(reply, choices, within=4)
    if letter:
        return letter
    spoken = re.search(r"answer\s+is\s+\**([ABCD])\**", reply, re.IGNORECASE)
    if spoken and spoken[1].upper() in choices:
        return spoken[1].upper()
    short = len(reply) <= 2 * sum(map(len, choices.values()))
    return (_only_text(reply, choices) if short else None) or "Z"


_MME_PREFIXES = ("The best answer is", "The correct answer is", "The answer is", "The answer")


def _mme_letter(text: str) -> str | None:
    """First of the capitals A to E. Two further prefixes of the source are glued together there and never match, so
    that "Best answer: C" gives B. An empty reply is "contained" in "(A)" and gives A."""
    text = text.strip()
    for prefix in _MME_PREFIXES:
        text = text.replace(prefix, "")
    found = re.search(r"[ABCDE]", text)
    if found:
        return found[0]
    if len(text.split()) > 10:
        return None
    return next((letter for letter in "ABCDE" if text.lower() in f"({letter})".lower()), None)


def vlmevalkit_mme_realworld(reply: str, choices: Choices) -> str | None:
    """Looks inside `<answer>...</answer>` first, upper-casing what it finds there."""
    tagged = re.search(r"<answer>(.*?)</answer>", reply, re.DOTALL)
    return _mme_letter(tagged[1].strip().upper() if tagged else reply)


# lmms-eval -----------------------------------------------------------------------------------------------------------

def _cascade(text: str, patterns: tuple[str, ...]) -> str | None:
    """The group of the first pattern that is found anywhere."""
    for pattern in patterns:
        found = re.search(pattern, text, re.IGNORECASE)
        if found:
            return found[1].upper()
    return None


def lmms_vstar(reply: str, choices: Choices) -> str | None:
    """Its first pattern asks only for A to D at the start, so "Answer: C" gives A and "Blue" gives B."""
    text = reply.strip().upper()
    letter = _cascade(text, (
        r"^([A-D])",
        r"(?:ANSWER|CHOICE|OPTION)(?:\s+IS)?[\s:]+([A-D])",
        r"\(([A-D])\)",
        r"([A-D])\s*[.)\]]",
        r"(?<!\S)([A-D])(?!\S)",
    ))
    capitals = re.findall(r"[A-D]", text)
    return letter or (capitals[0] if len(capitals) == 1 else None)


def lmms_mmvp(reply: str, choices: Choices) -> str | None:
    """Its last pattern takes any a or b at the end of a word: "Grab it" gives B."""
    text = reply.strip()
    letter = _cascade(text, (
        r"^\(?([AB])\)?\.?\s*$",
        r"^\(?([AB])\)?[.\s]",
        r"answer\s+is\s+\(?([AB])",
        r"option\s+\(?([AB])",
        r"([AB])\)?(?:\s|$)",
    ))
    return letter or (text[0].upper() if text[:1] in tuple("ABab") else None)


def lmms_blink(reply: str, choices: Choices) -> str | None:
    """The first letter of the reply, whatever it is: "The answer is (B)" gives T."""
    found = re.match(r"[(\s]*([A-Z])", reply.strip(), re.IGNORECASE)
    return found[1].upper() if found else None


def lmms_hrbench(reply: str, choices: Choices) -> str | None:
    """VLMEvalKit's matcher in an older form: the lone letter may stand anywhere, and no limit on length."""
    reply = reply.strip()
    if any(refusal in reply for refusal in REFUSALS):
        return "Z"
    return _only_word(reply, choices, within=None) or _only_text(reply, choices)


def lmms_mme_realworld(reply: str, choices: Choices) -> str | None:
    """The letter that lmms-eval reads for MME-RealWorld."""
    return _mme_letter(reply)


# In this order; of one pattern the last match that is an option counts.
_PUZZLE_PATTERNS = (
    r"Answer:\s*\(([A-Za-z])\)", r"(?<!Final )Answer:\s*([A-Za-z])", r"Answer:\s*([A-Za-z])", r"\(([A-Za-z])\)",
    r"([A-Za-z])\)", r"\{([A-Za-z])\}", r"\$([A-Za-z])\$", r" ([A-Da-d])\.",
)


def lmms_visualpuzzles(reply: str, choices: Choices) -> str | None:
    """A cascade of patterns, then option texts; where it would draw a random letter, None."""
    text = " " + reply.strip()
    patterns = _PUZZLE_PATTERNS + ((r" ([A-Da-d])",) if len(text) <= 5 else ())
    for pattern in patterns:
        for letter in reversed(re.findall(pattern, text)):
            if letter.upper() in choices:
                return letter.upper()
    options = {letter: option for letter, option in choices.items() if option}
    for letter, option in options.items():
        if f"answer: {option}" in text.lower() or f"answer:{option}" in text.lower():
            return letter
    last = {letter: text.rfind(option) for letter, option in options.items()}
    return max(last, key=lambda letter: last[letter]) if options and max(last.values()) >= 0 else None


# Ours ----------------------------------------------------------------------------------------------------------------

SPECIAL = re.compile(r"<\|[^|<>]*\|>")
_LEAD = re.compile(r"(?:the\s+)?(?:correct\s+|best\s+)?answer(?:\s+is\s*:?|\s*:)\s*", re.IGNORECASE)


def strict_mapping(reply: str, choices: Choices) -> str | None:
    """The whole answer must name one offered option and nothing else: "B", "(b)", "B. red", "(B) red" or "red".

    The answer is what stands in the last `<answer>` tag, or the reply itself; special tokens, a leading "the answer
    is" and a final full stop are dropped. No first-letter guess: "Blue" is not B unless option B reads "blue".
    """
    answer = SPECIAL.sub("", reply).split("<answer>")[-1].split("</answer>")[0].strip()
    answer = _LEAD.sub("", answer, count=1) if _LEAD.match(answer) else answer
    return named(answer, choices)


def declared_answer(reply: str, choices: Choices) -> str | None:
    """The last answer that the reply declares among the offered options (`declared`): what a reader takes from it."""
    return declared(SPECIAL.sub("", reply), choices)


def open_answer(reply: str) -> str:
    """The text of an open answer: tag, special tokens, case, articles, punctuation at the ends and spacing dropped."""
    return plain_text(SPECIAL.sub("", reply).split("<answer>")[-1].split("</answer>")[0])


def plain_text(text: str) -> str:
    """A text without special tokens, case, articles, punctuation at the ends and spacing."""
    words = [word for word in SPECIAL.sub(" ", text).lower().split() if word not in ("a", "an", "the")]
    return " ".join(words).strip(" .,;:!?\"'")


# Selection -----------------------------------------------------------------------------------------------------------

RULES: dict[str, Rule] = {rule.__name__: rule for rule in (
    first_character, strict_tag, blink_official, vlmevalkit_match, vlmevalkit_mme_realworld, lmms_vstar, lmms_mmvp,
    lmms_blink, lmms_hrbench, lmms_mme_realworld, lmms_visualpuzzles, strict_mapping,
    declared_answer)}

# V*Bench's own script reads no reply at all: it compares the likelihood of the options (`most_likely`).
LIKELIHOOD = "likelihood"

# Not in the table, on purpose: MMVP's own harness asks GPT-4 about every reply, VLMEvalKit's VisualPuzzles a judge.
BY_HARNESS: dict[str, dict[str, str]] = {
    "lvr": {"*": "first_character"},
    "prism": {"*": "strict_tag"},
    "clean": {"*": "declared_answer"},
    "strict": {"*": "strict_mapping"},
    "vlmevalkit": {"vstar": "vlmevalkit_match", "mmvp": "vlmevalkit_match", "blink": "vlmevalkit_match",
                   "hrbench": "vlmevalkit_match", "mme_realworld": "vlmevalkit_mme_realworld"},
    "lmms_eval": {"vstar": "lmms_vstar", "mmvp": "lmms_mmvp", "blink": "lmms_blink", "hrbench": "lmms_hrbench",
                  "mme_realworld": "lmms_mme_realworld", "visualpuzzles": "lmms_visualpuzzles"},
    "own": {"vstar": LIKELIHOOD, "blink": "blink_official"},
}


def rule_name(harness: str, family: str) -> str:
    """The rule that a harness applies to a benchmark family; `LIKELIHOOD` where it scores options instead."""
    return lookup(BY_HARNESS, harness, family, "extraction rule")


def extract(rule: str, reply: str, choices: Choices) -> str | None:
    """The letter that a rule reads from a reply, or None. Raises BenchmarkError for an unknown rule."""
    if rule not in RULES:
        raise BenchmarkError(f"no extraction rule {rule!r}, expected one of {', '.join(RULES)}")
    return RULES[rule](reply, choices)


def most_likely(log_probs: list[np.ndarray], *, normalise: str = "mean") -> int:
    """Index of the option with the highest likelihood as the reply.

    log_probs: per option the log-probabilities [T_option] of its tokens (end of turn included, if the model is to
    say it). normalise: "mean" over tokens, as V*Bench's own script (smallest mean loss), or "sum".
    The first wins a tie, as argmin does there; with V*'s own option lists, whose first entry is the right one, that
    means that a tie counts as right.
    """
    reductions: dict[str, Callable[[np.ndarray], float]] = {"mean": np.mean, "sum": np.sum}
    if normalise not in reductions:
        raise BenchmarkError(f"normalise is {normalise!r}, expected mean or sum")
    if not log_probs or any(len(each) == 0 for each in log_probs):
        raise BenchmarkError("an option without tokens has no likelihood, expected at least one token each")
    scores = np.array([reductions[normalise](np.asarray(each, np.float64)) for each in log_probs])
    if np.isnan(scores).any():
        raise BenchmarkError(f"option {int(np.isnan(scores).argmax())} has likelihood NaN")
    return int(scores.argmax())
