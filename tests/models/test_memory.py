"""Weights in bf16 are not widened as whole stacks: a program for a CPU holds little beside the checkpoint."""

import jax
import jax.numpy as jnp
from jaxlib.version import __version_info__ as JAXLIB

from lvr_jax.models.compiler_options import Jit

L, D, F = 16, 64, 256


def layers(x, up, down):
    """A step of decoding: a loop over layers inside a loop over tokens."""
    def block(x, w):
        return x + jnp.einsum("RF,FD->RD", jnp.einsum("RD,DF->RF", x, w[0]), w[1]), None

    return jax.lax.fori_loop(0, 3, lambda i, x: jax.lax.scan(block, x, (up, down))[0], x)


def test_a_loop_over_bf16_layers_holds_a_layer_in_fp32_and_no_more():
    x = jax.ShapeDtypeStruct((2, D), jnp.bfloat16)
    up, down = (jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in ((L, D, F), (L, F, D)))
    stacks, layer = 2 * L * D * F * 2, 2 * D * F * 4
    memory = Jit(layers).lower(x, up, down).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 2 * layer < stacks / 2
    plain = jax.jit(layers).lower(x, up, down).compile().memory_analysis()
    if JAXLIB < (0, 11):        # whose XLA does without the option
        assert plain.temp_size_in_bytes > 2 * stacks, "XLA has learnt it: the option can go"


def test_programs_in_fp32_keep_every_pass():
    wide = Jit(lambda x: 2 * x)
    assert wide.lower(jnp.ones(3)) and wide._with.cache_info().currsize == 1
    wide.lower(jnp.ones(3, jnp.bfloat16))
    assert wide._with.cache_info().currsize == 2
