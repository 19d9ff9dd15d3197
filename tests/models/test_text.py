"""The decoder equals the golden states; cache, blocked roles and stopped flow do what they say."""

import dataclasses
import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from networks import distance, double, network, random_tensors, tiny_config, to_params
from safetensors.numpy import load_file

from lvr_jax.models.layers import Compute, rms_norm
from lvr_jax.models.layout import mrope_positions, vision_layout
from lvr_jax.models.qwen2_5_vl.config import Config
from lvr_jax.models.qwen2_5_vl.rope import mrope_table
from lvr_jax.models.records import Cache, Images, Tokens
from lvr_jax.models.weight_table import canonical

GOLDEN = Path(__file__).parents[1] / "golden"
FP64 = Compute(dtype=jnp.float64)
# fp64 sums of up to a hundred terms in another order, through a few layers.
EXACT = 1e-12


@pytest.fixture(autouse=True)
def fp64():
    with jax.enable_x64(True):
        yield


@functools.cache
def tiny():
    config = tiny_config(tied=False)
    return config, double(to_params(config, random_tensors(config, 0)))


def decode(x, tokens, **options):
    return _decode(tiny()[1], x, tokens, options.pop("past", ()), tuple(options.items()))


@functools.partial(jax.jit, static_argnums=(4,))
def _decode(params, x, tokens, past, options):
    return network(tiny()[0], params).decode(x, tokens, past=past, compute=FP64, **dict(options))


def text_tokens(T, B=1, **more):
    positions = jnp.broadcast_to(jnp.arange(T), (B, 3, T))
    return Tokens(positions, jnp.ones((B, T), jnp.int32), **more)


def test_blocked_roles_cut_every_path_from_image_to_answer():
    """Roles image 0, latent 1, answer 2; answers see no image, and nothing else may carry it to them."""
    x = jax.random.normal(jax.random.key(0), (1, 9, 48), jnp.float64)
    role = jnp.array([[0, 0, 0, 1, 1, 1, 2, 2, 2]])
    blocked = jnp.zeros((3, 3), bool).at[2, 0].set(True)
    other = x.at[:, :3].add(1.0)
    latents_see = [decode(v, text_tokens(9, role=role, blocked=blocked))[0] for v in (x, other)]
    assert distance(latents_see[0][:, 6:], latents_see[1][:, 6:]) > 1e-3, "through the latents"
    blind = blocked.at[1, 0].set(True)
    cut = [decode(v, text_tokens(9, role=role, blocked=blind))[0] for v in (x, other)]
    np.testing.assert_array_equal(cut[0][:, 3:], cut[1][:, 3:])
    assert distance(cut[0][:, :3], cut[1][:, :3]) > 1e-3


@pytest.mark.slow
def test_stopped_flow_changes_no_value_and_passes_no_gradient():
    x = jax.random.normal(jax.random.key(1), (1, 8, 48), jnp.float64)
    flow = jnp.arange(8)[None] >= 3
    plain, routed = decode(x, text_tokens(8))[0], decode(x, text_tokens(8, flow=flow))[0]
    np.testing.assert_array_equal(plain, routed)

    def loss(x, params, flow):
        model = network(tiny()[0], params)
        return jnp.sum(model.decode(x, text_tokens(8, flow=flow), compute=FP64)[0][:, 3:] ** 2)

    dx, d_params = jax.jit(jax.grad(loss, argnums=(0, 1)))(x, tiny()[1], flow)
    assert not dx[:, :3].any() and dx[:, 3:].any()
    # The tokens that flow see the others as constants: the same as reading them from a cache.
    _, cache, _ = decode(x[:, :3], text_tokens(3), keep_cache=True)
    after = dataclasses.replace(text_tokens(5), positions=text_tokens(8).positions[:, :, 3:])

    def with_cache(tail, params):
        model = network(tiny()[0], params)
        return jnp.sum(model.decode(tail, after, past=(cache,), compute=FP64)[0] ** 2)

    expected = jax.jit(jax.grad(with_cache, argnums=(0, 1)))(x[:, 3:], tiny()[1])
    assert distance(dx[:, 3:], expected[0]) <= EXACT
    for ours, theirs in zip(jax.tree.leaves(d_params), jax.tree.leaves(expected[1])):
        assert ours.any() == theirs.any() and (not theirs.any() or distance(ours, theirs) <= EXACT)


