"""Conditions of a sweep: what is done to the latents before they are fed, by name, by constructor or by function.

    "zero", "donor", "noise=0.3", "mean@0", "donor|latent_0:2"      NAMES, and what may follow them: see `condition`
    zero(), donor(), noise(0.3), only("mean", 0), patched("donor", "latent_0", 2)
    def halved(latents): return latents / 2                         [I, Z, D] -> [I, Z, D] of all items' clean latents

A function sees the clean latents of all items of the sweep, fp32, on the host; NumPy or JAX may compute its result. Z
counts the latents of all stages one after another, each as many as the budget allows: a block that closed earlier goes
on with its last latent, an item without latents has zeros. Its `__name__` is the condition's name.
"""

from __future__ import annotations

import dataclasses
import numbers
import re
from collections.abc import Callable, Sequence

import numpy as np

from lvr_jax.latents import conditions as engine
from lvr_jax.latents.conditions import ConditionError
from lvr_jax.latents.sources import SOURCES, Source, computed
from lvr_jax.latents.spec import Plan
from lvr_jax.prism.measure.corruptions import CONTEXTS, NAMED

Function = Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Condition:
    """record: the condition as the engine takes it; function: what makes the latents that it feeds, if any."""

    record: engine.Condition
    function: Function | None = None

    @property
    def name(self) -> str:
        return self.record.name

    def __repr__(self) -> str:
        return f"Condition({self.name!r})"


Asked = str | Condition | engine.Condition | Function

# Those that need no number.
NAMES: tuple[str, ...] = ("clean", *NAMED)
# By number: the name before "=", or before the "_" of tables.
NUMBERED: dict[str, Callable[[float], engine.Condition]] = {
    "noise": engine.absolute_noise, "relative_noise": engine.relative_noise,
    "budget": lambda n: engine.budget(_whole(n)),
}  # fmt: skip
_GIVEN = "lvr_jax.conditions.condition(function, NAME)"
_NUMBER = re.compile(rf"({'|'.join(NUMBERED)})[=_]([0-9.eE+-]+)")


def condition(asked: Asked, name: str = "") -> Condition:
    """A condition of a name, a function, or one that is made already.

        "noise=0.3", "relative_noise=0.1", "budget=2"   with a number
        "zero@0,2"                                      on the first and the third latent of each block alone
        "donor|latent_0:2"                              with the clean run's state put back at a position and layer
        "donor+image_hidden"                            with an answer that does not see the image

    name: another name for tables. Raises ConditionError, which lists the names that there are.
    """
    if not isinstance(name, str):
        raise ConditionError(f"name of a condition is {name!r}, expected a text")
    if isinstance(asked, Condition):
        made = asked
    elif isinstance(asked, engine.Condition):
        made = Condition(asked)
    elif isinstance(asked, str):
        made = Condition(_parsed(asked.strip()))
    elif callable(asked):
        called = name or getattr(asked, "__name__", "")
        if not called or called == "<lambda>":
            raise ConditionError(f"condition {asked!r} has no name: expected {_GIVEN}")
        if called == "clean" or called in SOURCES:
            raise ConditionError(f"condition {called!r}: a function of a name that is taken, expected another")
        return Condition(engine.replaced(called), asked)
    else:
        raise ConditionError(f"condition {asked!r}: expected a name, a function or one of lvr_jax.conditions")
    return dataclasses.replace(made, record=dataclasses.replace(made.record, name=name)) if name else made


def _parsed(text: str) -> engine.Condition:
    base, patch = (text.split("|", 1) + [""])[:2]
    for make in CONTEXTS.values():
        ending = make(engine.clean()).name.removeprefix("clean")
        if base.endswith(ending):
            return _patch(make(_parsed(base.removesuffix(ending))), patch, text)
    name, at, steps = base.partition("@")
    found = _NUMBER.fullmatch(name)
    try:
        if name == "clean":
            made = engine.clean()
        elif found:
            made = NUMBERED[found[1]](float(found[2]))
        else:
            made = NAMED[name]()
        made = engine.only(made, *map(int, steps.split(","))) if at else made
    except ConditionError:
        raise
    except (KeyError, ValueError):
        known = ", ".join([*NAMES, *(f"{each}=NUMBER" for each in NUMBERED)])
        raise ConditionError(f"condition {text!r}: expected one of {known}, or one of these with @LATENT") from None
    return _patch(made, patch, text)


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise ConditionError(f"strength of a condition is {value!r}, expected a number")
    return float(value)


