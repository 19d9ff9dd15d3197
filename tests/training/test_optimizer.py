"""An update is the reference's and touches only what is trained."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lvr_jax.checkpoints.orbax_io import flat
from lvr_jax.models.families import abstract_model
from lvr_jax.models.qwen2_5_vl.config import SIZES
from lvr_jax.training.optimizer import AdamW, decayed
from lvr_jax.training.schedules import Points, cosine_with_warmup

ROOT = Path(__file__).resolve().parents[2]
CASE = ROOT / "tests/golden/cases/H_train5_lvr.npz"


@pytest.mark.slow
def test_five_steps_equal_the_reference():
    """Golden case H: losses, gradient norms, rates, decay groups, what was trained and how far it moved."""
    sys.path.insert(0, str(ROOT / "tools"))
    from golden import optimizer_cases
    from golden.case import Case

    checks = list(optimizer_cases.check(Case(CASE)))
    assert len(checks) > 20
    assert [f"{c.key}: {c.difference:.2e} > {c.tolerance:g}" for c in checks if not c.ok] == []


def test_the_rate_is_that_of_transformers_at_every_step():
    """Half a cosine after a straight warm-up of ceil(0.03 * 2500) = 75 steps, as get_cosine_schedule_with_warmup."""
    steps, warmup, rate = 2500, 75, cosine_with_warmup(1e-5, 2500, 0.03)
    for step in (0, 1, 74, 75, 76, 1500, 2499, 2500):
        if step < warmup:
            expected = step / warmup
        else:
            expected = 0.5 * (1 + np.cos(np.pi * (step - warmup) / (steps - warmup)))
        np.testing.assert_allclose(rate(jnp.int32(step)), 1e-5 * expected, rtol=1e-5, atol=1e-12)


def test_only_biases_are_spared_by_the_official_rule_and_norms_too_by_the_conventional():
    params = abstract_model(SIZES["tiny"])[1]["text"]
    official, conventional = (flat(decayed({"text": params}, rule)) for rule in ("official", "conventional"))
    spared = lambda mask: {path.removeprefix("text/blocks/") for path, decays in mask.items() if not decays}  # noqa: E731
    assert spared(official) == {"q_bias", "k_bias", "v_bias"}
    assert spared(conventional) - spared(official) == {"attention_norm", "mlp_norm", "text/norm"}


def test_decay_reaches_the_parameters_of_its_mask_alone():
    """With a gradient of zero, decay is all that moves: by rate times 0.1 of the parameter."""
    params = {"a": jnp.full(3, 2.0), "a_bias": jnp.full(3, 2.0)}
    tx = AdamW(peak=0.5, warmup_ratio=0.0).transformation(100)
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    moved = optax.apply_updates(params, updates)
    np.testing.assert_allclose(moved["a"], 2.0 * (1 - 0.5 * 0.1), rtol=1e-6)
    np.testing.assert_array_equal(moved["a_bias"], 2.0)


def test_a_long_gradient_is_cut_to_the_norm_and_a_short_one_left():
    """First step of Adam without its division: m = (1 - beta1) * clipped gradient."""
    tx = AdamW(clip=1.0).transformation(10)
    for length, kept in ((5.0, 1.0), (0.5, 0.5)):
        grads = {"a": jnp.array([3.0, 4.0]) / 5 * length}
        state = tx.update(grads, tx.init(grads), grads)[1]
        np.testing.assert_allclose(jnp.linalg.norm(state[1].mu["a"]), 0.1 * kept, rtol=1e-5)


def test_points_hold_or_go_straight():
    hold, line = Points(((0, 0.1), (3, 0.0))), Points(((0, 0.0), (4, 1.0)), "linear")
    np.testing.assert_allclose([hold(jnp.int32(s)) for s in (0, 2, 3, 9)], [0.1, 0.1, 0.0, 0.0])
    np.testing.assert_allclose([line(jnp.int32(s)) for s in (0, 1, 4, 9)], [0.0, 0.25, 1.0, 1.0])


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Points(((3, 0.1), (0, 0.0))), "steps rising"),
        (lambda: Points(((0, 0.1),), "spline"), "between is 'spline'"),
        (lambda: AdamW(decay_rule="none"), "decay_rule is 'none', expected one of"),
    ],
)
def test_bad_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
