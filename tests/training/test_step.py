"""A step is the same however its batch is cut, and leaves alone what is frozen."""

import dataclasses

import jax
import numpy as np
import pytest
import runs

from lvr_jax.checkpoints.orbax_io import flat
from lvr_jax.data.device import to_device
from lvr_jax.training.experiment import Experiment
from lvr_jax.training.input import Input
from lvr_jax.training.partitioning import make_mesh
from lvr_jax.training.state import join, split
from lvr_jax.training.step import gradients, micro_batches, train_step

# Between them: noise, both draws of targets, both normalisations, diversity.
CUTS = {
    "random_target": {"objective__noise": 0.3},
    "p_lvr_3": {"objective__target": "shuffled"},
}


def experiment_of(variant: str, **changes) -> Experiment:
    return Experiment.from_config(runs.small(variant, **changes), make_mesh({}, jax.devices()[:1]))


def batch_of(experiment: Experiment) -> dict:
    rows = Input(experiment.data, experiment.tokenizer, alignment=experiment.alignment)
    return to_device(next(rows).arrays, experiment.rows)


@pytest.mark.parametrize("variant", CUTS)
def test_micro_batches_give_the_gradient_of_the_whole_batch(variant):
    """Also of what is drawn: noise and targets belong to a row, and every mean to the whole batch."""
    rows = {"data__tokens": 128, "data__windows": 1, "data__max_per_row": 1}
    experiment = experiment_of(variant, **rows, **CUTS[variant])
    state, batch = experiment.initial_state(), batch_of(experiment)

    def run(accumulate: int):
        recipe = dataclasses.replace(experiment.recipe, accumulate=accumulate)
        return jax.jit(lambda s, b: gradients(recipe, s, b))(state, batch)

    (whole, parts), (cut, cut_parts) = run(1), run(4)
    for key, value in parts.items():
        np.testing.assert_allclose(cut_parts[key], value, rtol=2e-5, atol=1e-6, err_msg=key)
    assert float(parts["loss_lvr"]) > 0
    for path, x in flat(whole).items():
        scale = np.abs(x).max()
        np.testing.assert_allclose(flat(cut)[path], x, atol=2e-5 * scale + 1e-9, rtol=0, err_msg=path)


def test_a_micro_batch_takes_its_rows_from_every_device():
    """Rows lie on devices in blocks; micro-batch m is made of the m-th rows of each block."""
    cut = micro_batches({"row": np.arange(8)}, 2)["row"]
    np.testing.assert_array_equal(cut, [[0, 2, 4, 6], [1, 3, 5, 7]])


@pytest.fixture(scope="module")
def two_steps():
    experiment = experiment_of("lvr", optimizer__warmup_ratio=0.0)
    state = experiment.initial_state()
    before = jax.device_get(state)
    step = jax.jit(lambda s, b: train_step(experiment.recipe, s, b))
    batch = batch_of(experiment)
    for _ in range(2):
        state, metrics = step(state, batch)
    return experiment, before, jax.device_get(state), jax.device_get(metrics)


def test_frozen_parameters_are_bit_identical_and_trained_ones_all_move(two_steps):
    _, before, after, _ = two_steps
    assert all(path.startswith("vision/") for path in flat(before.frozen)) and len(flat(before.frozen)) > 10
    for path, x in flat(before.frozen).items():
        np.testing.assert_array_equal(flat(after.frozen)[path], x, err_msg=path)
    still = [path for path, x in flat(before.trained).items() if np.array_equal(x, flat(after.trained)[path])]
    # Keys' biases add the same to all scores of a query, so they only move by rounding; all else must.
    assert set(still) <= {"text/blocks/k_bias"}


def test_frozen_parameters_have_no_optimizer_state(two_steps):
    """Adam's two moments of what is trained and its counters: nothing else."""
    _, before, after, _ = two_steps
    trained = sum(x.size for x in jax.tree.leaves(before.trained))
    held = sum(x.size for x in jax.tree.leaves(after.optimizer) if x.ndim)
    assert held == 2 * trained
    assert sum(x.ndim == 0 for x in jax.tree.leaves(after.optimizer)) == 2


def test_the_state_counts_steps_and_metrics_name_the_weights(two_steps):
    _, _, after, metrics = two_steps
    assert int(after.step) == 2
    np.testing.assert_allclose(metrics["weight_lvr"], 0.1)
    np.testing.assert_allclose(
        metrics["loss_total"], metrics["loss_ce"] + 0.1 * metrics["loss_lvr"], rtol=1e-6
    )


def test_frozen_parameters_have_the_type_of_the_computation_and_trained_ones_are_fp32():
    experiment = experiment_of("lvr", compute__dtype="bfloat16")
    like = experiment.like
    assert {str(x.dtype) for x in jax.tree.leaves(like.frozen)} == {"bfloat16"}
    assert {str(x.dtype) for x in jax.tree.leaves(like.trained)} == {"float32"}


def test_split_and_join_are_inverse_and_a_pattern_that_fits_nothing_is_named():
    params = {"text": {"a": 1, "b": 2}, "vision": {"c": 3}}
    assert join(*split(params, ["vision/.*", "text/b"])) == params
    with pytest.raises(ValueError, match="frozen: 'visual/.\\*' matches no parameter"):
        split(params, ["visual/.*"])
    with pytest.raises(ValueError, match="leaves nothing to train"):
        split(params, [".*"])
