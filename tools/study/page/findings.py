"""The results of a full study as records: what every checkpoint answered, by how much of it through its latents."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from lvr_jax.prism.statistics import nested
from lvr_jax.prism.statistics.intervals import Interval, tango

BLIND = "answer_blind_to_latents"


@dataclasses.dataclass(frozen=True)
class Counts:
    """One condition on the items that it had something for: right with it, right without it (`own`), gained, lost."""

    items: int
    own: int
    right: int
    gained: int
    lost: int

    @property
    def delta(self) -> float:
        """Points of accuracy that the condition adds, on the same items."""
        return 100 * (self.right - self.own) / self.items

    @property
    def interval(self) -> Interval:
        """Tango's, in points: of other items, for this checkpoint alone."""
        found = tango(self.gained, self.lost, self.items)
        return Interval(*(100 * float(each) for each in (found.point, found.low, found.high)))


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """One trained checkpoint and what its audit counted.

    blocks: of the study, the first is its own; recipe: what seeds share; axes: what recipes may differ by, resolved
    items, right: of the audit's clean pass, by content (of the evaluation, where there are no latents to audit)
    cosine, free: of the last stage's latents with their targets, teacher-forced and as the model makes them
    argued: by condition, answers that are what a donor's latents argue for: items, with own latents, with those
    seconds: of processor time that it took, None where it is not known
    kinds: by kind of question, items and how many of them were answered right, in the evaluation
    setting: what the answer was trained to see: plain, bottleneck, masked, ..
    """

    name: str
    blocks: tuple[str, ...]
    recipe: str
    seed: int
    axes: Mapping[str, Any]
    items: int
    right: int
    cosine: float | None
    free: float | None
    conditions: Mapping[str, Counts]
    argued: Mapping[str, tuple[int, int, int]] = dataclasses.field(default_factory=dict)
    seconds: float | None = None
    kinds: Mapping[str, tuple[int, int]] = dataclasses.field(default_factory=dict)
    setting: str = "plain"

    @classmethod
    def of(cls, result: Mapping[str, Any]) -> "Checkpoint":
        """Of a stored result (study.store)."""
        audit, score, cosine = result["audit"], result["scores"]["content"], result["cosine"] or {}
        clean = score if audit is None else audit
        spent = [stage["processor"] for stage in (result["seconds"] or {}).values()]
        return cls(
            result["name"], tuple(result["blocks"]), result["recipe"], result["seed"], result["axes"],
            clean["items"], clean["right"], cosine.get("taught"), cosine.get("free"),
            {name: Counts(c["n"], c["clean"], c["right"], c["gained"], c["lost"])
             for name, c in (result["conditions"] or {}).items()},
            {name: (a["items"], a["clean"], a["fed"]) for name, a in (result["argued"] or {}).items()},
            sum(spent) if spent else None,
            {name: (k["items"], k["right"]) for name, k in (result["scores"].get("by_category") or {}).items()},
            result["setting"],
        )  # fmt: skip

    @property
    def block(self) -> str:
        return self.blocks[0]

    @property
    def system(self) -> str:
        """Its setting, and where its latents came from in training unless from teacher forcing: in each of them a
        change of cosine or of accuracy means something else."""
        feedback = self.axes.get("feedback", "teacher")
        return self.setting if feedback == "teacher" else f"{self.setting}, {feedback}"

    @property
    def group(self) -> str:
        """Its block, and its system there: what correlations are taken inside of."""
        return f"{self.block}: {self.system}"

    @property
    def is_whole(self) -> bool:
        """Whether it is the end of a run and no earlier state."""
        return self.axes.get("at") == self.axes.get("steps")

    @property
    def accuracy(self) -> float:
        return 100 * self.right / self.items

    @property
    def blind(self) -> float | None:
        """Accuracy of the answer that cannot see its latents."""
        counts = self.conditions.get(BLIND)
        return None if counts is None else 100 * counts.right / counts.items

    @property
    def through(self) -> float | None:
        """What the latents add to it: accuracy is `blind` + `through`, exactly."""
        counts = self.conditions.get(BLIND)
        if counts is None:
            return None
        if counts.items != self.items or counts.own != self.right:
            raise ValueError(f"{self.name}: {BLIND} has {counts.items} items and {counts.own} right without it, "
                             f"expected {self.items} and {self.right}, those of the clean pass")  # fmt: skip
        return 100 * (self.right - counts.right) / self.items

    def delta(self, condition: str) -> float | None:
        counts = self.conditions.get(condition)
        return None if counts is None or not counts.items else counts.delta

    def follows(self, condition: str) -> float | None:
        """Points by which more answers are what the fed latents argue for."""
        found = self.argued.get(condition)
        return None if found is None or not found[0] else 100 * (found[2] - found[1]) / found[0]

    def measure(self, name: str) -> float | None:
        """A number by name: `accuracy`, `cosine`, `free`, `blind`, `through`, `delta CONDITION`, `follows CONDITION`,
        or an axis that is a number (`lambda`)."""
        verb, _, condition = name.partition(" ")
        if condition:
            return getattr(self, verb)(condition)
        return self.axes[name] if name in self.axes else getattr(self, name)


