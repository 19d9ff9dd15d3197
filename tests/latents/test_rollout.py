"""A rollout is the parallel pass on its own inputs, one condition at a time, blind where it must be."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from latent_models import (
    CONFIG,
    GRAPH,
    LETTERS,
    STOP,
    batch_of,
    on_host,
    params,
    plan_of,
    prefill,
    start_of,
    sweep,
)

from lvr_jax.latents import conditions as cond
from lvr_jax.latents import rollout
from lvr_jax.latents.decoding import Decoding
from lvr_jax.latents.rollout import Bank, no_bank
from lvr_jax.models.families import abstract_model
from lvr_jax.models.layers import Compute
from lvr_jax.models.records import Images, Tokens

DECODING = Decoding(max_new_tokens=14, stop=(STOP,))
S = 22
# fp32 sums in another order, relative to the scale: 3e-5 was seen (as much as the golden cases show), a wrong mask or
# position is 1e-2 at least.
CLOSE = 1e-4


def rolled(
    system, named, rows=(0, 1, 2), *, budget=3, bank=None, sources=(), forced=None, record=(), suffix=None, **more
):
    """The trace of these conditions. Without a bank clean ones fill them up to four, so that tests share programs."""
    plan = plan_of(system, budget)
    suffix = (start_of(system),) if suffix is None else suffix
    batch = batch_of(rows, suffix)
    prefix, _ = prefill(GRAPH, params(), batch, np.array(rows), remember_ids=more.get("remember_ids", False))
    filled = [*named, *[cond.clean()] * (4 - len(named) if bank is None else 0)]
    condition = cond.stack(filled, list(sources), len(plan.start), int(plan.quota.max()))
    trace = on_host(sweep(
        GRAPH, params(), prefix, plan, condition, no_bank(prefix, plan) if bank is None else bank,
        decoding=more.get("decoding", DECODING), steps=S, letters=jnp.array(LETTERS), record=record,
        forced=np.full(S, -1) if forced is None else forced,
    ))  # fmt: skip
    return {k: v[: len(named)] if v is not None and v.ndim else v for k, v in trace.items()}, batch, prefix


def test_a_prompt_of_which_one_token_is_read_has_the_prefix_of_the_whole_pass():
    batch, skipping = batch_of((0, 1, 2), (start_of("lvr"),)), Compute(skip_unread=True)
    whole, _ = prefill(GRAPH, params(), batch, np.arange(3))
    one, _ = prefill(GRAPH, params(), batch, np.arange(3), compute=skipping)
    assert np.abs(one.hidden - whole.hidden).max() < CLOSE
    jax.tree.map(np.testing.assert_array_equal, *(dataclasses.replace(p, hidden=None) for p in (one, whole)))
    # What reads every token is given every token.
    _, taps = prefill(GRAPH, params(), batch, np.arange(3), compute=skipping, taps=("hidden", "states"))
    assert taps["hidden"].shape[1] == taps["states"].shape[2] == batch["tokens"].shape[1]
    lengths = (batch["segment"] > 0).sum(-1)
    np.testing.assert_array_equal(taps["hidden"][np.arange(3), lengths - 1], whole.hidden)


def parallel(batch: dict, trace: dict, b: int, starts=(), blocked=()):
    """One pass without a cache over row b's prompt and everything that its rollout fed.

    Returns states and logits from the prompt's last token on, taps, the tokens' roles and the prompt's length.
    """
    n, real = int(trace["live"][b].sum()), int((batch["segment"][b] > 0).sum())
    T = batch["tokens"].shape[1] + S
    row = {key: value[b] for key, value in batch.items()}
    here = slice(real, real + n - 1)                    # where what was fed comes, right behind the prompt
    latent, token = trace["latent"][b, 1:n], trace["token"][b, : n - 1]
    ids, slot, segment, role = (np.zeros(T, np.int32) for _ in range(4))
    positions, vectors, is_latent = np.zeros((3, T), np.int32), np.zeros((T, CONFIG.text.hidden), np.float32), slot > 0
    ids[:real], slot[:], slot[:real] = row["tokens"][:real], -1, row["vision_slot"][:real]
    role[:real], segment[: here.stop], positions[:, :real] = row["role"][:real], 1, row["positions"][:, :real]
    ids[here], is_latent[here], vectors[here] = token, latent, trace["fed"][b, 1:n]
    role[here] = np.where(latent | np.isin(token, starts), cond.LATENT, cond.ANSWER)
    positions[:, here] = positions[:, :real].max() + 1 + np.arange(n - 1)
    mask = np.zeros((cond.ROLES, cond.ROLES), bool)
    for query, key in blocked:
        mask[query, key] = True
    images = [row[key][None] for key in ("patches", "window_segment", "rotary_ids")]
    arrays = [x[None] for x in (ids, slot, is_latent, vectors, positions, segment, role)]
    hidden, logits, taps = jax.device_get(_parallel(params(), Images(*images), *arrays, mask))
    seen, states = taps["attention"][:, 0, :, here, : here.stop], taps["states"][:, 0, here]
    after = slice(real - 1, here.stop)
    return hidden[0, after], logits[0, after], {"attention": seen, "states": states}, role[: here.stop]


@jax.jit
def _parallel(params, images, ids, slot, is_latent, vectors, positions, segment, role, mask):
    model = nnx.merge(GRAPH, params)
    merged, _ = model.encode(images)
    x = jnp.where(is_latent[..., None], vectors, model.embed(ids, slot, merged))
    hidden, _, taps = model.decode(x, Tokens(positions, segment, role, mask), taps=("attention", "states"))
    return hidden, model.text.logits(hidden), taps


@pytest.mark.parametrize("system", ["lvr", "lantern", "monet", "p_lvr"])
def test_steps_equal_the_parallel_pass_on_the_same_inputs(system):
    """States and logits, every step, for a start in the prompt or (where it is overwritten) picked."""
    overwritten = plan_of(system).spec.overwrite_start
    forced = None
    if overwritten:
        forced = np.full(S, -1)
        forced[0] = start_of(system)
    named = [cond.clean(), cond.absolute_noise(0.5)]
    trace, batch, _ = rolled(system, named, forced=forced, suffix=() if overwritten else None)
    for c in range(len(named)):
        one = {key: value[c] for key, value in trace.items() if value is not None and value.ndim}
        assert one["latent"].sum(1).min() >= 3
        for b in range(3):
            hidden, logits, *_ = parallel(batch, one, b)
            n = int(one["live"][b].sum())
            np.testing.assert_allclose(one["hidden"][b, :n], hidden, atol=CLOSE * np.abs(hidden).max())
            np.testing.assert_allclose(one["letters"][b, :n], logits[:, LETTERS], atol=CLOSE * np.abs(logits).max())
            best, scale = np.sort(logits, -1), np.abs(logits).max()
            np.testing.assert_allclose(one["margin"][b, :n], best[:, -1] - best[:, -2], atol=2 * CLOSE * scale)


def test_a_clean_latent_is_the_state_before_it_exactly():
    trace, *_ = rolled("lvr", [cond.clean()])
    latent = trace["latent"][0]
    assert latent.any(1).all()
    for key in ("unperturbed", "fed"):
        np.testing.assert_array_equal(trace[key][0][:, 1:][latent[:, 1:]], trace["hidden"][0][:, :-1][latent[:, 1:]])


def test_a_head_at_predictors_maps_every_state_that_is_fed_back_and_no_other():
    """As in training: the first latent is mapped too, and the text after the last is picked from the state itself."""
    graph, shapes = abstract_model(dataclasses.replace(CONFIG, latent_head="glu"))
    rng = np.random.default_rng(0)
    head = jax.tree.map(lambda x: 0.3 * rng.standard_normal(x.shape).astype(np.float32), shapes["latent_head"])
    weights = {**params(), "latent_head": head}
    plan = plan_of("lvr", 3)
    plan = dataclasses.replace(plan, spec=dataclasses.replace(plan.spec, head_at="predictors"))
    batch = batch_of((0, 1, 2), (start_of("lvr"),))
    prefix, _ = prefill(graph, weights, batch, np.arange(3))
    trace = on_host(sweep(graph, weights, prefix, plan, cond.stack([cond.clean()], [], 1, 3), no_bank(prefix, plan),
                          decoding=DECODING, steps=S, letters=jnp.array(LETTERS)))  # fmt: skip
    one = {key: value[0] for key, value in trace.items() if value is not None and value.ndim}
    for b in range(3):
        states, *_ = parallel(batch, one, b)            # of the network without its head
        mapped = np.asarray(nnx.merge(graph, weights).latent_head(states))
        fed = np.flatnonzero(one["latent"][b])
        assert len(fed) >= 3 and fed[0] == 1
        np.testing.assert_allclose(one["fed"][b, fed], mapped[fed - 1], atol=CLOSE * np.abs(mapped).max())
        last = fed[~np.isin(fed + 1, fed)]              # of each block
        assert np.abs(mapped - states)[last].max() > 0.1
        np.testing.assert_allclose(one["hidden"][b, last], states[last], atol=CLOSE * np.abs(states).max())


def named_conditions():
    noise = [cond.absolute_noise(0.3), cond.relative_noise(0.5), cond.norm_matched_noise(), cond.unit_normal()]
    knocked = [cond.answer_blind_to_latents(), cond.latents_blind_to_image(), cond.answer_blind_to_image()]
    budgets = [cond.budget(0), cond.budget(2), cond.markers_only(), cond.format_only()]
    mixed = [cond.replaced("other"), cond.only(cond.replaced("other"), 1), cond.matched_noise("other")]
    return [cond.clean(), cond.zero(), cond.only(cond.zero(), 0, 2), *noise, *knocked, *budgets, *mixed]


def bank_of(rows, seed=3):
    D, rng = CONFIG.text.hidden, np.random.default_rng(seed)
    source = np.stack([np.random.default_rng([seed, r]).standard_normal((1, 3, D)) for r in rows])
    return Bank(jnp.asarray(source[None], jnp.float32), jnp.asarray(rng.random(D), jnp.float32))


def same(ours, theirs, rows=slice(None)):
    """Two traces [B, S, ...]: tokens exactly, numbers to rounding; what follows a row's end is nobody's business."""
    live = theirs["live"]
    for key in ("token", "latent", "live"):
        np.testing.assert_array_equal(ours[key], theirs[key], err_msg=key)
    for key in ("hidden", "unperturbed", "fed", "letters", "margin"):
        scale = np.abs(theirs[key][live]).max(initial=1)
        np.testing.assert_allclose(ours[key][live], theirs[key][live], rtol=0, atol=1e-4 * scale, err_msg=key)


@pytest.mark.slow
def test_a_sweep_is_its_conditions_one_by_one_and_its_items_one_by_one():
    named = named_conditions()
    together, *_ = rolled("lvr", named, bank=bank_of((0, 1, 2)), sources=["other"])
    assert len({together["token"][c].tobytes() for c in range(len(named))}) > len(named) // 2     # they do differ
    for c, one in enumerate(named):
        alone, *_ = rolled("lvr", [one], bank=bank_of((0, 1, 2)), sources=["other"])
        same({k: v[0] for k, v in alone.items() if v is not None and v.ndim}, _of(together, c))
    for b in range(3):
        alone, *_ = rolled("lvr", named, rows=(b,), bank=bank_of((b,)), sources=["other"])
        for c in range(len(named)):
            ours = {k: v[c] for k, v in alone.items() if v is not None and v.ndim}
            same(ours, {k: v[b : b + 1] for k, v in _of(together, c).items()})


def _of(trace, c):
    return {key: value[c] for key, value in trace.items() if value is not None and value.ndim}


def test_noise_belongs_to_the_item_and_the_condition_not_to_its_place():
    """Reordered conditions and items, and other conditions beside them: the same vectors, bit for bit."""
    noisy = [cond.absolute_noise(0.3), cond.norm_matched_noise()]
    first, *_ = rolled("lvr", [*noisy, cond.zero()])
    other, *_ = rolled("lvr", [cond.clean(), *noisy[::-1]], rows=(2, 0, 1))
    moved = np.argsort([2, 0, 1])
    for c, d in ((0, 2), (1, 1)):
        start = 1   # the first latent: later ones are computed from it, with rounding
        ours, theirs = first["fed"][c][:, start], other["fed"][d][moved][:, start]
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
        noise = (first["fed"] - first["unperturbed"])[c][:, start]
        assert np.abs(noise).max() > 0.1 and len(np.unique(noise[:, 0])) == 3


@pytest.mark.parametrize("named, expected", [
    (cond.zero(), lambda z: np.zeros_like(z)),
    (cond.only(cond.zero(), 1), lambda z: np.where(np.arange(3)[:, None] == 1, 0, z)),
], ids=["zero", "one step"])  # fmt: skip
def test_a_condition_changes_the_fed_vectors_and_nothing_else(named, expected):
    trace, *_ = rolled("lvr", [named])
    for b in range(3):
        latent = np.flatnonzero(trace["latent"][0, b])[:3]
        np.testing.assert_array_equal(trace["fed"][0, b, latent], expected(trace["unperturbed"][0, b, latent]))


def test_noise_has_the_size_it_says():
    named = [cond.absolute_noise(0.5), cond.relative_noise(0.5), cond.norm_matched_noise()]
    trace, *_ = rolled("lvr", named, rows=tuple(range(8)))
    where = trace["latent"]
    unperturbed, fed = trace["unperturbed"], trace["fed"]
    norm = lambda c, x: np.linalg.norm(x[c][where[c]], axis=-1)  # noqa: E731
    assert abs((fed - unperturbed)[0][where[0]].std() - 0.5) < 0.03
    np.testing.assert_allclose(norm(1, fed - unperturbed), 0.5 * norm(1, unperturbed), rtol=1e-4)
    np.testing.assert_allclose(norm(2, fed), norm(2, unperturbed), rtol=1e-4)


def test_knocked_out_answers_do_not_depend_on_the_latents():
    """With the answer blind to latents, whatever is fed instead of them leaves every answer state as it was, exactly:
    but for the output of the last latent itself, which picks the first text token (forced here)."""
    blind = cond.answer_blind_to_latents()
    zeroed = dataclasses.replace(cond.zero(), name="zeroed", blocked=blind.blocked)
    forced = np.full(S, -1)
    forced[3] = 9           # start is in the prompt: steps 1 to 3 are latents, step 3 picks the first text token
    trace, *_ = rolled("lvr", [blind, zeroed, cond.clean(), cond.zero()], forced=forced)
    after = (slice(None), slice(4, None))
    np.testing.assert_array_equal(trace["letters"][0][after], trace["letters"][1][after])
    np.testing.assert_array_equal(trace["token"][0][after], trace["token"][1][after])
    assert np.abs(trace["letters"][2][after] - trace["letters"][3][after]).max() > 1e-2   # they matter when seen
    assert np.abs(trace["fed"][0] - trace["fed"][1]).max() > 0.1


def test_knock_outs_of_the_image_hide_the_image():
    """Two prompts that differ in their pixels alone. Latents that cannot see the image still read it through the text
    after it, so the rows' states differ; the attention that goes to it is zero."""
    named = [cond.clean(), cond.latents_blind_to_image(), cond.answer_blind_to_image()]
    trace, *_ = rolled("lvr", named, record=("attention", "states"))
    share = trace["attention"]                                                            # [C, B, S, L, N, R]
    live, latent = trace["live"][:, :, 1:], trace["latent"][:, :, 1:]
    to_image = share[:, :, 1:, :, :, cond.IMAGE].max((-1, -2))
    assert (to_image[0][live[0]] > 0).all()
    assert not to_image[1][latent[1]].any() and (to_image[1][live[1] & ~latent[1]] > 0).all()
    assert not to_image[2][live[2] & ~latent[2]].any() and (to_image[2][latent[2]] > 0).all()


