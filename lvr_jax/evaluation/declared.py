r"""Reads the option that a reply declares as its answer, in the forms in which people and models write that.

A declaration is a phrase ("the correct answer is B", "B is correct", "I choose (B)"), `\boxed{B}`, a line that is an
option by itself, or a reply that begins with a label ("B. The cup ..."). The last one counts, as reasoning comes before
its result. Only where there is none, the one option in bold type counts, then the one that is named in brackets.
Options that are only talked about are no answer: two options at once, a question, a negation, a condition and a letter
whose text is another option's give None.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

_STOPS = ("", ".", ":")
_EMPHASIS = re.compile(r"\*+|`+|__+|(?<!\w)_|_(?!\w)|\$+|\\[()\[\]]|</?(?:b|i|em|strong)>")
_LATEX_TEXT = re.compile(r"\\(?:text|textbf|textrm|mathrm|mathbf|mathsf)\s*\{([^{}]*)\}")
_BOXED = re.compile(r"\\f?boxed\s*\{\s*([^{}]*?)\s*\}")
_THOUGHT = re.compile(r"<think>.*?</think>", re.DOTALL)

# One letter: in brackets or quotes, as a capital, or small at the end of what is said ("a" is an article elsewhere).
_LETTER = (r"(?:(?:option|choice|answer|letter)\s+)?(?:[(\[{]\s*([A-Za-z])\s*[)\]}]|[\"'“‘]([A-Za-z])[\"'”’]"
           r"|((?-i:[A-Z]))(?!\w|['’-]\w)|([a-z])(?=\s*[.):,;!]*\s*(?:\n|$)))")
_BE = (r"(?:is|was|must\s+be|should\s+be|would\s+be|will\s+be|seems\s+to\s+be|appears\s+to\s+be)\b"
       r"(?:\s+(?:therefore|thus|then|clearly|definitely|likely|probably|indeed|actually|simply|most\s+likely))?\s*[:：]?")
_LEAD = (r"(?:\b(?:answer|option|choice|letter|solution|conclusion|result|selection)"
         r"(?:\s+(?:choice|option|letter|here))?"
         rf"(?:\s+(?:to|for|of)\s+(?:the|this|that)\s+\w+)?[\"'”’)]*\s*(?:{_BE}|[:：=→]|->)|答案(?:是|为|[:：]))[\s>#\"'“‘]*")
_PHRASES = tuple(re.compile(pattern, re.IGNORECASE) for pattern in (
    rf"{_LEAD}{_LETTER}",
    rf"\b(?:I|we)(?:['’](?:d|ll)|\s+would|\s+will|\s+must)?\s+(?:choose|pick|select|go\s+with|answer|say|conclude)\s+{_LETTER}",
    rf"(?<![\w'’]){_LETTER}[^.!?\n]{{0,60}}?\s(?:is|must\s+be|seems)\s+(?:\w+ly\s+)?(?:correct(?!\s+\w)|correct\s+(?=because|as\b|since)"
    r"|(?:the|my|our)\s+(?:\w+\s+)?(?:answer|option|choice)\b)",
    rf"\b(?:so|therefore|thus|hence|it\s+is|it['’]s|it\s+must\s+be)[,:]?\s+{_LETTER}(?=[^\w\n]*(?:\n|$))",
))  # fmt: skip
_SPOKEN = re.compile(_LEAD, re.IGNORECASE)          # what may be followed by an option's text as well
_CLAUSE = re.compile(r"[.!?;,:\n]|\b(?:but|so|therefore|hence|thus|because|then)\b", re.IGNORECASE)
_SENTENCE = re.compile(r"[.!?\n]")
_DENIED = re.compile(r"\b(?:not|never|neither|nor|no|none|cannot|if|whether|unless|were|doubt|suppose|assuming|wrong"
                     r"|incorrect|unlikely|least|worst|possible|another|than)\b|n['’]t\b", re.IGNORECASE)  # fmt: skip
_NO_DOUBT = re.compile(r"\b(?:no|without|beyond|any|a)\s+doubt\b", re.IGNORECASE)
_AFTER_LABEL = re.compile(r"[).:\]}\"'”’\s–—-]*")
_REASON = re.compile(r"\s+(?:because|since|as|is|was|and|or|but|for|due|based|given)\b")
_ANOTHER = re.compile(r"[\s\"'”’)\]]*(?:,|/|&|\bor\b|\band\b)\s*(?:(?:or|and|maybe|perhaps|possibly|either|even)\s+)*"
                      rf"{_LETTER}(?!\s+(?:is|was|are|would|has|shows|looks|can|does|could)\b)", re.IGNORECASE)

_UNCLEAR = "unclear"

Choices = Mapping[str, str]


def named(answer: str, choices: Choices) -> str | None:
    """The one option that a text is: "B", "(b)", "B. red", "(B) red" or "red", and nothing besides."""
    answer = " ".join(answer.split()).removesuffix(".").strip().lower()
    if not answer:
        return None
    by_letter, by_text = [], []
    for letter, text in choices.items():
        option = " ".join(text.split()).removesuffix(".").strip().lower()
        marks = (letter.lower(), f"({letter.lower()})", f"{letter.lower()})")
        if answer in marks or (option and answer in {f"{mark}{stop} {option}" for mark in marks for stop in _STOPS}):
            by_letter.append(letter)
        if answer == option:
            by_text.append(letter)
    readings = by_letter or by_text      # where option B reads "A", a bare "A" is still the letter that was asked for
    return readings[0] if len(readings) == 1 else None


def declared(reply: str, choices: Choices) -> str | None:
    """The letter of the offered option that the reply, without special tokens, declares last; None if it is unclear."""
    said = _spoken(reply)
    bold = re.findall(r"\*\*([^*\n]+)\*\*", said)
    plain = _EMPHASIS.sub("", _BOXED.sub(r"; the answer is: \1.\n", _LATEX_TEXT.sub(r"\1", said))).strip()
    whole = _alone(plain, choices)
    if whole:
        return whole
    found = [*_phrases(plain, choices), *_texts(plain, choices), *_lines(plain, choices), *_label_first(plain, choices)]
    if found:
        return max(found, key=lambda each: each[0])[1]
    return _only(_alone(span, choices) for span in bold) or _only(_in_brackets(plain, choices))


def _alone(text: str, choices: Choices) -> str | None:
    """As `named`, for a line with bullet, quotes and final punctuation; first as it stands, as an option may be -3."""
    bare = re.sub(r"^(?:option|choice|answer)\s+", "", text.strip(" \t\n#>-•\"'“”‘’[]{}!,:;"), flags=re.IGNORECASE)
    return named(text, choices) or named(bare, choices)


def _spoken(reply: str) -> str:
    """What is said outside thoughts, in the last <answer> tag where there is one; an endless thought says nothing."""
    said = _THOUGHT.sub("\n", reply).split("</think>")[-1].split("<think>")[0]
    return said.split("<answer>")[-1].split("</answer>")[0]


def _phrases(text: str, choices: Choices) -> Iterator[tuple[int, str | None]]:
    for pattern in _PHRASES:
        for match in pattern.finditer(text):
            group = next(i for i, letter in enumerate(match.groups(), 1) if letter)
            end = match.end(group)
            if not _denied(text, match) and not _an_article(text, match, group) and not _asked(text[end:]):
                yield end, _offered(match[group], text[end:], choices)


def _texts(text: str, choices: Choices) -> Iterator[tuple[int, str | None]]:
    """The answer is red: an option's own words after a lead."""
    for match in _SPOKEN.finditer(text):
        rest = re.sub(r"^(?:the|a|an)\s+", "", text[match.end():], flags=re.IGNORECASE)
        letter = _text_at(rest, choices)
        if letter and not _denied(text, match):
            yield match.end() + 1, letter


