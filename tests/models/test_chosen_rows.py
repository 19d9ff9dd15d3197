"""Rows that are not chosen are not computed; those that are give the plain values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import distance

from lvr_jax.models.chosen_rows import CHUNK, add_where

ROWS, D = 2 * CHUNK + 5, 8
# fp32 sums of up to 261 terms in another order.
FP32 = 1e-5


def work(parameters, rows):
    return jnp.tanh(rows @ parameters["kernel"]) + parameters["bias"]


def plain(parameters, x, chosen):
    return jnp.where(chosen[:, None], x + work(parameters, x), x)


@pytest.mark.parametrize("count", [0, 1, CHUNK, CHUNK + 1, ROWS])
def test_values_and_gradients_are_those_of_computing_every_row(count):
    rng = np.random.default_rng(0)
    x, scale = rng.standard_normal((2, ROWS, D)).astype(np.float32)
    kernel, bias = rng.standard_normal((D, D)).astype(np.float32), rng.standard_normal(D).astype(np.float32)
    chosen = np.zeros(ROWS, bool)
    chosen[rng.permutation(ROWS)[:count]] = True

    def gradient(add):
        loss = lambda p, x: jnp.sum(add(p, x, chosen) * scale)  # noqa: E731
        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))({"kernel": kernel, "bias": bias}, x)

    expected, found = gradient(plain), gradient(lambda *arguments: add_where(work, *arguments))
    assert jax.tree.structure(expected) == jax.tree.structure(found)
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(found)):
        assert distance(a, b) < FP32


def test_a_row_that_is_not_chosen_cannot_reach_the_gradient():
    x, chosen = jnp.full((ROWS, D), jnp.nan).at[7].set(1), jnp.arange(ROWS) == 7
    parameters = {"kernel": jnp.ones((D, D)), "bias": jnp.ones(D)}
    gradient = jax.grad(lambda p: add_where(work, p, x, chosen)[7].sum())(parameters)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    value = add_where(work, parameters, x, chosen)
    assert np.isfinite(value[7]).all() and np.isnan(np.delete(value, 7, axis=0)).all()