@pytest.mark.parametrize("keep_cache", [False, True])
def test_states_that_are_read_and_every_cache_are_those_of_the_whole_pass(keep_cache):
    """Within a row, at its end, more than one, none; and what is not read is not computed."""
    x = jax.random.normal(jax.random.key(5), (3, 9, 48), jnp.float64)
    segment = jnp.array([[1] * 9, [1] * 6 + [0] * 3, [1] * 4 + [2] * 5])
    tokens = dataclasses.replace(text_tokens(9, B=3), segment=segment)
    read = np.zeros((3, 9), bool)
    read[0, [2, 3, 8]] = read[1, 5] = True
    whole, cache, taps = decode(x, tokens, keep_cache=keep_cache, taps=("attention", "states"))
    found, same, read_taps = _decode_read(tiny()[1], x, tokens, read, keep_cache)
    assert distance(found[read], whole[read]) < EXACT
    assert np.abs(found - whole)[~read].min(-1).max() > 1e-3
    jax.tree.map(np.testing.assert_array_equal, cache, same)
    np.testing.assert_array_equal(taps["attention"], read_taps["attention"])
    assert distance(read_taps["states"][:-1], taps["states"][:-1]) < EXACT, "of every block but the last"
    assert distance(read_taps["states"][-1][read], taps["states"][-1][read]) < EXACT


@functools.partial(jax.jit, static_argnums=(4,))
def _decode_read(params, x, tokens, read, keep_cache):
    return network(tiny()[0], params).decode(
        x, tokens, compute=FP64, keep_cache=keep_cache, taps=("attention", "states"), read=read
    )


def test_rollouts_share_one_prompt_cache_under_vmap():
    """The cache has no rollout axis; each rollout's states are those of the whole sequence."""
    prompt, tails = (
        jax.random.normal(jax.random.key(i), shape, jnp.float64) for i, shape in enumerate([(1, 6, 48), (4, 1, 2, 48)])
    )
    _, cache, _ = decode(prompt, text_tokens(6), keep_cache=True)
    after = dataclasses.replace(text_tokens(2), positions=text_tokens(8).positions[:, :, 6:])
    step = lambda tail: network(*tiny()).decode(tail, after, past=(cache,), compute=FP64)[0]  # noqa: E731
    for ours, tail in zip(jax.jit(jax.vmap(step))(tails), tails):
        whole = decode(jnp.concatenate([prompt, tail], 1), text_tokens(8))[0]
        assert distance(ours, whole[:, 6:]) <= EXACT


def test_an_unused_cache_slot_is_not_seen():
    x = jax.random.normal(jax.random.key(2), (1, 5, 48), jnp.float64)
    junk = Cache(jnp.full((2, 1, 4, 1, 16), 7.0), jnp.full((2, 1, 4, 1, 16), 7.0), *[jnp.zeros((1, 4), jnp.int32)] * 2)
    np.testing.assert_allclose(decode(x, text_tokens(5), past=(junk,))[0], decode(x, text_tokens(5))[0], rtol=1e-12)


@functools.cache
def golden_network(name):
    folder = GOLDEN / "checkpoints" / name
    config = Config.from_hf(json.loads((folder / "config.json").read_text()))
    return config, {canonical(k): v for k, v in load_file(folder / "model.safetensors").items()}


@pytest.mark.parametrize("name", ["tiny_tied", "tiny_untied"])
def test_decoder_equals_golden_states_layer_by_layer(name):
    """fp32, each layer on the golden input: 2e-5 of the scale, as these networks amplify rounding by a few hundred."""
    config, tensors = golden_network(name)
    golden, t = np.load(GOLDEN / "cases" / f"A1_single_{name}.npz"), config.text
    states = golden["hidden_states"]
    with jax.enable_x64(False):
        model = network(config, jax.device_put(to_params(config, tensors, np.float32)))
        slot = np.full(golden["input_ids"].shape, -1)
        slot[golden["input_ids"] == config.image_token_id] = np.arange(len(golden["image_embeds"]))
        embedded = model.embed(golden["input_ids"], slot, jnp.array(golden["image_embeds"])[None])
        np.testing.assert_array_equal(embedded, states[0])
        tokens = Tokens(jnp.array(golden["position_ids"]).swapaxes(0, 1), jnp.ones(slot.shape, jnp.int32))
        table = mrope_table(tokens.positions, t.head_width, t.mrope_section, t.rope_theta)
        graph, blocks = nnx.split(model.text.blocks)
        run = jax.jit(lambda p, x: nnx.merge(graph, p)(x, tokens, table, (), Compute(), ())[0])
        for i in range(t.layers):
            out = run(jax.tree.map(lambda a, i=i: a[i], blocks), states[i])
            if i == t.layers - 1:  # golden keeps the last state after the final norm only
                out = rms_norm(out, model.text.norm, t.norm_eps)
            assert distance(out, states[i + 1]) <= 2e-5, i
        assert distance(model.text.logits(jnp.array(states[-1])), golden["logits"]) <= 2e-5


