"""Captures the states at the named positions of a model's clean pass: chunks on disk, resumable.

    run(sweeper, prompts, folder, layers="last", spans=items.spans)
    capture = read(folder, positions=("answer", "last_latent"))        # [I, P, L, D] and who has what

One file a batch, there completely or not at all. Items without latents, or without an answer tag, are kept: `valid`
says which positions an item has. Positions (POSITIONS, and `latent_0`, `latent_1`, ...) are those of
latents.positions, and

    answer_tag   the state that completes the `<answer>` tag, one step before the answer-decoding state
    reinjected   the mean of the vectors that were really fed back (the paper's b is an output that never is)
    question     the mean over the text tokens of the user's turn, and
    image        the mean over the image tokens: what is decodable before any latent

A layer is a block's output; the last one is the state after the final norm, as the LM head reads it. Layer 0 are the
embeddings, so at a latent the vector that was fed. `reinjected` has no layer: it is the same at each.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from lvr_jax.latents import conditions as cond
from lvr_jax.latents import positions, rollout
from lvr_jax.latents.reading import TAPS, Held
from lvr_jax.latents.routing import blocked
from lvr_jax.latents.sources import latents_of
from lvr_jax.latents.sweep import Prompts, Sweeper, prefill, sweep
from lvr_jax.latents.sweep_files import SweepFiles
from lvr_jax.progress import tqdm

POSITIONS = (
    "answer", "tagged", "answer_tag", "h0", "latents", "last_latent", "end", "reinjected", "question", "image"
)  # fmt: skip
LAYERS = ("last", "all")
# Of every item, besides the states: what happened step by step, and what the other diagnostics start from.
TRACE = ("token", "live", "latent", "stage", "index")

Spans = Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Capture:
    """States [I, P, L, D] (fp32, NaN where an item lacks the position), valid [I, P], and the clean pass of each item.

    label [I]; triggered [I]: any latent was fed; count [I, G] and blocks [I, G, Z, D]: the latents fed in the first
    block of each stage; letters [I, O] and margin [I]: logits at the answer, NaN without one; answer_step [I]
    """

    items: list[str]
    positions: tuple[str, ...]
    states: np.ndarray
    valid: np.ndarray
    label: np.ndarray
    count: np.ndarray
    blocks: np.ndarray
    letters: np.ndarray
    margin: np.ndarray
    answer_step: np.ndarray

    @property
    def triggered(self) -> np.ndarray:
        return np.asarray(self.count.any(1))

    def at(self, position: str, layer: int = -1) -> np.ndarray:
        """[I, D]"""
        return self.states[:, self.positions.index(position), layer]

    def has(self, *names: str) -> np.ndarray:
        """[I] bool: items that have all of these positions."""
        return np.asarray(self.valid[:, [self.positions.index(name) for name in names]].all(1))


def run(
    sweeper: Sweeper, prompts: Sequence[Prompts], folder, *, spans: Spans, layers: str = "last", weights: int = 0,
    held: Held | None = None,
) -> int:  # fmt: skip
    """Captures every batch that is not there yet; returns how many this cell ran.

    spans: batch -> masks [B, T] of the prompt, by position name; weights: a number of the parameters; held: where what
    is read of the prompts is kept for other stages.
    Raises SweepError if the folder holds another capture.
    """
    if layers not in LAYERS:
        raise ValueError(f"capture.layers is {layers!r}, expected one of {', '.join(LAYERS)}")
    files, cell = SweepFiles(folder), sweeper.cell
    files.open(_manifest(sweeper, prompts, layers, weights), cell)
    missing = files.missing(["clean"], len(prompts), cell)["clean"]
    engine = _Engine(
        sweeper, cell.filled(max(len(p.ids) for p in prompts)), layers, spans, cell.whole(sweeper.params),
        Held() if held is None else held,
    )  # fmt: skip
    total, to_do = sum(len(p.ids) for p in prompts), sum(len(prompts[n].ids) for n in missing) * cell.count
    with tqdm(
        total=total, initial=max(total - to_do, 0), unit="item", desc="capture",
        disable=not (sweeper.progress and cell.reports),
    ) as bar:  # fmt: skip
        for number in missing:
            made = engine.run(prompts[number])
            if cell.is_writer:
                files.write("clean", number, made)
            cell.hosts.progress(number)
            bar.update(len(prompts[number].ids) * cell.count)
    cell.hosts.wait("capture is finished")
    return len(missing)


def _manifest(sweeper: Sweeper, prompts: Sequence[Prompts], layers: str, weights: int) -> dict:
    plan = {f.name: np.asarray(getattr(sweeper.plan, f.name)).tolist() for f in dataclasses.fields(sweeper.plan)
            if f.name != "spec"}  # fmt: skip
    return {
        "capture": layers, "items": [list(p.ids) for p in prompts], "asked": [list(p.asked) for p in prompts],
        "labels": [np.asarray(p.labels).tolist() for p in prompts], "plan": plan,
        "system": dataclasses.asdict(sweeper.plan.spec), "decoding": dataclasses.asdict(sweeper.decoding),
        "weights": weights, "letters": list(sweeper.letters),
        "opening": [list(o) for o in sweeper.opening], "dtype": str(jnp.dtype(sweeper.compute.dtype)),
        "attention": sweeper.attention,
    }  # fmt: skip


def position_names(latents: int) -> tuple[str, ...]:
    """All positions of a system whose longest block has that many latents."""
    return (*POSITIONS, *(f"latent_{j}" for j in range(latents)))


@dataclasses.dataclass(frozen=True)
class _Engine:
    sweeper: Sweeper
    rows: int
    layers: str
    spans: Spans
    params: dict
    held: Held

    def run(self, part: Prompts) -> dict[str, np.ndarray]:
        """One batch, filled up with copies of its first item, whose results are dropped."""
        s, n = self.sweeper, len(part.ids)
        filled = lambda x: np.concatenate([x, np.repeat(x[:1], self.rows - n, 0)])  # noqa: E731
        batch = {key: filled(value) for key, value in part.load().items()}
        deep = self.layers == "all"
        prefix, out = prefill(
            s.graph, self.params, s.cell.rows(batch), s.cell.rows(filled(part.numbers)), compute=s.compute,
            remember_ids=s.decoding.repetition_penalty != 1, taps=(*TAPS, *(("states",) if deep else ())),
            blocked=blocked(s.attention),
        )  # fmt: skip
        if not deep:                # another program, another last bit
            self.held.keep(part.ids, prefix, out["merged"])
        condition = cond.stack([cond.clean()], (), len(s.plan.spec.stages), s.latents)
        trace = sweep(
            s.graph, self.params, prefix, s.plan, s.cell.whole(condition),
            s.cell.whole(rollout.no_bank(prefix, s.plan)), decoding=s.decoding, steps=s.steps([cond.clean()]),
            letters=np.asarray(s.letters, np.int32), seed=s.seed, compute=s.compute, record=("states",) if deep else (),
        )  # fmt: skip
        host = s.cell.fetch({k: v for k, v in vars(trace).items() if v is not None and k != "steps"})
        host = {k: v[0, :n] for k, v in host.items()}
        found = positions.masks(host, s.plan, s.opening, s.latents)
        found["answer_tag"] = positions.before(found["tagged"])
        states = _stacked(host["states"], host["hidden"]) if deep else host["hidden"][:, :, None]      # [B, S, L, D]
        kept = {f"state@{name}": positions.mean(states, found[name]) for name in position_names(s.latents)
                if name in found}  # fmt: skip
        fed = positions.mean(host["fed"], found["latents"])
        kept["state@reinjected"] = np.repeat(fed[:, None], states.shape[2], 1)
        of_prompt = (out["hidden"], *((out["states"],) if deep else ()))
        for name, span in self.spans(batch).items():
            kept[f"state@{name}"] = s.cell.fetch(_over_prompt(of_prompt, s.cell.rows(span)))[:n]
        blocks, count = latents_of(host, len(s.plan.spec.stages), s.latents)
        trace_kept = {name: host[name] * (host["live"] if name != "live" else True) for name in TRACE}
        return kept | trace_kept | {
            "blocks": blocks, "count": count, "answer_step": positions.step(found["answer"]),
            "letters": positions.mean(host["letters"], found["answer"]),
            "margin": positions.mean(host["margin"], found["answer"]),
            "similarity": _similarity(blocks, s.cell.fetch(out["merged"])[:n].astype(np.float32)),
        }  # fmt: skip


def _stacked(states, hidden):
    """[..., 1 + L, D] residual states with the last block's output replaced by what the final norm makes of it."""
    states = np.array(states, np.float32)
    states[..., -1, :] = hidden
    return states


