"""The dtype of norms, RoPE, softmax and logits, which bf16 is too coarse for."""

import jax.numpy as jnp


def at_least_fp32(dtype) -> jnp.dtype:
    """fp32, or fp64 where the pass itself is fp64: tests compare in fp64, where rounding cannot hide an error."""
    return jnp.promote_types(dtype, jnp.float32)
