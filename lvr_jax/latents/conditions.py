"""Conditions of a sweep as data: what is done to a latent before it is fed, as one affine map.

    z' = keep * z + mix * source[item, stage, step] + sigma * scale * eps        eps ~ N(0, I)

where `scale` is 1 (absolute), |z| / |eps| (relative: sigma is the share of the latent's norm) or the spread of the
data set, dimension by dimension. Every corruption of the literature (arXiv 2606.05753, 2605.18445) is a choice of these
numbers, of the steps that they touch, of the budget, and of who may attend to whom.

Sources are whole latent blocks, [B, G, Z, D]: of a donor, of the item's own clean pass (permuted, first repeated), of
the data set's mean, of the box that holds the answer, of another box. A bank [n, B, G, Z, D] holds them once; a
condition names one by index.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lvr_jax.latents.spec import MOST_LATENTS, Array

# How the noise is scaled.
ABSOLUTE, RELATIVE, SPREAD = 0, 1, 2

# A budget that says: as many latents as the item's own box has (`rollout.Bank.budget`).
OF_THE_BOX = -2

# What a condition's effect is evidence of. CARRIES: the latents' content was replaced by other content of the same
# kind, or hidden, so that an effect shows that what own latents hold is read. LISTENS: content that argues for an
# answer of its own stands in their place. UNFAMILIAR: what no latent ever was; FORMAT: other markers or counts;
# PATH: the image's own way to the answer; SHAM: nothing was changed. NOTHING: a part of another condition.
CARRIES, LISTENS, UNFAMILIAR, FORMAT, PATH, SHAM, NOTHING = (
    "carries", "listens", "unfamiliar", "format", "path", "sham", ""
)  # fmt: skip
EVIDENCE = (CARRIES, LISTENS, UNFAMILIAR, FORMAT, PATH, SHAM, NOTHING)

# Roles of tokens for attention knock-outs; the first four are those of the input pipeline.
TEXT, IMAGE, LATENT, ANSWER = range(4)
ROLES = 4


class ConditionError(ValueError):
    """A condition that cannot mean anything, or that the blocks or the bank at hand cannot serve."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ConditionArrays:
    """The numbers of one condition (scalars), or of C stacked (a leading C axis on every field), for the device.

    keep, mix, sigma: fp32; noise: ABSOLUTE | RELATIVE | SPREAD; source: index into the bank
    steps:   [Z] bool, which latents of a block are touched
    budget:  [G] int32, latents a block of each stage; -1 keeps the plan's, OF_THE_BOX takes the item's own
    opens:   [G] bool, whether the stage's marker opens a block at all
    banned:  [G] bool, the stage's start marker is never picked (format without markers)
    close:   int32, 0: what follows a block is forced as the system does it; 1: its end marker, even if the system
             forces none; -1: nothing is forced
    blocked: [R, R] bool, queries of role r do not see keys of role s
    noise_id: int32, the number that enters the noise key; equal numbers give equal noise
    """

    keep: Array
    mix: Array
    sigma: Array
    noise: Array
    source: Array
    steps: Array
    budget: Array
    opens: Array
    banned: Array
    close: Array
    blocked: Array
    noise_id: Array


