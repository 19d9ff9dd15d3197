"""Checks the numeric fields of an experiment's config against their allowed ranges, before anything runs, and says
which fields came after runs had been recorded without them."""

import dataclasses
import fnmatch
import math
from collections.abc import Mapping
from typing import Any


class ConfigFieldError(ValueError):
    """A field of an experiment's config that does not fit the others."""


@dataclasses.dataclass(frozen=True)
class _Range:
    """Numbers from `least` to `most`; above: `least` itself is none of them; below: nor is `most`; endless: infinity is
    one of them."""

    least: float = 0
    most: float = math.inf
    whole: bool = False
    above: bool = False
    below: bool = False
    endless: bool = False

    def holds(self, value: Any) -> bool:
        if isinstance(value, bool) or not isinstance(value, int if self.whole else int | float):
            return False
        if abs(value) == math.inf and not self.endless:
            return False
        # Written so that nan is in no range.
        low = self.least < value if self.above else self.least <= value
        return low and (value < self.most if self.below else value <= self.most)

    def __str__(self) -> str:
        low = f"{'above' if self.above else 'at least'} {self.least:g}"
        most = self.most if self.whole else f"{self.most:g}"
        high = "" if self.most == math.inf else f", {'below' if self.below else 'at most'} {most}"
        return f"{'a whole number' if self.whole else 'a number'}, {low}{high}"


COUNT, SIZE = _Range(0, whole=True), _Range(1, whole=True)
AMOUNT, POSITIVE, SHARE = _Range(0), _Range(0, above=True), _Range(0, 1)
DECAY = _Range(0, 1, below=True)

NUMBERS = {
    # A key of jax.random has 32 bits of its seed; the step is an int32 of the state.
    "seed": _Range(0, 2**32 - 1, whole=True), "steps": _Range(0, 2**31 - 1, whole=True),
    "branches.shared": COUNT, "branches.each": COUNT, "branches.count": SIZE,
    "rows": SIZE, "accumulate": SIZE, "shards": COUNT, "init.fork_at": SHARE,
    "objective.diversity": AMOUNT, "objective.noise": AMOUNT, "objective.chunk": SIZE,
    "optimizer.peak": AMOUNT, "optimizer.eps": POSITIVE, "optimizer.weight_decay": AMOUNT,
    "optimizer.warmup_ratio": SHARE, "optimizer.clip": _Range(0, above=True, endless=True),
    "data.tokens": SIZE, "data.windows": SIZE, "data.pooled": COUNT, "data.lookahead": SIZE,
    "data.workers": COUNT, "data.prefetch": COUNT, "data.max_skip_share": SHARE, "data.min_pixels": SIZE,
    "data.max_pixels": SIZE, "system.budget": COUNT, "held_out.every": COUNT, "held_out.examples": SIZE,
    "held_out.max_new_tokens": SIZE, "checkpoint.every": COUNT, "checkpoint.minutes": AMOUNT,
    "checkpoint.keep": COUNT, "checkpoint.keep_every": COUNT, "hang_minutes": AMOUNT,
    "log.every": SIZE, "profile.start": COUNT, "profile.steps": COUNT,
}  # fmt: skip
EACH = {"objective.stage_weights": AMOUNT, "optimizer.betas": DECAY}
# Values at shares of the run.
POINTS = {"reconstruction.points": AMOUNT, "own.points": SHARE}
# Fields that came later, with the value that computes what was computed before them. A record without the field and one
# with this value are of the same run.
LATER: dict[str, Any] = {
    "latent_head": "", "data.sources.*.mask_share": 1.0, "held_out.sources.*.mask_share": 1.0,
    "branches": {"shared": 0, "each": 0, "count": 1}, "data.sources.*.questions": 1,
}  # fmt: skip


def check_numbers(config: Mapping) -> None:
    """ConfigFieldError for the first field that is missing or out of its range."""
    for name, allowed in NUMBERS.items():
        value = _field(config, name)
        if not allowed.holds(value):
            raise ConfigFieldError(f"{name} is {value!r}, expected {allowed}")
    for name, allowed in EACH.items():
        values = _field(config, name)
        if isinstance(values, str) or not all(map(allowed.holds, values)):
            raise ConfigFieldError(f"{name} is {values!r}, expected of each {allowed}")
    for name, allowed in POINTS.items():
        points = _field(config, name)
        pairs = isinstance(points, list | tuple) and all(isinstance(p, list | tuple) and len(p) == 2 for p in points)
        if not (pairs and points and all(SHARE.holds(share) and allowed.holds(value) for share, value in points)):
            raise ConfigFieldError(f"{name} is {points!r}, expected one or more (share of the run, value), and of each "
                                   f"value {allowed}")  # fmt: skip


def without_later(fields: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """The fields of a config, less those of LATER that are as if they were not there."""
    kept = {}
    for name, value in fields.items():
        path = f"{above}{name}"
        usual = [LATER[pattern] for pattern in LATER if fnmatch.fnmatchcase(path, pattern)]
        if value not in usual:
            kept[name] = without_later(value, f"{path}.") if isinstance(value, Mapping) else value
    return kept


def _field(config: Mapping, name: str) -> Any:
    for part in name.split("."):
        if part not in config:
            raise ConfigFieldError(f"{name} is missing from the config, see configs/common.py")
        config = config[part]
    return config
