"""Cost of a sweep of 64 conditions, compared with one clean pass.

One item: a 56 x 80 patch image (1,120 vision tokens) and 60 tokens of text, 8 latents, 12 answer tokens. The network is
a small Qwen2.5-VL with the proportions of the 3B one: tower and decoder in the same ratio, grouped queries, 8 layers.
Both sides are ours, compiled before the clock starts: prefill and one rollout, against prefill and 64 rollouts.
"""

import time
from statistics import median

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lvr_jax.data.packing import Batch, Geometry, collate
from lvr_jax.data.sample import Example
from lvr_jax.latents import conditions as cond
from lvr_jax.latents import rollout
from lvr_jax.latents.decoding import Decoding
from lvr_jax.latents.spec import SYSTEMS, Plan, plan
from lvr_jax.models.layout import mrope_positions
from lvr_jax.models.qwen2_5_vl.config import Config, TextConfig, VisionConfig
from lvr_jax.models.qwen2_5_vl.model import Qwen2_5_VL

GOAL, CONDITIONS, LATENTS, ANSWER = 2.0, 64, 8, 12
GRID, TEXT = (1, 56, 80), (15, 44)
# Ids of the added tokens and placeholders in a vocabulary of 8,192.
IDS = {"<|lvr_start|>": 8110, "<|lvr|>": 8111, "<|lvr_latent_end|>": 8112, "<|lvr_end|>": 8113}
IMAGE, VISION_START, VISION_END = 8100, 8102, 8103
CONFIG = Config(
    vision=VisionConfig(
        depth=8, hidden=224, intermediate=600, heads=4, out_hidden=512, full_attention_layers=(7,),
    ),
    text=TextConfig(
        vocab=8192, hidden=512, intermediate=1408, layers=8, heads=8, kv_heads=2, head_width=64,
        mrope_section=(8, 12, 12), tied=True,
    ),
    image_token_id=IMAGE, video_token_id=8101, vision_start_token_id=VISION_START,
)  # fmt: skip


def prompt(number: int, config: Config = CONFIG) -> Example:
    """Text, one random image, text, and the start marker."""
    rng = np.random.default_rng(number)
    merged = int(np.prod(GRID)) // 4
    before, after = (rng.integers(0, 8000, n) for n in TEXT)
    start = IDS["<|lvr_start|>"]
    ids = np.concatenate([before, [VISION_START], [IMAGE] * merged, [VISION_END], after, [start]]).astype(np.int32)
    image, zeros, grids = ids == IMAGE, np.zeros(len(ids), np.int32), np.array([GRID], np.int32)
    positions, _ = mrope_positions(ids, grids, image_token_id=IMAGE, video_token_id=config.video_token_id)
    return Example(
        id=f"item{number}", category="", tokens=ids, positions=positions,
        vision_slot=np.where(image, np.cumsum(image) - 1, -1).astype(np.int32), loss_mask=zeros.astype(bool),
        stage=zeros, group=zeros, role=image.astype(np.int32) + 2 * (ids == start),
        patches=rng.integers(0, 256, (merged * 4, 588), np.uint8), grids=grids,
    )  # fmt: skip


def batch_of(examples) -> Batch:
    """Examples as a batch of one a row."""
    rows = [[e] for e in examples]
    return collate(rows, Geometry().smallest(rows))


def the_plan() -> Plan:
    """The plan of LVR's latent loop."""
    return plan(SYSTEMS["lvr"], IDS, LATENTS)


def run(rounds: int = 5) -> dict:
    """Medians of interleaved rounds; the parts of a sweep are timed beside them."""
    graph, state = nnx.split(Qwen2_5_VL(nnx.Rngs(0), CONFIG))
    params, batch = nnx.to_pure_dict(state), jax.device_put(batch_of([prompt(0)]))
    prefill = jax.jit(rollout.prefill, static_argnums=0)
    sweep = jax.jit(rollout.sweep, static_argnums=0, static_argnames=("decoding", "steps"))
    # Nobody stops early: every condition writes all its tokens.
    steps = 1 + LATENTS + ANSWER
    decoding = Decoding(max_new_tokens=steps, stop=())
    prefix, _ = prefill(graph, params, batch, jnp.arange(1))
    bank = rollout.no_bank(prefix, the_plan())
    noises = [cond.absolute_noise(0.01 * n) for n in range(CONDITIONS)]
    many, one = (cond.stack(noises[:n], [], 1, LATENTS) for n in (CONDITIONS, 1))

    def rolled(condition, prefix):
        return sweep(graph, params, prefix, the_plan(), condition, bank, decoding=decoding, steps=steps)

    def whole(condition):
        return rolled(condition, prefill(graph, params, batch, jnp.arange(1))[0])

    works = {
        "sweep": lambda: whole(many), "clean": lambda: whole(one),
        "prefill": lambda: prefill(graph, params, batch, jnp.arange(1)),
        "64 rollouts": lambda: rolled(many, prefix), "1 rollout": lambda: rolled(one, prefix),
    }  # fmt: skip
    times: dict[str, list[float]] = {name: [] for name in works}
    compiled = {name: _seconds(work) for name, work in works.items()}
    for _ in range(rounds):
        for name, work in works.items():
            times[name].append(_seconds(work))
    middle = {name: median(seconds) for name, seconds in times.items()}
    ratio = middle["sweep"] / middle["clean"]
    return {
        "name": "sweep", "ratio": ratio, "goal": GOAL, "holds": bool(ratio <= GOAL),
        "seconds": middle["sweep"], "baseline_seconds": middle["clean"],
        "details": {
            "what": f"{CONDITIONS} conditions, {LATENTS} latents, {ANSWER} answer tokens, "
            f"{batch['tokens'].shape[1]} prompt tokens of which {int(np.prod(GRID)) // 4} vision",
            "medians": middle,
            "ratios_by_round": [s / c for s, c in zip(times["sweep"], times["clean"])],
            "first_calls_with_compilation": compiled,
            "rounds": rounds, "device": jax.devices()[0].device_kind,
        },
    }  # fmt: skip


def _seconds(work) -> float:
    start = time.perf_counter()
    jax.block_until_ready(work())
    return time.perf_counter() - start


if __name__ == "__main__":
    import json

    print(json.dumps(run(), indent=1))