@dataclasses.dataclass(frozen=True)
class Condition:
    """A condition as a person writes it: what it is, and the fields that differ from `clean`.

    `source` names a block of latents that `bank` must provide; `blocked` lists (query role, key role) pairs; `steps`
    lists the latents that are touched (all if None); `budget` is latents a block for every stage, `of_the_box` as many
    as the item's box has. `context` names another prompt of the same item (`Prompts.variants`) that the rollout reads
    instead of the item's own.

    `patch` names a position (latents.positions) and a layer (0: what is fed, l: the output of block l) at which the
    state of the item's clean run takes the place of the run's own. `noise_of` names the condition whose noise is
    drawn, where it is another one's.

    Identity: `name` is what files and tables call it, `kind` which family it belongs to, `strength` the number that
    tells it from others of its kind, `evidence` what its effect shows (EVIDENCE).
    """

    name: str
    kind: str = ""
    strength: float | None = None
    evidence: str = NOTHING
    keep: float = 1.0
    mix: float = 0.0
    sigma: float = 0.0
    noise: int = ABSOLUTE
    source: str | None = None
    steps: tuple[int, ...] | None = None
    budget: int | None = None
    of_the_box: bool = False
    opens: bool = True
    banned: bool = False
    close: bool | None = None
    blocked: tuple[tuple[int, int], ...] = ()
    context: str = ""
    patch: tuple[str, int] | None = None
    noise_of: str = ""

    def __post_init__(self):
        numbers, steps = [self.keep, self.mix, self.sigma], self.steps
        rules = {
            "keep, mix, sigma": (numbers, np.isfinite(numbers).all(), "finite numbers"),
            # Beyond that, squares of what is fed leave fp32.
            "sigma": (self.sigma, 0 <= self.sigma <= 1e9, "0 or more, and 1e9 at most"),
            "noise": (self.noise, self.noise in (ABSOLUTE, RELATIVE, SPREAD), "ABSOLUTE, RELATIVE or SPREAD"),
            "source": (self.source, (self.mix != 0) == (self.source is not None), "one if and only if mix is not 0"),
            "steps": (steps, steps is None or _places(steps), "numbers of latents, one at least"),
            "patch": (self.patch, self.patch is None or _places(self.patch[1:]), "a position and a layer's number"),
            "budget": (
                self.budget, self.budget is None or 0 <= self.budget <= MOST_LATENTS,
                f"latents a block, 0 to {MOST_LATENTS}",
            ),
            "evidence": (self.evidence, self.evidence in EVIDENCE, f"one of {', '.join(filter(None, EVIDENCE))}"),
            "blocked": (self.blocked, all(0 <= r < ROLES for pair in self.blocked for r in pair), "pairs of roles"),
        }
        for field, (value, sound, expected) in rules.items():
            if not sound:
                raise ConditionError(f"condition {self.name!r}: {field} is {value}, expected {expected}")

    @property
    def latent(self) -> int | None:
        """The one latent of each block that is touched, where it is a single one."""
        return self.steps[0] if self.steps is not None and len(self.steps) == 1 else None

    @classmethod
    def from_record(cls, record: Mapping) -> "Condition":
        """Of `dataclasses.asdict`, also after JSON has made lists of its tuples."""
        steps = None if record["steps"] is None else tuple(record["steps"])
        patch = None if record["patch"] is None else tuple(record["patch"])
        return cls(**{**record, "steps": steps, "blocked": tuple(map(tuple, record["blocked"])), "patch": patch})


def clean() -> Condition:
    """Nothing is changed."""
    return Condition("clean", kind="clean")


def zero() -> Condition:
    """The paper's "truncate": zero vectors are fed, the steps stay."""
    return Condition("zero", kind="zero", evidence=UNFAMILIAR, keep=0.0)


def absolute_noise(sigma: float) -> Condition:
    """The paper's noise: sigma standard normal per dimension, in raw activation units."""
    return Condition(f"noise_{sigma:g}", kind="noise", strength=sigma, evidence=UNFAMILIAR, sigma=sigma)


def relative_noise(alpha: float) -> Condition:
    """Noise of alpha times the latent's own norm."""
    return Condition(f"relative_noise_{alpha:g}", kind="relative_noise", strength=alpha, evidence=UNFAMILIAR,
                     sigma=alpha, noise=RELATIVE)  # fmt: skip


def norm_matched_noise() -> Condition:
    """A random direction with the latent's norm."""
    return Condition("norm_matched", kind="norm_matched", evidence=UNFAMILIAR, keep=0.0, sigma=1.0, noise=RELATIVE)


def unit_normal() -> Condition:
    """A draw from N(0, I) in place of the latent."""
    return Condition("unit_normal", kind="unit_normal", evidence=UNFAMILIAR, keep=0.0, sigma=1.0)


