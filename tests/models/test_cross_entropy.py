"""The chunked cross-entropy is the plain one, in values and gradients, without ever holding all logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import distance

from lvr_jax.models.cross_entropy import token_losses, weighted_cross_entropy

# fp32 logits of a few dozen terms and a log-sum-exp over a few dozen words: tens of roundings of 6e-8.
FP32 = 1e-5


def draw(B=2, T=11, D=16, V=40, dtype=jnp.float32):
    rng = np.random.default_rng(0)
    hidden = jnp.array(rng.standard_normal((B, T, D)), dtype)
    unembedding = jnp.array(rng.standard_normal((V, D)) / 4, jnp.float32)
    labels = jnp.array(rng.integers(0, V, (B, T)))
    weights = jnp.array(rng.random((B, T)) * (rng.random((B, T)) < 0.6), jnp.float32)
    return hidden, unembedding, labels, weights


def plain(hidden, unembedding, labels, weights):
    """fp64, with all logits: loss, losses, correct, d hidden, d unembedding."""
    h, u, w = (np.asarray(x, np.float64) for x in (hidden, unembedding, weights))
    labels = np.asarray(labels)
    logits = h @ u.T
    exp = np.exp(logits - logits.max(-1, keepdims=True))
    p = exp / exp.sum(-1, keepdims=True)
    losses = -np.log(np.take_along_axis(p, labels[..., None], -1)[..., 0])
    d_logits = (p - np.eye(u.shape[0])[labels]) * w[..., None]
    correct = (logits.argmax(-1) == labels) & (w != 0)
    return (losses * w).sum(), losses, correct, d_logits @ u, np.einsum("btv,btd->vd", d_logits, h)


def run(hidden, unembedding, labels, weights, chunk, scale=1.0, gathered=False):
    def loss(hidden, unembedding):
        total, aux = weighted_cross_entropy(hidden, unembedding, labels, weights, chunk, gathered)
        return total * scale, aux

    step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
    (total, (losses, correct)), (d_hidden, d_unembedding) = step(hidden, unembedding)
    return total, losses, correct, d_hidden, d_unembedding


@pytest.mark.parametrize("gathered", [False, True])
@pytest.mark.parametrize("chunk", [1, 2, 8, 21, 22, 256])
def test_value_and_gradients_equal_plain_cross_entropy(chunk, gathered):
    """Chunks of two rows that divide the length, that leave a padded rest, and some larger than all of it."""
    arguments = draw()
    ours, expected = run(*arguments, chunk, gathered=gathered), list(plain(*arguments))
    np.testing.assert_array_equal(ours[2], expected[2])
    if gathered:        # what has no weight is not looked at
        expected[1] = np.where(arguments[3] == 0, 0, expected[1])
    for i in (0, 1, 3, 4):
        assert distance(ours[i], expected[i]) <= FP32


@pytest.mark.parametrize("gathered", [False, True])
def test_without_gradient_it_is_the_same_value(gathered):
    arguments = draw()
    total, (losses, correct) = jax.jit(weighted_cross_entropy, static_argnums=(4, 5))(*arguments, 4, gathered)
    with_gradient = run(*arguments, 4, gathered=gathered)
    for a, b in zip((total, losses, correct), with_gradient):
        np.testing.assert_array_equal(a, b)


def test_token_losses_are_the_negative_log_likelihood():
    hidden, unembedding, labels, weights = draw()
    expected = plain(hidden, unembedding, labels, weights)[1]
    assert distance(token_losses(hidden @ unembedding.T, labels), expected) <= FP32


def test_the_incoming_gradient_scales_the_outgoing_one():
    arguments = draw()
    for a, b in zip(run(*arguments, 4, scale=-3.0)[3:], run(*arguments, 4)[3:]):
        assert distance(a, -3 * b) <= FP32


@pytest.mark.parametrize("gathered", [False, True])
def test_weight_zero_hides_a_token_altogether(gathered):
    hidden, unembedding, labels, weights = draw()
    _, _, correct, d_hidden, _ = run(hidden, unembedding, labels, weights, 4, gathered=gathered)
    away = np.asarray(weights) == 0
    assert away.any() and not np.asarray(d_hidden)[away].any() and not np.asarray(correct)[away].any()
    weights = jnp.zeros_like(weights)
    total, _, _, d_hidden, d_unembedding = run(hidden, unembedding, labels, weights, 4, gathered=gathered)
    assert total == 0 and not d_hidden.any() and not d_unembedding.any()


def test_bf16_states_give_fp32_losses_and_gradients_in_their_own_types():
    """The reference gets the rounded states and weights, so the loss agrees to fp32; gradients are rounded to bf16."""
    hidden, unembedding, labels, weights = draw(dtype=jnp.bfloat16)
    ours = run(hidden, unembedding, labels, weights, 4)
    expected = plain(hidden, unembedding.astype(jnp.bfloat16), labels, weights)
    assert [x.dtype for x in ours] == [jnp.float32, jnp.float32, bool, jnp.bfloat16, jnp.float32]
    assert distance(ours[0], expected[0]) <= FP32 and distance(ours[1], expected[1]) <= FP32
    assert distance(ours[3], expected[3]) <= 2**-7 and distance(ours[4], expected[4]) <= 2**-7


def test_gathered_tokens_cost_chunks_of_their_own_only():
    """States that are not finite wherever nothing is predicted: whoever computed with them would not be finite."""
    hidden, unembedding, labels, weights = draw(B=3, T=100)
    weights = weights.at[:, 7:].set(0)
    hidden = jnp.where(weights[..., None] == 0, jnp.nan, hidden)
    total, losses, _, d_hidden, d_unembedding = run(hidden, unembedding, labels, weights, 4, gathered=True)
    assert all(np.isfinite(x).all() for x in (total, losses, d_hidden, d_unembedding)) and total > 0


def test_no_program_holds_all_logits():
    """A chunk's logits are V * chunk numbers; all of them would be 8 times that."""
    B, T, D, V, chunk = 1, 1024, 32, 20_000, 128
    shapes = [
        jax.ShapeDtypeStruct(shape, dtype)
        for shape, dtype in [
            ((B, T, D), jnp.bfloat16), ((V, D), jnp.bfloat16), ((B, T), jnp.int32), ((B, T), jnp.float32)
        ]
    ]  # fmt: skip

    def loss(hidden, unembedding, labels, weights):
        return weighted_cross_entropy(hidden, unembedding, labels, weights, chunk)[0]

    for program in (loss, jax.grad(loss, argnums=(0, 1))):
        compiled = jax.jit(program).lower(*shapes).compile()
        everything = B * T * V
        assert f"[{B},{T},{V}]" not in compiled.as_text() and f"[{B * T},{V}]" not in compiled.as_text()
        assert compiled.memory_analysis().temp_size_in_bytes < 4 * everything / 2