def _lines(text: str, choices: Choices) -> Iterator[tuple[int, str | None]]:
    """The lines that are one option; a list of the options declares none of them."""
    lines = [(match.end(), _alone(match[0], choices)) for match in re.finditer(r"[^\n]+", text)]
    lines = [each for each in lines if each[1]]
    if _only(letter for _, letter in lines):
        yield lines[-1]


def _label_first(text: str, choices: Choices) -> Iterator[tuple[int, str | None]]:
    first = re.match(r"(?:option\s+)?(?:\(([A-Z])\)|([A-Z])[.):,])(?=\s)", text)
    labels = {letter for letter in choices if re.search(rf"(?:^|\s)(?:\({letter}\)|{letter}[.):])", text)}
    letter = first and (first[1] or first[2])
    if letter in choices and labels <= {letter}:
        yield 0, _offered(letter, text[first.end():], choices)


def _in_brackets(text: str, choices: Choices) -> Iterator[str | None]:
    for match in re.finditer(r"\(([A-Z])\)", text):
        if match[1] in choices and not _denied(text, match, _SENTENCE) and not _asked(text[match.end():]):
            yield _offered(match[1], text[match.end():], choices) or _UNCLEAR
        elif match[1] in choices:
            yield _UNCLEAR                  # an option beside those that are ruled out was not declared


