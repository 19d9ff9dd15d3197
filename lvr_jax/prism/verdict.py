"""Two verdicts from a corruption sweep, in one unit: does the answer listen to what stands in the latents' place, and
do the model's own latents carry anything?

The unit is the accuracy of the answer's content, in points against the clean pass. All comparisons of a verdict have
intervals that hold for all of them together, so that the largest one may be singled out. What n cannot show is said.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from lvr_jax.prism.statistics import intervals
from lvr_jax.prism.statistics.intervals import Interval, wilson
from lvr_jax.prism.statistics.power import minimum_detectable_effect
from lvr_jax.prism.statistics.simultaneous import simultaneous

# What a condition can show. LISTENS: something that argues for an answer stands in the latents' place (an oracle, a
# wrong box, another answer's latents). CARRIES: other content of the same kind. HIDES: the answer cannot see them.
# FORMAT: latents are gone and the reply begins elsewhere.
LISTENS, CARRIES, HIDES, FORMAT = "listens", "carries", "hides", "format"
ROLES = (LISTENS, CARRIES, HIDES, FORMAT)
# Shares of what could be lost or gained. A smaller effect has no name even where it is found; one that was not found is
# excluded only if its interval ends below OVERLOOKED; from MOST on, little but chance is left.
NEGLIGIBLE, OVERLOOKED, MOST = 0.05, 0.25, 0.75

YES, NO, HARMFUL, UNDECIDED, UNTESTABLE = "yes", "no", "harmful", "undecided", "cannot be tested"
USES, PARTLY, BELIEVED, EMPTY = (
    "uses its latents", "partly uses its latents", "redundant but believed", "listens, own latents empty"
)  # fmt: skip
IGNORED, FORMAT_ONLY = "ignored", "format only"
KINDS = (USES, PARTLY, BELIEVED, EMPTY, IGNORED, FORMAT_ONLY, HARMFUL, UNDECIDED, UNTESTABLE)


@dataclass(frozen=True)
class Question:
    """answer: yes, no, undecided, ... ; condition: the most telling one, with its effect (simultaneous interval, share
    of 1) and adjusted p; share: of the clean edge over the floor that it takes (None where there is no edge)."""

    answer: str
    condition: str
    effect: Interval
    p: float
    share: float | None


@dataclass(frozen=True)
class Verdict:
    """kind: one of KINDS; listens, carries, needed (None: nothing was run that hides or removes them).

    form: of the format condition whose letters moved while the content did not, the letters' effect (None: no such)
    clean, floor: accuracy, and what chance or always the commonest answer give; comparisons: that the intervals hold
    for together; smallest: the loss that so many items would show with 80 % power; sentences: all of it in words
    """

    kind: str
    listens: Question
    carries: Question
    needed: Question | None
    form: Question | None
    clean: float
    floor: float
    n: int
    comparisons: int
    smallest: float
    sentences: tuple[str, ...]


def two_verdicts(
    clean, conditions, *, names: Sequence[str], roles: Mapping[str, str], floor: float, letters=None, level=0.95,
    draws=intervals.DRAWS, seed=0,
) -> Verdict:  # fmt: skip
    """From right or wrong of the answer's content, clean [I] and conditions [C, I] (NaN: nothing to feed).

    roles: of each name, one of ROLES; at least one LISTENS or CARRIES. floor: accuracy that needs no latent, no picture
    and no question. letters: (clean [I], conditions [C, I]) of the letter, where replies name the content too.
    Raises ValueError on shapes or roles that disagree.
    """
    clean, conditions = np.asarray(clean, float), np.asarray(conditions, float)
    n = len(clean)
    if conditions.shape != (len(names), n) or set(roles.values()) - set(ROLES) or set(names) - set(roles):
        raise ValueError(f"conditions {conditions.shape}, roles {dict(roles)}; expected [{len(names)} names, {n} items]"
                         f" and for each name one of {', '.join(ROLES)}")  # fmt: skip
    if not {LISTENS, CARRIES} & {roles[name] for name in names}:
        raise ValueError(f"roles {dict(roles)}; expected a condition that {LISTENS} or {CARRIES}")
    moved = _Moved(conditions - clean, names, roles, letters, level, draws, seed)
    accuracy, edge = float(clean.mean()), float(clean.mean()) - floor
    testable = bool(wilson(clean.sum(), n, level).low > floor)
    gain = max([float(e.point) for _, e, _ in moved.of(LISTENS) if e.low > 0], default=0.0)
    room = max(edge, 1 - accuracy)

    listens = _listens(moved, testable, edge, room)
    carries = _carries(moved, testable, edge, max(edge, gain), gain, listens)
    needed = _needed(moved, testable, edge)
    form = _form(moved, edge)
    kind = _kind(listens, carries, needed, form)
    churn = moved.churn()
    smallest = minimum_detectable_effect(n, churn, 2 * float(stats.norm.sf(moved.critical)))
    told = _sentences(kind, listens, carries, needed, form, accuracy, floor, testable, n, len(moved.effects), smallest)
    return Verdict(kind, listens, carries, needed, form, accuracy, floor, n, len(moved.effects), smallest, told)


class _Moved:
    """All effects of a verdict, with intervals that hold together: of content by role, and of letters under FORMAT."""

    def __init__(self, differences, names, roles, letters, level, draws, seed):
        rows = [(name, roles[name], row) for name, row in zip(names, differences)]
        if letters is not None:
            before, after = (np.asarray(part, float) for part in letters)
            rows += [(name, "letter", after[c] - before) for c, name in enumerate(names) if roles[name] == FORMAT]
        self.rows = rows
        found = simultaneous(np.array([row for *_, row in rows]), level, draws, seed)
        self.critical = found.critical
        self.effects = [Interval(*map(float, each)) for each in zip(found.point, found.low, found.high)]
        self.p = found.p.tolist()

    def of(self, *roles: str) -> list[tuple[str, Interval, float]]:
        """Conditions that have one of these roles, as (name, effect, p)."""
        return [(name, e, p) for (name, role, _), e, p in zip(self.rows, self.effects, self.p) if role in roles]

    def churn(self) -> float:
        """The largest rate at which items flip against a condition's own direction."""
        flips = [(np.nanmean(row > 0), np.nanmean(row < 0)) for _, role, row in self.rows if role in (LISTENS, CARRIES)]
        return min(0.45, float(max(map(min, flips))))


