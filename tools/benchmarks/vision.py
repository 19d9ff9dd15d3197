"""Window attention over dense windows against full attention with a window mask.

One window layer's attention of the published tower (16 heads x 80, fp32) at 4,096 patches, forward and backward,
against jax.nn.dot_product_attention with the mask, the faster of the masked attentions at hand. Beside it the whole
tower, put together from its measured parts: 28 window blocks and 4 full ones, with the masked attention in place of the
dense one for the baseline.
"""

import time
from statistics import median

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lvr_jax.models.attention import Keys, Queries, attention
from lvr_jax.models.families import sizes
from lvr_jax.models.layers import Compute
from lvr_jax.models.layout import vision_layout
from lvr_jax.models.qwen2_5_vl.rope import vision_table
from lvr_jax.models.qwen2_5_vl.vision import VisionBlock

TOWER = sizes()["3b"].vision
GRID = (1, 64, 64)  # patches
GOAL = 40
SAME = 1e-5  # fp32 sums over 64 keys, and over 4,096 of which all but 64 are exact zeros


def run(rounds: int = 3, block_rounds: int = 1) -> dict:
    layout = vision_layout([GRID])
    layer = _attention(layout, rounds)
    block = _blocks(layout, block_rounds)
    ratio = layer["masked"] / layer["dense"]
    full, windows = len(TOWER.full_attention_layers), TOWER.depth - len(TOWER.full_attention_layers)
    linear = block["window"] - layer["dense"]
    tower = windows * block["window"] + full * block["full"]
    masked = windows * (linear + layer["masked"]) + full * block["full"]
    shares = {
        "projections and MLPs": TOWER.depth * linear,
        "full attention": full * (block["full"] - linear),
        "window attention": windows * layer["dense"],
    }
    listed = ", ".join(f"{name} {seconds / tower:.0%}" for name, seconds in shares.items())
    return {
        "name": "vision",
        "ratio": ratio,
        "goal": GOAL,
        "holds": ratio >= GOAL,
        "seconds": layer["dense"],
        "baseline_seconds": layer["masked"],
        "details": (
            f"{np.prod(GRID)} patches, forward and backward; tower of {TOWER.depth} layers from its parts: "
            f"{masked / tower:.1f} times ({masked:.0f} s / {tower:.0f} s), of which remain: {listed}"
        ),
    }


def _medians(steps: dict, rounds: int) -> dict[str, float]:
    """Seconds of each step, interleaved; a short one is repeated within a round, and every repeat counts."""
    times = {name: [] for name in steps}
    for step in steps.values():
        step()  # compiles
    for _ in range(rounds):
        for name, step in steps.items():
            spent = 0.0
            while spent < 3:
                began = time.perf_counter()
                step()
                times[name].append(time.perf_counter() - began)
                spent += times[name][-1]
    return {name: median(values) for name, values in times.items()}


def _attention(layout, rounds: int) -> dict[str, float]:
    """Seconds of one window layer's attention with its gradients, `dense` and `masked`; both must give the same."""
    W, S = layout.segments.shape
    rng = np.random.default_rng(0)
    arrays = [jnp.array(rng.standard_normal((W, S, TOWER.heads, TOWER.head_width)), jnp.float32) for _ in range(4)]
    window = jnp.arange(1, W + 1)[:, None].repeat(S, 1)                                  # [W, S]

    def dense(q, k, v, window):
        return attention(Queries(q, window), Keys(k, v, window))[0]

    def masked(q, k, v, window):
        return jax.nn.dot_product_attention(q, k, v, mask=(window[:, :, None] == window[:, None, :])[:, None])

    def with_gradients(function, arguments):
        def loss(q, k, v, readout, window):
            out = function(q, k, v, window)
            return jnp.sum(out * readout), out

        step = jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))
        return lambda: jax.block_until_ready(step(*arguments))

    arguments = [*arrays, window]
    one_row = [x.reshape(1, W * S, *x.shape[2:]) for x in arguments]
    steps = {"dense": with_gradients(dense, arguments), "masked": with_gradients(masked, one_row)}
    for a, b in zip(*(jax.tree.leaves(step()) for step in steps.values())):
        error = float(jnp.abs(a - b.reshape(a.shape)).max() / jnp.abs(a).max())
        assert error <= SAME, f"dense windows and masked attention differ by {error:.1e} of the scale"
    return _medians(steps, rounds)


def _blocks(layout, rounds: int) -> dict[str, float]:
    """Seconds of one `window` and one `full` block of the tower, forward and backward."""
    graph, parameters = nnx.split(VisionBlock(nnx.Rngs(0), TOWER))
    x = jax.random.normal(jax.random.key(0), (1, *layout.segments.shape, TOWER.hidden))
    table = vision_table(jnp.array(layout.rotary_ids)[None], TOWER.head_width)

    @jax.jit
    def step(parameters, x, full):
        def loss(parameters, x):
            y = nnx.merge(graph, parameters)(x, full, layout.segments[None], table, Compute())
            return jnp.mean(y**2)

        return jax.grad(loss, argnums=(0, 1))(parameters, x)

    kinds = {"window": jnp.array(False), "full": jnp.array(True)}
    run_block = lambda full: lambda: jax.block_until_ready(step(parameters, x, full))  # noqa: E731
    return _medians({name: run_block(full) for name, full in kinds.items()}, rounds)
