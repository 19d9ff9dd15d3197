"""What the tests of the latent loop run on: a tiny random network, prompts for it, and every system's tokens."""

import functools

import jax
import numpy as np

from lvr_jax.data.packing import Geometry, collate
from lvr_jax.data.sample import Example
from lvr_jax.latents import rollout
from lvr_jax.latents.spec import SYSTEMS, plan
from lvr_jax.models.families import abstract_model
from lvr_jax.models.layout import mrope_positions
from lvr_jax.models.qwen2_5_vl.config import Config, TextConfig, VisionConfig

CONFIG = Config(
    vision=VisionConfig(
        depth=2, hidden=16, intermediate=16, heads=2, out_hidden=32, full_attention_layers=(1,), window_pixels=16,
        patch=2,
    ),
    text=TextConfig(
        vocab=64, hidden=32, intermediate=48, layers=2, heads=4, kv_heads=2, head_width=8, mrope_section=(1, 1, 2),
        rope_theta=1e4, tied=True,
    ),
    image_token_id=61, video_token_id=62, vision_start_token_id=60,
)  # fmt: skip
GRAPH = abstract_model(CONFIG)[0]
TEXT = 20           # ids below are ordinary text
STOP, OPENING = 19, (16, 17)
IDS = {token: TEXT + i for i, token in enumerate(dict.fromkeys(t for s in SYSTEMS.values() for t in s.added_tokens))}
LETTERS = (1, 2, 3, 4)
GEOMETRY = Geometry(window=4)

prefill = jax.jit(
    rollout.prefill, static_argnums=0, static_argnames=("remember_ids", "taps", "compute")
)
sweep = jax.jit(
    rollout.sweep, static_argnums=0, static_argnames=("decoding", "steps", "record", "compute")
)


@functools.cache
def params(seed: int = 0) -> dict:
    """Random weights that keep the scale of activations from layer to layer; norms and biases are not trivial."""
    rng = np.random.default_rng(seed)

    def draw(path, shape):
        name = path[-1].key
        x = rng.standard_normal(shape.shape).astype(np.float32)
        if "norm" in name:
            return 1 + 0.15 * x
        if "bias" in name:
            return 0.1 * x
        fan = {"embed": 1, "out": np.prod(shape.shape[-3:-1])}.get(name, shape.shape[-2])
        return x / np.float32(np.sqrt(fan))

    return jax.tree_util.tree_map_with_path(draw, abstract_model(CONFIG)[1])


def example(number: int, suffix: tuple[int, ...] = (), grid=(1, 8, 4)) -> Example:
    """Text, an image of its own size, text, and a suffix such as a start marker."""
    rng = np.random.default_rng([number, 7])
    grids = np.array([grid], np.int32)
    merged = int(grids.prod()) // 4
    some = lambda n: rng.integers(5, 15, n)  # noqa: E731
    ids = np.concatenate([some(2), [60], [61] * merged, some(1 + number % 4), suffix]).astype(np.int32)
    image, zeros = ids == 61, np.zeros(len(ids), np.int32)
    positions, _ = mrope_positions(ids, grids, image_token_id=61, video_token_id=62)
    return Example(
        id=f"item{number}", category="", tokens=ids, positions=positions,
        vision_slot=np.where(image, np.cumsum(image) - 1, -1).astype(np.int32), loss_mask=zeros.astype(bool),
        stage=zeros, group=zeros, role=np.where(image, 1, np.where(np.isin(ids, suffix), 2, 0)).astype(np.int8),
        patches=rng.integers(0, 256, (merged * 4, 12)).astype(np.uint8), grids=grids,
    )  # fmt: skip


def batch_of(numbers, suffix: tuple[int, ...] = (), budget=None) -> dict:
    rows = [[example(n, suffix)] for n in numbers]
    everything = [[example(n, suffix)] for n in range(8)]
    return collate(rows, GEOMETRY.smallest(everything) if budget is None else budget, GEOMETRY)


def plan_of(system: str, budget: int | None = None):
    return plan(SYSTEMS[system], IDS, budget)


def start_of(system: str) -> int:
    return IDS[SYSTEMS[system].stages[0].start]


def on_host(trace) -> dict:
    return {key: None if value is None else np.asarray(value) for key, value in vars(trace).items()}
