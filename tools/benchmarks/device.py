"""One table of what this machine's accelerator does: training, prefill, decoding, sweep, windows, kernels' parity.

Layers of the published 3B network in bf16, as many as the device's memory holds the training of; on a CPU a network of
a million parameters in fp32, which shows that the command works and nothing about speed. MFU counts as training does
(lvr_jax.training.flops). Where torch is installed and has this device, the same shapes run there too, with the best
attention that Hugging Face's network takes. Weights and pixels are drawn: speeds are compared, and of our own kernels
the results, with attention in fp32. What cannot run here is a row that says why, what failed is a row and misses the
goal, and a part that would begin after eight minutes is a row too. The ratio is that of a sweep of 64 conditions and
one clean pass.
"""

import dataclasses
import functools
import os
import time
from collections.abc import Callable, Iterator
from statistics import median

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks import _device_torch as device_torch
from benchmarks.sweep import ANSWER, CONDITIONS, IMAGE, LATENTS, VISION_START, batch_of, prompt, the_plan
from benchmarks.train_torch import CONFIG as SMALL
from lvr_jax.data.packing import Budget, Geometry, collate
from lvr_jax.data.synthetic import synthetic_example
from lvr_jax.latents import conditions as cond
from lvr_jax.latents import rollout
from lvr_jax.latents.decoding import Decoding
from lvr_jax.latents.objectives import Objective
from lvr_jax.models.attention import IMPLEMENTATIONS, Keys, Queries, attention
from lvr_jax.models.families import family_of, rules, sizes
from lvr_jax.models.layers import Compute
from lvr_jax.models.qwen2_5_vl.config import Config
from lvr_jax.models.qwen2_5_vl.model import Qwen2_5_VL
from lvr_jax.training.experiment import compute_of
from lvr_jax.training.flops import batch_flops, peak
from lvr_jax.training.optimizer import AdamW
from lvr_jax.training.partitioning import make_mesh
from lvr_jax.training.schedules import Points
from lvr_jax.training.state import abstract_state, start
from lvr_jax.training.step import Recipe, compiled_step

# Before the device is first used: torch needs room on it too.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
LIMIT = 480             # seconds after which no further part begins
FROZEN = ("vision/.*",)
KERNELS = {"cpu": ("blocks",), "tpu": ("splash",), "gpu": ("cudnn", "xla")}     # those that training can take, by place
# Of the scale of the result: products in bf16 round to 2^-9, and a gradient is a product of products; fp32 beside it.
PARITY = {"bfloat16": 3e-2, "float32": 1e-4}


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table; baseline, ratio: against what `note` names; problem: a failure, not a missing part."""

    what: str
    value: str = "–"
    baseline: str = "–"
    ratio: float | None = None
    note: str = ""
    problem: bool = False


@dataclasses.dataclass(frozen=True)
class Setting:
    """What is measured here: network, type, a training row's tokens and windows, rows a step, rounds, patches."""

    config: Config
    dtype: str
    budget: Budget
    rows: int
    rounds: int
    patches: int

    @classmethod
    def here(cls) -> "Setting":
        device = jax.devices()[0]
        ids = {"image_token_id": IMAGE, "video_token_id": IMAGE + 1, "vision_start_token_id": VISION_START}
        if device.platform == "cpu":
            text = dataclasses.replace(SMALL.text, vocab=8192, hidden=256, intermediate=704, layers=2, heads=4)
            vision = dataclasses.replace(
                SMALL.vision, depth=2, hidden=160, intermediate=424, out_hidden=256, full_attention_layers=(1,)
            )
            return cls(Config(vision=vision, text=text, **ids), "float32", Budget(512, 36), 1, 3, 1024)
        memory = (device.memory_stats() or {}).get("bytes_limit", 16 * 2**30)
        layers, depth = (12, 16) if memory > 30 * 2**30 else (4, 8)
        full = sizes()["3b"]
        config = dataclasses.replace(
            full, text=dataclasses.replace(full.text, layers=layers), **ids,
            vision=dataclasses.replace(full.vision, depth=depth, full_attention_layers=(depth - 1,)),
        )  # fmt: skip
        return cls(config, "bfloat16", Budget(4096, 288), 2, 7, 4096)

    @functools.cached_property
    def network(self) -> tuple[nnx.GraphDef, dict]:
        graph, state = nnx.split(Qwen2_5_VL(nnx.Rngs(0), self.config))
        return graph, nnx.to_pure_dict(state)

    @functools.cached_property
    def held(self) -> dict:
        """Parameters as an audit holds them."""
        return jax.tree.map(lambda x: x.astype(self.dtype), self.network[1])