def test_attention_shares_are_those_of_the_full_weights():
    named = [cond.clean(), cond.answer_blind_to_latents()]
    trace, batch, _ = rolled("lvr", named, record=("attention", "states"))
    for c, one in enumerate(named):
        mine = _of(trace, c)
        for b in range(3):
            n = int(mine["live"][b].sum())
            _, _, taps, role = parallel(batch, mine, b, (start_of("lvr"),), one.blocked)
            expected = np.einsum("LNST,TR->SLNR", taps["attention"], np.eye(cond.ROLES)[role])
            np.testing.assert_allclose(mine["attention"][b, 1:n], expected, atol=CLOSE)
            np.testing.assert_allclose(mine["attention"][b, 1:n].sum(-1), 1, atol=1e-5)
            states = np.moveaxis(taps["states"], 0, 1)
            np.testing.assert_allclose(mine["states"][b, 1:n], states, atol=CLOSE * np.abs(states).max())


def test_any_conditions_share_one_program():
    mine = jax.jit(
        lambda *arguments, **options: rollout.sweep(*arguments, **options),     # a cache of its own
        static_argnums=0, static_argnames=("decoding", "steps"),
    )  # fmt: skip
    plan = plan_of("lvr", 3)
    batch = batch_of((0, 1), (start_of("lvr"),))
    prefix, _ = prefill(GRAPH, params(), batch, np.array([0, 1]))
    everything = named_conditions()
    for first in range(0, 12, 4):
        condition = cond.stack(everything[first : first + 4], ["other"], 1, 3)
        for budget in (2, 3):
            budgeted = dataclasses.replace(plan, quota=jnp.array([budget], jnp.int32))
            mine(GRAPH, params(), prefix, budgeted, condition, bank_of((0, 1)), decoding=DECODING, steps=S, seed=first)
    assert mine._cache_size() == 1


