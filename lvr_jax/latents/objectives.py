"""Training losses of latent-reasoning models: cross-entropy, reconstruction of visual targets, diversity.

A latent at position p is predicted by the state after the final norm at p - 1 (so the start marker predicts the first
latent), and compared with the merged vision token that teacher forcing feeds at p. Everything here is fp32. Sums and
the numbers that divide them are kept apart, so that a step that accumulates gradients over micro-batches, or shards
over devices, is the same step (`Totals`).
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lvr_jax.latents.conditions import LATENT
from lvr_jax.latents.routing import ATTENTION, blocked
from lvr_jax.latents.unroll import Parts, unroll
from lvr_jax.models.cross_entropy import weighted_cross_entropy
from lvr_jax.models.interface import Network
from lvr_jax.models.layers import Compute
from lvr_jax.models.placement import over_rows
from lvr_jax.models.precision import at_least_fp32
from lvr_jax.models.records import Images, Tokens

# Distance of a predicted latent from its target, per latent: [..., D], [..., D] -> [...].
DISTANCES = {
    "mse": lambda z, v: jnp.mean((z - v) ** 2, -1),
    "mae": lambda z, v: jnp.mean(jnp.abs(z - v), -1),
    "cosine": lambda z, v: 1 - cosine(z, v),
}

# Which positions the auxiliary loss may be back-propagated through, of what enters a block; None is all of them. A
# route says nothing of matrices: all positions share them. Nor does it reach what the last block does at the very
# positions that predict latents: its queries, output projection and MLP, the final norm and the latent head take the
# whole gradient of every route by position, for they come after everything that is cut.
ROUTES: dict[str, Callable[[jax.Array], jax.Array] | None] = {
    "both": None,
    "latent_only": lambda role: role == LATENT,
    "outside_only": lambda role: role != LATENT,
    "head_only": None,
}


def cosine(z: jax.Array, v: jax.Array) -> jax.Array:
    """Cosine similarity over the last axis."""
    norm = lambda x: jnp.sqrt(jnp.maximum(jnp.sum(x * x, -1), 1e-16))  # noqa: E731
    return jnp.sum(z * v, -1) / (norm(z) * norm(v))


@dataclasses.dataclass(frozen=True)
class Objective:
    """One training objective: static under jit.

    distance:       key of DISTANCES
    normalisation:  `per_token`, one mean over all latents of the batch; `sum_of_means`, the released P-LVR code's sum
                    over every box and stage of a pack of their means, averaged over packs (a row is a pack)
    stage_weights:  weight of each stage's latents, in the template's order
    diversity:      weight of the mean squared cosine between the free tokens of a block
    noise:          standard deviation of the noise on teacher-forced latents (N-LVR), in raw units
    target:         `own`, `random` (noise with the target's norm), `shuffled` (another vision token of the row, drawn
                    anew each step), `wrong_box` (the same region, half its image further on: always the same)
    route:          key of ROUTES; `head_only`: through the latent head alone, nothing below it or in the vision tower
    attention:      key of ATTENTION
    feedback:       `teacher`; `rollout`, the model's own latents; `scheduled`, own latents with a probability
    """

    distance: str = "mse"
    normalisation: str = "per_token"
    stage_weights: tuple[float, ...] = (1.0,)
    diversity: float = 0.0
    noise: float = 0.0
    target: str = "own"
    route: str = "both"
    attention: str = "full"
    feedback: str = "teacher"
    chunk: int = 1024

    def __post_init__(self):
        for field, allowed in {
            "distance": DISTANCES, "normalisation": ("per_token", "sum_of_means"), "target": TARGETS, "route": ROUTES,
            "attention": ATTENTION, "feedback": ("teacher", "rollout", "scheduled"),
        }.items():  # fmt: skip
            if getattr(self, field) not in allowed:
                raise ValueError(f"objective.{field} is {getattr(self, field)!r}, expected one of {sorted(allowed)}")

    def blocked(self) -> jax.Array | None:
        """[R, R] bool for models.attention, or None."""
        return blocked(self.attention)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Weights:
    """Loss weights that change from step to step without recompilation: fp32 scalars.

    reconstruction: lambda, 0 in D-LVR's second phase; own: probability that a latent fed is the model's own
    """

    reconstruction: jax.Array
    own: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Totals:
    """What the sums of a whole batch are divided by: tokens predicted, latents, free blocks, packs (fp32 scalars)."""

    tokens: jax.Array
    latents: jax.Array
    free_blocks: jax.Array
    packs: jax.Array


def is_latent(batch: dict) -> jax.Array:
    """[B, T] bool: teacher-forced latent positions."""
    return (batch["stage"] > 0) & (batch["vision_slot"] >= 0)


def is_free(batch: dict) -> jax.Array:
    """[B, T] bool: free tokens, slots of a stage without vision targets."""
    return (batch["stage"] > 0) & (batch["vision_slot"] < 0)


def totals(batch: dict) -> Totals:
    """Denominators of the losses, counted over the global batch [..., B, T] before it is cut into micro-batches."""
    count = lambda x: jnp.sum(x, dtype=jnp.float32)  # noqa: E731
    free = is_free(batch)
    first = free & ~jnp.pad(free & _same_group(batch), [(0, 0)] * (free.ndim - 1) + [(1, 0)])[..., :-1]
    packs = jnp.float32(batch["tokens"].size // batch["tokens"].shape[-1])
    return Totals(count(batch["loss_mask"]), count(is_latent(batch)), count(first), packs)


def _same_group(batch: dict) -> jax.Array:
    """Whether the next token is of the same (box, stage) group."""
    group = batch["group"]
    return group == jnp.pad(group[..., 1:], [(0, 0)] * (group.ndim - 1) + [(0, 1)])


def row_keys(batch: dict, key: jax.Array) -> jax.Array:
    """[B] keys, one a row. Where a step is cut into micro-batches, `row` [B] is a row's number in the whole batch: what
    is drawn for a row depends on nothing else, neither on the cut nor on the sharding."""
    rows = batch["row"] if "row" in batch else jnp.arange(batch["tokens"].shape[0])
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, rows)


def _normal(keys: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Standard normal draws [B, ...], row by row."""
    return jax.vmap(lambda key: jax.random.normal(key, shape[1:]))(keys)


