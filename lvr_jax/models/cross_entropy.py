"""Cross-entropy in chunks of tokens, so that logits [B, T, V] are never held whole.

Chunks of tokens: each chunk's fp32 logits live only while its loss and its gradient are computed. The forward pass
already forms the gradient of every chunk (a weighted sum of losses is linear in the incoming scalar), so nothing is
computed twice and nothing but [B, T, D] and [V, D] is kept. On a CPU the tokens that have a weight are gathered first
and the others never computed: in a training step of the study they are four of five.

On a mesh every device takes its own rows through all chunks, with the unembedding gathered once before and its gradient
summed once after: left to the partitioner, both would happen in every chunk.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from lvr_jax.models.chosen_rows import chunks_of, take
from lvr_jax.models.placement import current_mesh, row_axes
from lvr_jax.models.precision import at_least_fp32

# Tokens of a chunk of gathered ones: few, since the last chunk is padded.
GATHERED = 256


def token_losses(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """fp32 logits [..., V], labels [...] -> negative log-likelihood [...]."""
    picked = jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - picked


def _chunks(x: jax.Array, size: int) -> jax.Array:
    """[B, T, ...] -> [T / size, B, size, ...], T padded with zeros."""
    B, T = x.shape[:2]
    x = jnp.pad(x, [(0, 0), (0, -T % size)] + [(0, 0)] * (x.ndim - 2))
    return jnp.moveaxis(x.reshape(B, -1, size, *x.shape[2:]), 1, 0)


def _unchunk(x: jax.Array, T: int) -> jax.Array:
    x = jnp.moveaxis(x, 0, 1)
    return x.reshape(x.shape[0], -1, *x.shape[3:])[:, :T]


def _chunk_loss(hidden, unembedding, labels, weights):
    rows = hidden.reshape(-1, hidden.shape[-1])     # one axis to sum the gradient over (see layers.flat)
    logits = jnp.einsum("RD,VD->RV", rows, unembedding, preferred_element_type=at_least_fp32(hidden.dtype))
    logits = logits.reshape(*hidden.shape[:-1], -1)                                      # [B, T, V]
    # A sum and a maximum, not a look-up and an argmax: these stay where they are if the vocabulary is cut.
    here = jnp.arange(logits.shape[-1]) == labels[..., None]
    picked = jnp.sum(jnp.where(here, logits, 0), -1)
    losses = jax.nn.logsumexp(logits, axis=-1) - picked
    correct = (picked >= jax.lax.stop_gradient(logits.max(-1))) & (weights != 0)
    return jnp.sum(losses * weights), (losses, correct)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def weighted_cross_entropy(
    hidden: jax.Array,
    unembedding: jax.Array,
    labels: jax.Array,
    weights: jax.Array,
    chunk: int = 1024,
    gathered: bool = False,
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """Sum over tokens of weight * negative log-likelihood.

    hidden [B, T, D], unembedding [V, D], labels [B, T] int, weights [B, T] fp32 (0 where there is nothing to predict;
    any normalisation is the caller's); chunk: tokens of a device whose logits are held at once; gathered: only tokens
    that have a weight are computed. Returns (fp32 scalar, (losses [B, T] fp32, correct [B, T] bool)); only the scalar
    is differentiable, in hidden and unembedding. Without a weight a token is not correct, and if gathered has loss 0.
    """
    return _forward(hidden, unembedding, labels, weights, chunk, gathered, gradient=False)[0]


def _forward(hidden, unembedding, labels, weights, chunk, gathered, gradient):
    kernel, axes = unembedding.astype(hidden.dtype), row_axes(hidden.shape[0])
    run = functools.partial(_over_gathered if gathered else _over_chunks, chunk=chunk, gradient=gradient)
    if axes:
        scattered = tuple(a for a in axes if a == "fsdp" and kernel.shape[1] % current_mesh().shape[a] == 0)
        rows, d_kernel = PartitionSpec(axes), PartitionSpec(None, scattered)
        kernel = jax.lax.with_sharding_constraint(kernel, PartitionSpec(PartitionSpec.UNCONSTRAINED, None))
        run = jax.shard_map(
            functools.partial(_summed, run, axes, scattered), axis_names=set(axes), check_vma=False,
            in_specs=(rows, PartitionSpec(), rows, rows),
            out_specs=(PartitionSpec(), rows, rows, (rows, d_kernel) if gradient else None),
        )  # fmt: skip
    loss, losses, correct, gradients = run(hidden, kernel, labels, weights)
    out = loss, (losses, correct)
    return (out, (gradients[0], gradients[1].astype(unembedding.dtype))) if gradient else (out, None)


def _over_chunks(hidden, kernel, labels, weights, *, chunk, gradient):
    """Loss, losses [B, T], correct [B, T] and, if wanted, the gradients in hidden and (fp32) in the unembedding."""
    B, T = hidden.shape[:2]
    summed = at_least_fp32(hidden.dtype)
    size = -(-T // -(-B * T // chunk))      # of chunks of equal length, which leave least to pad

    def step(total, part):
        if not gradient:
            loss, aux = _chunk_loss(part[0], kernel, *part[1:])
            return (total[0] + loss, total[1]), (aux, None)
        (loss, aux), (d_hidden, d_kernel) = jax.value_and_grad(_chunk_loss, argnums=(0, 1), has_aux=True)(
            part[0], kernel, *part[1:]
        )
        return (total[0] + loss, total[1] + d_kernel.astype(summed)), (aux, d_hidden)

    start = (jnp.zeros((), summed), jnp.zeros(kernel.shape, summed) if gradient else None)
    parts = tuple(_chunks(x, size) for x in (hidden, labels, weights))
    (loss, d_kernel), ((losses, correct), d_hidden) = jax.lax.scan(step, start, parts)
    gradients = (_unchunk(d_hidden, T), d_kernel) if gradient else None
    return loss, _unchunk(losses, T), _unchunk(correct, T), gradients


def _over_gathered(hidden, kernel, labels, weights, *, chunk, gradient):
    """As `_over_chunks`, in as many chunks as the tokens that have a weight fill."""
    (B, T, D), tokens = hidden.shape, weights.size
    summed, size = at_least_fp32(hidden.dtype), min(chunk, GATHERED, tokens)
    flat = hidden.reshape(tokens, D), labels.reshape(tokens), weights.reshape(tokens)
    chunks, rows_of = chunks_of(flat[2] != 0, size)

    def step(i, state):
        total, d_kernel, losses, correct, d_hidden = state
        here = rows_of(i)
        part = [take(x, here) for x in flat]
        if gradient:
            (loss, aux), (d_part, d_more) = jax.value_and_grad(_chunk_loss, argnums=(0, 1), has_aux=True)(
                part[0], kernel, *part[1:]
            )
            d_kernel, d_hidden = d_kernel + d_more.astype(summed), d_hidden.at[here].set(d_part, mode="drop")
        else:
            loss, aux = _chunk_loss(part[0], kernel, *part[1:])
        losses, correct = (x.at[here].set(y, mode="drop") for x, y in zip((losses, correct), aux))
        return total + loss, d_kernel, losses, correct, d_hidden

    start = (
        jnp.zeros((), summed), jnp.zeros(kernel.shape, summed) if gradient else None, jnp.zeros(tokens, summed),
        jnp.zeros(tokens, bool), jnp.zeros((tokens, D), hidden.dtype) if gradient else None,
    )  # fmt: skip
    loss, d_kernel, losses, correct, d_hidden = jax.lax.fori_loop(0, chunks, step, start)
    gradients = (d_hidden.reshape(B, T, D), d_kernel) if gradient else None
    return loss, losses.reshape(B, T), correct.reshape(B, T), gradients


def _summed(run: Callable, axes: tuple[str, ...], scattered: tuple[str, ...], *arguments):
    """Runs `run` on one device's rows, sums the losses over devices and reduce-scatters the gradient in the kernel."""
    loss, losses, correct, gradients = run(*arguments)
    if gradients is not None:
        d_hidden, d_kernel = gradients
        for axis in scattered:
            d_kernel = jax.lax.psum_scatter(d_kernel, axis, scatter_dimension=1, tiled=True)
        gradients = d_hidden, jax.lax.psum(d_kernel, tuple(a for a in axes if a not in scattered))
    return jax.lax.psum(loss, axes), losses, correct, gradients


def _vjp_forward(hidden, unembedding, labels, weights, chunk, gathered):
    return _forward(hidden, unembedding, labels, weights, chunk, gathered, gradient=True)


def _vjp_backward(chunk, gathered, gradients, cotangents):
    d_hidden, d_kernel = gradients
    scale = cotangents[0]
    return (d_hidden * scale).astype(d_hidden.dtype), (d_kernel * scale).astype(d_kernel.dtype), None, None


weighted_cross_entropy.defvjp(_vjp_forward, _vjp_backward)
