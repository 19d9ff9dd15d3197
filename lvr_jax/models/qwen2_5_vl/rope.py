"""Turns positions into rotations: tables for the vision tower (2-D) and the language model (M-RoPE), fp32.

The tables stay fp32 whatever the compute type is: rounding the angles to bf16, as public ports do, shifts the
attention logits of a 1,000-pixel image by up to 0.07 (measured 2026-11, jax 0.10.2).
"""

import jax
import jax.numpy as jnp
import numpy as np

from lvr_jax.models.placement import on_one_device
from lvr_jax.models.precision import at_least_fp32
from lvr_jax.models.splash_attention import LANES


def vision_table(
    rotary_ids: jax.Array, head_width: int, theta: float = 1e4, dtype=jnp.float32, *, unrolled: bool = False
) -> tuple[jax.Array, jax.Array]:
    """Row and column ids [..., 2] -> cos, sin [..., H]: H/4 row frequencies, H/4 column frequencies, and both again.

    unrolled: for layers that are no loop.
    """
    frequencies = theta ** -(jnp.arange(0, head_width // 2, 2, dtype=dtype) / (head_width // 2))  # [H/4]
    angles = rotary_ids[..., None].astype(dtype) * frequencies  # [..., 2, H/4]
    angles = angles.reshape(*rotary_ids.shape[:-1], head_width // 2)
    angles = jnp.concatenate([angles, angles], -1)
    return _cos_and_sin(angles, unrolled)


def mrope_table(
    positions: jax.Array, head_width: int, section: tuple[int, int, int], theta: float, dtype=jnp.float32, *,
    unrolled: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Positions [B, 3, T] -> cos, sin [B, T, H]; a frequency turns with its section's axis (time, height, width).

    unrolled: for layers that are no loop.
    """
    frequencies = theta ** -(jnp.arange(0, head_width, 2, dtype=dtype) / head_width)  # [H/2]
    axis = jnp.repeat(jnp.arange(3), jnp.array(section), total_repeat_length=head_width // 2)
    angles = jnp.moveaxis(positions, 1, -1)[..., axis].astype(dtype) * frequencies  # [B, T, H/2]
    angles = jnp.concatenate([angles, angles], -1)
    return _cos_and_sin(angles, unrolled)


def _cos_and_sin(angles: jax.Array, unrolled: bool) -> tuple[jax.Array, jax.Array]:
    """Of angles [B, ...]. XLA for CPUs would compute them anew in every unrolled layer and for every head, a twelfth of
    a step of the tiny network, if they were not the results of a loop (2026-11, jax 0.10.2)."""
    work = lambda angles: (jnp.cos(angles), jnp.sin(angles))  # noqa: E731
    if not (unrolled and on_one_device()):
        return work(angles)
    return jax.lax.platform_dependent(angles, cpu=lambda angles: jax.lax.map(work, angles), default=work)


def rotate(x: jax.Array, table: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotates the halves of x [..., N, H] by a table of [..., H], in fp32 or wider.

    A TPU turns heads that are no multiple of its 128 lanes by a product: cutting and joining their halves, XLA takes a
    layout with windows as the minor dimension, and more copies: 0.2 s of a step in the tower (H 80) of 3B on v5e-16 by
    libtpu's estimate (2026-11, libtpu 0.0.42.1). Wider heads gain nothing, and remat would keep their products.
    """
    if x.shape[-1] % LANES == 0:
        return _by_halves(x, *table)
    return jax.lax.platform_dependent(x, *table, tpu=_by_product, default=_by_halves)


def _by_product(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """By a product with a signed permutation, exact as each of its sums has one term."""
    half, wide = x.shape[-1] // 2, at_least_fp32(x.dtype)
    swap = np.roll(np.eye(2 * half), half, axis=1) * np.repeat([-1, 1], half)
    swapped = jnp.einsum("...NH,HG->...NG", x, swap.astype(x.dtype), preferred_element_type=wide, precision="highest")
    return (x.astype(wide) * cos[..., None, :] + swapped * sin[..., None, :]).astype(x.dtype)


def _by_halves(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    (left_cos, right_cos), (left_sin, right_sin) = (jnp.split(t[..., None, :], 2, axis=-1) for t in (cos, sin))
    left, right = (y.astype(at_least_fp32(x.dtype)) for y in jnp.split(x, 2, axis=-1))
    turned = left * left_cos - right * left_sin, right * right_cos + left * right_sin
    return jnp.concatenate([y.astype(x.dtype) for y in turned], -1)