@jax.jit
def _over_prompt(states: tuple[jax.Array, ...], span: jax.Array) -> jax.Array:
    """Mean state over a span [B, T] of the prompt: [B, L, D], NaN for an empty span.

    states: [B, T, D] after the final norm, and the residual states [1 + L, B, T, D] where all layers are kept
    """
    weight = span / jnp.where(span.any(1, keepdims=True), span.sum(1, keepdims=True), jnp.nan)
    last = jnp.einsum("BTD,BT->BD", states[0].astype(jnp.float32), weight)[:, None]
    if len(states) == 1:
        return last
    before = jnp.einsum("LBTD,BT->BLD", states[1][:-1].astype(jnp.float32), weight)
    return jnp.concatenate([before, last], 1)


def _similarity(blocks: np.ndarray, merged: np.ndarray) -> np.ndarray:
    """Cosine of each latent fed with each merged slot, [B, G * Z, M] fp16: for a look at what it is nearest to."""
    unit = lambda x: x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-8)  # noqa: E731
    flat = blocks.reshape(len(blocks), -1, blocks.shape[-1])
    return np.einsum("bzd,bmd->bzm", unit(flat), unit(merged)).astype(np.float16)


def read(folder, positions: Sequence[str] | None = None, layers: Sequence[int] | None = None) -> Capture:
    """A finished capture, items in the order of the prompts. Raises SweepError if it is not there, or not finished.

    positions: only these (None: all); layers: only these (None: all that were kept)
    """
    files = SweepFiles(folder)
    manifest = files.manifest()
    numbers = range(len(manifest["items"]))
    if positions is None:
        positions = position_names(max(*np.ravel(manifest["plan"]["quota"]).tolist(), 1))
    keys = [f"state@{name}" for name in positions]
    own = ("count", "blocks", "letters", "margin", "answer_step")
    parts = [files.load("clean", number, (*keys, *own)) for number in numbers]
    joined = {key: np.concatenate([part[key] for part in parts]) for key in (*keys, *own)}
    states = np.stack([joined[key] if layers is None else joined[key][:, list(layers)] for key in keys], 1)
    return Capture(
        items=[i for batch in manifest["items"] for i in batch], positions=tuple(positions), states=states,
        valid=np.isfinite(states).all((2, 3)), label=np.concatenate(manifest["labels"]),
        **{key: joined[key] for key in own},
    )  # fmt: skip


def similarity(folder, item: str) -> np.ndarray:
    """[G * Z, M] cosine of one item's latents with the merged slots of its batch's budget (latents.regions.slots)."""
    files = SweepFiles(folder)
    for number, ids in enumerate(files.manifest()["items"]):
        if item in ids:
            return files.load("clean", number, ("similarity",))["similarity"][ids.index(item)].astype(np.float32)
    raise KeyError(f"{folder}: no item {item!r}")
