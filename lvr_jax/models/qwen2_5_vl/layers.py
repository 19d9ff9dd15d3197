"""What do the vision tower and the language model share? Parameters, RMSNorm, SwiGLU, and the scan over layers."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from lvr_jax.models.placement import over_rows
from lvr_jax.models.precision import wide

# What the backward pass may keep of a block; the rest is computed again.
REMAT = {
    "none": None,                                                                # keep everything
    "block": jax.checkpoint_policies.nothing_saveable,                           # keep the block's input only
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,            # keep projections, not scores
}


@dataclasses.dataclass(frozen=True)
class Compute:
    """How to run the network, apart from what it is: static under jit.

    dtype:     type of activations; norms, RoPE, softmax and logits are fp32 or wider
    attention: kernel of full attention over the tokens of a pass (models.attention.IMPLEMENTATIONS)
    remat:     key of REMAT
    """

    dtype: Any = jnp.float32
    attention: str = "xla"
    remat: str = "none"


def weight(rngs: nnx.Rngs, *shape: int, dtype=jnp.float32) -> nnx.Param:
    """A matrix drawn from N(0, 0.02^2), the initialisation of the published checkpoints."""
    return nnx.Param(0.02 * jax.random.normal(rngs.params(), shape, dtype))


def ones(*shape: int) -> nnx.Param:
    return nnx.Param(jnp.ones(shape))


def zeros(*shape: int) -> nnx.Param:
    return nnx.Param(jnp.zeros(shape))


def rms_norm(x: jax.Array, scale: nnx.Param, eps: float = 1e-6) -> jax.Array:
    """Root-mean-square norm over the last axis, in fp32 or wider, scaled in x's type (as the reference does)."""
    y = x.astype(wide(x.dtype))
    y = y * jax.lax.rsqrt(jnp.mean(y * y, -1, keepdims=True) + eps)
    return y.astype(x.dtype) * scale[...].astype(x.dtype)


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
        gate, up = (jnp.einsum("...D,DF->...F", x, w[...].astype(x.dtype)) for w in (self.gate, self.up))
        if self.bias:
            gate, up = gate + self.gate_bias[...].astype(x.dtype), up + self.up_bias[...].astype(x.dtype)
        y = jnp.einsum("...F,FD->...D", jax.nn.silu(gate) * up, self.down[...].astype(x.dtype))
        return y + self.down_bias[...].astype(x.dtype) if self.bias else y


def stack(make: Callable[[nnx.Rngs], nnx.Module], layers: int, rngs: nnx.Rngs) -> nnx.Module:
    """`layers` blocks as one module whose parameters have a leading L axis."""
    return nnx.vmap(make, in_axes=0, out_axes=0)(rngs.split(layers))


def scan_blocks(blocks: nnx.Module, step: Callable, x: jax.Array, per_layer: Any, remat: str) -> tuple[jax.Array, Any]:
    """Runs x through stacked blocks: step(block, x, layer) -> (x, outputs); outputs come back stacked over L."""
    graph, parameters = nnx.split(blocks)

    def body(x, layer):
        parameters, rest = layer
        return step(nnx.merge(graph, parameters), over_rows(x), rest)

    if REMAT[remat] is not None:
        body = jax.checkpoint(body, policy=REMAT[remat], prevent_cse=False)
    return jax.lax.scan(body, x, (parameters, per_layer))