@dataclasses.dataclass(frozen=True)
class Line:
    """Checkpoints in which one thing varies: an axis or, where it is none of them, what is measured anyway."""

    label: str
    along: str
    checkpoints: tuple[Checkpoint, ...]

    @property
    def ordered(self) -> list[list[Checkpoint]]:
        """Recipes, each with its seeds, in the order of what varies."""
        found = list(recipes(self.checkpoints).values())
        return sorted(found, key=lambda seeds: np.mean([self.place(c) for c in seeds]))

    def place(self, c: Checkpoint) -> float:
        value = c.measure(self.along)
        return float("inf") if value is None else float(value)


def pairs(checkpoints: Iterable[Checkpoint], x: str, y: str) -> list[tuple[Checkpoint, float, float]]:
    """Those that have both measures, with them."""
    found = [(c, c.measure(x), c.measure(y)) for c in checkpoints]
    return [(c, a, b) for c, a, b in found if a is not None and b is not None]


def recipes(checkpoints: Sequence[Checkpoint]) -> dict[str, list[Checkpoint]]:
    """Seeds by recipe, in order of first appearance."""
    found: dict[str, list[Checkpoint]] = {}
    for c in checkpoints:
        found.setdefault(c.recipe, []).append(c)
    return found


def average(checkpoints: Sequence[Checkpoint], measure: str) -> Interval | None:
    """Mean over seeds with its t interval; a single seed has limits of NaN, and none has None."""
    values = [v for v in (c.measure(measure) for c in checkpoints) if v is not None]
    if not values:
        return None
    return nested.mean(values) or Interval(values[0], float("nan"), float("nan"))


def carried(checkpoints: Sequence[Checkpoint], part: str = "blind", level: float = 0.95) -> Interval | None:
    """The share of accuracy's change over checkpoints that one part carries: the slope of that part on accuracy.

    The slopes of `blind` and of `through` sum to one, as the parts sum to accuracy.
    """
    there = pairs(checkpoints, "accuracy", part)
    return nested.slope([a for _, a, _ in there], [b for _, _, b in there], level)


def related(checkpoints: Sequence[Checkpoint], x: str = "cosine", level: float = 0.95) -> Interval | None:
    """Pearson's r of accuracy with another measure, and Fisher's interval over checkpoints."""
    found = _grouped(checkpoints, x, level, lambda c: "all")
    return None if found is None else found.each["all"]


def by_group(
    checkpoints: Sequence[Checkpoint], x: str = "cosine", level: float = 0.95
) -> nested.Correlations | None:
    """Correlations of accuracy inside blocks, each setting of one by itself, and between them; a checkpoint of several
    blocks counts in its first."""
    return _grouped(checkpoints, x, level, lambda c: c.group)


def _grouped(checkpoints, x: str, level: float, group: Callable[[Checkpoint], str]) -> nested.Correlations | None:
    there = pairs(checkpoints, x, "accuracy")
    if not there:
        return None
    x_values, y_values = np.array([(a, b) for _, a, b in there]).T
    return nested.correlations(x_values, y_values, [group(c) for c, _, _ in there], level)


def modelled(checkpoints: Sequence[Checkpoint], level: float = 0.95) -> nested.Mixed | None:
    """The mixed model of accuracy on cosine, with the same groups."""
    there = pairs(checkpoints, "cosine", "accuracy")
    if not there:
        return None
    x_values, y_values = np.array([(a, b) for _, a, b in there]).T
    return nested.mixed(x_values, y_values, [c.group for c, _, _ in there], [c.recipe for c, _, _ in there], level)
