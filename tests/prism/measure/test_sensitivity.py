"""The gradient is that of the answer's margin, through the whole loop, and predicts small noise."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "latents"))

from latent_models import GRAPH, LETTERS, OPENING, STOP, batch_of, params, plan_of, prefill, start_of, sweep

from lvr_jax.latents import conditions as cond
from lvr_jax.latents import positions, rollout
from lvr_jax.latents.decoding import Decoding
from lvr_jax.models.layers import Compute
from lvr_jax.prism.measure import sensitivity
from lvr_jax.prism.measure.sensitivity import Replay, Sensitivity
from lvr_jax.prism.outcomes import margins as margins_of_letters

B, Z, S = 3, 3, 10
OFFERED = np.array([[True] * 4, [True, True, False, False], [True] * 4])
GOLD = np.array([0, 1, 2])
PLAN = plan_of("lvr", Z)


def run(noise: float = 0.0):
    """Prefix, and the trace of a clean or noisy rollout in which every item opens a block."""
    batch = batch_of([0, 1, 2], (start_of("lvr"),))
    prefix, _ = prefill(GRAPH, params(), batch, jnp.arange(B))
    condition = cond.stack([cond.absolute_noise(noise) if noise else cond.clean()], (), 1, Z)
    trace = sweep(GRAPH, params(), prefix, PLAN, condition, rollout.no_bank(prefix, PLAN),
                  decoding=Decoding(max_new_tokens=S - Z, stop=(STOP,)), steps=S,
                  letters=jnp.asarray(LETTERS))  # fmt: skip
    host = {k: np.asarray(v)[0] for k, v in vars(trace).items() if v is not None and k != "steps"}
    answer = positions.step(positions.masks(host, PLAN, (OPENING,))["answer"])
    return prefix, host, answer


@pytest.fixture(scope="module")
def clean():
    prefix, host, answer = run()
    assert (answer > Z).all()
    offered = jnp.asarray(OFFERED)
    return prefix, host, Replay(jnp.asarray(host["token"]), jnp.asarray(host["latent"]), jnp.asarray(answer),
                                jnp.asarray(GOLD), offered)  # fmt: skip


@pytest.fixture(scope="module")
def margin_of(clean):
    prefix, _, replay = clean

    @jax.jit
    def margin(delta):
        return sensitivity.margins(GRAPH, params(), prefix, replay, jnp.asarray(LETTERS), delta,
                                   head_at=PLAN.spec.head_at, compute=Compute())  # fmt: skip

    return margin


def test_the_replay_is_the_rollout(clean, margin_of):
    _, host, replay = clean
    margin, fed = margin_of(jnp.zeros((B, S, host["hidden"].shape[-1])))
    letters = np.take_along_axis(host["letters"], np.asarray(replay.answer)[:, None, None], 1)[:, 0]
    expected = margins_of_letters(letters, GOLD, OFFERED.sum(1))
    np.testing.assert_allclose(margin, expected, atol=1e-4)
    np.testing.assert_allclose(np.asarray(fed)[host["latent"]], host["fed"][host["latent"]], atol=1e-4)


def test_the_gradient_equals_finite_differences(clean, margin_of):
    """Central differences in fp32 along random directions on single latents: 2 % is their own error."""
    prefix, host, replay = clean
    D = host["hidden"].shape[-1]
    with jax.default_matmul_precision("highest"):
        _, gradient, _ = sensitivity.gradients(GRAPH, params(), prefix, replay, jnp.asarray(LETTERS),
                                               head_at=PLAN.spec.head_at, compute=Compute())  # fmt: skip
    gradient = np.asarray(gradient)
    assert not gradient[~host["latent"]].any()
    rng = np.random.default_rng(0)
    for s in np.flatnonzero(host["latent"].all(0)):
        direction = gradient[:, s] + np.linalg.norm(gradient[:, s], axis=-1, keepdims=True) * (
            rng.standard_normal((B, D)) / np.sqrt(D))  # fmt: skip
        direction /= np.linalg.norm(direction, axis=-1, keepdims=True)
        delta = np.zeros((B, S, D), np.float32)
        delta[:, s] = 2e-3 * direction
        slope = (np.asarray(margin_of(jnp.asarray(delta))[0]) - np.asarray(margin_of(jnp.asarray(-delta))[0])) / 4e-3
        np.testing.assert_allclose((gradient[:, s] * direction).sum(-1), slope, rtol=0.02, atol=2e-3)


def test_an_early_latent_also_acts_through_the_later_ones(clean):
    """Against the gradient in which later latents are held as they were: they must differ, or the loop is cut."""
    prefix, host, replay = clean

    def frozen(delta):
        held = jnp.asarray(np.where(host["latent"][..., None], host["fed"], 0))
        trace_like = held + delta
        condition = jax.tree.map(lambda x: x, cond.stack([cond.clean()], (), 1, Z))
        trace = sweep(GRAPH, params(), prefix, PLAN, condition, rollout.no_bank(prefix, PLAN),
                      decoding=Decoding(max_new_tokens=S - Z, stop=(STOP,)), steps=S, letters=jnp.asarray(LETTERS),
                      forced=jnp.asarray(host["token"]), replay=trace_like)  # fmt: skip
        letters = np.take_along_axis(np.asarray(trace.letters)[0], np.asarray(replay.answer)[:, None, None], 1)[:, 0]
        return margins_of_letters(letters, GOLD, OFFERED.sum(1))

    _, gradient, _ = sensitivity.gradients(GRAPH, params(), prefix, replay, jnp.asarray(LETTERS),
                                           head_at=PLAN.spec.head_at, compute=Compute())  # fmt: skip
    gradient = np.asarray(gradient)
    first = int(np.flatnonzero(host["latent"][0])[0])
    direction = gradient[:, first] / np.linalg.norm(gradient[:, first], axis=-1, keepdims=True)
    delta = np.zeros_like(gradient)
    delta[:, first] = 5e-3 * direction
    direct = (frozen(delta) - frozen(-delta)) / 1e-2
    total = np.linalg.norm(gradient[:, first], axis=-1)
    assert (np.abs(direct - total) > 0.05 * total).any()


def test_small_noise_moves_the_margin_as_predicted(clean, margin_of):
    """200 draws on all latents, small enough to be linear: the spread is sigma times the gradients' norm. Within 15 %,
    three standard errors of a spread that one of the items dominates."""
    prefix, host, replay = clean
    _, gradient, _ = sensitivity.gradients(GRAPH, params(), prefix, replay, jnp.asarray(LETTERS),
                                           head_at=PLAN.spec.head_at, compute=Compute())  # fmt: skip
    norm = np.linalg.norm(np.asarray(gradient), axis=-1)
    rows = [norm[b, host["latent"][b]] for b in range(B)]
    D = gradient.shape[-1]
    found = Sensitivity([f"item{n}" for n in range(B)], np.zeros(B), np.stack(rows), np.full((B, Z), 2.0), D)
    rng, sigma = np.random.default_rng(1), 2e-4
    still = np.asarray(margin_of(jnp.zeros_like(gradient))[0])
    moved = []
    for _ in range(200):
        delta = sigma * rng.standard_normal(gradient.shape).astype(np.float32) * host["latent"][..., None]
        moved.append(np.asarray(margin_of(jnp.asarray(delta))[0]) - still)
    assert found.predicted(sigma, relative=False) == pytest.approx(np.sqrt(np.square(moved).mean()), rel=0.15)
    # Noise of alpha |z| has a standard deviation of alpha |z| / sqrt(D) a dimension.
    assert found.predicted(0.5, relative=True) == pytest.approx(found.predicted(0.5 * 2 / np.sqrt(D), relative=False))


def test_items_without_an_answer_do_not_enter_the_prediction():
    nan = np.nan
    found = Sensitivity(["a", "b"], np.array([1.0, nan]), np.array([[3.0, 4.0], [nan, nan]]), np.ones((2, 2)), 4)
    assert found.predicted(0.1, relative=False) == pytest.approx(0.5)
    assert np.isnan(Sensitivity(["b"], np.array([nan]), np.full((1, 2), nan), np.ones((1, 2)), 4).predicted(1, False))


