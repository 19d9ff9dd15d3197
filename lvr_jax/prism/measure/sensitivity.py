"""Sensitivity of the answer: gradient of its margin with respect to each latent that was fed.

The clean pass is replayed with its tokens forced: text is embedded, latents are the model's own states plus a
perturbation delta, which is 0. The gradient by delta is a total one: it runs through the answer's attention to the
latent and through all later latents that the loop computes from it.

A noise of standard deviation sigma on every latent then moves the margin, to first order, by sigma times the norm of
all those gradients together; relative noise of strength alpha by alpha |z| / sqrt(D) times the gradient's. The same
spread is measured in the sweep (`response`): where the two agree the answer is locally linear in its latents. N-LVR's
Tikhonov argument ("Cosine Misleads", section 3) predicts smaller gradients than LVR's.
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lvr_jax.latents.conditions import ANSWER, LATENT
from lvr_jax.latents.reading import TAPS, Held
from lvr_jax.latents.rollout import Prefix
from lvr_jax.latents.routing import blocked
from lvr_jax.latents.sweep import Prompts, Sweeper, prefill
from lvr_jax.latents.sweep_files import SweepFiles
from lvr_jax.models.compiler_options import Jit
from lvr_jax.models.interface import Network
from lvr_jax.models.layers import Compute
from lvr_jax.models.records import Cache, Tokens
from lvr_jax.prism.measure.items import Items
from lvr_jax.progress import tqdm


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Replay:
    """What is replayed: token [B, S] picked at each step, latent [B, S] (the step's input was one), answer [B] (step
    whose state picks the letter), gold [B] and offered [B, O] (which letters count, the gold one included)."""

    token: jax.Array
    latent: jax.Array
    answer: jax.Array
    gold: jax.Array
    offered: jax.Array


def margins(
    graph, params, prefix: Prefix, replay: Replay, letters, delta, *, head_at: str, compute: Compute
) -> tuple[jax.Array, jax.Array]:
    """Margin of the gold letter over the best other one [B] with `delta` [B, S, D] added to the latents, and the
    latents fed [B, S, D]. Steps after the answer do not matter, whatever they hold."""
    model: Network = nnx.merge(graph, params)
    text, (B, S) = model.config.text, replay.token.shape
    blank = jnp.zeros((text.layers, B, S, text.kv_heads, text.head_width), compute.dtype)
    fed_back = jnp.pad(replay.latent[:, 1:], ((0, 0), (0, 1)))                           # this step's output is fed
    # By decoded position, the first of which step 1 consumes: latents, and the marker before the first of them.
    roles = jnp.where(jnp.roll(replay.latent, -1, 1) | jnp.roll(replay.latent, -2, 1), LATENT, ANSWER)
    headed = replay.latent if head_at == "outputs" else fed_back

    def read_out(hidden, s):
        head = model.latent_head
        return hidden if head is None else jnp.where(headed[:, s, None], head(hidden), hidden)

    def step(carry, s):
        hidden, k, v = carry
        z = hidden.astype(jnp.float32) + delta[:, s]
        word = model.embed(replay.token[:, s - 1])
        x = jnp.where(replay.latent[:, s, None], z.astype(compute.dtype), word.astype(compute.dtype))
        position = jnp.broadcast_to((prefix.next_position + s - 1)[:, None, None], (B, 3, 1))
        own = Cache(k, v, jnp.where(jnp.arange(S) < s - 1, prefix.segment[:, None], 0), roles)
        role = jnp.take_along_axis(roles, jnp.broadcast_to(s - 1, (B, 1)), axis=1)
        tokens = Tokens(position, prefix.segment[:, None], role, prefix.blocked)
        hidden, new, _ = model.decode(x[:, None], tokens, past=(prefix.cache, own), compute=compute, keep_cache=True)
        hidden = read_out(hidden[:, 0], s)
        write = lambda buffer, value: jax.lax.dynamic_update_slice_in_dim(buffer, value, s - 1, 2)  # noqa: E731
        return (hidden, write(k, new.k), write(v, new.v)), (hidden, jnp.where(replay.latent[:, s, None], z, 0))

    first = read_out(prefix.hidden, 0)
    _, (later, fed) = jax.lax.scan(jax.checkpoint(step), (first, blank, blank), jnp.arange(1, S))
    states = jnp.concatenate([first[None], later])                                       # [S, B, D]
    at = jnp.take_along_axis(states, replay.answer[None, :, None], axis=0)[0]
    logits = model.logits(at)[:, letters]                                           # [B, O]
    gold = jax.nn.one_hot(replay.gold, len(letters), dtype=bool)
    other = jnp.where(replay.offered & ~gold, logits, -jnp.inf).max(-1)
    fed = jnp.concatenate([jnp.zeros_like(fed[:1]), fed])
    return jnp.where(gold, logits, 0).sum(-1) - other, jnp.moveaxis(fed, 0, 1)


@functools.partial(Jit, static_argnames=("graph", "head_at", "compute"))
def gradients(
    graph, params, prefix, replay, letters, *, head_at: str, compute: Compute
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(margin [B], gradient by each latent [B, S, D], latents fed [B, S, D]); zero where the step fed none."""
    shape = (*replay.token.shape, prefix.hidden.shape[-1])

    def total(delta):
        margin, fed = margins(graph, params, prefix, replay, letters, delta, head_at=head_at, compute=compute)
        return margin.sum(), (margin, fed)

    gradient, (margin, fed) = jax.grad(total, has_aux=True)(jnp.zeros(shape, jnp.float32))
    return margin, gradient, fed


