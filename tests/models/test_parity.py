"""The network equals Hugging Face's, layer by layer, in values and gradients, on networks drawn at random.

Two comparisons. In fp64 on both sides the whole network runs end to end: 1e-9 of each array's scale is far above what
fp64 rounding grows to here (1e-13 is typical) and far below any error of meaning. In fp32 every stage gets the
reference's own input and output gradient, so that rounding of earlier stages cannot add up: 2e-5 of the array's scale,
a few tens of fp32 roundings, is what sums of up to a few hundred terms leave.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from networks import (
    Prompt,
    distance,
    double,
    images_of,
    network,
    random_prompt,
    random_tensors,
    to_params,
    to_tensors,
)
from reference import Reference

from lvr_jax.models.families import slots
from lvr_jax.models.layers import Compute, rms_norm
from lvr_jax.models.qwen2_5_vl.config import Config, TextConfig, VisionConfig
from lvr_jax.models.qwen2_5_vl.rope import mrope_table, vision_table
from lvr_jax.models.records import Cache, Tokens

pytestmark = pytest.mark.parity

FP64 = Compute(dtype=jnp.float64)
EXACT = 1e-9
STAGE = 2e-5

MEDIA = (
    [("image", (1, 6, 10))],
    [("image", (1, 2, 2)), ("image", (1, 14, 6))],
    [("video", (3, 4, 6))],
    [],
    [("video", (2, 6, 2)), ("image", (1, 10, 4)), ("video", (4, 2, 4))],
    [("image", (1, 8, 8)), ("image", (1, 2, 18)), ("image", (1, 6, 6))],
    [("image", (1, 16, 8))],
)
FULL_LAYERS = ("none", "all", "irregular", "last", "first")


def draw(seed: int) -> tuple[Config, Prompt, dict[str, np.ndarray]]:
    """A random network and prompt; what must all occur is cycled through, the rest is drawn."""
    rng = np.random.default_rng([seed, 7])
    pick = lambda *options: options[int(rng.integers(len(options)))]  # noqa: E731
    kv_heads, head_width = pick(1, 2, 3), pick(8, 12, 16)
    heads, half = kv_heads * pick(1, 2, 3), head_width // 2
    time = int(rng.integers(1, half - 1))
    height = int(rng.integers(1, half - time))
    depth, patch = int(rng.integers(1, 5)), pick(2, 3, 4)
    full = {
        "none": (), "all": tuple(range(depth)), "last": (depth - 1,), "first": (0,),
        "irregular": tuple(i for i in range(depth) if rng.random() < 0.5),
    }[FULL_LAYERS[seed % len(FULL_LAYERS)]]  # fmt: skip
    vision_heads = pick(1, 2, 3)
    config = Config(
        vision=VisionConfig(
            depth=depth, hidden=vision_heads * pick(8, 12, 20), intermediate=pick(20, 36), heads=vision_heads,
            out_hidden=heads * head_width, full_attention_layers=full, patch=patch,
            window_pixels=patch * 2 * pick(1, 2, 3, 4), tokens_per_second=pick(2, 4),
        ),
        text=TextConfig(
            vocab=64, hidden=heads * head_width, intermediate=pick(24, 40), layers=pick(1, 2, 3), heads=heads,
            kv_heads=kv_heads, head_width=head_width, mrope_section=(time, height, half - time - height),
            rope_theta=pick(1e2, 1e4, 1e6), norm_eps=pick(1e-6, 1e-5), tied=bool(seed % 2),
        ),
        image_token_id=61, video_token_id=62, vision_start_token_id=60,
    )  # fmt: skip
    return config, random_prompt(config, MEDIA[seed % len(MEDIA)], seed), random_tensors(config, seed)


SEEDS = range(24)


def test_the_drawn_networks_cover_what_they_should():
    drawn = [draw(seed) for seed in SEEDS]
    text, vision = [config.text for config, *_ in drawn], [config.vision for config, *_ in drawn]
    groups = {t.heads // t.kv_heads for t in text}
    assert groups == {1, 2, 3} and {t.kv_heads for t in text} == {1, 2, 3}
    assert {t.tied for t in text} == {True, False} and {t.layers for t in text} == {1, 2, 3}
    assert {v.window for v in vision} == {1, 2, 3, 4} and {v.depth for v in vision} == {1, 2, 3, 4}
    assert len({t.mrope_section for t in text}) >= 8
    patterns = {(len(v.full_attention_layers) == 0, len(v.full_attention_layers) == v.depth) for v in vision}
    assert {(True, False), (False, True), (False, False)} <= patterns
    assert any(any(p.videos) and not all(p.videos) for _, p, _ in drawn) and any(len(p.grids) == 3 for _, p, _ in drawn)


@functools.partial(jax.jit, static_argnums=(0,))
def _pass(config, params, images, ids, positions, slot, readout):
    """Loss with gradients, and every layer's state, in one program."""

    def loss(params, patches):
        model = network(config, params)
        out, merged = {}, None
        if images is not None:
            merged, out = model.encode(dataclasses.replace(images, patches=patches), FP64, {"vision_states"})
        x = model.embed(ids, slot, merged)
        tokens = Tokens(positions, jnp.ones_like(ids))
        hidden, _, more = model.decode(x, tokens, compute=FP64, taps={"states", "attention"})
        logits = model.text.logits(hidden)
        return jnp.sum(logits * readout), {**out, **more, "merged": merged, "hidden": hidden, "logits": logits}

    patches = None if images is None else images.patches
    argnums = (0,) if images is None else (0, 1)
    (_, out), gradients = jax.value_and_grad(loss, argnums=argnums, has_aux=True)(params, patches)
    return out, gradients


