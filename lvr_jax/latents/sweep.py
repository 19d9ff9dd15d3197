"""Sweeps a data set under many conditions, prefilling once a batch, in files that a stopped sweep goes on from.

    run(sweeper, prompts, conditions, folder)          # resumes where it stopped
    results = read(folder)                             # items in the order of the prompts

Two phases. The first runs the clean pass, and every condition that asks for nothing of other items, on one prefill a
batch. The second, only if there are conditions that feed donors, means or the item's own clean latents, runs those on
the prefixes that were held (latents.reading), and prefills again where memory did not reach or an interruption came
between. Every finished batch of a phase is one file, written under a temporary name and renamed. Cells (multihost.cell)
share the batches; between the phases they wait for each other, for donors and means are of all items.

What an item's row holds depends on the item, the condition and the seed; not on batches, chunks, order, devices or
interruptions: tokens exactly, numbers up to fp32 rounding (bit for bit if batches and chunks are the same).
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import AxisType

from lvr_jax.checkpoints.fingerprint import fingerprint
from lvr_jax.latents import conditions as cond
from lvr_jax.latents import positions, rollout
from lvr_jax.latents.decoding import Decoding
from lvr_jax.latents.reading import TAPS, Held
from lvr_jax.latents.rollout import Bank, Prefix
from lvr_jax.latents.routing import blocked
from lvr_jax.latents.sources import SOURCES, Clean, Request, Source, SourceError, latents_of, spread
from lvr_jax.latents.spec import Plan
from lvr_jax.latents.sweep_files import SweepFiles, SweepResults, read
from lvr_jax.models.compiler_options import Jit
from lvr_jax.models.interface import TextConfig
from lvr_jax.models.layers import Compute
from lvr_jax.multihost.cell import Cell
from lvr_jax.progress import tqdm

__all__ = ["KEEP", "Prompts", "SweepResults", "Sweeper", "chunk_size", "read", "run"]

# What is kept of every item under every condition unless asked otherwise (see `Sweeper.keep`).
KEEP = ("token", "live", "latent", "letters@answer", "margin@answer", "step@answer", "step@tagged")

prefill = Jit(rollout.prefill, static_argnums=0, static_argnames=("compute", "remember_ids", "taps"))
sweep = Jit(rollout.sweep, static_argnums=0, static_argnames=("decoding", "steps", "compute", "record"))


@dataclasses.dataclass(frozen=True)
class Prompts:
    """One batch of items, one a row.

    ids:     the items' names, unique in the sweep; noise and donors are drawn from them
    batch:   data.packing.collate of their prompts, or a function that makes it (then finished batches are not made)
    labels:  [B] answers as small numbers, -1 unknown: for donors of the same or of another label
    kinds, contents: [B] kind of question and content of the answer likewise, for donors that argue for an answer
    regions: name -> for each row, for each stage, merged slots (latents.regions), or None where a row has none
    asked:   a digest of each item's question, options, answer and pictures, or nothing where they are not known
    variants: name -> () -> another prompt of the same items, batched to the same budget, and which rows have it [B]
    """

    ids: tuple[str, ...]
    batch: Mapping[str, np.ndarray] | Callable[[], Mapping[str, np.ndarray]]
    labels: Sequence[int] | None = None
    kinds: Sequence[int] | None = None
    contents: Sequence[int] | None = None
    asked: Sequence[str] = ()
    regions: Mapping[str, Sequence[Sequence[np.ndarray] | None]] = dataclasses.field(default_factory=dict)
    variants: Mapping[str, Callable[[], tuple[Mapping[str, np.ndarray], np.ndarray]]] = dataclasses.field(
        default_factory=dict
    )

    @property
    def numbers(self) -> np.ndarray:
        return np.array([cond.name_number(i) for i in self.ids], np.int32)

    def load(self) -> Mapping[str, np.ndarray]:
        return self.batch() if callable(self.batch) else self.batch

    def numbered(self, field: str) -> np.ndarray:
        """`labels`, `kinds` or `contents`; -1 everywhere where they are not given."""
        values = getattr(self, field)
        return np.full(len(self.ids), -1) if values is None else np.asarray(values)

    def variant(self, name: str) -> tuple[Mapping[str, np.ndarray], np.ndarray]:
        if name not in self.variants:
            raise SourceError(f"a condition needs the prompt {name!r}, the items have {sorted(self.variants)}")
        return self.variants[name]()


@dataclasses.dataclass(frozen=True)
class Sweeper:
    """How items are rolled out; the model (graph, params) and everything that results depend on.

    letters: ids whose logits are kept; opening: id sequences that complete an `<answer>` tag (latents.positions)
    keep:    fields of `rollout.Trace`, per step, or at a position: `letters@answer`, `hidden@last_latent`,
             `states@latent_3`, and `step@NAME`, where that position is; `blocks` and `count`: the latents that were
             fed, [C, I, G, Z, D]. After a row's end everything is zero; at a position that a row lacks, NaN.
    record:  what the rollout has to record besides (`states`, `attention`)
    attention: who may see whom in this checkpoint (latents.routing)
    chunk:   conditions at a time; None: as many as fit `memory` bytes a device
    hold:    bytes (of all devices together) for prefixes kept from one phase, or stage, to the next (latents.reading)
    cell:    the devices that batches run on, where `params` are; batches are filled up to a multiple of its `shards`
    weights: the fingerprint of `params` where it is known, else it is made
    """

    graph: nnx.GraphDef
    params: dict
    plan: Plan
    decoding: Decoding
    letters: tuple[int, ...] = ()
    opening: tuple[tuple[int, ...], ...] = ()
    keep: tuple[str, ...] = KEEP
    record: tuple[str, ...] = ()
    seed: int = 0
    attention: str = "full"
    compute: Compute = Compute()  # noqa: RUF009
    sources: Mapping[str, Source] = dataclasses.field(default_factory=lambda: SOURCES)
    chunk: int | None = None
    memory: float = 4e9
    hold: float = 8e9
    cell: Cell = Cell()  # noqa: RUF009
    weights: int | None = None
    progress: bool = True

    def __post_init__(self):
        mesh = self.cell.mesh
        if mesh is not None and any(kind != AxisType.Auto for kind in mesh.axis_types):
            raise SourceError(f"sweep needs a mesh whose axes are Auto, got {mesh.axis_types}")
        fields = {f.name for f in dataclasses.fields(rollout.Trace)} - {"steps"}
        for name in self.keep:
            field, _, position = name.partition("@")
            known = field in fields | ({"step"} if position else {"blocks", "count"})
            if not known or (field in ("states", "attention") and field not in self.record):
                raise SourceError(f"sweep cannot keep {name!r}: expected a recorded field, or FIELD@POSITION")
            if position and position not in self._positions:
                raise SourceError(f"sweep cannot keep {name!r}: positions are {sorted(self._positions)}")

    @functools.cached_property
    def _positions(self) -> set[str]:
        nothing = {k: np.zeros((1, 1), bool) for k in ("token", "live", "latent", "stage", "index")}
        return set(positions.masks(nothing, self.plan, (), self.latents))

    @functools.cached_property
    def latents(self) -> int:
        """Z: the longest block that the plan makes."""
        return max(int(np.max(self.plan.quota)), 1)

    def steps(self, conditions: Sequence[cond.Condition]) -> int:
        """S: a block that is open when the answer's length is reached is finished first."""
        longest = max([self.latents, *(c.budget or 0 for c in conditions)])       # a box's own budget is no longer
        return self.decoding.max_new_tokens + longest

    def kept(self, trace: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """What `keep` names, [C, B, ...], of a trace on the host."""
        masks = positions.masks(trace, self.plan, self.opening, self.latents)
        kept: dict[str, np.ndarray] = {}
        for name in self.keep:
            field, _, position = name.partition("@")
            if field == "step":
                kept[name] = positions.step(masks[position])
            elif position:
                kept[name] = positions.mean(trace[field], masks[position])
            elif field in ("blocks", "count"):
                blocks, count = latents_of(trace, len(self.plan.spec.stages), self.latents)
                kept[name] = {"blocks": blocks, "count": count}[field]
            else:
                value = trace[field]
                value = value.astype(np.float32) if jnp.issubdtype(value.dtype, jnp.floating) else value
                live = trace["live"].reshape(*trace["live"].shape, *[1] * (value.ndim - 3))
                # After a row's end the loop runs on for as long as others need: that must not show.
                kept[name] = np.where(live, value, np.zeros_like(value))
        return kept


@dataclasses.dataclass(frozen=True)
class _Phase:
    """Conditions that run on one prefill, and the sources that they feed."""

    name: str
    conditions: tuple[cond.Condition, ...]
    needs_clean: bool
    context: str = ""

    def sources(self) -> list[str]:
        return list(dict.fromkeys(c.source for c in self.conditions if c.source is not None))


def run(
    sweeper: Sweeper, prompts: Sequence[Prompts], conditions: Sequence[cond.Condition], folder, held: Held | None = None
) -> None:
    """Sweeps all items under all conditions into `folder` (local or gs://); does only what is not there yet.

    held: what other stages have read of the same prompts, or will (None: the sweep's own, given up at its end).

    The clean pass is always run and comes first in the results. Raises SweepError if the folder holds another sweep,
    SourceError or ConditionError for a condition that cannot be run. `prompts` is gone through twice.
    """
    conditions = [cond.clean(), *(c for c in conditions if c != cond.clean())]
    phases = _phases(sweeper, conditions)
    files, cell = SweepFiles(folder), sweeper.cell
    files.open(_manifest(sweeper, prompts, phases, conditions), cell)
    missing = files.missing([phase.name for phase in phases], len(prompts), cell)
    engine = _Engine(
        sweeper, cell.filled(max(len(p.ids) for p in prompts)), sweeper.steps(conditions), cell.whole(sweeper.params),
        Held(sweeper.hold if len(phases) > 1 else 0) if held is None else held,
    )  # fmt: skip
    rollouts = lambda phase, numbers: sum(len(prompts[n].ids) for n in numbers) * len(phase.conditions)  # noqa: E731
    to_do = sum(rollouts(phase, missing[phase.name]) for phase in phases) * cell.count
    whole = sum(rollouts(phase, range(len(prompts))) for phase in phases)
    with tqdm(
        total=whole, initial=max(whole - to_do, 0), unit="rollout", disable=not (sweeper.progress and cell.reports)
    ) as bar:
        for phase in phases:
            if phase.needs_clean:
                cell.hosts.wait(f"clean pass of {files.folder.name}")
            clean = _clean(files, prompts) if phase.needs_clean and missing[phase.name] else None
            for number in missing[phase.name]:
                made = engine.run(number, prompts[number], phase, clean, len(phases) > 1)
                if cell.is_writer:
                    files.write(phase.name, number, made)
                cell.hosts.progress(number)
                bar.update(rollouts(phase, [number]) * cell.count)      # the other cells are about as far
    cell.hosts.wait(f"{files.folder.name} is finished")


def _phases(sweeper: Sweeper, conditions: Sequence[cond.Condition]) -> list[_Phase]:
    depth = nnx.merge(sweeper.graph, sweeper.params).config.text.layers
    for c in conditions:
        if c.patch is not None and c.patch[0] not in sweeper._positions:
            known = sorted(sweeper._positions)
            raise SourceError(f"condition {c.name!r} patches {c.patch[0]!r}, positions are {known}")
        if c.patch is not None and not 0 <= c.patch[1] <= depth:
            raise SourceError(f"condition {c.name!r} patches layer {c.patch[1]}, the network has 0 (what is fed) to "
                              f"{depth}")  # fmt: skip
        if c.source is not None and c.source not in sweeper.sources:
            known = sorted(sweeper.sources)
            raise SourceError(f"condition {c.name!r}: there is no source {c.source!r}, expected one of {known}")
    later = [c.source is not None and sweeper.sources[c.source].of_clean for c in conditions]
    # The spread of the data set is known after the clean pass.
    later = [late or c.noise == cond.SPREAD for late, c in zip(later, conditions)]
    inside = lambda context: [(c, late) for c, late in zip(conditions, later) if c.context == context]  # noqa: E731
    split = lambda wanted: tuple(c for c, late in inside("") if late == wanted)  # noqa: E731
    phases = [_Phase("first", split(False), False), _Phase("second", split(True), True)]
    for context in dict.fromkeys(c.context for c in conditions if c.context):
        phases.append(_Phase(f"in-{context}", tuple(c for c, _ in inside(context)), True, context))
    return [p for p in phases if p.conditions]


def _manifest(sweeper: Sweeper, prompts, phases, conditions) -> dict:
    """Everything that results depend on, written to disk; a folder with another manifest is refused."""
    names = [c.name for c in conditions]
    if len(set(names)) < len(names):
        raise cond.ConditionError(f"two conditions are named {next(n for n in names if names.count(n) > 1)!r}")
    ids = [list(p.ids) for p in prompts]
    flat = [i for batch in ids for i in batch]
    if len(set(flat)) < len(flat):
        raise SourceError(f"item {next(i for i in flat if flat.count(i) > 1)!r} is in the sweep twice")
    if not flat:
        raise SourceError("a sweep of no items")
    plan = {f.name: getattr(sweeper.plan, f.name) for f in dataclasses.fields(sweeper.plan) if f.name != "spec"}
    return {
        "items": ids,
        "conditions": {p.name: [dataclasses.asdict(c) for c in p.conditions] for p in phases},
        "order": names, "digests": {c.source: sweeper.sources[c.source].digest for c in conditions
                                    if c.source is not None and sweeper.sources[c.source].digest},
        "plan": {name: np.asarray(value).tolist() for name, value in plan.items()},
        "system": dataclasses.asdict(sweeper.plan.spec),
        "decoding": dataclasses.asdict(sweeper.decoding),
        "weights": fingerprint(sweeper.params) if sweeper.weights is None else sweeper.weights,
        **{field: [None if getattr(p, field) is None else _ints(getattr(p, field)) for p in prompts]
           for field in ("labels", "kinds", "contents")},
        "asked": [list(p.asked) for p in prompts],
        "seed": sweeper.seed, "letters": list(sweeper.letters), "opening": [list(o) for o in sweeper.opening],
        "keep": list(sweeper.keep), "dtype": str(jnp.dtype(sweeper.compute.dtype)),
        "attention": sweeper.attention,
    }  # fmt: skip


def _ints(values) -> list[int]:
    return [int(v) for v in values]


def _clean(files: SweepFiles, prompts: Sequence[Prompts]) -> Clean:
    """The clean pass of all items, from the first phase's files."""
    parts = [files.load("first", number, ("clean_blocks", "clean_count")) for number in range(len(prompts))]
    joined = lambda field: np.concatenate([p.numbered(field) for p in prompts])  # noqa: E731
    return Clean(
        item=np.concatenate([p.numbers for p in prompts]),
        latents=np.concatenate([part["clean_blocks"] for part in parts]),
        count=np.concatenate([part["clean_count"] for part in parts]),
        label=joined("labels"), kind=joined("kinds"), content=joined("contents"),
    )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class _Engine:
    """Runs one batch at a time; B rows, S steps."""

    sweeper: Sweeper
    rows: int
    steps: int
    params: dict
    held: Held

    def _read(self, part: Prompts, batch: Mapping[str, np.ndarray]) -> tuple[Prefix, jax.Array]:
        """The prefix of a batch, and its merged vision tokens."""
        s = self.sweeper
        batch = {key: self._filled(np.asarray(value)) for key, value in batch.items()}
        prefix, out = prefill(
            s.graph, self.params, s.cell.rows(batch), s.cell.rows(self._filled(part.numbers)), compute=s.compute,
            remember_ids=s.decoding.repetition_penalty != 1, taps=TAPS, blocked=blocked(s.attention),
        )  # fmt: skip
        return prefix, out["merged"]

    def _own(self, part: Prompts) -> tuple[Prefix, jax.Array]:
        """The items' own prompts, read once as far as memory holds them."""
        found = self.held.read(part.ids, self.rows)
        if found is None:
            found = self._read(part, part.load())
            self.held.keep(part.ids, *found)
        return found

    def run(
        self, number: int, part: Prompts, phase: _Phase, clean: Clean | None, keep_clean: bool
    ) -> dict[str, np.ndarray]:
        """The arrays of one file: [C, B, ...] under the names of `keep`, and what the second phase needs."""
        s, rows = self.sweeper, len(part.ids)
        wanted = phase.sources()
        there = np.ones(rows, bool)
        own = functools.cache(lambda: self._own(part))
        if phase.context:           # oracles show the item's own image, whatever the answer is read from
            batch, there = part.variant(phase.context)
            prefix, _ = self._read(part, batch)
        else:
            prefix, _ = own()
        request = Request(
            plan=s.plan, latents=s.latents, width=prefix.hidden.shape[-1], seed=s.seed, item=part.numbers,
            rows=None if clean is None else _rows(clean, part.numbers), clean=clean,
            merged=functools.cache(lambda: s.cell.fetch(own()[1])[:rows]), regions=part.regions,
            variant=functools.partial(self._variant, part),
            embed=_Embedding(s.cell, self.params["text"]["embed"]),
        )  # fmt: skip
        bank, missing = self._bank(wanted, request)
        boxless = np.zeros(rows, bool)
        if any(c.of_the_box for c in phase.conditions):
            budget, boxless = box_budgets(part.regions, s.plan, rows)
            bank = dataclasses.replace(bank, budget=s.cell.rows(self._filled(budget)))
        steps, states = self._clean_states(phase, prefix)
        arrays: dict[str, list] = {}
        for chunk, condition in self._chunks(phase, prefix):
            trace = sweep(
                s.graph, self.params, prefix, s.plan, s.cell.whole(condition), bank,
                decoding=s.decoding, steps=self.steps, letters=np.asarray(s.letters, np.int32), seed=s.seed,
                compute=s.compute, record=tuple(s.record), patch=self._patch(chunk, len(condition.keep), steps, states),
            )  # fmt: skip
            host = {key: value for key, value in vars(trace).items() if value is not None and key != "steps"}
            host = {key: value[: len(chunk), :rows] for key, value in s.cell.fetch(host).items()}
            kept = s.kept(host)
            if not arrays and keep_clean and clean is None:
                first = {key: value[:1] for key, value in host.items()}
                blocks, count = latents_of(first, len(s.plan.spec.stages), s.latents)
                kept_clean = {"clean_blocks": blocks[0], "clean_count": count[0]}
            for key, value in kept.items():
                arrays.setdefault(key, []).append(value)
        result = {key: np.concatenate(values) for key, values in arrays.items()}
        nothing = np.zeros(rows, bool)
        result["missing"] = np.stack([
            missing.get(c.source, nothing) | ~there | (boxless if c.of_the_box else nothing)
            | (steps[c.patch[0]][:rows] < 1 if c.patch else nothing)
            for c in phase.conditions
        ])  # fmt: skip
        result["donor"] = np.stack([self._donor(c, clean, request.rows, rows) for c in phase.conditions])
        return result | (kept_clean if keep_clean and clean is None else {})

    def _variant(self, part: Prompts, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Clean latents of another prompt of a batch's items: `Request.variant`."""
        s, rows = self.sweeper, len(part.ids)
        batch, there = part.variant(name)
        prefix, _ = self._read(part, batch)
        condition = cond.stack([cond.clean()], (), len(s.plan.spec.stages), s.latents)
        trace = sweep(
            s.graph, self.params, prefix, s.plan, s.cell.whole(condition),
            s.cell.whole(rollout.no_bank(prefix, s.plan)), decoding=s.decoding, steps=s.steps([cond.clean()]),
            letters=np.asarray(s.letters, np.int32), seed=s.seed, compute=s.compute,
        )  # fmt: skip
        host = s.cell.fetch({key: getattr(trace, key) for key in ("fed", "index", "latent", "live", "stage")})
        host = {key: value[0, :rows] for key, value in host.items()}
        return *latents_of(host, len(s.plan.spec.stages), s.latents), there

    def _clean_states(self, phase: _Phase, prefix: Prefix) -> tuple[dict[str, np.ndarray], jax.Array | None]:
        """What a phase patches in: the step of each position named [B], and the clean run's states [B, S, 1 + L, D]."""
        s, names = self.sweeper, {c.patch[0] for c in phase.conditions if c.patch}
        if not names:
            return {}, None
        condition = cond.stack([cond.clean()], (), len(s.plan.spec.stages), s.latents)
        trace = sweep(
            s.graph, self.params, prefix, s.plan, s.cell.whole(condition),
            s.cell.whole(rollout.no_bank(prefix, s.plan)), decoding=s.decoding, steps=self.steps,
            letters=np.asarray(s.letters, np.int32), seed=s.seed, compute=s.compute, record=("states",),
        )  # fmt: skip
        host = s.cell.fetch({key: getattr(trace, key) for key in ("token", "live", "latent", "stage", "index")})
        masks = positions.masks({key: value[0] for key, value in host.items()}, s.plan, s.opening, s.latents)
        return {name: positions.step(masks[name]) for name in names}, _first(trace.states)

    def _patch(self, chunk, size: int, steps: Mapping[str, np.ndarray], states) -> rollout.Patch | None:
        """The patches of a chunk of conditions, filled up to its size; None where its phase patches nothing."""
        if states is None:
            return None
        s, never = self.sweeper, np.full(self.rows, -1, np.int32)
        full = [*chunk, *[chunk[-1]] * (size - len(chunk))]
        step = np.stack([steps[c.patch[0]] if c.patch else never for c in full])
        layer = np.array([c.patch[1] if c.patch else 0 for c in full], np.int32)
        return rollout.Patch(s.cell.rows(step, 1), s.cell.whole(layer), states)

    def _donor(self, condition: cond.Condition, clean: Clean | None, at: np.ndarray | None, rows: int) -> np.ndarray:
        """[B] rows of the clean pass whose latents the condition feeds, -1 for nobody's."""
        found = None if condition.source is None else self.sweeper.sources[condition.source].donor
        return np.full(rows, -1) if found is None or clean is None else found(clean, self.sweeper.seed)[at]

    def _chunks(self, phase: _Phase, prefix: Prefix) -> Iterator[tuple[Sequence[cond.Condition], cond.ConditionArrays]]:
        """Chunks of equal size, so that they share one program; the last is filled up with its last condition."""
        s, C = self.sweeper, len(phase.conditions)
        text = nnx.merge(s.graph, s.params).config.text
        fits = s.chunk
        if fits is None:
            on_device = self.rows // s.cell.shards
            fits = chunk_size(text, on_device, self.steps, prefix.cache.segment.shape[1], s.compute.dtype, s.memory)
        size = -(-C // -(-C // min(fits, C)))
        for start in range(0, C, size):
            chunk = phase.conditions[start : start + size]
            full = [*chunk, *[chunk[-1]] * (size - len(chunk))]
            yield chunk, cond.stack(full, phase.sources(), len(s.plan.spec.stages), s.latents)

    def _bank(self, names: Sequence[str], request: Request) -> tuple[Bank, dict[str, np.ndarray]]:
        """The blocks that the phase's conditions feed, and which rows a source has nothing for."""
        s, blocks, missing = self.sweeper, [], {}
        for name in names:
            made, missing[name] = s.sources[name].make(request)
            blocks.append(self._filled(made.astype(np.float32)))
        source = np.stack(blocks) if blocks else self._filled(request.blank()[:, :, :1])[None]
        of_data = np.zeros(request.width, np.float32) if request.clean is None else spread(request.clean)
        return Bank(s.cell.rows(source, 1), s.cell.whole(of_data)), missing

    def _filled(self, rows: np.ndarray) -> np.ndarray:
        """The batch filled up to B rows with copies of its first, whose results are dropped."""
        return np.concatenate([rows, np.repeat(rows[:1], self.rows - len(rows), 0)])


def box_budgets(regions: Mapping, the_plan: Plan, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """([B, G] int32 image tokens of each item's box by stage, [B] which items have none and keep the plan's)."""
    if "box" not in regions:
        raise SourceError(f"a condition needs the region 'box', the prompts have {sorted(regions)}")
    budget = np.tile(np.asarray(the_plan.quota, np.int32), (rows, 1))
    none = np.array([stages is None or not all(len(slots) for slots in stages) for stages in regions["box"]])
    for b in np.flatnonzero(~none):
        budget[b] = [len(slots) for slots in regions["box"][b]]
    return budget, none


@dataclasses.dataclass(frozen=True)
class _Embedding:
    """The token embeddings as an array on the host, of which only the rows asked for come from the devices."""

    cell: Cell
    table: jax.Array

    def __getitem__(self, ids: np.ndarray) -> np.ndarray:
        return self.cell.fetch(_embedded(self.table, np.asarray(ids)))


@jax.jit
def _embedded(table, ids):
    return table[ids]


@jax.jit
def _first(states):
    """The states of a sweep of one condition, without the axis of conditions."""
    return states[0]


def _rows(clean: Clean, item: np.ndarray) -> np.ndarray:
    place = {int(number): row for row, number in enumerate(clean.item)}
    return np.array([place[int(number)] for number in item])


def chunk_size(text: TextConfig, rows: int, steps: int, prompt: int, dtype, memory: float) -> int:
    """Conditions at a time so that what each of them needs besides the shared prefix fits `memory` bytes (at least 1).

    Own keys and values, the recorded vectors, attention scores over the prompt, logits (twice in fp32) and the MLP.
    """
    size = jnp.dtype(dtype).itemsize
    cache = 2 * text.layers * steps * text.kv_heads * text.head_width * size
    trace = 3 * steps * text.hidden * size
    scores = 3 * text.heads * (prompt + steps) * 4
    logits, mlp = 3 * text.vocab * 4, 3 * text.intermediate * size
    return max(int(memory // (rows * (cache + trace + scores + logits + mlp))), 1)