def matched_noise(source: str = "mean") -> Condition:
    """A draw from the data set's diagonal Gaussian: its mean plus its spread times noise."""
    return Condition("distribution_matched", kind="distribution_matched", evidence=CARRIES, keep=0.0, mix=1.0,
                     sigma=1.0, noise=SPREAD, source=source)  # fmt: skip


def replaced(source: str, evidence: str = NOTHING) -> Condition:
    """Every latent replaced by the block `source` of the bank: a donor's, permuted, an oracle's, the mean, ..."""
    return Condition(source, kind="replaced", evidence=evidence, keep=0.0, mix=1.0, source=source)


def _places(numbers: Sequence[object]) -> bool:
    """Whether these are whole numbers from 0, one at least."""
    return len(numbers) > 0 and all(
        isinstance(n, int | np.integer) and not isinstance(n, bool) and n >= 0 for n in numbers
    )


def only(condition: Condition, *steps: int) -> Condition:
    """`condition` on some latents alone, the others clean."""
    name = f"{condition.name}@{','.join(map(str, steps))}"
    return dataclasses.replace(condition, name=name, evidence=NOTHING, steps=steps)


def budget(latents: int) -> Condition:
    """Another number of latents a block."""
    return Condition(f"budget_{latents}", kind="budget", strength=float(latents), evidence=FORMAT, budget=latents)


def box_budget() -> Condition:
    """As many latents as the item's own box has, the plan's quota at most: the length that training taught."""
    return Condition("box_budget", kind="box_budget", evidence=FORMAT, of_the_box=True)


def markers_only() -> Condition:
    """Start marker, then at once the end marker: no latent at all ("skip")."""
    return Condition("markers_only", kind="markers_only", evidence=FORMAT, budget=0, close=True)


def start_only() -> Condition:
    """Start marker, no latent, and free decoding: no end marker is forced, whatever the system does."""
    return Condition("start_only", kind="start_only", evidence=FORMAT, budget=0, close=False)


def format_only() -> Condition:
    """No markers either: the start marker is never picked."""
    return Condition("format_only", kind="format_only", evidence=FORMAT, banned=True, opens=False)


def knock_out(query: int, key: int, name: str, evidence: str = PATH) -> Condition:
    """Queries of one role do not see keys of another."""
    return Condition(name, kind="knock_out", evidence=evidence, blocked=((query, key),))


def answer_blind_to_latents() -> Condition:
    """The answer may not attend to the latents."""
    return knock_out(ANSWER, LATENT, "answer_blind_to_latents", CARRIES)


def latents_blind_to_image() -> Condition:
    """The latents may not attend to the image."""
    return knock_out(LATENT, IMAGE, "latents_blind_to_image")


def answer_blind_to_image() -> Condition:
    """The answer may not attend to the image."""
    return knock_out(ANSWER, IMAGE, "answer_blind_to_image")


def with_image_hidden(condition: Condition) -> Condition:
    """`condition` with an answer that does not see the image tokens. The question's own states, which do, stay."""
    return dataclasses.replace(condition, name=f"{condition.name}+image_hidden", evidence=PATH,
                               noise_of=_noise(condition), blocked=(*condition.blocked, (ANSWER, IMAGE)))  # fmt: skip


def in_context(condition: Condition, context: str, own: str = "self") -> Condition:
    """`condition` with everything around the latents read from another prompt of the item.

    Latents that a condition leaves alone, or adds noise to, are those of the item's own clean pass (the source `own`)
    and not of the other prompt.
    """
    kept: dict[str, Any] = {}
    if condition.keep != 0 and not condition.mix:
        kept = {"keep": 0.0, "mix": condition.keep, "source": own}
    if condition.keep and condition.mix:
        raise ConditionError(f"condition {condition.name!r} mixes latents, which no other prompt can give")
    return dataclasses.replace(condition, name=f"{condition.name}+{context}_context", evidence=PATH, context=context,
                               noise_of=_noise(condition), **kept)  # fmt: skip