@pytest.mark.parametrize("seed", SEEDS)
def test_network_equals_reference_in_values_and_gradients(seed):
    config, prompt, tensors = draw(seed)
    reference = Reference(config, tensors, torch.float64)
    run = reference.run(prompt)
    readout = np.random.default_rng(seed).standard_normal(run["logits"].shape)
    (run["logits"] * torch.tensor(readout)).sum().backward()
    with jax.enable_x64(True):
        out, gradients = _pass(
            config, double(to_params(config, tensors)), images_of([prompt]) if len(prompt.grids) else None,
            jnp.array(prompt.ids[None]), jnp.array(prompt.positions[None]), jnp.array(prompt.vision_slot[None]),
            jnp.array(readout),
        )  # fmt: skip
        out, gradients = jax.tree.map(np.asarray, (out, gradients))

    stages, layout, got = run["stages"], prompt.layout, {}
    if len(prompt.grids):
        states = out["vision_states"].reshape(config.vision.depth + 1, -1, config.vision.hidden)[:, layout.patch_slot]
        calls = lambda name, windowed: reference.raster(  # noqa: E731
            prompt, [stage.output.detach().numpy() for stage in stages[name]], windowed, name == "merger"
        )
        got["patch embedding"] = distance(states[0], calls("patch_embed", windowed=False))
        for i in range(config.vision.depth):
            got[f"vision block {i}"] = distance(states[i + 1], calls(f"block {i}", windowed=True))
        got["merged tokens"] = distance(out["merged"][0][layout.merged_slot], calls("merger", windowed=True))
        pixel_gradients = [
            run["inputs"][name].grad.numpy()
            for name in ("pixel_values", "pixel_values_videos")
            if name in run["inputs"]
        ]
        ours = gradients[1].reshape(-1, gradients[1].shape[-1])
        got["gradient of pixels"] = distance(
            ours[layout.patch_slot], reference.raster(prompt, pixel_gradients, windowed=False)
        )
        empty = np.delete(ours, layout.patch_slot, axis=0)
        assert not empty.any(), "an empty window slot has an influence"
    for i in range(config.text.layers):
        stage = stages[f"layer {i}"][0]
        got[f"input of layer {i}"] = distance(out["states"][i], stage.input.detach())
        got[f"layer {i}"] = distance(out["states"][i + 1], stage.output.detach())
        got[f"attention of layer {i}"] = distance(out["attention"][i], run["attentions"][i].detach())
    got["final norm"] = distance(out["hidden"], stages["norm"][0].output.detach())
    got["logits"] = distance(out["logits"], run["logits"].detach())
    wanted = reference.gradients()
    for name, gradient in to_tensors(config, gradients[0]).items():
        if wanted[name].any() or gradient.any():  # a text-only prompt does not touch the tower
            got[f"gradient of {name}"] = distance(gradient, wanted[name])
    misses = {name: error for name, error in got.items() if not error <= EXACT}
    assert not misses


@functools.partial(jax.jit, static_argnums=(0,))
def _vjp(stage, parameters, x, cotangent, *rest):
    """output, d parameters, d x of `stage(parameters, x, *rest)`."""
    out, pull = jax.vjp(lambda parameters, x: stage(parameters, x, *rest), parameters, x)
    return out, *pull(cotangent)


