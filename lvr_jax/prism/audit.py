"""The audit of one checkpoint, from its stages on the devices to the analysis; every stage is resumable.

    capture -> sweep -> lens -> patching -> attention -> teacher forcing -> sensitivity -> analysis (audit.json)

Device stages keep one file a batch and go on where they stopped; the analysis is computed again only if anything that
it rests on has changed. The same stages in the same folder give the same audit.json, byte for byte.
"""

import copy
import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from etils import epath

from lvr_jax.evaluation.protocol import Budget
from lvr_jax.files.json_io import JsonError, read_object
from lvr_jax.files.whole_file import write_whole
from lvr_jax.latents import conditions as cond
from lvr_jax.latents import sweep as sweeps
from lvr_jax.latents.reading import Held
from lvr_jax.latents.spec import Plan
from lvr_jax.latents.sweep import Sweeper
from lvr_jax.latents.sweep_files import SweepError, SweepFiles, SweepResults
from lvr_jax.models.layers import Compute
from lvr_jax.multihost.cell import Cell
from lvr_jax.multihost.hosts import digest
from lvr_jax.prism import crossing, patching
from lvr_jax.prism.argued import argued
from lvr_jax.prism.measure import capture, corruptions, geometry, lens, sensitivity, teacher
from lvr_jax.prism.measure.items import Items
from lvr_jax.prism.measure.option_texts import option_features
from lvr_jax.prism.outcomes import (
    Outcomes,
    effects,
    floor,
    followed,
    majority,
    outcomes,
    single_latent,
    spread_of_margin,
    strength,
    verdict,
)
from lvr_jax.prism.probes import content, readout
from lvr_jax.prism.statistics.intervals import wilson

FORMAT = 5      # of audit.json; a change makes every analysis run again


@dataclasses.dataclass(frozen=True)
class Settings:
    """What an audit does besides the protocol. Counts of 0 leave a stage out.

    conditions: names (corruptions.NAMED); sigmas, alphas: absolute and relative noise; budgets: latents a block;
    per_latent: conditions tried on one latent at a time; crossed: conditions that are run again in each of contexts
    budget: latents a block N, 0 for the protocol's; layers: of the capture, `last` or `all`
    probes: see readout; aligned: items teacher-forced, each with so many target_latents at most
    patched: items of the patching map, the condition that it patches, and at which layers (none: some of all)
    differentiated: items of the sensitivity; attention: conditions whose attention shares are recorded
    gallery: items shown; chunk: conditions at a time, 0 for as many as fit memory bytes
    """

    conditions: tuple[str, ...] = ()
    sigmas: tuple[float, ...] = ()
    alphas: tuple[float, ...] = ()
    budgets: tuple[int, ...] = ()
    per_latent: tuple[str, ...] = ()
    contexts: tuple[str, ...] = ()
    crossed: tuple[str, ...] = ()
    budget: int = 0
    layers: str = "last"
    probes: readout.Settings = readout.Settings()  # noqa: RUF009
    aligned: int = 200
    target_latents: int = 64
    patched: int = 48
    patched_condition: str = corruptions.DIRECTED
    patched_layers: tuple[int, ...] = ()
    differentiated: int = 64
    attention: tuple[str, ...] = ()
    gallery: int = 6
    level: float = 0.95
    draws: int = 10_000
    seed: int = 0
    chunk: int = 0
    memory: float = 4e9

    def grid(self, latents: int, boxed: bool) -> tuple[list[cond.Condition], list[str]]:
        """The conditions, and the names of those that are left out because no item has a box."""
        names = [n for n in self.conditions if boxed or n not in corruptions.NEEDS_BOX]
        left_out = [n for n in self.conditions if n not in names]
        cross = [n for n in self.crossed if boxed or n not in corruptions.NEEDS_BOX]
        made = corruptions.grid(names, self.sigmas, self.alphas, self.budgets, self.per_latent, latents, self.contexts,
                                cross)  # fmt: skip
        # What is patched is run by itself, too: its effect says which items to patch.
        if self.patched and self.patched_condition not in {c.name for c in made}:
            made += corruptions.named([self.patched_condition], "patching.condition")
        return made, left_out


