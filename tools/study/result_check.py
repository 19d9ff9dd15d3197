"""Checks a stored result of a study field by field, before a page is made of it: a file that was edited or half
transferred is named, whatever is wrong with it."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lvr_jax.files.json_io import JsonError
from study import store
from study.runs import SETTINGS


def check(result: Mapping[str, Any], path: Path, name: str | None) -> None:
    """JsonError naming file and field. The fields are those that tools/study/store.py lists and a page reads.

    name: of the run whose place the file has; None where no run of the study has it
    """

    def need(field: str, holds: Callable[[Any], bool], expected: str, of: Any = result) -> Any:
        *_, last = field.split(".")
        if not isinstance(of, Mapping) or last not in of:
            raise JsonError(f"{path}: {field} is missing")
        if not holds(of[last]):
            raise JsonError(f"{path}: {field} is {of[last]!r}, expected {expected}")
        return of[last]

    def tally(field: str, of: Any, whole: str = "items", parts: tuple[str, ...] = ("right",)) -> None:
        items = need(f"{field}.{whole}", lambda x: _count(x) and x > 0, "a whole number above 0", of)
        for part in parts:
            need(f"{field}.{part}", lambda x: _count(x) and x <= items, f"a whole number, at most {items}", of)

    def each(field: str, of: Any = result) -> list[tuple[str, Any]]:
        found = need(field, _fields_or_none, "an object or null", of)
        return [(f"{field}.{name}", value) for name, value in (found or {}).items()]

    for field in ("name", "recipe", "config", "key"):
        need(field, _text, "text")
    need("name", lambda x: name in (None, x), f"{name!r}, of the run that has this place")
    need("setting", lambda x: x in SETTINGS, f"one of {', '.join(SETTINGS)}")
    need("seed", _count, "a whole number")
    need("axes", _fields, "an object")
    if result["status"] == store.FAILED:
        need("error", _text, "text")
        return
    scores = need("scores", _fields, "an object")
    tally("scores.content", need("scores.content", _fields, "an object", scores))
    if "by_category" in scores:
        for field, counts in each("scores.by_category", scores):
            tally(field, counts)
    if (audit := need("audit", _fields_or_none, "an object or null")) is not None:
        tally("audit", audit)
    for field, counts in each("conditions"):
        tally(field, counts, "n", ("clean", "right", "gained", "lost"))
        delta = (counts["right"] - counts["clean"]) / counts["n"]
        need(f"{field}.delta", _near(delta), f"{delta:.4f}, by its counts", counts)
    for field, counts in each("argued"):
        tally(field, counts, parts=("clean", "fed"))
    if (cosine := need("cosine", _fields_or_none, "an object or null")) is not None:
        for kind in ("taught", "free", "box_mean"):
            need(f"cosine.{kind}", lambda x: x is None or _number(x) and abs(x) <= 1 + 1e-6, "-1 to 1, or null", cosine)
    if (verdict := need("verdict", _fields_or_none, "an object or null")) is not None:
        need("verdict.kind", _text, "text", verdict)
    for field, stage in each("seconds"):
        need(f"{field}.processor", lambda x: _number(x) and x >= 0, "a number, at least 0", stage)


def _near(value: float) -> Callable[[Any], bool]:
    return lambda x: _number(x) and abs(x - value) < 1e-6


def _text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _fields(value: Any) -> bool:
    return isinstance(value, dict)


def _fields_or_none(value: Any) -> bool:
    return value is None or isinstance(value, dict)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
