"""The scanned rollout of training is the pass that it stands for, forwards and backwards."""


import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_objectives import GEOMETRY, D, batch_of, example, network

from lvr_jax.data.packing import Alignment, Budget, BudgetError, align
from lvr_jax.data.sample import DataError
from lvr_jax.latents import objectives
from lvr_jax.latents.objectives import Objective, Weights
from lvr_jax.latents.unroll import Part, unroll
from lvr_jax.models.layers import Compute
from lvr_jax.models.records import Images, Tokens

ALIGNMENT = Alignment(text=(14, 4, 7), latents=(3, 2))
PARTS = tuple(Part(*bounds) for bounds in ALIGNMENT.bounds)
# Two blocks, one block, and latents that fill their part, or do not.
EXAMPLES = (example(0, ((1, 3), (1, 1))), example(1, ((1, 2),)), example(2, ((1, 2), (1, 2))))


def packed() -> dict:
    """One example a row, tokens from the left as the pipeline lays them out."""
    budget = GEOMETRY.smallest([[e] for e in EXAMPLES])
    return batch_of(*EXAMPLES, budget=Budget(budget.tokens + 3, budget.windows, 0))


def inputs(batch: dict) -> tuple[jax.Array, Tokens]:
    model = network()
    merged, _ = model.encode(Images(batch["patches"], batch["window_segment"], batch["rotary_ids"]))
    x = model.embed(batch["tokens"], batch["vision_slot"], merged)
    return x, Tokens(jnp.asarray(batch["positions"]), jnp.asarray(batch["segment"]), jnp.asarray(batch["role"]))


@pytest.fixture(scope="module")
def aligned():
    batch = align(packed(), ALIGNMENT)
    return batch, *inputs(batch)


@jax.jit
def scanned(x, tokens, own):
    return unroll(network(), x, tokens, PARTS, own, Compute())


def test_alignment_keeps_every_token_and_puts_latents_at_the_same_places(aligned):
    batch, before = aligned[0], packed()
    latent = np.asarray(objectives.is_latent(batch))
    for part in PARTS:
        assert part.latents or not latent[:, part.start : part.stop].any()
    assert latent[:, [p.start for p in PARTS if p.latents]].tolist() == [[True, True], [True, False], [True, True]]
    for key in ("tokens", "positions", "vision_slot", "stage", "group", "role", "loss_mask"):
        for row in range(len(EXAMPLES)):
            own = before[key][row][..., before["segment"][row] > 0]
            np.testing.assert_array_equal(batch[key][row][..., batch["segment"][row] > 0], own)
    # The token before the first latent of a block, its start marker, is its neighbour in the row too.
    for row, t in zip(*np.nonzero(latent)):
        assert batch["before"][row, t] == t - 1


def test_aligned_rows_have_the_losses_of_packed_ones():
    batch, other = packed(), align(packed(), ALIGNMENT)
    weights = Weights(jnp.float32(1), jnp.float32(0))

    def run(batch, objective, parts=()):
        total = objectives.totals(batch)
        return objectives.loss(network(), batch, objective, weights, total, jax.random.key(0), Compute(), parts)[1]

    run = jax.jit(run, static_argnums=(1, 2))
    expected = run(batch, Objective())
    # `scheduled` with probability 0: the scan, fed by force.
    for found in (run(other, Objective()), run(other, Objective(feedback="scheduled"), PARTS)):
        for key in ("loss_ce", "loss_lvr", "cosine", "accuracy"):
            np.testing.assert_allclose(found[key], expected[key], rtol=2e-5, err_msg=key)


def test_fed_by_force_it_is_the_parallel_pass(aligned):
    batch, x, tokens = aligned
    real = batch["segment"] > 0
    parallel = jax.jit(lambda x: network().decode(x, tokens)[0])(x)
    hidden = scanned(x, tokens, jnp.zeros(real.shape, bool))
    np.testing.assert_allclose(np.asarray(hidden)[real], np.asarray(parallel)[real], atol=2e-4)


def one_by_one(x: jax.Array, tokens: Tokens, own: jax.Array, compute: Compute) -> jax.Array:
    """The same by a Python loop that runs the whole parallel pass anew for every latent: no cache, no scan."""
    for part in PARTS:
        if part.latents:
            for t in range(part.start, part.stop):
                hidden, _, _ = network().decode(x, tokens, compute=compute)
                x = x.at[:, t].set(jnp.where(own[:, t, None], hidden[:, t - 1], x[:, t]))
    return network().decode(x, tokens, compute=compute)[0]


@pytest.fixture(scope="module")
def own(aligned):
    """Latents of the first two rows, but for each one's second; none of the third."""
    latent = np.asarray(objectives.is_latent(aligned[0]))
    second = np.arange(latent.shape[1]) == PARTS[1].start + 1
    return latent & np.array([[True], [True], [False]]) & ~second


@pytest.mark.slow
def test_own_latents_and_their_gradients_equal_those_of_a_python_loop(aligned, own):
    """In fp64: latents that feed latents amplify rounding."""
    batch, x, tokens = aligned
    real = batch["segment"] > 0
    mix = np.where(real[..., None], np.random.default_rng(0).normal(size=(*real.shape, D)), 0)

    def both(f):
        return jax.jit(jax.value_and_grad(lambda x: jnp.sum(f(x) * mix)))(x)

    with jax.enable_x64(True):
        x, compute = jnp.asarray(x, jnp.float64), Compute(dtype=jnp.float64)
        value, gradient = both(lambda x: unroll(network(), x, tokens, PARTS, jnp.asarray(own), compute))
        expected, expected_gradient = both(lambda x: one_by_one(x, tokens, jnp.asarray(own), compute))
    np.testing.assert_allclose(value, expected, rtol=1e-9)
    np.testing.assert_allclose(gradient, expected_gradient, atol=1e-9 * np.abs(expected_gradient).max(), rtol=0)
    # Through time: the image, read by nothing after the blocks but by latents, moves what is fed.
    assert np.abs(np.asarray(gradient)[0, : PARTS[0].stop]).max() > 0
    # What the model's own state replaced has no influence left.
    assert (np.asarray(gradient)[own] == 0).all() and own.sum() >= 4


def test_own_latents_are_fed_where_asked_and_change_what_follows(aligned, own):
    batch, x, tokens = aligned
    forced = scanned(x, tokens, jnp.zeros(own.shape, bool))
    free = scanned(x, tokens, jnp.asarray(own))
    changed = np.abs(np.asarray(free - forced)).max(-1) > 1e-4
    first = np.argmax(own, axis=1)
    for row in (0, 1):
        assert not changed[row, : first[row]].any() and changed[row, first[row]]
    assert not changed[2].any()


def test_a_row_without_static_parts_is_refused(aligned):
    _, x, tokens = aligned
    with pytest.raises(ValueError, match="rows need static parts, text first"):
        unroll(network(), x, tokens, (), jnp.zeros(x.shape[:2], bool), Compute())


def test_an_example_that_does_not_fit_its_part_is_named():
    with pytest.raises(BudgetError, match="part 1 has 3 latents"):
        align(packed(), Alignment(text=(14, 4, 7), latents=(2, 2)))
    with pytest.raises(BudgetError, match="tokens of text"):
        align(packed(), Alignment(text=(5, 4, 7), latents=(3, 2)))
    with pytest.raises(DataError, match="a row holds several examples"):
        align(batch_of([EXAMPLES[0], EXAMPLES[1]]), ALIGNMENT)
