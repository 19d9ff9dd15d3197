"""A checkpoint trained behind a bottleneck runs behind it, from the first token of the prompt on."""

import jax.numpy as jnp
import numpy as np
import pytest
from latent_models import GRAPH, LETTERS, batch_of, on_host, params, plan_of, prefill, start_of, sweep
from test_rollout import CLOSE, DECODING, S, parallel

from lvr_jax.latents import conditions as cond
from lvr_jax.latents.rollout import no_bank
from lvr_jax.latents.routing import ATTENTION, blocked


def decoded(attention: str, *conditions: cond.Condition):
    plan, batch = plan_of("lvr", 3), batch_of((0, 1, 2), (start_of("lvr"),))
    prefix, _ = prefill(GRAPH, params(), batch, np.arange(3), blocked=blocked(attention))
    condition = cond.stack(conditions, [], len(plan.start), int(plan.quota.max()))
    trace = sweep(GRAPH, params(), prefix, plan, condition, no_bank(prefix, plan), decoding=DECODING, steps=S,
                  letters=jnp.array(LETTERS))  # fmt: skip
    return on_host(trace), batch


@pytest.mark.parametrize("attention", ATTENTION)
def test_decoding_equals_the_parallel_pass_with_the_same_pairs_blocked(attention):
    own = cond.answer_blind_to_latents()        # what a condition blocks comes on top
    trace, batch = decoded(attention, cond.clean(), own)
    for c, pairs in enumerate([ATTENTION[attention], (*ATTENTION[attention], *own.blocked)]):
        one = {key: value[c] for key, value in trace.items() if value is not None and value.ndim}
        for b in range(3):
            n = int(one["live"][b].sum())
            states, *_ = parallel(batch, one, b, (start_of("lvr"),), pairs)
            np.testing.assert_allclose(one["hidden"][b, :n], states, atol=CLOSE * np.abs(states).max())


def test_behind_the_bottleneck_the_question_does_not_know_the_image():
    batch = batch_of((0, 1), ())
    other = batch | {"patches": batch["patches"][::-1].copy()}
    assert not np.array_equal(batch["patches"], other["patches"])
    state = lambda batch, name: np.asarray(  # noqa: E731
        prefill(GRAPH, params(), batch, np.arange(2), blocked=blocked(name))[0].hidden
    )
    np.testing.assert_array_equal(state(batch, "bottleneck"), state(other, "bottleneck"))
    assert np.abs(state(batch, "full") - state(other, "full")).max() > 1e-2
