"""The tower sees images as the reference does: pixels, dense windows, frames, budgets."""

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
from lvr_jax.models.layout import vision_layout
from lvr_jax.models.qwen2_5_vl.config import Config
from lvr_jax.models.qwen2_5_vl.rope import _by_product, rotate, vision_table
from lvr_jax.models.qwen2_5_vl.vision import IMAGE_MEAN, IMAGE_STD, PIXELS, _computed, normalise
from lvr_jax.models.records import Images
from lvr_jax.models.weight_table import canonical

GOLDEN = Path(__file__).parents[1] / "golden"
FP64 = Compute(dtype=jnp.float64)
# fp64 sums of up to a hundred terms in another order, through three blocks.
EXACT = 1e-12


def test_normalise_is_bit_identical_to_the_hugging_face_processor():
    """All 256 values of all channels, under jit and without."""
    from transformers.image_transforms import normalize, rescale

    image = np.arange(256, dtype=np.uint8).reshape(1, 256, 1).repeat(3, 0)                 # [C, 256, 1]
    expected = normalize(rescale(image, 1 / 255), IMAGE_MEAN, IMAGE_STD, input_data_format="channels_first")
    pixels = np.arange(256, dtype=np.uint8)[:, None].repeat(3, 1)                          # [256, C * 1]
    for function in (normalise, jax.jit(normalise)):
        np.testing.assert_array_equal(np.asarray(function(pixels)), expected[:, :, 0].T)


def test_normalise_on_a_tpu_is_off_by_two_roundings_at_most():
    pixels = np.arange(256, dtype=np.uint8)[:, None, None].repeat(3, 1)                    # [256, C, 1]
    computed = np.asarray(jax.jit(_computed)(pixels))[..., 0]
    np.testing.assert_allclose(computed, PIXELS, rtol=0, atol=2 * np.spacing(np.float32(2)))
    assert jax.export.export(jax.jit(normalise), platforms=["tpu"])(pixels[..., 0]).mlir_module().count("gather") == 0


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("width", [80, 128])
def test_a_tpu_rotates_narrow_heads_by_a_product_to_the_same_bits(dtype, width):
    x, angles = jax.random.normal(jax.random.key(0), (2, 6, 3, width), dtype), jnp.arange(6 * width).reshape(6, width)
    table = jnp.cos(angles), jnp.sin(angles)
    np.testing.assert_array_equal(_by_product(x, *table), rotate(x, table))
    lowered = jax.export.export(jax.jit(rotate), platforms=["tpu"])(x, table).mlir_module()
    joined = int(width == 128)      # a head as wide as the lanes is cut and joined
    assert lowered.count("stablehlo.dot_general") == 1 - joined and lowered.count("stablehlo.concatenate") == joined


def _gradient(function):
    """(loss, values) of params and patches -> values, gradients."""

    def run(params, patches):
        (_, values), gradients = jax.value_and_grad(function, argnums=(0, 1), has_aux=True)(params, patches)
        return values, gradients

    return run


GRIDS = {
    "one window": [(1, 8, 8)],
    "edge windows": [(1, 10, 14)],
    "odd grids, several images": [(1, 2, 2), (1, 6, 18), (1, 12, 4)],
    "video": [(3, 6, 10)],
    "video between images": [(1, 4, 6), (2, 10, 2), (1, 8, 16)],
}


@functools.cache
def tower():
    config = tiny_config()
    tensors = random_tensors(config, 0)
    with jax.enable_x64(True):
        return config, double(to_params(config, tensors))


def dense(params, patches, segment, rotary_ids):
    merged, out = network(tower()[0], params).encode(Images(patches, segment, rotary_ids), FP64, {"vision_states"})
    return merged[0], out["vision_states"]


def masked_full(params, patches, same_window, same_frame, rotary_ids):
    """The same tower over patches [P, C] in raster order, each layer full attention with a [P, P] mask."""
    config = tower()[0]
    model = network(config, params)
    x, states = model.vision.embed(patches[None, None])[0, 0], []
    states.append(x)
    table = vision_table(rotary_ids, config.vision.head_width, dtype=jnp.float64)
    graph, blocks = nnx.split(model.vision.blocks)
    for i in range(config.vision.depth):
        block = nnx.merge(graph, jax.tree.map(lambda a, i=i: a[i], blocks))
        qkv = jnp.einsum("PD,DCNH->CPNH", rms_norm(x, block.attention_norm), block.qkv[...])
        q, k, v = qkv + block.qkv_bias[...][:, None]
        scores = jnp.einsum("PNH,SNH->NPS", rotate(q, table), rotate(k, table)) / config.vision.head_width**0.5
        mask = same_frame if i in config.vision.full_attention_layers else same_window
        weights = jax.nn.softmax(jnp.where(mask, scores, -jnp.inf), -1)
        y = jnp.einsum("NPS,SNH->PNH", weights, v)
        x = x + jnp.einsum("PNH,NHD->PD", y, block.out[...]) + block.out_bias[...]
        x = x + block.mlp(rms_norm(x, block.mlp_norm))
        states.append(x)
    return model.vision.merger(x[None])[0], jnp.stack(states)