def _question(answer: str, of: tuple[str, Interval, float], edge: float) -> Question:
    name, effect, p = of
    return Question(answer, name, effect, p, -effect.point / edge if edge > 0 else None)


def _listens(moved: _Moved, testable: bool, edge: float, room: float) -> Question:
    """Any effect, either way, of anything that is put in the latents' place; from the floor only a rise can show."""
    rows = moved.of(LISTENS, CARRIES)
    able = [r for r in rows if _excludes(r[1]) and abs(r[1].point) >= NEGLIGIBLE * room and (testable or r[1].low > 0)]
    if able:
        return _question(YES, max(able, key=lambda r: abs(r[1].point)), edge)
    widest = max(rows, key=lambda r: max(abs(r[1].low), abs(r[1].high)))
    if not testable and not moved.of(LISTENS):
        return _question(UNTESTABLE, widest, edge)
    reach = max(abs(widest[1].low), abs(widest[1].high)) if testable else max(r[1].high for r in rows)
    return _question(NO if reach < OVERLOOKED * room else UNDECIDED, widest, edge)


def _carries(moved: _Moved, testable: bool, edge: float, scale: float, gain: float, listens: Question) -> Question:
    """A loss where other content of the same kind stands in; scale: what latents can be seen to carry here."""
    rows = moved.of(CARRIES)
    if not rows:
        return Question(UNTESTABLE, listens.condition, listens.effect, listens.p, None)
    lost = min(rows, key=lambda r: r[1].point)
    if not testable:
        # At the floor there is nothing to lose; that other latents lift it shows what its own do not hold.
        return _question(NO if gain >= OVERLOOKED * (1 - edge) else UNTESTABLE, lost, edge)
    able = [r for r in rows if r[1].high < 0 and -r[1].point >= NEGLIGIBLE * edge]
    if able:
        return _question(YES, min(able, key=lambda r: r[1].point), edge)
    helped = [r for r in moved.of(CARRIES, HIDES) if r[1].low > 0 and r[1].point >= NEGLIGIBLE * edge]
    if helped:
        return _question(HARMFUL, max(helped, key=lambda r: r[1].point), edge)
    widest = min(rows, key=lambda r: r[1].low)
    return _question(NO if -widest[1].low < OVERLOOKED * scale else UNDECIDED, widest, edge)