@pytest.mark.parametrize("seed", [1, 4, 7, 12, 15])
def test_every_stage_equals_reference_in_fp32_values_and_gradients(seed):
    config, prompt, tensors = draw(seed)
    v, t, layout = config.vision, config.text, prompt.layout
    reference = Reference(config, tensors, torch.float32)
    run = reference.run(prompt)
    readout = np.random.default_rng(seed).standard_normal(run["logits"].shape).astype(np.float32)
    (run["logits"] * torch.tensor(readout)).sum().backward()
    wanted, names, got = reference.gradients(), slots(config), {}
    model = network(config, jax.device_put(to_params(config, tensors, np.float32)))
    W, S = layout.segments.shape

    def vision_stage(name):
        """input, output, d input, d output, in raster order."""
        calls = zip(*(stage.arrays() for stage in run["stages"][name]))
        per_merged = [False, name == "merger", False, name == "merger"]
        return [reference.raster(prompt, list(x), name != "patch_embed", m) for x, m in zip(calls, per_merged)]

    def place(rows, slot=layout.patch_slot):
        placed = np.zeros((W * S * len(slot) // len(layout.patch_slot), rows.shape[-1]), np.float32)
        placed[slot] = rows
        return placed.reshape(1, W, S, -1) if slot is layout.patch_slot else placed[None]

    def pick(x, slot=layout.patch_slot):
        return np.asarray(x).reshape(-1, x.shape[-1])[slot]

    def compare(name, ours, theirs, d_parameters, path, layer=None):
        """ours, theirs: (output, d input); d_parameters: a dict below `path`; all of its leaves are compared."""
        got[name], got[f"input gradient of {name}"] = (distance(a, b) for a, b in zip(ours, theirs))
        flat = {"/".join(key): leaf for key, leaf in nnx.traversals.flatten_mapping(d_parameters).items()}
        for tensor, slot in names.items():
            inside = slot.path.removeprefix(f"{path}/")
            if inside != slot.path and inside in flat and slot.layer == layer:
                got[tensor] = distance(slot.to_hf(np.asarray(flat[inside])), wanted[tensor])

    # The tower: patch embedding, blocks, merger.
    graph, parameters = nnx.split(model.vision)
    x, y, dx, dy = vision_stage("patch_embed")
    out, dp, d_in = _vjp(lambda p, x: nnx.merge(graph, p).embed(x), parameters, place(x), place(dy))
    compare("patch_embed", (pick(out), pick(d_in)), (y, dx), {"patch_embed": dp["patch_embed"][...]}, "vision")
    block_graph, blocks = nnx.split(model.vision.blocks)
    block = lambda p, x, full, *rest: nnx.merge(block_graph, p)(x, full, *rest, Compute())  # noqa: E731
    rest = layout.segments[None], vision_table(layout.rotary_ids[None], v.head_width)
    for i in range(v.depth):
        x, y, dx, dy = vision_stage(f"block {i}")
        full, mine = i in v.full_attention_layers, jax.tree.map(lambda a, i=i: a[i], blocks)
        out, dp, d_in = _vjp(block, mine, place(x), place(dy), jnp.array(full), *rest)
        compare(f"block {i}", (pick(out), pick(d_in)), (y, dx), nnx.to_pure_dict(dp), "vision/blocks", i)
    merger_graph, parameters = nnx.split(model.vision.merger)
    x, y, dx, dy = vision_stage("merger")
    merge = lambda p, x: nnx.merge(merger_graph, p)(x)  # noqa: E731
    out, dp, d_in = _vjp(merge, parameters, place(x), place(dy, layout.merged_slot))
    ours = pick(out, layout.merged_slot), pick(d_in)
    compare("merger", ours, (y, dx), nnx.to_pure_dict(dp), "vision/merger")

    # The decoder: blocks, final norm, head. The embedding is a gather, compared in fp64 above.
    tokens = Tokens(jnp.array(prompt.positions[None]), jnp.ones((1, len(prompt.ids)), jnp.int32))
    table = mrope_table(tokens.positions, t.head_width, t.mrope_section, t.rope_theta)
    layer_graph, layers = nnx.split(model.text.blocks)
    layer = lambda p, x, *rest: nnx.merge(layer_graph, p)(x, *rest, (), Compute(), ())[0]  # noqa: E731
    for i in range(t.layers):
        x, y, dx, dy = run["stages"][f"layer {i}"][0].arrays()
        out, dp, d_in = _vjp(layer, jax.tree.map(lambda a, i=i: a[i], layers), x, dy, tokens, table)
        compare(f"layer {i}", (out, d_in), (y, dx), nnx.to_pure_dict(dp), "text/blocks", i)
    x, y, dx, dy = run["stages"]["norm"][0].arrays()
    norm = lambda p, x: rms_norm(x, nnx.Param(p["norm"]), t.norm_eps)  # noqa: E731
    out, dp, d_in = _vjp(norm, {"norm": model.text.norm[...]}, x, dy)
    compare("norm", (out, d_in), (y, dx), dp, "text")
    x, y, dx, dy = run["stages"]["head"][0].arrays()
    text_graph, parameters = nnx.split(model.text)
    out, dp, d_in = _vjp(lambda p, x: nnx.merge(text_graph, p).logits(x), parameters, x, dy)
    compare("head", (out, d_in), (y, dx), {} if t.tied else {"head": dp["head"][...]}, "text")

    assert set(names) - {"model.embed_tokens.weight"} <= set(got)
    misses = {name: error for name, error in got.items() if not error <= STAGE}
    assert not misses


@functools.partial(jax.jit, static_argnums=(0,))
def _embed(config, params, images, ids, slot):
    model = network(config, params)
    return model.embed(ids, slot, None if images is None else model.encode(images, FP64)[0])


@functools.partial(jax.jit, static_argnums=(0,), static_argnames=("keep_cache",))
def _decode(config, params, x, tokens, past, keep_cache=True):
    model = network(config, params)
    hidden, own, _ = model.decode(x, tokens, past=past, compute=FP64, keep_cache=keep_cache)
    return hidden, model.text.logits(hidden), own


@pytest.mark.parametrize("seed", [0, 2, 3, 4, 5])
def test_steps_with_the_cache_equal_the_parallel_pass_and_the_reference(seed):
    """Prefill, then one token a step into a cache of fixed size; the reference steps with its own cache."""
    config, prompt, tensors = draw(seed)
    more = np.random.default_rng(seed).integers(0, 60, 5)
    T = len(prompt.ids)
    ids = np.concatenate([prompt.ids, more])
    positions = np.concatenate([prompt.positions, prompt.next_position + np.tile(np.arange(5), (3, 1))], 1)
    slot = np.concatenate([prompt.vision_slot, np.full(5, -1)])
    with jax.enable_x64(True):
        params = double(to_params(config, tensors))
        images = images_of([prompt]) if len(prompt.grids) else None
        x = _embed(config, params, images, ids[None], slot[None])
        tokens = lambda a, b: Tokens(jnp.array(positions[None, :, a:b]), jnp.ones((1, b - a), jnp.int32))  # noqa: E731
        together, logits, _ = _decode(config, params, x, tokens(0, T + 5), ())
        _, first, prompt_cache = _decode(config, params, x[:, :T], tokens(0, T), ())
        shape = (config.text.layers, 1, 8, config.text.kv_heads, config.text.head_width)
        empty = jnp.zeros((1, 8), jnp.int32)
        grown, steps = Cache(jnp.zeros(shape, x.dtype), jnp.zeros(shape, x.dtype), empty, empty), [first[:, -1:]]
        for i in range(5):
            here = tokens(T + i, T + i + 1)
            hidden, step, own = _decode(config, params, x[:, T + i : T + i + 1], here, (prompt_cache, grown))
            assert distance(hidden[:, 0], together[:, T + i]) <= EXACT
            grown = Cache(
                grown.k.at[:, :, i].set(own.k[:, :, 0]), grown.v.at[:, :, i].set(own.v[:, :, 0]),
                grown.segment.at[:, i].set(1), grown.role,
            )  # fmt: skip
            steps.append(step)
        steps = np.concatenate([np.asarray(s) for s in steps], 1)
        assert distance(steps, logits[:, T - 1 :]) <= EXACT
        in_one_go, _, _ = _decode(config, params, x[:, T:], tokens(T, T + 5), (prompt_cache,), keep_cache=False)
        assert distance(in_one_go, together[:, T:]) <= EXACT, "several tokens after a cache"

    reference = Reference(config, tensors, torch.float64)
    assert distance(steps, reference.step(prompt, more)) <= EXACT