@dataclasses.dataclass(frozen=True)
class Sensitivity:
    """Of the items that were differentiated: per latent in the order they were fed, [I, N], NaN beyond the last.

    margin [I]: of the replay, equal to the clean pass's; gradient: norm of the margin's gradient (logits per unit);
    latent: norm of the latent; width: D
    """

    items: list[str]
    margin: np.ndarray
    gradient: np.ndarray
    latent: np.ndarray
    width: int

    @property
    def elasticity(self) -> np.ndarray:
        """[I, N] logits that the margin moves when a latent moves by its own norm along the gradient."""
        return self.gradient * self.latent

    def predicted(self, strength: float, relative: bool) -> float:
        """Root mean square over items of the margin's first-order response to noise on all latents."""
        each = self.elasticity**2 / self.width if relative else self.gradient**2
        total = np.nansum(each, 1)[np.isfinite(self.gradient).any(1)]
        return float(strength * np.sqrt(total.mean())) if len(total) else float("nan")


def run(
    sweeper: Sweeper, items: Items, prompts: Sequence[Prompts], capture_folder, folder, *, count: int,
    held: Held | None = None,
) -> int:  # fmt: skip
    """Differentiates about `count` items, whole batches spread over the benchmark; returns how many this cell ran.

    Items whose reply has no place for a letter are left out; they have no margin. held: what was read of the prompts.
    """
    captured, files, cell = SweepFiles(capture_folder), SweepFiles(folder), sweeper.cell
    needed = min(-(-count // items.rows), len(prompts))
    chosen = sorted({round(n * (len(prompts) - 1) / max(needed - 1, 1)) for n in range(needed)})
    files.open(
        {"sensitivity": chosen, "items": [list(prompts[n].ids) for n in chosen], "of": captured.manifest()}, cell
    )
    missing = files.missing(["gradient"], len(chosen), cell)["gradient"]
    with tqdm(
        total=len(chosen), initial=max(len(chosen) - len(missing) * cell.count, 0), unit="batch", desc="sensitivity",
        disable=not (sweeper.progress and cell.reports),
    ) as bar:  # fmt: skip
        for number in missing:
            n = chosen[number]
            trace = captured.load("clean", n, ("token", "latent", "answer_step"))
            made = _batch(sweeper, items, prompts[n], trace, Held() if held is None else held)
            if cell.is_writer:
                files.write("gradient", number, made)
            cell.hosts.progress(number)
            bar.update(cell.count)
    cell.hosts.wait("sensitivity is finished")
    return len(missing)


def _batch(
    s: Sweeper, items: Items, part: Prompts, trace: dict[str, np.ndarray], held: Held
) -> dict[str, np.ndarray]:
    n, rows = len(part.ids), s.cell.filled(items.rows)
    filled = lambda x: np.concatenate([x, np.repeat(x[:1], rows - n, 0)])  # noqa: E731
    found = held.read(part.ids, rows)
    if found is None:
        batch = {key: filled(value) for key, value in part.load().items()}
        found = prefill(s.graph, s.params, s.cell.rows(batch), s.cell.rows(filled(part.numbers)), compute=s.compute,
                        remember_ids=False, taps=TAPS, blocked=blocked(s.attention))  # fmt: skip
    # Answers end early: only so many steps are replayed, in a few sizes so that programs are shared.
    steps = min(-(-int(trace["answer_step"].max(initial=0) + 1) // 16) * 16, trace["token"].shape[1])
    offered = np.arange(len(s.letters)) < items.options[items.places(part.ids)][:, None]
    replay = Replay(
        token=filled(trace["token"][:, :steps]), latent=filled(trace["latent"][:, :steps]),
        answer=filled(np.maximum(trace["answer_step"], 0)), gold=filled(np.asarray(part.labels)),
        offered=filled(offered),
    )  # fmt: skip
    margin, gradient, fed = s.cell.fetch(gradients(
        s.graph, s.params, found[0], s.cell.rows(replay), np.asarray(s.letters, np.int32), head_at=s.plan.spec.head_at,
        compute=s.compute,
    ))  # fmt: skip
    most = int(np.asarray(s.plan.quota).sum())
    out = {key: np.full((n, most), np.nan, np.float32) for key in ("gradient", "latent")}
    for b in range(n):
        if trace["answer_step"][b] < 0:
            continue
        at = np.flatnonzero(trace["latent"][b, : trace["answer_step"][b] + 1])[:most]
        out["gradient"][b, : len(at)] = np.linalg.norm(gradient[b, at], axis=-1)
        out["latent"][b, : len(at)] = np.linalg.norm(fed[b, at], axis=-1)
    missing = trace["answer_step"] < 0
    return out | {"margin": np.where(missing, np.nan, margin[:n]).astype(np.float32),
                  "width": np.full(n, gradient.shape[-1])}  # fmt: skip


def read(folder) -> Sensitivity:
    """Reads a finished measurement from its folder."""
    files = SweepFiles(folder)
    ids = files.manifest()["items"]
    parts = [files.load("gradient", number) for number in range(len(ids))]
    join = lambda key: np.concatenate([part[key] for part in parts])  # noqa: E731
    return Sensitivity([i for batch in ids for i in batch], join("margin"), join("gradient"), join("latent"),
                       int(parts[0]["width"][0]))  # fmt: skip