def test_the_loop_stops_when_every_row_has_finished():
    forced = np.full(S, -1)
    forced[5] = STOP
    trace, *_ = rolled("lvr", [cond.clean(), cond.zero()], forced=forced)
    assert trace["steps"] == 6 and trace["live"].sum(-1).max() == 6


def test_the_prefix_is_read_in_place_by_all_conditions():
    """No array of the compiled sweep has the prompt's keys once a condition."""
    C, rows = 5, (0, 1)
    plan, batch = plan_of("lvr", 3), batch_of(rows, (start_of("lvr"),))
    prefix, _ = prefill(GRAPH, params(), batch, np.array(rows))
    condition = cond.stack(named_conditions()[:C], ["other"], 1, 3)
    text = sweep.lower(
        GRAPH, params(), prefix, plan, condition, bank_of(rows), decoding=DECODING, steps=S
    ).compile().as_text()
    T, t = batch["tokens"].shape[1], CONFIG.text
    keys = len(rows) * T * t.kv_heads * t.head_width
    sizes = set()
    for shape in {part.split("]")[0] for part in text.split("f32[")[1:]}:
        numbers = [int(n) for n in shape.split(",") if n]
        if T in numbers:
            sizes.add(int(np.prod(numbers)))
    assert keys * t.layers in sizes                                                      # the cache is there, once
    assert not {keys * C, keys * C * t.layers} & sizes