@dataclasses.dataclass(frozen=True, eq=False)
class Audit:
    """One checkpoint of an audit: `run()` does what is missing and returns the analysis.

    cell: the devices that hold the weights; every process of `cell.hosts` runs the same audit in the same folder
    """

    name: str
    items: Items
    settings: Settings
    folder: epath.Path
    compute: Compute = Compute()  # noqa: RUF009
    cell: Cell = Cell()  # noqa: RUF009
    progress: bool = True
    say: Callable[[str], None] = lambda line: None

    def run(self) -> dict | None:
        """Does what is missing; the analysis, which the first process makes (None in the others)."""
        with self.cell.active():
            stages, notes, features = self._measure()
        if not self.cell.hosts.first:
            return None
        return cached(self.folder / "audit.json", self._key(stages), lambda: self._analysis(stages, notes, features))

    def without_weights(self) -> "Audit":
        """The audit without its weights, for the report, so that the next checkpoint has the memory."""
        items = copy.copy(self.items)                   # with all that has been looked up already
        object.__setattr__(items, "subject", dataclasses.replace(items.subject, params={}))
        return dataclasses.replace(self, items=items)

    def _measure(self) -> tuple[list[str], list[str], np.ndarray | None]:
        """The stages on the devices: their names, notes on what was left out, and features of the options' texts."""
        s, items = self.settings, self.items
        prompts = items.prompts()
        probing, corrupting = self._sweeper("probe"), self._sweeper("corruption")
        conditions, left_out = s.grid(corrupting.latents, bool(items.boxed.any()))
        corruptions.check(conditions, items.categories, items.contents, items.variants)
        patching.layers(s.patched_layers, items.subject.config.text.layers)
        content.check(s.probes.content, items.categories, items.contents, s.probes.folds)
        unknown = [n for n in s.attention if n != "clean" and n not in {c.name for c in conditions}]
        if unknown:
            raise cond.ConditionError(f"attention: {unknown[0]!r} is not among the audit's conditions")
        notes = [*items.subject.notes]
        if left_out:
            notes.append(f"no item has a box: {', '.join(left_out)} not run")

        self.say(f"{self.name}: {len(items.ids)} items, {len(conditions) + 1} conditions, {len(prompts)} batches")
        held = Held(corrupting.hold)
        capture.run(probing, prompts, self.folder / "capture", spans=items.spans, layers=s.layers,
                    weights=items.subject.weights, held=held)  # fmt: skip
        sweeps.run(corrupting, prompts, conditions, self.folder / "sweep", held)
        lens.run(items, self.folder / "capture", self.folder / "lens", self.cell)
        patched = s.patched > 0 and self._patch(corrupting, conditions, notes, held)
        if s.attention:
            watched = dataclasses.replace(corrupting, keep=("attention@answer", "attention@latents"),
                                          record=("attention",), chunk=1)  # fmt: skip
            sweeps.run(watched, prompts, [c for c in conditions if c.name in s.attention], self.folder / "attention",
                       held)  # fmt: skip
        lacking = "no item has a box" if not items.boxed.any() else items.lacks_targets
        aligned = 0 if lacking else s.aligned
        if lacking and s.aligned:
            notes.append(f"no alignment: {lacking}")
        if aligned:
            teacher.run(items, self.folder / "teacher", count=aligned, latents=s.target_latents, compute=self.compute,
                        cell=self.cell, progress=self.progress, held=held)  # fmt: skip
        differentiated = s.differentiated if items.place.ids else 0
        if not items.place.ids:
            notes.append("the tokenizer does not tell the letters apart by one token: no margins, no sensitivity")
        if differentiated:
            sensitivity.run(probing, items, prompts, self.folder / "capture", self.folder / "sensitivity",
                            count=differentiated, held=held)  # fmt: skip

        ran = {"patching": patched, "attention": s.attention, "teacher": aligned, "sensitivity": differentiated}
        stages = ["capture", "sweep", "lens", *(stage for stage, done in ran.items() if done)]
        return stages, notes, option_features(items.subject, items.benchmark.rows, self.cell)

    def check_makers(self, makers: Mapping[str, epath.Path]) -> None:
        """Refuses audits of other items or of another width, before anything runs."""
        for folder in makers.values():
            crossing.check(folder, self.items.ids, self.items.subject.config.text.hidden, self.name)

    def cross(self, makers: Mapping[str, epath.Path]) -> dict[str, dict]:
        """What answers become with the latents of other checkpoints' audits, by name (crossing.table)."""
        self.check_makers(makers)
        self.say(f"{self.name}: latents of {', '.join(makers)}")
        sweeper = self._sweeper("corruption")
        sweeper = dataclasses.replace(sweeper, sources={**sweeper.sources, **crossing.sources(makers)})
        with self.cell.active():
            sweeps.run(sweeper, self.items.prompts(), crossing.conditions(list(makers)), self.folder / "crossed")
        found = outcomes(self.items, sweeps.read(self.folder / "crossed"))
        return plain(crossing.table(found, list(makers), self.settings.level))

    def plan(self, run: str) -> Plan:
        """The latent loop with the protocol's budget for this kind of run, or the config's."""
        n = self.settings.budget
        of = lambda b: Budget(n, n, n) if n else Budget(*[getattr(b, run)] * 3)  # noqa: E731
        p = self.items.protocol
        return self.items.subject.plan(dataclasses.replace(p, steps=of(p.steps), staged_steps=of(p.staged_steps)))

    def _sweeper(self, run: str) -> Sweeper:
        s = self.settings
        return self.items.sweeper(
            self.plan(run), self.compute, seed=s.seed, chunk=s.chunk or None, memory=s.memory, hold=2 * s.memory,
            cell=self.cell, progress=self.progress,
        )  # fmt: skip

    def _key(self, stages: list[str]) -> str:
        """Cache key of the analysis: digests of the stages' results and the settings of the analysis."""
        manifests = {stage: SweepFiles(self.folder / stage).manifest() for stage in stages}
        rules = {"protocol": self.items.protocol.to_json(), "settings": dataclasses.asdict(self.settings),
                 "answers": [(r.id, r.letter, r.category, r.options) for r in self.items.benchmark.rows]}  # fmt: skip
        for ignored in ("chunk", "memory"):
            rules["settings"].pop(ignored)
        text = json.dumps([FORMAT, self.name, manifests, rules], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def _patch(self, sweeper: Sweeper, conditions: list[cond.Condition], notes: list[str], held: Held) -> bool:
        """The patching map's runs, over the items whose answer its condition changes first; False without any."""
        s = self.settings
        found = outcomes(self.items, sweeps.read(self.folder / "sweep"))
        chosen = patching.chosen_items(found, s.patched_condition, s.patched)
        if len(chosen) < 2:
            notes.append(f"no patching: fewer than two items have latents that {s.patched_condition!r} replaces")
            return False
        sweeps.run(sweeper, self.items.part(chosen).prompts(), patching.conditions(*self._map(conditions)),
                   self.folder / "patching", held)  # fmt: skip
        return True

    def _map(self, conditions: list[cond.Condition]) -> tuple[cond.Condition, int, tuple[int, ...]]:
        """What is patched: the condition, latents of the longest block, layers."""
        s = self.settings
        base = next(c for c in conditions if c.name == s.patched_condition)
        depth = self.items.subject.config.text.layers
        return base, self._sweeper("corruption").latents, patching.layers(s.patched_layers, depth)

    def _recovered(self) -> dict:
        results = sweeps.read(self.folder / "patching")
        part = self.items.part(self.items.places(results.items))
        return patching.recovered(outcomes(part, results), *self._map(results.records))

    # Analysis --------------------------------------------------------------------------------------------------------

    def _analysis(self, stages: list[str], notes: list[str], features: np.ndarray | None) -> dict:
        s, items = self.settings, self.items
        interval = {"level": s.level, "draws": s.draws, "seed": s.seed}
        self.say(f"{self.name}: analysis")
        results = sweeps.read(self.folder / "sweep")
        found = outcomes(items, results)
        asked = content.Questions(items.categories, items.contents, items.labels, items.options, features)
        gallery = _gallery(found, s.gallery)
        captured = capture.read(self.folder / "capture")
        captured = _in_order(captured, items.places(captured.items))
        tests = effects(found, **interval)
        judged = verdict(found, floor(found, items), **interval)
        names = [stage.name for stage in items.subject.spec.stages]
        forced = teacher.read(self.folder / "teacher") if "teacher" in stages else []
        moved = sensitivity.read(self.folder / "sensitivity") if "sensitivity" in stages else None
        attention = sweeps.read(self.folder / "attention") if "attention" in stages else None
        same_budget = np.array_equal(self.plan("probe").quota, self.plan("corruption").quota)
        if moved is not None and not same_budget:
            notes.append("probes and corruptions run with different budgets (protocol): first-order and measured "
                         "responses are of different runs")  # fmt: skip
        return plain({
            "name": self.name, "system": items.subject.spec.name,
            "benchmark": items.benchmark.name, "items": len(items.ids), "protocol": items.protocol.to_json(),
            "latents": {name: int(n) for name, n in zip(names, self.plan("corruption").quota)}, "notes": notes,
            "clean": _clean(found, items, captured), "conditions": tests, "verdict": judged,
            "sham": _sham(found),
            "probes": readout.read_out(captured, items.options, items.categories, s.probes, asked),
            "alignment": geometry.aligned(forced, captured),
            "collapse": geometry.collapse_by_stage(captured, names),
            "argued": argued(found, items, results, s.level),
            "patching": self._recovered() if "patching" in stages else None,
            "lens": lens.read(self.folder / "lens", items, names, gallery),
            "sensitivity": None if moved is None else _sensitivity(moved, found, items),
            "attention": None if attention is None else geometry.attention_shares(attention),
            "answers": _answers(found, items, results), "gallery": gallery,
        })  # fmt: skip


def _in_order(c: capture.Capture, places: np.ndarray) -> capture.Capture:
    """The capture with items in the benchmark's order."""
    order = np.argsort(places)
    rows = ("states", "valid", "label", "count", "blocks", "letters", "margin", "answer_step")
    return dataclasses.replace(c, items=[c.items[i] for i in order], **{f: getattr(c, f)[order] for f in rows})


def _clean(found: Outcomes, items: Items, captured: capture.Capture) -> dict:
    n = len(items.ids)
    by_category = {str(c): wilson(int(found.right[0][items.categories == c].sum()), int((items.categories == c).sum()))
                   for c in np.unique(items.categories)}  # fmt: skip
    return {
        "accuracy": wilson(int(found.right[0].sum()), n), "letter": wilson(int(found.letter_right[0].sum()), n),
        "worded": found.worded, "follows": followed(found, 0), "by_category": by_category,
        "chance": float((1 / items.options).mean()), "majority": majority(found, items),
        "triggered": int(found.triggered.sum()), "unreadable": int((~found.readable[0]).sum()),
        "answered": int(found.readable[0].sum()), "latents_fed": float(found.fed[0].mean()),
        "tagged": int(captured.has("tagged").sum()),
    }  # fmt: skip


def _sham(found: Outcomes) -> dict | None:
    """Effect of feeding every item its own latents again: the noise floor of the measurement."""
    if corruptions.SHAM not in found.conditions:
        return None
    c = found.at(corruptions.SHAM)
    rows = ~found.missing[c]
    flips = int((found.content[c] != found.content[0])[rows].sum())
    return {"items": int(rows.sum()), "flips": flips,
            "margin_moved": spread_of_margin(found, corruptions.SHAM, rows)}  # fmt: skip


def _sensitivity(moved: sensitivity.Sensitivity, found: Outcomes, items: Items) -> dict:
    """By latent, and the response to noise: to first order, and as measured on the same items."""
    rows = np.zeros(len(items.ids), bool)
    there = np.isfinite(moved.gradient).any(1)
    rows[items.places([i for i, t in zip(moved.items, there) if t])] = True
    response = []
    for name in found.conditions:
        noise = strength(name)
        if noise is not None:
            relative, size = noise
            response.append({"condition": name, "relative": relative, "strength": size,
                             "predicted": moved.predicted(size, relative),
                             "measured": spread_of_margin(found, name, rows)})  # fmt: skip
    over_items = lambda x: _column_means(x[there])  # noqa: E731
    return {
        "items": int(there.sum()), "gradient": over_items(moved.gradient), "latent_norm": over_items(moved.latent),
        "relative": over_items(moved.gradient / moved.latent), "elasticity": over_items(moved.elasticity),
        "gradient_norm": _root_mean(moved.gradient[there]), "response": response,
    }  # fmt: skip


def _column_means(x: np.ndarray) -> list[float]:
    there = np.isfinite(x)
    count = there.sum(0)
    return (np.where(there, x, 0).sum(0)[count > 0] / count[count > 0]).tolist()


def _root_mean(x: np.ndarray) -> float:
    """Root mean square over items of the norm of all latents' gradients together."""
    return float(np.sqrt(np.nansum(x**2, 1).mean())) if len(x) else float("nan")


def _answers(found: Outcomes, items: Items, results: SweepResults) -> list[dict]:
    """Every item under every condition: what a person would want to check. Replies that equal the clean one are left
    out of `replies`; donors: condition -> the item whose latents were fed, where it had one."""
    fed = dict(zip(results.items, results.donor.T))
    donors = {i: {name: results.items[d] for name, d in zip(results.conditions, fed[i]) if d >= 0} for i in items.ids}
    by = lambda values, i: dict(zip(found.conditions, values[:, i].tolist()))  # noqa: E731
    return [
        {"id": row.id, "category": row.category, "gold": row.letter, "gold_content": items.contents[i],
         "latents": int(found.fed[0, i]), "reply": found.reply[0, i],
         "replies": {name: text for name, text in by(found.reply, i).items() if text != found.reply[0, i]},
         "content": by(found.content, i), "right": by(found.right, i), "letter": by(found.letter, i),
         "letter_right": by(found.letter_right, i), "follows": by(found.follows, i),
         "readable": by(found.readable, i), "donors": donors[row.id],
         "margin": None if found.margin is None else by(found.margin, i),
         "missing": [name for c, name in enumerate(found.conditions) if found.missing[c, i]]}
        for i, row in enumerate(items.benchmark.rows)
    ]  # fmt: skip


def _gallery(found: Outcomes, count: int) -> list[int]:
    """Items for the gallery: half are those that most conditions change, half the first that none changes."""
    content = [c for c, name in enumerate(found.conditions) if corruptions.is_content(name)]
    changed = (found.content[content] != found.content[0]).sum(0) if content else np.zeros(found.right.shape[1], int)
    changed = np.where(found.triggered, changed, -1)
    order = np.argsort(-changed, kind="stable")
    moved = [int(i) for i in order if changed[i] > 0][: -(-count // 2)]
    still = [int(i) for i in order if changed[i] == 0][: count - len(moved)]
    rest = [int(i) for i in order if int(i) not in moved + still]
    return sorted([*moved, *still, *rest][:count])


def curve(analysis: Mapping, relative: bool) -> list[dict]:
    """Noise conditions of one kind by strength."""
    rows = [(strength(e["name"]), e) for e in analysis["conditions"] if strength(e["name"])]
    return [e | {"strength": s[1]} for s, e in sorted(rows, key=lambda row: row[0][1]) if s[0] == relative]


def knock_outs(analysis: Mapping) -> dict[str, list[dict]]:
    """Conditions on one latent at a time: condition -> effects by latent."""
    found: dict[str, list[dict]] = {}
    for e in analysis["conditions"]:
        single = single_latent(e["name"])
        if single:
            found.setdefault(single[0], []).append(e | {"latent": single[1]})
    return {name: sorted(rows, key=lambda e: e["latent"]) for name, rows in found.items()}


# JSON ----------------------------------------------------------------------------------------------------------------


def cached(path: epath.Path, key: str, make: Callable[[], dict]) -> dict:
    """Reads the file if it was written under this key; else computes it with `make` and writes it atomically."""
    path = epath.Path(path)
    if path.exists():
        try:
            held = read_object(path)
        except JsonError as error:
            raise SweepError(f"{error}; remove it and run the audit again") from error
        if held.get("key") == key and "digest" in held:
            if held["digest"] != digest(held.get("analysis")):
                raise SweepError(f"{path}: has been changed since it was made; remove it and run the audit again")
            return held["analysis"]
    made = json.loads(json.dumps(make(), allow_nan=False))
    write_whole(path, json.dumps({"key": key, "digest": digest(made), "analysis": made}, indent=1) + "\n")
    return made


def plain(value: Any) -> Any:
    """Dataclasses and arrays as dicts and lists, what is not finite as None: plain JSON that any reader takes."""
    if dataclasses.is_dataclass(value):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, np.ndarray | jnp.ndarray):
        return plain(np.asarray(value).tolist())
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    return value