def seconds(work: Callable, rounds: int) -> float:
    """Median of calls after the one that compiles."""
    times = []
    for _ in range(rounds + 1):
        began = time.perf_counter()
        jax.block_until_ready(work())
        times.append(time.perf_counter() - began)
    return median(times[1:])


def utilisation(flops: float, spent: float) -> str:
    """Model FLOPs utilisation as text, where the device's peak is known."""
    device = jax.devices()[0]
    most = peak(device.device_kind, 1)
    share = f"MFU {flops / spent / most:.1%}" if most else f"no published peak of {device.device_kind!r}: no MFU"
    return f"{flops / spent / 1e12:.3g} TFLOP/s, {share}"


def training(s: Setting) -> Iterator[Row]:
    """The training step of LVR on full rows, one a time by each attention kernel that it can take here."""
    geometry = Geometry()
    batch = collate([[synthetic_example(s.budget, geometry, n)] for n in range(s.rows)], s.budget, geometry)
    flops, tokens = batch_flops(s.config, batch)
    mesh = make_mesh({}, jax.devices()[:1])
    where = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    theirs = device_torch.training(s, tokens)
    for kernel in KERNELS[jax.devices()[0].platform]:
        compute = compute_of({"dtype": s.dtype, "attention": kernel, "remat": "block"}, Objective(), False, "")
        optimizer = AdamW(warmup_ratio=0.0)
        transformation = optimizer.transformation(1000)
        graph, params = s.network
        like = abstract_state(params, FROZEN, transformation, rules(s.config), mesh, compute.dtype)
        recipe = Recipe(
            graph=graph, objective=Objective(), compute=compute, transformation=transformation,
            rate=optimizer.rate(1000), reconstruction=Points(((0, 0.1),)), own=Points(((0, 0.0),)),
        )  # fmt: skip
        state = start(jax.tree.map(jnp.copy, params), like, transformation, FROZEN)
        step, placed = compiled_step(recipe, like, where, mesh), jax.device_put(batch, where)

        def one(step=step, placed=placed):
            nonlocal state
            state, metrics = step(state, placed)
            return metrics

        with jax.set_mesh(mesh):
            spent = seconds(one, s.rounds)
            loss = float(one()["loss_total"])
        if not np.isfinite(loss):
            raise RuntimeError(f"loss is {loss}")
        name = f"train, {kernel} ({s.rows} x {s.budget.tokens} tokens)"
        yield against_torch(name, tokens / spent, "tokens/s", theirs, utilisation(flops, spent))


def against_torch(what: str, value: float, unit: str, theirs: float | str, note: str) -> Row:
    """theirs: the same in torch, or why there is none."""
    if isinstance(theirs, str):
        return Row(what, f"{value:,.4g} {unit}", note=f"{note}; {theirs}")
    return Row(what, f"{value:,.4g} {unit}", f"torch {theirs:,.4g}", value / theirs, note)


