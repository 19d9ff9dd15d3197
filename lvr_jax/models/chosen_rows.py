"""Computes what is read and nothing else: some rows of an array, as many as there turn out to be.

For a CPU, where a program may run as many chunks as the chosen rows fill, a number that it learns while it runs.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

# Rows of a chunk: few, since the last chunk is padded.
CHUNK = 128


def chunks_of(chosen: jax.Array, size: int) -> tuple[jax.Array, Callable[[jax.Array], jax.Array]]:
    """chosen [R] -> (number of chunks, the function from a chunk's number to the indices of its rows [size]).

    Rows are in order. What fills the last chunk is R, beyond the end: see `take`.
    """
    R = len(chosen)
    (rows,) = jnp.nonzero(chosen, size=R + -R % size, fill_value=R)
    return -(-jnp.count_nonzero(chosen) // size), lambda i: jax.lax.dynamic_slice_in_dim(rows, i * size, size)


def take(x: jax.Array, rows: jax.Array) -> jax.Array:
    """x [R, ...] at `rows`, zeros for rows beyond the end."""
    return x.at[rows].get(mode="fill", fill_value=0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def add_where(work: Callable, parameters: Any, x: jax.Array, chosen: jax.Array) -> jax.Array:
    """x [R, D] with work(parameters, rows [r, D]) added to the rows where chosen [R] is set, and to no others.

    Differentiable in parameters and x; the backward pass computes the chosen rows again.
    """
    chunks, rows_of = chunks_of(chosen, min(CHUNK, len(chosen)))

    def step(i, y):
        rows = rows_of(i)
        return y.at[rows].add(work(parameters, take(x, rows)), mode="drop")

    return jax.lax.fori_loop(0, chunks, step, x)


def _forward(work, parameters, x, chosen):
    return add_where(work, parameters, x, chosen), (parameters, x, chosen)


def _backward(work, kept, gradient):
    parameters, x, chosen = kept
    chunks, rows_of = chunks_of(chosen, min(CHUNK, len(chosen)))

    def step(i, total):
        rows = rows_of(i)
        _, pull_back = jax.vjp(work, parameters, take(x, rows))
        d_parameters, d_rows = pull_back(take(gradient, rows))
        return jax.tree.map(jnp.add, total[0], d_parameters), total[1].at[rows].add(d_rows, mode="drop")

    blank = jax.tree.map(jnp.zeros_like, parameters)
    return *jax.lax.fori_loop(0, chunks, step, (blank, gradient)), None


add_where.defvjp(_forward, _backward)
