"""Schedules of the learning rate and loss weights: functions of the step, inside jit."""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

Schedule = Callable[[jax.Array], jax.Array]      # int32 step -> fp32


@dataclasses.dataclass(frozen=True)
class Points:
    """A value that is known at some steps: (step, value), steps rising.

    between: `hold` keeps the last value until the next point (D-LVR's weight: 0.1, and 0 from step 1,500 on);
    `linear` goes there in a straight line. Before the first and after the last point the value is theirs.
    """

    points: tuple[tuple[int, float], ...]
    between: str = "hold"

    def __post_init__(self):
        steps = [step for step, _ in self.points]
        if self.between not in ("hold", "linear"):
            raise ValueError(f"schedule.between is {self.between!r}, expected 'hold' or 'linear'")
        if not steps or steps != sorted(set(steps)):
            raise ValueError(f"schedule.points {self.points}: expected one or more (step, value), steps rising")

    def __call__(self, step: jax.Array) -> jax.Array:
        steps = jnp.array([s for s, _ in self.points], jnp.float32)
        values = jnp.array([v for _, v in self.points], jnp.float32)
        if self.between == "linear":
            return jnp.interp(jnp.asarray(step, jnp.float32), steps, values)
        return values[jnp.maximum(jnp.sum(steps <= step) - 1, 0)]


def cosine_with_warmup(peak: float, steps: int, warmup_ratio: float) -> Schedule:
    """0 -> peak in ceil(ratio * steps) steps, then half a cosine to 0: transformers' `cosine`, first step at 0."""
    warmup = math.ceil(steps * warmup_ratio)

    def rate(step: jax.Array) -> jax.Array:
        step = jnp.asarray(step, jnp.float32)
        progress = (step - warmup) / max(1, steps - warmup)
        falling = jnp.maximum(0.0, 0.5 * (1 + jnp.cos(jnp.pi * progress)))
        return peak * jnp.where(step < warmup, step / max(1, warmup), falling)

    return rate
