"""Words and tables of the page: numbers with their signs and intervals, Markdown."""

import math
from collections.abc import Sequence

from lvr_jax.prism.statistics.intervals import Interval

NOTHING = "–"


def signed(value: float, digits: int = 1) -> str:
    """A number with its sign, and a minus that is one."""
    text = f"{value:+.{digits}f}"
    return text[1:] if float(text) == 0 else text.replace("-", "−")


def limits(interval: Interval | None, digits: int = 2, sign: bool = True) -> str:
    """An estimate with its interval; one seed has none."""
    if interval is None:
        return NOTHING
    form = (lambda v: signed(v, digits)) if sign else (lambda v: f"{v:.{digits}f}".replace("-", "−"))
    if not (math.isfinite(interval.low) and math.isfinite(interval.high)):
        return f"{form(interval.point)} [one seed]"
    return f"{form(interval.point)} [{form(interval.low)}, {form(interval.high)}]"


def p_value(p: float) -> str:
    """With its sign: "= 0.012", "< 0.001"."""
    return "< 0.001" if p < 0.001 else f"= {p:.3f}"


def plural(count: int, word: str) -> str:
    """A count with its noun."""
    return f"{count} {word}" if count == 1 else f"{count} {word}s"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """A Markdown table; the first `left` columns are text, the others numbers. A cell may hold bars."""
    line = lambda cells: "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"  # noqa: E731
    return "\n".join([line(head), line(["---"] * left + ["---:"] * (len(head) - left)), *map(line, rows)])


def listed(names: Sequence[str], most: int = 12) -> str:
    """Names as a list in a sentence; what is beyond `most` is counted."""
    shown = ", ".join(f"`{name}`" for name in names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