def _needed(moved: _Moved, testable: bool, edge: float) -> Question | None:
    """What the answer loses where it cannot see the latents; where that was not run, where there are none."""
    rows = moved.of(HIDES) or moved.of(FORMAT)
    if not rows:
        return None
    worst = min(rows, key=lambda r: r[1].point)
    if not testable:
        return _question(UNTESTABLE, worst, edge)
    if worst[1].high < 0 and -worst[1].point >= NEGLIGIBLE * edge:
        return _question(YES, worst, edge)
    return _question(NO if -min(r[1].low for r in rows) < OVERLOOKED * edge else UNDECIDED, worst, edge)


def _form(moved: _Moved, edge: float) -> Question | None:
    """A format condition under which letters are lost and the content is not."""
    content = {name: effect for name, effect, _ in moved.of(FORMAT)}
    lost = [r for r in moved.of("letter") if r[1].high < 0 and not _excludes(content[r[0]])]
    lost = [r for r in lost if -r[1].point >= NEGLIGIBLE * max(edge, 0)]
    return _question(YES, min(lost, key=lambda r: r[1].point), edge) if lost else None


def _excludes(effect: Interval) -> bool:
    return effect.low > 0 or effect.high < 0


def _kind(listens: Question, carries: Question, needed: Question | None, form: Question | None) -> str:
    if carries.answer == YES:
        if needed is not None and needed.answer == NO:
            return BELIEVED
        return USES if carries.share >= MOST else PARTLY
    if carries.answer == HARMFUL:
        return HARMFUL
    if listens.answer == YES:
        return EMPTY if carries.answer == NO else UNDECIDED
    if UNTESTABLE in (listens.answer, carries.answer):
        return UNTESTABLE
    if listens.answer == carries.answer == NO:
        return FORMAT_ONLY if form is not None else IGNORED
    return UNDECIDED


_MEANING = {
    USES: "The answer uses its latents: with others in their place, little of its edge over chance is left",
    PARTLY: "The answer partly uses its latents",
    BELIEVED: "Redundant but believed: the answer can do without its latents, and follows wrong ones all the same",
    EMPTY: "The answer listens to what stands in the latents' place, but the model's own latents carry nothing that "
           "shows",
    IGNORED: "The latents are ignored",
    FORMAT_ONLY: "Format only: what stands in the latents' place does not matter, but the letter follows the format",
    HARMFUL: "The answer listens, and the model's own latents do harm",
    UNDECIDED: "Undecided: more items are needed",
    UNTESTABLE: "Cannot be tested: the clean run is not clearly above chance and the commonest answer, and nothing "
                "that was fed lifts it",
}  # fmt: skip
_ANSWERS = {
    YES: "yes", NO: "no", HARMFUL: "they do harm", UNDECIDED: "undecided", UNTESTABLE: "cannot be tested",
}  # fmt: skip


def _sentences(kind, listens, carries, needed, form, accuracy, floor, testable, n, comparisons, smallest):
    told = [
        f"{_MEANING[kind]} (n = {n}).",
        f"Does the answer listen to what stands there? {_ANSWERS[listens.answer].capitalize()}: {_effect(listens)}.",
        f"Do the model's own latents carry anything? {_ANSWERS[carries.answer].capitalize()}: {_effect(carries)}"
        f"{_share(carries, accuracy, floor)}.",
    ]  # fmt: skip
    if needed is not None:
        told.append(f"Does the answer need them? {_ANSWERS[needed.answer].capitalize()}: {_effect(needed)}.")
    if form is not None:
        told.append(f"The format matters by itself: {_effect(form, 'letters')}, while the content stays.")
    if not testable:
        told.append(f"The clean run's content is right in {accuracy:.1%}, not clearly above {floor:.1%} (chance, or "
                    "always the commonest answer): a loss cannot be tested.")  # fmt: skip
    told.append(f"Intervals hold for all {comparisons} comparisons together; with {n} items a loss of accuracy below "
                f"{100 * smallest:.1f} points would usually go unnoticed.")  # fmt: skip
    return tuple(told)


def _effect(q: Question, what: str = "content") -> str:
    point, low, high = (f"{100 * x:+.1f}".replace("-", "−") for x in (q.effect.point, q.effect.low, q.effect.high))
    p = "p < 0.001" if q.p < 1e-3 else f"p = {q.p:.2g}"
    return f"'{q.condition}' changes the accuracy of the {what} by {point} points ({low} to {high}, {p})"


def _share(q: Question, accuracy: float, floor: float) -> str:
    if q.share is None or q.answer not in (YES, HARMFUL):
        return ""
    kind = "of what the clean run has" if q.answer == YES else "beyond what the clean run has"
    return f", {abs(q.share):.0%} {kind} over the floor ({accuracy:.1%} against {floor:.1%})"