def _uniform(keys: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return jax.vmap(lambda key: jax.random.uniform(key, shape[1:]))(keys)


def _own_targets(keys, targets, batch, merged):
    return targets


def _random_targets(keys, targets, batch, merged):
    """A random direction with the target's norm, drawn anew each step."""
    noise = _normal(keys, targets.shape)
    norm = lambda x: jnp.linalg.norm(x, axis=-1, keepdims=True)  # noqa: E731
    return noise / norm(noise) * norm(targets)


def _shuffled_targets(keys, targets, batch, merged):
    """Another merged token of the same row's images, by a random permutation of them."""
    B, M, _ = merged.shape
    filled = (batch["window_segment"].reshape(B, M, -1) > 0).all(-1)                     # [B, M]
    # Sorting puts the filled slots first, in a random order and in their own: slot i of one goes to i of the other.
    rank = jnp.argsort(jnp.where(filled, jnp.arange(M), M), axis=1)
    drawn = jnp.argsort(jnp.where(filled, _uniform(keys, (B, M)), 2), axis=1)
    other = jnp.zeros((B, M), jnp.int32).at[jnp.arange(B)[:, None], rank].set(drawn)
    slot = jnp.take_along_axis(other, jnp.maximum(batch["vision_slot"], 0), axis=1)
    return jnp.take_along_axis(merged, slot[..., None], axis=1).astype(at_least_fp32(merged.dtype))


def _wrong_box_targets(keys, targets, batch, merged):
    """What teacher forcing would feed of the region half the image further on in window order, its end joined to its
    start: in an image of one window the same columns, half the height below or above. Nothing is drawn, so that it can
    be learnt as well as the right one."""
    image = batch["window_segment"].reshape(*merged.shape[:2], -1)[..., 0]              # [B, M], 0 where empty

    def half_on(image: jax.Array) -> jax.Array:
        order = jnp.argsort(image, stable=True)         # images one after another, each in window order
        first, past = (jnp.searchsorted(image[order], image, side) for side in ("left", "right"))
        length = past - first
        place = jnp.argsort(order) - first              # within the image
        return order[first + (place + length // 2) % length]

    other = jax.vmap(half_on)(image)
    move = lambda slot: jnp.where(slot < 0, slot, jnp.take_along_axis(other, jnp.maximum(slot, 0), axis=1))  # noqa: E731
    slot, pool = move(batch["vision_slot"]), batch["pool"]
    pool = jnp.stack([pool[..., 0], move(pool[..., 1])], -1)
    return latent_targets(batch | {"vision_slot": slot, "pool": pool}, merged)


TARGETS = {
    "own": _own_targets, "random": _random_targets, "shuffled": _shuffled_targets, "wrong_box": _wrong_box_targets,
}  # fmt: skip


def latent_targets(batch: dict, merged: jax.Array) -> jax.Array:
    """[B, T, D] fp32: the vision token of every position that has one, or the mean of its pool."""
    slot = jnp.maximum(batch["vision_slot"], 0)
    targets = jnp.take_along_axis(merged, slot[..., None], axis=1).astype(at_least_fp32(merged.dtype))
    pool = batch["pool"]                                                                 # [B, pooled, 2]
    if pool.shape[1] == 0:
        return targets
    B, T, _ = targets.shape
    row, token, used = jnp.arange(B)[:, None], jnp.maximum(pool[..., 0], 0), pool[..., 0] >= 0
    parts = jnp.take_along_axis(merged, jnp.maximum(pool[..., 1], 0)[..., None], axis=1).astype(targets.dtype)
    total = jnp.zeros_like(targets).at[row, token].add(jnp.where(used[..., None], parts, 0))
    count = jnp.zeros((B, T)).at[row, token].add(used)
    return jnp.where(count[..., None] > 0, total / jnp.maximum(count, 1)[..., None], targets)


def before(batch: dict, x: jax.Array) -> jax.Array:
    """x [B, T, D] at the token before each token: one position earlier, or, in aligned rows, where `before` says."""
    if "before" in batch:
        return jnp.take_along_axis(x, batch["before"][..., None], axis=1)
    return jnp.pad(x[:, :-1], ((0, 0), (1, 0), (0, 0)))


def _read(batch: dict) -> jax.Array:
    """[B, T] bool: tokens whose hidden states a loss reads, all but `diversity`'s at the token before."""
    B, T = batch["tokens"].shape
    predicted = batch["loss_mask"] | is_latent(batch)
    at = batch.get("before", jnp.arange(T) - 1)     # nothing predicts the first token
    return is_free(batch).at[jnp.arange(B)[:, None], at].max(predicted)


def forward(
    model: Network,
    batch: dict,
    objective: Objective,
    weights: Weights,
    key: jax.Array,
    compute: Compute,
    *,
    parts: Parts = (),
    branches: tuple[int, int] | None = None,
    flow: jax.Array | None = None,
    merged: jax.Array | None = None,
) -> dict[str, jax.Array]:
    """One pass over a batch. Returns hidden [B, T, D], predicted and target [B, T, D] (fp32, at latent positions),
    fed [B, T, D] (what was fed there) and merged.

    parts: the static cut of aligned rows for `rollout` feedback (latents.unroll); branches, flow: see `Tokens`.
    """
    noise_keys, target_keys, own_keys = (row_keys(batch, k) for k in jax.random.split(key, 3))
    if merged is None:
        merged, _ = model.encode(Images(batch["patches"], batch["window_segment"], batch["rotary_ids"]), compute)
        merged = over_rows(merged)
    latent = is_latent(batch)
    clean = latent_targets(batch, merged)
    fed = clean
    if objective.noise:
        fed = fed + objective.noise * noise_like(batch, noise_keys, clean.shape)
    x = model.embed(batch["tokens"], batch["vision_slot"], merged)
    x = over_rows(jnp.where(latent[..., None], fed.astype(x.dtype), x))
    blocked = objective.blocked()
    role = None if blocked is None else batch["role"]
    tokens = Tokens(batch["positions"], batch["segment"], role, blocked, flow, branches)
    if objective.feedback == "teacher":
        hidden, _, _ = model.decode(x, tokens, compute=compute, read=_read(batch) if compute.skip_unread else None)
    else:
        share = 1.0 if objective.feedback == "rollout" else weights.own
        hidden = unroll(model, x, tokens, parts, _uniform(own_keys, latent.shape) < share, compute)
    hidden = over_rows(hidden)
    predicted = _predicted(model, batch, hidden)
    target = TARGETS[objective.target](target_keys, clean, batch, merged)
    return {"hidden": hidden, "predicted": predicted, "target": target, "fed": fed, "merged": merged}


def _predicted(model: Network, batch: dict, hidden: jax.Array) -> jax.Array:
    """[B, T, D] fp32: the latent that the state before each position stands for."""
    predictor = hidden if model.latent_head is None else model.latent_head(hidden)
    return before(batch, predictor).astype(at_least_fp32(predictor.dtype))          # state at p - 1


def noise_like(batch: dict, keys: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """The standard normal draw of N-LVR; a batch may bring its own (`noise` [B, T, D]) to replay a recorded one."""
    return batch["noise"] if "noise" in batch else _normal(keys, shape)


def reconstruction(batch: dict, objective: Objective, predicted, target, total: Totals) -> tuple[jax.Array, jax.Array]:
    """(scalar loss, distance of every latent [B, T]); the scalar is this batch's share of the whole."""
    latent = is_latent(batch)
    # The distance of an unused position is replaced before it can put a NaN into the gradient.
    safe = jnp.where(latent[..., None], predicted, 1.0), jnp.where(latent[..., None], target, 1.0)
    distance = jnp.where(latent, DISTANCES[objective.distance](*safe), 0)
    weight = jnp.asarray(objective.stage_weights, jnp.float32)[jnp.maximum(batch["stage"] - 1, 0)]
    if objective.normalisation == "per_token":
        return jnp.sum(distance * weight) / jnp.maximum(total.latents, 1), distance
    B, T = latent.shape
    group = jnp.where(latent, batch["group"], 0)
    size = jnp.zeros((B, T + 1)).at[jnp.arange(B)[:, None], group].add(latent)            # latents a group
    size = jnp.take_along_axis(size, group, axis=1)
    return jnp.sum(distance * weight / jnp.maximum(size, 1)) / total.packs, distance


def diversity(batch: dict, hidden: jax.Array, total: Totals) -> jax.Array:
    """Mean over free blocks of the mean squared off-diagonal cosine of their states (the zeroed diagonal counts)."""
    free, T = is_free(batch), batch["tokens"].shape[1]
    n = -(-T // 4)  # free tokens are a small part of a row: only so many are gathered
    order = jnp.argsort(~free, axis=1, stable=True)[:, :n]
    used = jnp.take_along_axis(free, order, axis=1)
    group = jnp.where(used, jnp.take_along_axis(batch["group"], order, axis=1), -1)
    h = jnp.take_along_axis(hidden, order[..., None], axis=1).astype(at_least_fp32(hidden.dtype))
    h = jnp.where(used[..., None], h, 1.0)
    h = h / jnp.linalg.norm(h, axis=-1, keepdims=True)
    gram = jnp.einsum("BID,BJD->BIJ", h, h)
    pair = (group[:, :, None] == group[:, None, :]) & used[:, :, None] & ~jnp.eye(n, dtype=bool)
    size = jnp.sum((group[:, :, None] == group[:, None, :]) & used[:, :, None], axis=2)   # tokens of the block
    per_token = jnp.sum(jnp.where(pair, gram**2, 0), axis=2) / jnp.maximum(size, 1) ** 2
    return jnp.sum(per_token) / jnp.maximum(total.free_blocks, 1)


def loss(
    model: Network,
    batch: dict,
    objective: Objective,
    weights: Weights,
    total: Totals,
    key: jax.Array,
    compute: Compute,
    parts: Parts = (),
    branches: tuple[int, int] | None = None,
) -> tuple[jax.Array, dict[str, Any]]:
    """The share of one micro-batch in the loss of the whole batch, and its parts (already shares too).

    Parts: loss_ce, loss_lvr, loss_diversity, loss_total, correct (predicted tokens that are right), cosine (mean over
    latents, teacher-forced unless `feedback` says otherwise).
    """
    read = functools.partial(
        forward, model, batch, objective, weights, key, compute, parts=parts, branches=branches
    )  # fmt: skip
    out = read()
    hidden = out["hidden"]
    share = batch["loss_mask"] / jnp.maximum(total.tokens, 1)
    ce, (_, correct) = weighted_cross_entropy(
        before(batch, hidden), model.unembedding, batch["tokens"], share, objective.chunk, compute.skip_unread
    )
    routed = out
    route = ROUTES[objective.route]
    if route is not None:
        # The same pass once more, with the gradient allowed through some positions only: cross-entropy keeps its own.
        routed = read(flow=route(batch["role"]), merged=out["merged"])
    if objective.route == "head_only":
        stopped = jax.lax.stop_gradient
        routed = {"predicted": _predicted(model, batch, stopped(hidden)), "target": stopped(out["target"])}
    lvr, _ = reconstruction(batch, objective, routed["predicted"], routed["target"], total)
    parts_of_loss = {"loss_ce": ce, "loss_lvr": lvr}
    value = ce + weights.reconstruction * lvr
    if objective.diversity:
        parts_of_loss["loss_diversity"] = diversity(batch, hidden, total)
        value += objective.diversity * parts_of_loss["loss_diversity"]
    alike = jnp.where(is_latent(batch), cosine(out["predicted"], out["target"]), 0)
    return value, parts_of_loss | {
        "loss_total": value,
        "accuracy": jnp.sum(correct) / jnp.maximum(total.tokens, 1),
        "cosine": jnp.sum(alike) / jnp.maximum(total.latents, 1),
    }
