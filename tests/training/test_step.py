"""A step is the same however its batch is cut, and leaves alone what is frozen."""

import dataclasses

import jax
import numpy as np
import pytest
import runs

from lvr_jax.checkpoints.orbax_io import flat
from lvr_jax.data.device import to_device
from lvr_jax.data.from_config import make_encode, make_sources
from lvr_jax.data.packing import collate
from lvr_jax.data.sample import DataError
from lvr_jax.training.config_fields import ConfigFieldError
from lvr_jax.training.experiment import Experiment
from lvr_jax.training.flops import batch_flops
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


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["lvr", "p_lvr_3", "bottleneck", "outside_only_gradient", "lvr_pooled"])
def test_questions_that_share_a_picture_give_the_gradient_of_the_questions_one_by_one(variant):
    """Whatever is masked, routed, pooled or kept apart: branches are a layout and nothing else."""
    questions, shared, each = 3, 40, 104
    apart = {"objective__normalisation": "per_token",       # the other one is by row
             "rows": 4 * questions, "data__tokens": shared + each, "data__windows": 1, "data__max_per_row": 1,
             "data__shuffle": False, "data__pooled": 32}  # fmt: skip
    together = {"rows": 4, "data__tokens": shared + each * questions, "data__sources__digits__questions": questions,
                "branches__shared": shared, "branches__each": each, "branches__count": questions,
                "data__pooled": 32 * questions}  # fmt: skip
    one, other = experiment_of(variant, **apart | together), experiment_of(variant, **apart)
    joined = next(Input(one.data, one.tokenizer, branches=one.branches))
    source, encode = make_sources(one.data)[0].data, make_encode(one.data, one.tokenizer)
    samples = [source[int(row[0].rsplit("-", 1)[1])] for row in joined.ids]
    alone = [[encode(dataclasses.replace(s, more=()))] for sample in samples for s in (sample, *sample.more)]
    split_up = collate(alone, other.data.settings.budget, other.data.settings.geometry)
    state = one.initial_state()

    def run(experiment: Experiment, batch: dict):
        arrays = to_device(batch, experiment.rows)
        return jax.jit(lambda s, b: gradients(experiment.recipe, s, b))(state, arrays)

    (grads, parts), (expected, expected_parts) = run(one, joined.arrays), run(other, split_up)
    for key, value in expected_parts.items():
        np.testing.assert_allclose(parts[key], value, rtol=2e-5, atol=1e-6, err_msg=key)
    assert float(parts["loss_lvr"]) > 0 and float(parts["latents"]) >= 4 * questions
    for path, x in flat(expected).items():
        np.testing.assert_allclose(flat(grads)[path], x, atol=2e-5 * np.abs(x).max() + 1e-9, rtol=0, err_msg=path)
    flops, tokens = batch_flops(one.network, joined.arrays)
    assert tokens == (joined.arrays["segment"] > 0).sum() and flops < batch_flops(other.network, split_up)[0]


def test_branches_and_sources_that_do_not_fit_each_other_are_refused():
    several = {"data__sources__digits__questions": 2}
    sizes = {"branches__shared": 40, "branches__each": 104, "branches__count": 2, "data__max_per_row": 1}
    experiment = experiment_of("lvr", **several)
    with pytest.raises(DataError, match="several questions about a picture, and the config has no branches"):
        next(Input(experiment.data, experiment.tokenizer, branches=experiment.branches))
    experiment = experiment_of("lvr", **several | sizes | {"data__max_per_row": 2})
    with pytest.raises(DataError, match="max_per_row = 2: rows of parts hold one example"):
        Input(experiment.data, experiment.tokenizer, branches=experiment.branches)
    with pytest.raises(ConfigFieldError, match="branches.count is 2: rows for own latents hold one question"):
        experiment_of("rollout", **sizes)
    # A single question is a branch, too, and leaves the others empty.
    experiment = experiment_of("lvr", **sizes, data__tokens=144)
    batch = next(Input(experiment.data, experiment.tokenizer, branches=experiment.branches)).arrays
    assert batch["branch"].max() == 1 and batch["tokens"].shape[1] == 40 + 2 * 104


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


@pytest.mark.slow
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