def _whole(value: object) -> int:
    if not _number(value).is_integer():
        raise ConditionError(f"budget is {value!r}, expected a whole number of latents")
    return int(value)


def _patch(made: engine.Condition, patch: str, text: str) -> engine.Condition:
    if not patch:
        return made
    position, colon, layer = patch.rpartition(":")
    if not colon or not layer.isdecimal():
        raise ConditionError(f"condition {text!r}: expected CONDITION|POSITION:LAYER, such as donor|latent_0:2")
    return engine.patched(made, position, int(layer))


def resolve(
    asked: Sequence[Asked], item: Sequence[int], plan: Plan
) -> tuple[list[engine.Condition], dict[str, Source]]:
    """The engine's conditions, and all sources that they may feed.

    item: the items' numbers in the order that functions are to see them
    """
    made = [condition(each) for each in asked]
    own = {c.record.source: computed(c.function, c.record.source, item, plan) for c in made if c.function is not None}
    for name in own:
        if len({id(c.function) for c in made if c.function is not None and c.record.source == name}) > 1:
            raise ConditionError(f"two functions are named {name!r}, expected {_GIVEN} for one")
    return [c.record for c in made], {**SOURCES, **own}


def needs_others(made: Condition) -> bool:
    """Whether it feeds the latents of other items."""
    source = SOURCES.get(made.record.source)
    return made.function is None and source is not None and source.donor is not None


# Constructors --------------------------------------------------------------------------------------------------------


def clean() -> Condition:
    """The latents as the model makes them."""
    return Condition(engine.clean())


def zero() -> Condition:
    """Zero vectors instead of latents."""
    return Condition(engine.zero())


def noise(sigma: float, relative: bool = False) -> Condition:
    """Gaussian noise added to each latent: sigma per dimension, or (relative) that share of the latent's norm."""
    return Condition((engine.relative_noise if relative else engine.absolute_noise)(_number(sigma)))


def norm_matched() -> Condition:
    """A random direction with the latent's norm."""
    return Condition(engine.norm_matched_noise())


def donor(which: str = "") -> Condition:
    """Another item's latents. which: "", "directed" (of an item with another answer to the same kind of question),
    "same_content", "same_label", "other_label" or "paper"."""
    return condition(f"donor_{which}" if which else "donor")


def mean(by_step: bool = False) -> Condition:
    """The mean of all items' clean latents, or (by_step) of the latents of the same step."""
    return condition("step_mean" if by_step else "mean")


def oracle() -> Condition:
    """The vision tokens of the item's box, pooled to as many as there are latents."""
    return condition("oracle")


def budget(latents: int) -> Condition:
    """So many latents a block."""
    return Condition(engine.budget(_whole(latents)))


def only(asked: Asked, *latents: int) -> Condition:
    """A condition on some latents of each block alone, the others clean."""
    made = condition(asked)
    return dataclasses.replace(made, record=engine.only(made.record, *latents))


def patched(asked: Asked, position: str, layer: int) -> Condition:
    """A condition with the clean run's state put in at one position (`latent_0`, `answer`, ...) and layer (0: what is
    fed, l: the output of block l): what does it bring back?"""
    made = condition(asked)
    return dataclasses.replace(made, record=engine.patched(made.record, position, layer))


def image_hidden(asked: Asked) -> Condition:
    """A condition with an answer that does not see the image tokens."""
    made = condition(asked)
    return dataclasses.replace(made, record=engine.with_image_hidden(made.record))