def decoding(s: Setting) -> Iterator[Row]:
    """Prefill of one prompt of 1,120 vision tokens; latents and answer; the same under 64 conditions."""
    graph, params = s.network[0], s.held
    compute = Compute(jnp.dtype(s.dtype))
    batch = jax.device_put(batch_of([prompt(0, s.config)]))
    tokens, patches = int((batch["segment"] > 0).sum()), int((batch["window_segment"] > 0).sum())
    prefill = jax.jit(rollout.prefill, static_argnums=0, static_argnames="compute")
    sweep = jax.jit(rollout.sweep, static_argnums=0, static_argnames=("decoding", "steps", "compute"))
    steps = 1 + LATENTS + ANSWER
    every = Decoding(max_new_tokens=steps, stop=())

    def prefix():
        return prefill(graph, params, batch, jnp.arange(1), compute=compute)[0]

    held = prefix()
    bank = rollout.no_bank(held, the_plan())
    noises = [cond.absolute_noise(0.01 * n) for n in range(CONDITIONS)]

    def rolled(count: int):
        stacked = cond.stack(noises[:count], [], 1, LATENTS)
        return sweep(
            graph, params, held, the_plan(), stacked, bank, decoding=every, steps=steps, compute=compute
        )  # fmt: skip

    first, one, many = (seconds(work, s.rounds) for work in (prefix, lambda: rolled(1), lambda: rolled(CONDITIONS)))
    windows = float(((np.asarray(batch["window_segment"]) > 0).sum(-1) ** 2.0).sum())
    family = family_of(s.config)
    flops = family.decoder_flops(s.config, tokens, tokens * (tokens + 1) / 2)
    flops += family.vision_flops(s.config, patches, windows, float(patches) ** 2)
    note = utilisation(flops, first)
    yield against_torch(f"prefill ({tokens} tokens)", tokens / first, "tokens/s", device_torch.prefill(s, tokens), note)
    name = f"decode ({LATENTS} latents, {ANSWER} tokens)"
    yield against_torch(name, steps / one, "steps/s", device_torch.decode(s, tokens, steps), "one item")
    clean, swept = first + one, first + many
    yield Row(f"sweep of {CONDITIONS}", f"{swept:.4g} s", f"clean pass {clean:.4g} s", swept / clean,
              f"{CONDITIONS * steps / many:,.4g} steps/s")  # fmt: skip


def windows(s: Setting) -> Iterator[Row]:
    """Window attention, forward and backward: dense windows against full attention with a mask."""
    c, S = s.config.vision, 64
    W = s.patches // S
    keys = jax.random.split(jax.random.key(0), 3)
    q, k, v = (jax.random.normal(key, (W, S, c.heads, c.head_width), s.dtype) for key in keys)
    segment = jnp.arange(1, W + 1)[:, None].repeat(S, 1)

    def dense(q, k, v):
        return jnp.sum(attention(Queries(q, segment), Keys(k, v, segment))[0].astype(jnp.float32) ** 2)

    def masked(q, k, v):
        row = segment.reshape(1, -1)
        return jnp.sum(attention(Queries(q, row), Keys(k, v, row))[0].astype(jnp.float32) ** 2)

    flat = [x.reshape(1, W * S, *x.shape[2:]) for x in (q, k, v)]
    steps = {}
    for name, function, arguments in (("dense", dense, (q, k, v)), ("masked", masked, flat)):
        step = jax.jit(jax.grad(function, argnums=(0, 1, 2)))
        steps[name] = functools.partial(step, *arguments)
    gaps = [_gap(a, b.reshape(a.shape)) for a, b in zip(steps["dense"](), steps["masked"]())]
    spent = {name: seconds(step, s.rounds) for name, step in steps.items()}
    yield Row(f"windows ({s.patches} patches)", f"{spent['dense'] * 1e3:.4g} ms", f"masked {spent['masked'] * 1e3:.4g}",
              spent["masked"] / spent["dense"], f"gradients differ by {max(gaps):.1e}",
              problem=max(gaps) > PARITY[s.dtype])  # fmt: skip


