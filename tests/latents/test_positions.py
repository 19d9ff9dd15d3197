"""A named position falls on the step that it names."""

import numpy as np
from latent_models import IDS, plan_of

from lvr_jax.latents import positions

OPENING = ((16, 17), (18,))


def trace(tokens, latents, live=None, stage=0, index=None):
    tokens, latents = np.array(tokens)[None], np.array(latents, bool)[None]
    count = np.cumsum(latents, -1) - 1
    return {
        "token": tokens, "latent": latents, "live": np.ones_like(latents) if live is None else np.array([live], bool),
        "stage": np.broadcast_to(stage, tokens.shape), "index": np.where(latents, count, 0) if index is None else index,
    }  # fmt: skip


def steps(found):
    return {name: np.flatnonzero(mask[0]).tolist() for name, mask in found.items()}


START, END = IDS["<|lvr_start|>"], IDS["<|lvr_end|>"]
# step 0 picks the start, step 1 consumes it, 2..4 are latents, step 4 picks the end, step 5 consumes it
ORDINARY = trace([START, 9, 9, 9, END, 16, 17, 1, 16, 17, 2], [0, 0, 1, 1, 1, 0, 0, 0, 0, 0, 0])


def test_positions_of_an_ordinary_answer():
    found = steps(positions.masks(ORDINARY, plan_of("lvr"), OPENING, 4))
    assert found["answer"] == found["tagged"] == [7]        # picks token 7, the first after the first completed tag
    assert found["h0"] == [1] and found["latents"] == [2, 3, 4] and found["last_latent"] == [4]
    assert [found[f"latent_{j}"] for j in range(4)] == [[2], [3], [4], []]
    assert found["end"] == [5]


def test_without_a_tag_the_answer_is_the_step_after_the_last_latent():
    found = steps(positions.masks(trace([START, 9, 9, 9, 8, 7], [0, 0, 1, 1, 0, 0]), plan_of("lvr"), OPENING))
    assert found["tagged"] == [] and found["answer"] == [4]
    nothing = steps(positions.masks(trace([8, 7, 6], [0, 0, 0]), plan_of("lvr"), OPENING))
    assert nothing["answer"] == [] and nothing["h0"] == [] and nothing["end"] == []


def test_a_tag_may_be_tokenised_in_more_than_one_way():
    assert steps(positions.masks(trace([18, 1, 2], [0, 0, 0]), plan_of("lvr"), OPENING))["answer"] == [1]


def test_a_tag_that_the_answer_ends_with_has_no_answer_state():
    ended = trace([5, 16, 17, 0, 0], [0] * 5, live=[1, 1, 1, 0, 0])
    assert steps(positions.masks(ended, plan_of("lvr"), OPENING))["tagged"] == []


def test_positions_are_of_the_last_stage_that_has_latents():
    """P-LVR: the target stage's, and the context stage's under their own names; context alone if target never fired."""
    stage = np.array([0, 0, 0, 0, 0, 1, 1, 0])
    both = trace([1] * 8, [0, 1, 1, 0, 0, 1, 1, 0], stage=stage, index=np.array([[0, 0, 1, 0, 0, 0, 1, 0]]))
    found = steps(positions.masks(both, plan_of("p_lvr"), OPENING, 2))
    assert found["last_latent"] == found["last_latent:target"] == [6] and found["last_latent:context"] == [2]
    assert found["h0"] == [4] and found["latent_1"] == [6] and found["latents:context"] == [1, 2]
    context = trace([1] * 4, [0, 1, 1, 0])
    found = steps(positions.masks(context, plan_of("p_lvr"), OPENING))
    assert found["last_latent"] == [2] and found["last_latent:target"] == []


def test_latents_of_a_second_block_count_as_latents_but_not_as_the_first_ones():
    again = trace([1] * 7, [0, 1, 1, 0, 1, 1, 0], index=np.array([[0, 0, 1, 0, 0, 1, 0]]))
    found = steps(positions.masks(again, plan_of("lvr"), OPENING, 2))
    assert found["latents"] == [1, 2, 4, 5] and found["last_latent"] == [5] and found["latent_0"] == [1]


def test_values_at_a_position_are_means_and_missing_ones_are_nan():
    values = np.arange(22, dtype=np.float32).reshape(1, 11, 2)
    found = positions.masks(ORDINARY, plan_of("lvr"), OPENING, 4)
    np.testing.assert_array_equal(positions.mean(values, found["latents"]), [[6, 7]])
    np.testing.assert_array_equal(positions.mean(values, found["answer"]), values[:, 7])
    assert np.isnan(positions.mean(values, found["latent_3"])).all()
    assert positions.step(found["answer"]) == [7] and positions.step(found["latent_3"]) == [-1]
