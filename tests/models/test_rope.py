"""Cosines and sines of positions are the same for layers in a loop and for unrolled ones, and computed once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lvr_jax.models.qwen2_5_vl.rope import mrope_table, rotate, vision_table

RNG = np.random.default_rng(0)
POSITIONS = RNG.integers(0, 1000, size=(2, 3, 40))
TABLES = {
    "decoder": lambda ids, unrolled: mrope_table(ids, 16, (2, 3, 3), 1e6, unrolled=unrolled),
    "tower": lambda ids, unrolled: vision_table(ids.transpose(0, 2, 1)[..., 1:], 16, unrolled=unrolled),
}


@pytest.mark.parametrize("name", TABLES)
def test_a_table_for_unrolled_layers_is_that_for_a_loop(name):
    table = jax.jit(TABLES[name], static_argnums=1)
    for ours, theirs in zip(table(POSITIONS, True), table(POSITIONS, False)):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("name", TABLES)
def test_unrolled_layers_do_not_compute_cosines_again(name):
    """Where XLA sees all of them: without `unrolled` each of four has its own."""

    def layers(x, ids, unrolled):
        table = TABLES[name](ids, unrolled)
        for n in range(4):
            x = rotate(x * jnp.float32(n + 1.5), table)
            x = jnp.cumsum(x, 1)        # no one fusion of all four
        return x

    def cosines(unrolled):
        run = jax.jit(layers, static_argnums=2, compiler_options=options)
        return run.lower(x, POSITIONS, unrolled).compile().as_text().count(" cosine(")

    x = jnp.asarray(RNG.standard_normal((2, 40, 4, 16)), jnp.float32)
    options = {"xla_backend_optimization_level": 3}
    assert cosines(True) == 1 < cosines(False)