def _offered(letter: str, rest: str, choices: Choices) -> str | None:
    """The letter, unless it is not offered, goes on with another option's text or is one of two."""
    letter = next((each for each in choices if each.lower() == letter.lower()), None)
    if letter is None:
        return None
    text = rest[_AFTER_LABEL.match(rest).end():]
    own = " ".join(choices[letter].split()).removesuffix(".").lower()
    if own and text.lower().startswith(own):
        rest = text[len(own):]
    elif _text_at(text, choices) not in (None, letter):
        return None
    other = _ANOTHER.match(rest)
    if other and next(filter(None, other.groups())).upper() not in (letter.upper(), "I"):
        return None
    return letter


def _text_at(text: str, choices: Choices) -> str | None:
    """The option whose text stands here, up to the end of a clause; the longest, if one begins with another."""
    here: dict[int, list[str]] = {}
    for letter, option in choices.items():
        option = " ".join(option.split()).removesuffix(".")
        if option and re.match(rf"{re.escape(option)}[\"'”’)]*(?:\s*(?:$|\n|[.,;!](?!\d)))", text, re.IGNORECASE):
            here.setdefault(len(option), []).append(letter)
    longest = here[max(here)] if here else []
    return longest[0] if len(longest) == 1 else None


def _denied(text: str, match: re.Match, boundary: re.Pattern = _CLAUSE) -> bool:
    """Whether the clause that the match stands in, up to its letter, is a negation or a condition."""
    boundary = _SENTENCE if "would" in match[0].lower() else boundary
    first = max(0, match.start() - 400)     # no clause is longer; a reply of nothing but letters is still read fast
    starts = [first, *(each.end() for each in boundary.finditer(text, first, match.start()))]
    return bool(_DENIED.search(_NO_DOUBT.sub("", text[starts[-1] : match.end()])))


def _asked(rest: str) -> bool:
    return bool(re.match(r"[^.!\n]{0,40}\?", rest))


def _an_article(text: str, match: re.Match, group: int) -> bool:
    """Whether a bare capital A (or I) begins a text: Answer: A cup stands on the table."""
    if match[group] not in ("A", "I") or text[match.start(group) - 1 : match.start(group)] in tuple("([{\"'“‘"):
        return False
    rest = text[match.end(group):]
    return bool(re.match(r"\s+[a-z]", rest)) and not _REASON.match(rest)


def _only(letters) -> str | None:
    """The one letter among several readings; none where two differ."""
    found = {letter for letter in letters if letter}
    return found.pop() if len(found) == 1 and _UNCLEAR not in found else None