def patched(condition: Condition, position: str, layer: int) -> Condition:
    """`condition` with the clean run's state put in at one position and layer: what does it bring back?"""
    return dataclasses.replace(condition, name=f"{condition.name}|{position}:{layer}", evidence=NOTHING,
                               patch=(position, layer), noise_of=_noise(condition))  # fmt: skip


def _noise(condition: Condition) -> str:
    return condition.noise_of or condition.name


def stack(conditions: Sequence[Condition], sources: Sequence[str], stages: int, latents: int) -> ConditionArrays:
    """C conditions -> one `ConditionArrays` with a leading C axis. `latents` is Z, the longest block.

    The noise key of a condition is its name, or that of the condition that it varies, so that adding or reordering
    conditions changes no result. The arrays stay on the host, from where a jitted program takes them: `jnp.asarray`
    would compile a program for each of their shapes. Raises ConditionError if a condition names a source that is not
    in `sources`, or touches a latent that no block has.
    """
    rows = []
    for c in conditions:
        if c.source is not None and c.source not in sources:
            raise ConditionError(f"condition {c.name!r} needs the source {c.source!r}, the bank has {list(sources)}")
        if c.steps is not None and max(c.steps) >= latents:
            raise ConditionError(f"condition {c.name!r} touches latent {max(c.steps)}, the longest block has {latents}")
        blocked = np.zeros((ROLES, ROLES), bool)
        for query, key in c.blocked:
            blocked[query, key] = True
        steps = np.ones(latents, bool) if c.steps is None else np.isin(np.arange(latents), c.steps)
        rows.append(
            ConditionArrays(
                keep=np.float32(c.keep), mix=np.float32(c.mix), sigma=np.float32(c.sigma), noise=np.int32(c.noise),
                source=np.int32(0 if c.source is None else sources.index(c.source)), steps=steps,
                budget=np.full(stages, OF_THE_BOX if c.of_the_box else -1 if c.budget is None else c.budget, np.int32),
                opens=np.full(stages, c.opens), banned=np.full(stages, c.banned),
                close=np.int32(0 if c.close is None else 1 if c.close else -1),
                blocked=blocked, noise_id=np.int32(name_number(_noise(c))),
            )
        )  # fmt: skip
    return jax.tree.map(lambda *leaves: np.stack(leaves), *rows)


def name_number(name: str) -> int:
    """A stable 31-bit number of a name (FNV-1a): Python's own hash changes from process to process."""
    number = 0x811C9DC5
    for byte in name.encode():
        number = (number ^ byte) * 0x01000193 % 2**32
    return number >> 1


def noise_key(seed: jax.Array, item: jax.Array, condition: jax.Array, block: jax.Array, step: jax.Array) -> jax.Array:
    """The key of one latent's noise: nothing but what the latent is, so batching, order and sharding do not enter."""
    key = jax.random.key(seed)
    for part in (item, condition, block, step):
        key = jax.random.fold_in(key, part)
    return key


def apply(
    condition: ConditionArrays,
    z: jax.Array,
    source: jax.Array,
    spread: jax.Array,
    key: jax.Array,
    step: jax.Array,
) -> jax.Array:
    """The vector that is fed instead of z [D] at `step` of its block: one item, one condition. source, spread: [D]."""
    z32 = z.astype(jnp.float32)
    eps = jax.random.normal(key, z.shape, jnp.float32)
    norm = jnp.linalg.norm
    scale = jnp.stack(
        [jnp.ones_like(z32), jnp.broadcast_to(norm(z32) / norm(eps), z.shape), spread.astype(jnp.float32)]
    )[condition.noise]
    fed = condition.keep * z32 + condition.mix * source.astype(jnp.float32) + condition.sigma * scale * eps
    return jnp.where(condition.steps[step], fed.astype(z.dtype), z)
