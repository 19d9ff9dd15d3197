"""One training step: gradient over micro-batches, update and metrics.

One jitted program with shardings from the state: donated state, gradients accumulated by `lax.scan`. What divides the
losses is counted over the whole batch beforehand, so that cutting it differently gives the same step.

Gradients: a chip's part of the gradient of a block's weights is accumulated in fp32, rounded to the type of the
computation (bf16 on TPUs) and summed over the chips in that type. Micro-batches are added up in fp32, and the gradient
of the table of tokens is fp32 throughout. Summing over chips in fp32 would double the bytes of a sum that nothing
hides: 0.9 s instead of 0.45 s of a step of 3B on v5e-16, at the peak of the links (2026-11).
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from lvr_jax.latents import objectives
from lvr_jax.latents.objectives import Objective, Weights
from lvr_jax.latents.unroll import Parts
from lvr_jax.models import compiler_options
from lvr_jax.models.layers import Compute
from lvr_jax.training.partitioning import replicated
from lvr_jax.training.schedules import Schedule
from lvr_jax.training.state import State, join, shardings_of

Metrics = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True, eq=False)
class Recipe:
    """All that a step is besides its state and its batch.

    graph: the network's structure; transformation, rate: optimizer and its learning rate, for the record;
    reconstruction, own: schedules of `objectives.Weights`; accumulate: micro-batches a step; parts: for aligned rows;
    branches: for rows of branches (`Tokens`); seed: of everything that is drawn in training, together with the step and
    the row
    """

    graph: nnx.GraphDef
    objective: Objective
    compute: Compute
    transformation: optax.GradientTransformation
    rate: Schedule
    reconstruction: Schedule
    own: Schedule
    accumulate: int = 1
    parts: Parts = ()
    branches: tuple[int, int] | None = None
    seed: int = 0


def micro_batches(batch: dict, count: int) -> dict:
    """[R, ...] -> [count, R / count, ...]. Micro-batch m takes rows m, m + count, ...: of each device's rows its part,
    so that nothing moves between devices."""

    def cut(x: jax.Array) -> jax.Array:
        return jnp.moveaxis(x.reshape(x.shape[0] // count, count, *x.shape[1:]), 1, 0)

    return jax.tree.map(cut, batch)


def gradients(recipe: Recipe, state: State, batch: dict) -> tuple[dict, Metrics]:
    """Gradient of the whole batch's loss with respect to `state.trained`, and the parts of the loss."""
    total = objectives.totals(batch)
    weights = Weights(recipe.reconstruction(state.step), recipe.own(state.step))
    key = jax.random.fold_in(jax.random.key(recipe.seed), state.step)
    batch = batch | {"row": jnp.arange(batch["tokens"].shape[0])}

    def loss(trained: dict, micro: dict):
        model = nnx.merge(recipe.graph, join(trained, state.frozen))
        return objectives.loss(
            model, micro, recipe.objective, weights, total, key, recipe.compute, recipe.parts, recipe.branches
        )

    of_micro = jax.grad(loss, has_aux=True)
    if recipe.accumulate == 1:
        grads, parts = of_micro(state.trained, batch)
    else:
        cut = micro_batches(batch, recipe.accumulate)
        first = jax.tree.map(lambda x: x[0], cut)
        blank = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(of_micro, state.trained, first))
        add = lambda total, micro: (jax.tree.map(jnp.add, total, of_micro(state.trained, micro)), None)  # noqa: E731
        (grads, parts), _ = jax.lax.scan(add, blank, cut)
    return grads, parts | {
        "weight_lvr": weights.reconstruction,
        "weight_own": weights.own,
        "predicted_tokens": total.tokens,
        "latents": total.latents,
    }


def train_step(recipe: Recipe, state: State, batch: dict) -> tuple[State, Metrics]:
    """One update. Metrics are fp32 scalars: the loss's parts (see objectives.loss), grad_norm (before clipping),
    learning_rate, weight_lvr, weight_own, predicted_tokens and latents."""
    grads, metrics = gradients(recipe, state, batch)
    updates, optimizer = recipe.transformation.update(grads, state.optimizer, state.trained)
    metrics |= {"grad_norm": optax.tree.norm(grads), "learning_rate": recipe.rate(state.step)}
    new = State(state.step + 1, optax.apply_updates(state.trained, updates), state.frozen, optimizer)
    return new, metrics


def compiled_step(
    recipe: Recipe, like: State, batch_sharding: NamedSharding, mesh: Mesh
) -> Callable[[State, dict], tuple[State, Metrics]]:
    """The jitted step; it gives up the state that it is called with. Call it under `jax.set_mesh(mesh)`."""
    where = shardings_of(like)

    def step(state: State, batch: dict) -> tuple[State, Metrics]:
        return train_step(recipe, state, batch)

    return jax.jit(
        step, donate_argnums=0, in_shardings=(where, batch_sharding), out_shardings=(where, replicated(mesh)),
        compiler_options=compiler_options.of_mesh(mesh),
    )