def test_a_repetition_penalty_counts_prompt_and_stored_ids():
    plain, *_ = rolled("lvr", [cond.clean()])
    heavy = dataclasses.replace(DECODING, repetition_penalty=1e6)
    trace, batch, _ = rolled("lvr", [cond.clean()], decoding=heavy, remember_ids=True)
    assert any(len(set(row)) < len(row) for row in plain["token"][0][:, :12].tolist())   # it repeats without
    for b in range(3):
        n = int(trace["live"][0, b].sum())
        stored = trace["token"][0, b, :n].tolist()
        assert len(set(stored)) == n
        assert not set(stored) & set(batch["tokens"][b][batch["segment"][b] > 0].tolist())


def test_a_spread_of_positions_moves_every_decoded_position():
    plan, batch = plan_of("lvr", 3), batch_of((0,), (start_of("lvr"),))
    prefix, _ = prefill(GRAPH, params(), batch, np.array([0]))
    condition = cond.stack([cond.clean()], [], 1, 3)
    run = lambda prefix, shift: on_host(sweep(  # noqa: E731
        GRAPH, params(), prefix, plan, condition, no_bank(prefix, plan), decoding=DECODING, steps=S,
        position_shift=jnp.array([shift]),
    ))["hidden"]  # fmt: skip
    moved = dataclasses.replace(prefix, next_position=prefix.next_position + 3)
    np.testing.assert_array_equal(run(moved, -3), run(prefix, 0))
    assert np.abs(run(prefix, 5) - run(prefix, 0)).max() > 1e-3
