"""The training state as one pytree: step, trained and frozen parameters, optimizer state.

Trained parameters are fp32 masters; frozen ones have the type of the computation, no gradient and no optimizer state.
"""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from lvr_jax.checkpoints.orbax_io import flat, nested
from lvr_jax.training.config_fields import ConfigFieldError
from lvr_jax.training.optimizer import state_like
from lvr_jax.training.partitioning import Rules, replicated, shardings


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    """step: int32, steps done; trained, frozen: nested dicts of parameters; optimizer: optax state of `trained`."""

    step: jax.Array
    trained: dict
    frozen: dict
    optimizer: Any


def split(params: dict, frozen: Sequence[str]) -> tuple[dict, dict]:
    """(trained, frozen) by regexes on the path, such as `vision/.*`. ConfigFieldError if one matches nothing."""
    paths = flat(params)
    for pattern in frozen:
        if not any(re.fullmatch(pattern, path) for path in paths):
            raise ConfigFieldError(f"frozen: {pattern!r} matches no parameter")
    held = {path for path in paths if any(re.fullmatch(pattern, path) for pattern in frozen)}
    if len(held) == len(paths):
        raise ConfigFieldError(f"frozen: {list(frozen)} leaves nothing to train")
    return (
        nested({path: x for path, x in paths.items() if path not in held}),
        nested({path: x for path, x in paths.items() if path in held}),
    )


def join(trained: dict, frozen: dict) -> dict:
    """Joins what `split` has split."""
    return nested({**flat(trained), **flat(frozen)})


def abstract_state(
    params: dict,
    frozen: Sequence[str],
    transformation: optax.GradientTransformation,
    rules: Rules,
    mesh: Mesh,
    frozen_dtype: Any,
) -> State:
    """The state as ShapeDtypeStructs with shardings: what restoring, compiling and memory estimates need."""

    def typed(tree: dict, where: dict, dtype) -> dict:
        return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, dtype, sharding=s), tree, where)

    where_trained, where_frozen = split(shardings(params, rules, mesh), frozen)
    trained, held = split(params, frozen)
    trained, held = typed(trained, where_trained, jnp.float32), typed(held, where_frozen, frozen_dtype)
    placed = state_like(transformation, trained, where_trained, replicated(mesh))
    optimizer = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), jax.eval_shape(transformation.init, trained),
        placed,
    )  # fmt: skip
    return State(jax.ShapeDtypeStruct((), jnp.int32, sharding=replicated(mesh)), trained, held, optimizer)


def shardings_of(state: State) -> State:
    """The shardings of a state, as a tree like it."""
    return jax.tree.map(lambda x: x.sharding, state)


def start(params: dict, like: State, transformation: optax.GradientTransformation, frozen: Sequence[str]) -> State:
    """The state before the first step. `params` may have any type and sharding; they are given up."""

    def make(params: dict) -> State:
        trained, held = split(params, frozen)
        cast = lambda tree, target: jax.tree.map(lambda x, t: x.astype(t.dtype), tree, target)  # noqa: E731
        trained = cast(trained, like.trained)
        return State(jnp.int32(0), trained, cast(held, like.frozen), transformation.init(trained))

    return jax.jit(make, out_shardings=shardings_of(like))(params)
