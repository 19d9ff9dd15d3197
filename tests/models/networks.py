"""What the model tests run on: random small networks and inputs.

A network is drawn as Hugging Face tensors and mapped to our parameters through the name table, so that both sides of a
comparison hold the same numbers. Weights are drawn so that activations keep their scale from layer to layer: an error
in any layer stays visible and rounding is not amplified.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lvr_jax.models.families import abstract_model, slots
from lvr_jax.models.layout import TRANSFORMERS_5, VisionLayout, mrope_positions, vision_layout
from lvr_jax.models.qwen2_5_vl.config import Config, TextConfig, VisionConfig
from lvr_jax.models.records import Images, Tokens


def tiny_config(**text) -> Config:
    """One network that most tests share: three window layers with a full one between them, grouped queries."""
    return Config(
        vision=VisionConfig(
            depth=3, hidden=32, intermediate=24, heads=2, out_hidden=48, full_attention_layers=(1,), window_pixels=16,
            patch=2,
        ),
        text=TextConfig(
            vocab=64, hidden=48, intermediate=40, layers=2, heads=3, kv_heads=1, head_width=16,
            mrope_section=(2, 3, 3), **{"rope_theta": 1e4, "tied": True, **text},
        ),
        image_token_id=61, video_token_id=62, vision_start_token_id=60,
    )  # fmt: skip


def hf_fields(config: Config) -> dict:
    """Our config as a nested config.json of transformers 5."""
    v, t = config.vision, config.text
    return {
        "model_type": "qwen2_5_vl",
        "tie_word_embeddings": t.tied,
        "image_token_id": config.image_token_id,
        "video_token_id": config.video_token_id,
        "vision_start_token_id": config.vision_start_token_id,
        "vision_config": {
            "depth": v.depth, "hidden_size": v.hidden, "intermediate_size": v.intermediate, "num_heads": v.heads,
            "out_hidden_size": v.out_hidden, "fullatt_block_indexes": list(v.full_attention_layers),
            "window_size": v.window_pixels, "patch_size": v.patch, "spatial_merge_size": v.merge,
            "temporal_patch_size": v.temporal_patch, "in_channels": v.channels,
            "tokens_per_second": v.tokens_per_second, "hidden_act": "silu",
        },
        "text_config": {
            "vocab_size": t.vocab, "hidden_size": t.hidden, "intermediate_size": t.intermediate,
            "num_hidden_layers": t.layers, "num_attention_heads": t.heads, "num_key_value_heads": t.kv_heads,
            "rms_norm_eps": t.norm_eps, "hidden_act": "silu", "use_sliding_window": False,
            "bos_token_id": None, "eos_token_id": None,
            "rope_parameters": {
                "rope_type": "default", "rope_theta": t.rope_theta, "mrope_section": list(t.mrope_section)
            },
        },
    }  # fmt: skip


def random_tensors(config: Config, seed: int) -> dict[str, np.ndarray]:
    """fp64 tensors by canonical Hugging Face name; nothing is zero or one that could hide a missing term."""
    rng = np.random.default_rng(seed)

    def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
        x = rng.standard_normal(shape)
        if len(shape) == 1:
            return 1 + 0.15 * x if "norm" in name or "ln_q" in name else 0.1 * x
        return x if "embed_tokens" in name else x / np.sqrt(np.prod(shape[1:]))

    return {name: draw(name, slot.hf_shape) for name, slot in slots(config).items()}


def to_params(config: Config, tensors: dict[str, np.ndarray], dtype=np.float64) -> dict:
    """Hugging Face tensors -> our nested dict, through the name table."""
    layers: dict[str, dict] = {}
    for name, slot in slots(config).items():
        layers.setdefault(slot.path, {})[slot.layer] = slot.from_hf(tensors[name].astype(dtype))
    params: dict = {}
    for path, by_layer in layers.items():
        *folders, leaf = path.split("/")
        node = params
        for folder in folders:
            node = node.setdefault(folder, {})
        node[leaf] = by_layer[None] if None in by_layer else np.stack([by_layer[i] for i in range(len(by_layer))])
    return params


def to_tensors(config: Config, params: dict) -> dict[str, np.ndarray]:
    """The way back, for gradients."""

    def find(slot):
        node = params
        for part in slot.path.split("/"):
            node = node[part]
        return slot.to_hf(np.asarray(node if slot.layer is None else node[slot.layer]))

    return {name: find(slot) for name, slot in slots(config).items()}


@dataclasses.dataclass(frozen=True)
class Prompt:
    """One sequence with its pictures: ids [T], positions [3, T], vision_slot [T], patches in raster order, layout."""

    ids: np.ndarray
    positions: np.ndarray
    next_position: int
    vision_slot: np.ndarray
    grids: np.ndarray
    videos: tuple[bool, ...]
    seconds: tuple[float, ...]
    patches: np.ndarray
    layout: VisionLayout


def random_prompt(
    config: Config, media: list[tuple[str, tuple[int, int, int]]], seed: int, text: int = 4, windows: int | None = None
) -> Prompt:
    """Text, then each of `media` (("image" | "video", grid)) followed by text."""
    rng = np.random.default_rng([seed, 1])
    v = config.vision
    some_text = lambda: rng.integers(0, config.vision_start_token_id, int(rng.integers(1, text + 1)))  # noqa: E731
    ids, grids = [some_text()], np.array([grid for _, grid in media], np.int64).reshape(-1, 3)
    for kind, grid in media:
        token = config.video_token_id if kind == "video" else config.image_token_id
        ids += [[config.vision_start_token_id], [token] * (int(np.prod(grid)) // v.merge**2), some_text()]
    ids = np.concatenate(ids).astype(np.int64)
    videos = tuple(kind == "video" for kind, _ in media)
    seconds = tuple(float(rng.choice([0.5, 1.0, 2.0])) for video in videos if video)
    positions, following = mrope_positions(
        ids, grids, image_token_id=config.image_token_id, video_token_id=config.video_token_id, merge=v.merge,
        tokens_per_second=v.tokens_per_second, seconds_per_grid=seconds, rule=TRANSFORMERS_5,
    )  # fmt: skip
    layout = vision_layout(grids, merge=v.merge, window=v.window, budget=windows)
    vision_slot = np.full(len(ids), -1)
    vision_slot[ids >= config.image_token_id] = layout.merged_slot
    patches = rng.standard_normal((len(layout.patch_slot), v.temporal_patch * v.frame_width))
    return Prompt(ids, positions, following, vision_slot, grids, videos, seconds, patches, layout)


def images_of(prompts: list[Prompt], dtype=jnp.float64) -> Images:
    """One row a prompt; all layouts must have the same number of windows."""
    return Images(
        jnp.array(np.stack([p.layout.place(p.patches) for p in prompts]), dtype),
        jnp.array(np.stack([p.layout.segments for p in prompts])),
        jnp.array(np.stack([p.layout.rotary_ids for p in prompts])),
    )


def tokens_of(prompt: Prompt) -> Tokens:
    return Tokens(jnp.array(prompt.positions[None]), jnp.ones((1, len(prompt.ids)), jnp.int32))


def network(config: Config, params: dict):
    """The network that these parameters make."""
    return nnx.merge(abstract_model(config)[0], params)


def double(params: dict) -> dict:
    return jax.device_put(jax.tree.map(lambda x: np.asarray(x, np.float64), params))


def distance(ours, reference) -> float:
    """Largest difference, relative to the reference array's own scale."""
    ours, reference = np.asarray(ours, np.float64), np.asarray(reference, np.float64)
    assert ours.shape == reference.shape, (ours.shape, reference.shape)
    return float(np.abs(ours - reference).max(initial=0) / max(np.abs(reference).max(initial=0), 1e-30))