@pytest.mark.slow
@pytest.mark.parametrize("grids", GRIDS.values(), ids=GRIDS)
def test_dense_windows_equal_masked_full_attention(grids):
    """Values of every layer and gradients in pixels and weights; windows come from coordinates, not from the layout."""
    config, params = tower()
    layout = vision_layout(grids, window=config.vision.window, budget=16)
    rng = np.random.default_rng(0)
    patches = rng.standard_normal((len(layout.patch_slot), 2 * config.vision.frame_width))
    places, frame = [], 0
    for t, h, w in grids:
        order = np.arange(t * h * w).reshape(t, h // 2, w // 2, 2, 2)
        row, col = 2 * np.arange(h // 2)[:, None, None, None] + np.arange(2)[:, None], 2 * np.arange(w // 2)
        row, col = np.broadcast_to(row, order.shape), np.broadcast_to(col[:, None, None] + np.arange(2), order.shape)
        frames = np.broadcast_to(frame + np.arange(t)[:, None, None, None, None], order.shape)
        places.append(np.stack([frames, row, col], -1).reshape(-1, 3))
        frame += t
    place = np.concatenate(places)
    same = lambda a: (a[:, None] == a[None]).all(-1)  # noqa: E731
    side = 2 * config.vision.window
    same_frame, same_window = same(place[:, :1]), same(place // [1, side, side])
    weights = rng.standard_normal((len(layout.merged_slot), config.vision.out_hidden))

    with jax.enable_x64(True):
        def ours(params, patches):
            placed = jnp.zeros((layout.segments.size, patches.shape[1])).at[layout.patch_slot].set(patches)
            placed = placed.reshape(1, *layout.segments.shape, -1)
            merged, states = dense(params, placed, layout.segments[None], layout.rotary_ids[None])
            states = states.reshape(len(states), layout.segments.size, -1)[:, layout.patch_slot]
            return jnp.sum(merged[layout.merged_slot] * weights), (merged[layout.merged_slot], states)

        def reference(params, patches):
            merged, states = masked_full(params, patches, same_window, same_frame, place[:, 1:])
            return jnp.sum(merged * weights), (merged, states)

        a, da, b, db = (
            part
            for side in (ours, reference)
            for part in jax.jit(_gradient(side))(params, jnp.array(patches))
        )
        assert max(distance(x, y) for x, y in zip(a, b)) <= EXACT
        assert max(distance(x, y) for x, y in zip(jax.tree.leaves(da), jax.tree.leaves(db)) if y.any()) <= EXACT


def test_an_images_neighbours_and_the_budget_do_not_matter():
    config, params = tower()
    rng = np.random.default_rng(1)
    grids = [(1, 6, 10), (2, 4, 4)]
    patches = [rng.standard_normal((int(np.prod(g)), 2 * config.vision.frame_width)) for g in grids]
    run = jax.jit(dense)

    def encode(chosen, budget):
        layout = vision_layout([grids[i] for i in chosen], window=config.vision.window, budget=budget)
        with jax.enable_x64(True):
            placed = jnp.array(layout.place(np.concatenate([patches[i] for i in chosen])))[None]
            merged = np.asarray(run(params, placed, layout.segments[None], layout.rotary_ids[None])[0])
        assert np.isfinite(merged).all(), "empty slots must not give NaN"
        sizes = [len(patches[i]) // 4 for i in chosen]
        return dict(zip(chosen, np.split(merged[layout.merged_slot], np.cumsum(sizes)[:-1])))

    alone = encode([0], 6)[0], encode([1], 4)[1]
    for together in (encode([0, 1], 16), encode([1, 0], 16)):
        assert max(distance(together[i], alone[i]) for i in range(2)) <= EXACT


def test_a_still_travels_as_one_frame():
    """One frame of uint8 gives what two equal normalised frames give."""
    config, params = tower()
    still = np.random.default_rng(2).integers(0, 256, (1, 3, 4, config.vision.frame_width), np.uint8)
    with jax.enable_x64(True):
        normal = np.asarray(normalise(jnp.array(still))).astype(np.float64)
        both = normal.reshape(1, 3, 4, 3, 1, -1).repeat(2, 4).reshape(1, 3, 4, -1)
        vision = network(config, params).vision
        # uint8 goes through fp32: some tens of roundings over 24 terms.
        assert distance(vision.embed(jnp.array(still)), vision.embed(jnp.array(both))) <= 2e-6


@functools.cache
def golden_network(name="tiny_tied"):
    folder = GOLDEN / "checkpoints" / name
    config = Config.from_hf(json.loads((folder / "config.json").read_text()))
    tensors = {canonical(k): v for k, v in load_file(folder / "model.safetensors").items()}
    return config, tensors


def test_tower_equals_golden_states_block_by_block():
    """fp32, each block on the golden input: 2e-5 of the scale, as these networks amplify rounding by a few hundred."""
    config, tensors = golden_network()
    golden = np.load(GOLDEN / "cases" / "A1_single_tiny_tied.npz")
    layout = vision_layout(golden["image_grid_thw"])
    model = network(config, jax.device_put(to_params(config, tensors, np.float32)))
    rows = layout.segments.reshape(-1) > 0                                     # golden states are in window order
    place = lambda x: (lambda a: (a.__setitem__(rows, x), a)[1])(np.zeros((rows.size, x.shape[-1]), np.float32))  # noqa: E731
    shape = (1, *layout.segments.shape, -1)
    pixels = layout.place(golden["pixel_values"])[None]
    embedded = np.asarray(model.vision.embed(pixels)).reshape(rows.size, -1)
    assert distance(embedded[layout.patch_slot], golden["vis_patch_embed"]) <= 2e-5

    table = vision_table(layout.rotary_ids[None], config.vision.head_width)
    graph, blocks = nnx.split(model.vision.blocks)

    @jax.jit
    def block(parameters, x, full):
        return nnx.merge(graph, parameters)(x, full, layout.segments[None], table, Compute())

    x = np.zeros_like(embedded)
    x[layout.patch_slot] = golden["vis_patch_embed"]
    for i in range(config.vision.depth):
        full = jnp.array(i in config.vision.full_attention_layers)
        out = block(jax.tree.map(lambda a, i=i: a[i], blocks), x.reshape(shape), full)
        assert distance(np.asarray(out).reshape(rows.size, -1)[rows], golden[f"vis_block{i}_out"]) <= 2e-5, i
        x = place(golden[f"vis_block{i}_out"])
    merged = model.vision.merger(jnp.array(x.reshape(shape)))
    assert distance(merged[0][layout.merged_slot], golden["image_embeds"]) <= 2e-5


@pytest.mark.parametrize("case", ["A2_two_images_tiny_tied", "A4_window_10x14_tiny_tied", "A4_window_6x18_tiny_tied",
                                  "A4_window_8x16_tiny_tied", "A5_video_spg1.0_tiny_tied"])  # fmt: skip
def test_tower_equals_golden_images_end_to_end(case):
    """Ours in fp64 against fp32 torch, whose own rounding (1e-6 in its convolution) these networks carry to 5e-5."""
    config, tensors = golden_network()
    golden = np.load(GOLDEN / "cases" / f"{case}.npz")
    video = "video_grid_thw" in golden
    layout = vision_layout(golden["video_grid_thw" if video else "image_grid_thw"], budget=8)
    pixels = golden["pixel_values_videos" if video else "pixel_values"]
    with jax.enable_x64(True):
        merged = _golden_encode(
            double(to_params(config, tensors)), jnp.array(layout.place(pixels)[None], jnp.float64),
            layout.segments[None], layout.rotary_ids[None],
        )  # fmt: skip
        assert distance(merged[0][layout.merged_slot], golden["image_embeds"]) <= 1e-4


@jax.jit
def _golden_encode(params, *images):
    return network(golden_network()[0], params).encode(Images(*images), FP64)[0]


@pytest.mark.slow
def test_remat_changes_nothing_but_memory():
    config, params = tower()
    layout = vision_layout([(1, 6, 10)], window=config.vision.window)
    patches = np.random.default_rng(3).standard_normal((1, *layout.segments.shape, 2 * config.vision.frame_width))

    def gradient(remat):
        def loss(params):
            model = network(config, params)
            images = Images(jnp.array(patches), layout.segments[None], layout.rotary_ids[None])
            return jnp.sum(model.encode(images, Compute(dtype=jnp.float64, remat=remat))[0] ** 2)

        return jax.jit(jax.grad(loss))(params)

    with jax.enable_x64(True):
        kept = jax.tree.leaves(gradient("none"))
        for remat in ("block", "attention", "dots"):
            again = jax.tree.leaves(gradient(remat))
            assert max(distance(a, b) for a, b in zip(again, kept) if b.any()) <= EXACT