def kernels(s: Setting) -> Iterator[Row]:
    """Every attention kernel of models.attention against fp32: causal, grouped queries, three segments and padding."""
    T, c, platform = 512, s.config.text, jax.devices()[0].platform
    keys = jax.random.split(jax.random.key(0), 4)
    shapes = [(1, T, heads, c.head_width) for heads in (c.heads, c.kv_heads, c.kv_heads, c.heads)]
    q, k, v, readout = (jax.random.normal(key, shape) for key, shape in zip(keys, shapes))
    q, k, v = (x.astype(s.dtype) for x in (q, k, v))
    segment = jnp.array(np.repeat([1, 2, 3, 0], [200, 150, 100, 62]))[None]

    def run(implementation: str, dtype) -> list[jax.Array]:
        def loss(q, k, v):
            out = attention(Queries(q, segment), Keys(k, v, segment, causal=True), implementation=implementation)[0]
            out = jnp.where(segment[..., None, None] > 0, out.astype(jnp.float32), 0)      # padding is nobody's
            return jnp.sum(out * readout), out

        grads, out = jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))(*(x.astype(dtype) for x in (q, k, v)))
        return [out, *grads]

    with jax.default_matmul_precision("highest"):
        exact = run("xla", jnp.float32)
    for name in IMPLEMENTATIONS:
        if name not in (*KERNELS[platform], "xla"):
            yield Row(f"parity, {name}", note=f"not a kernel of this platform ({platform})")
            continue
        gaps = [_gap(a, b) for a, b in zip(exact, run(name, s.dtype))]
        bound = PARITY[s.dtype]
        yield Row(f"parity, {name}", f"{gaps[0]:.1e} forward", f"bound {bound:.0e}",
                  note=f"gradients {max(gaps[1:]):.1e}", problem=not max(gaps) <= bound)  # fmt: skip


def _gap(a: jax.Array, b: jax.Array) -> float:
    a, b = (np.asarray(x, np.float64) for x in (a, b))
    return float(np.abs(a - b).max() / np.abs(a).max())


def run() -> dict:
    """seconds, baseline_seconds: of the whole table, and the limit after which no part begins."""
    began, s, rows = time.perf_counter(), Setting.here(), []
    for part in (kernels, windows, decoding, training):
        if time.perf_counter() - began > LIMIT:
            rows.append(Row(part.__name__, note=f"not run: {LIMIT} s are over", problem=True))
            continue
        try:
            rows += part(s)
        except Exception as error:      # a part that fails on a machine nobody has seen must not take the others along
            rows.append(Row(part.__name__, note=f"FAILED: {type(error).__name__}: {str(error).splitlines()[0]}",
                            problem=True))  # fmt: skip
        jax.clear_caches()
    spent, found = time.perf_counter() - began, next((r.ratio for r in rows if r.what.startswith("sweep")), None)
    device = jax.devices()[0]
    head = (f"{device.device_kind} ({device.platform}, one of {len(jax.devices())}), jax {jax.__version__}, {s.dtype}, "
            f"{s.config.text.layers} of the decoder's layers of width {s.config.text.hidden}, "
            f"{s.config.vision.depth} of the tower's, {spent:.0f} s")  # fmt: skip
    return {
        "name": "device", "ratio": found if found is not None else float("nan"), "goal": "no row fails",
        "holds": not any(row.problem for row in rows), "seconds": spent, "baseline_seconds": float(LIMIT),
        "details": f"{head}\n{table(rows)}",
    }  # fmt: skip


def table(rows: list[Row]) -> str:
    """Rows as an aligned text table."""
    cells = [("what", "here", "against", "ratio", "")]
    cells += [(r.what, r.value, r.baseline, "–" if r.ratio is None else f"{r.ratio:.2f}", r.note) for r in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(4)]
    return "\n".join("  ".join([*(x.ljust(w) for x, w in zip(row, widths)), row[4]]).rstrip() for row in cells)