@pytest.mark.parametrize(
    "case", ["A1_single_tiny_untied", "A2_two_images_tiny_tied", "A2_two_images_tiny_untied",
             "A3_batch_leftpad_tiny_tied", "A3_batch_rightpad_tiny_tied", "A5_video_spg0.5_tiny_tied",
             "A5_video_spg1.0_tiny_tied", "A5_video_spg2.0_tiny_tied"],
)  # fmt: skip
def test_network_equals_golden_states_end_to_end(case):
    """Ours in fp64 against fp32 torch, whose own rounding these networks carry to 5e-5 of the scale."""
    name = "tiny_untied" if "untied" in case else "tiny_tied"
    config, tensors = golden_network(name)
    golden = dict(np.load(GOLDEN / "cases" / f"{case}.npz"))
    if "spg" in case:  # the three videos are one, at three speeds
        golden["pixel_values_videos"] = np.load(GOLDEN / "cases/A5_video_spg1.0_tiny_tied.npz")["pixel_values_videos"]
    video = "video_grid_thw" in golden
    grids, pixels = (golden[k + ("_videos" if video and k == "pixel_values" else "")] for k in (
        "video_grid_thw" if video else "image_grid_thw", "pixel_values"))  # fmt: skip
    ids, mask = golden["input_ids"], golden["attention_mask"] == 1
    slot, positions = np.full(ids.shape, -1), np.ones((len(ids), 3, ids.shape[1]), np.int64)
    layouts, parts, taken, patch = [], [], 0, 0
    for row in range(len(ids)):
        mine = grids[taken : taken + int((ids[row] == config.vision_start_token_id).sum())]
        taken += len(mine)
        layouts.append(vision_layout(mine, budget=4))
        parts.append(layouts[-1].place(pixels[patch : patch + len(layouts[-1].patch_slot)]))
        patch += len(layouts[-1].patch_slot)
        slot[row, np.isin(ids[row], (config.image_token_id, config.video_token_id))] = layouts[-1].merged_slot
        positions[row][:, mask[row]], _ = mrope_positions(
            ids[row][mask[row]], mine, image_token_id=config.image_token_id, video_token_id=config.video_token_id,
            seconds_per_grid=golden.get("second_per_grid_ts", np.ones(0)).tolist(),
        )  # fmt: skip
    images = Images(
        jnp.array(np.stack(parts), jnp.float64), np.stack([x.segments for x in layouts]),
        np.stack([x.rotary_ids for x in layouts]),
    )  # fmt: skip
    tokens = Tokens(jnp.array(positions), jnp.array(mask, jnp.int32))
    states, logits = _golden_pass(name, double(to_params(config, tensors)), images, ids, slot, tokens)
    wanted = golden["hidden_states"]
    for k in range(len(wanted)):
        state = states[-1] if k == len(wanted) - 1 else states[k]
        assert distance(np.asarray(state)[mask], wanted[k][mask]) <= 1e-4
    every = 4 if case.startswith("A3") else 1
    logits = np.asarray(logits)[:, ::every][:, -golden["logits"].shape[1] :]
    shown = mask[:, ::every][:, -golden["logits"].shape[1] :]
    assert distance(logits[shown], golden["logits"][shown]) <= 1e-4


@functools.partial(jax.jit, static_argnums=0)
def _golden_pass(name, params, images, ids, slot, tokens):
    model = network(golden_network(name)[0], params)
    x = model.embed(ids, slot, model.encode(images, FP64)[0])
    hidden, _, out = model.decode(x, tokens, compute=FP64, taps={"states"})
    return [*out["states"][:-1], hidden], model.text.logits(hidden)
