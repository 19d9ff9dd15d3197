"""Layers that towers and decoders share: parameters, RMSNorm, SwiGLU, and the scan over layers."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from lvr_jax.models.placement import over_rows
from lvr_jax.models.precision import at_least_fp32
from lvr_jax.models.splash_attention import RESIDUALS

# What the backward pass may keep of a block; the rest is computed again.
REMAT = {
    "none": None,                                                                # keep everything
    "block": jax.checkpoint_policies.nothing_saveable,                           # keep the block's input only
    "attention": jax.checkpoint_policies.save_only_these_names(RESIDUALS),       # and what splash gave
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,            # keep projections, not scores
    "dots_attention": jax.checkpoint_policies.save_from_both_policies(           # both
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
        jax.checkpoint_policies.save_only_these_names(RESIDUALS)),
}  # fmt: skip

# jax.Device.device_kind of chips with 95 GB, where projections may be kept too. Of a row of 16,384 tokens of 7B they
# take 38 GiB, and a step takes 21.8 instead of 23.3 G cycles outside attention, by libtpu's estimate (2026-11).
_ROOMY = ("TPU v5", "TPU7x")


def default_remat(device_kind: str) -> str:
    """The key of REMAT that networks of 3 to 7 billion parameters are trained with on these chips."""
    return "dots_attention" if device_kind in _ROOMY else "attention"


@dataclasses.dataclass(frozen=True)
class Compute:
    """How to run the network, apart from what it is: static under jit.

    dtype:     type of activations; norms, RoPE, softmax and logits are fp32 or wider
    attention: kernel of full attention over the tokens of a pass (models.attention.IMPLEMENTATIONS)
    remat:     key of REMAT
    unroll:    layers that the scan takes at a time. More than one saves copies of what the backward pass keeps and of
               parameters' gradients, a tenth of a step on a CPU, and makes the program longer
    skip_unread: leaves out what nothing reads: cross-entropy of tokens that are not predicted and, on one device, the
               last block's MLP of tokens whose states no loss reads, in a prompt of all but the last one. On a CPU: on
               a TPU the choice would cost more than it saves (a prefill of 7B on v5e-8 2.42 s, not 2.34, by libtpu's
               estimate; 2026-11)
    """

    dtype: Any = jnp.float32
    attention: str = "xla"
    remat: str = "none"
    unroll: int = 1
    skip_unread: bool = False

    @classmethod
    def of_prompts(cls, dtype: Any = None) -> "Compute":
        """As the default device reads prompts: in fp32 on a CPU and bf16 elsewhere unless told, and on a CPU with
        attention in blocks, two thirds of the time of a prompt of 1,120 vision tokens (2026-11)."""
        cpu = jax.default_backend() == "cpu"
        if dtype is None:
            dtype = jnp.float32 if cpu else jnp.bfloat16
        return cls(jnp.dtype(dtype), "blocks" if cpu else "xla", skip_unread=cpu)


def weight(rngs: nnx.Rngs, *shape: int, dtype=jnp.float32) -> nnx.Param:
    """A matrix drawn from N(0, 0.02^2), the initialisation of the published checkpoints."""
    return nnx.Param(0.02 * jax.random.normal(rngs.params(), shape, dtype))


def ones(*shape: int) -> nnx.Param:
    """A trained array of ones."""
    return nnx.Param(jnp.ones(shape))


def zeros(*shape: int) -> nnx.Param:
    """A trained array of zeros."""
    return nnx.Param(jnp.zeros(shape))


def rms_norm(x: jax.Array, scale: nnx.Param, eps: float = 1e-6) -> jax.Array:
    """Root-mean-square norm over the last axis, in fp32 or wider, scaled in x's type (as the reference does)."""
    y = x.astype(at_least_fp32(x.dtype))
    y = y * jax.lax.rsqrt(jnp.mean(y * y, -1, keepdims=True) + eps)
    return y.astype(x.dtype) * scale[...].astype(x.dtype)


def flat(x: jax.Array, axes: int = 2) -> jax.Array:
    """x with its first `axes` axes merged, for a product with a trained matrix.

    The matrix's gradient is a sum over them. Over more axes than one, XLA for CPUs writes out a transposed copy of x
    first, which takes longer than the product where matrices are small (2026-11, jax 0.10.2).
    """
    return x.reshape(-1, *x.shape[axes:])


class SwiGLU(nnx.Module):
    """down(silu(gate x) * up x), with biases in the vision tower and without in the language model."""

    def __init__(self, rngs: nnx.Rngs, width: int, inner: int, bias: bool):
        self.gate, self.up, self.down = (
            weight(rngs, width, inner), weight(rngs, width, inner), weight(rngs, inner, width)
        )  # fmt: skip
        self.bias = bias
        if bias:
            self.gate_bias, self.up_bias, self.down_bias = zeros(inner), zeros(inner), zeros(width)

    def __call__(self, x: jax.Array) -> jax.Array:
        leading, x = x.shape[:-1], flat(x, x.ndim - 1)
        gate, up = (jnp.einsum("RD,DF->RF", x, w[...].astype(x.dtype)) for w in (self.gate, self.up))
        if self.bias:
            gate, up = gate + self.gate_bias[...].astype(x.dtype), up + self.up_bias[...].astype(x.dtype)
        y = jnp.einsum("RF,FD->RD", jax.nn.silu(gate) * up, self.down[...].astype(x.dtype))
        y = y + self.down_bias[...].astype(x.dtype) if self.bias else y
        return y.reshape(*leading, -1)


def stack(make: Callable[[nnx.Rngs], nnx.Module], layers: int, rngs: nnx.Rngs) -> nnx.Module:
    """`layers` blocks as one module whose parameters have a leading L axis."""
    return nnx.vmap(make, in_axes=0, out_axes=0)(rngs.split(layers))


def scan_blocks(
    blocks: nnx.Module, step: Callable, x: jax.Array, per_layer: Any, compute: Compute, last: Callable | None = None
) -> tuple[jax.Array, Any]:
    """Runs x through stacked blocks: step(block, x, layer) -> (x, outputs); outputs come back stacked over L. `last`
    takes the place of `step` in the last block."""
    graph, parameters = nnx.split(blocks)
    layers = parameters, per_layer

    def body(step: Callable) -> Callable:
        def run(x, layer):
            parameters, rest = layer
            return step(nnx.merge(graph, parameters), over_rows(x), rest)

        if REMAT[compute.remat] is None:
            return run
        # A loop of one layer leaves nothing to merge across it; unrolled, what is computed again could be.
        return jax.checkpoint(run, policy=REMAT[compute.remat], prevent_cse=compute.unroll > 1 or step is last)

    if last is None:
        return jax.lax.scan(body(step), x, layers, unroll=compute.unroll)
    x, out = jax.lax.scan(body(step), x, jax.tree.map(lambda a: a[:-1], layers), unroll=compute.unroll)
    x, end = body(last)(x, jax.tree.map(lambda a: a[-1], layers))
    return x, jax.tree.map(lambda a, b: jnp.concatenate([a, b[None]]), out, end)
