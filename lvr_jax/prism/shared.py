"""Asks what checkpoints of one base share: each reads the others' latents, takes over parts of their weights, and is
compared with the base matrix by matrix.

    found = run(config, "runs/shared")          # configs/transplant.py; also WORKDIR/shared.json

Everything is a sweep (latents.sweep) in a folder of its own, so that it goes on where it was stopped.
"""

import copy
import dataclasses
import itertools
import json
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from lvr_jax.checkpoints import load
from lvr_jax.checkpoints.fingerprint import fingerprint
from lvr_jax.files.whole_file import write_whole
from lvr_jax.latents import sweep as sweeps
from lvr_jax.latents.conditions import Condition
from lvr_jax.latents.sweep_files import SweepResults
from lvr_jax.prism import crossing, experiment
from lvr_jax.prism.audit import Audit, plain
from lvr_jax.prism.measure import capture, corruptions, weight_change
from lvr_jax.prism.network_parts import NOTHING, Part, equal, parts, transplanted
from lvr_jax.prism.outcomes import Outcomes, outcomes
from lvr_jax.prism.report.report import slug

FORMAT = 1
TARGETS = "oracle"      # the condition whose fed latents are the visual targets


def run(config: ConfigDict, workdir, *, progress: bool = True, say: Callable[[str], None] = lambda line: None) -> dict:
    """Does what is missing of readers by makers, transplants and spectra; returns and writes all of it.

    Raises one of prism.experiment.BAD_INPUT.
    """
    workdir = epath.Path(workdir)
    folders = experiment.names(config.checkpoint)
    if len(folders) < 2:
        raise experiment.PrismError(f"checkpoint is {config.checkpoint!r}, expected two folders at least with a comma "
                                    "between them")  # fmt: skip
    if config.groups < 1:
        raise experiment.PrismError(f"groups is {config.groups}, expected 1 or more: runs of text blocks to transplant")
    labels = experiment.labels_of(folders, experiment.names(config.names))
    settings = experiment.settings_of(config)
    audits = {
        label: experiment.prepare(config, settings, folder, label, workdir / slug(label), progress, say)
        for folder, label in zip(folders, labels)
    }
    study = _Shared(audits, say)
    study.check()
    found = _rounded(plain({
        "format": FORMAT, "checkpoints": list(labels), "items": len(study.first.items.ids),
        "conditions": [c.name for c in study.conditions],
        "latents": study.latents(), "transplants": study.transplants(config.groups),
        "spectra": study.spectra(config.base) if config.base else {},
    }))  # fmt: skip
    write_whole(workdir / "shared.json", json.dumps(found, indent=1, sort_keys=True, allow_nan=False) + "\n")
    return found


@dataclasses.dataclass(frozen=True)
class _Shared:
    audits: Mapping[str, Audit]
    say: Callable[[str], None]

    @property
    def first(self) -> Audit:
        return next(iter(self.audits.values()))

    @property
    def conditions(self) -> list[Condition]:
        s = self.first.settings
        return s.grid(self.first._sweeper("corruption").latents, bool(self.first.items.boxed.any()))[0]

    def check(self) -> None:
        """Refuses checkpoints that are not of one network, before anything runs."""
        for audit in self.audits.values():
            for field in ("config", "spec", "attention"):
                ours, theirs = (getattr(a.items.subject, field) for a in (self.first, audit))
                if ours != theirs:
                    raise experiment.PrismError(f"checkpoint: {audit.name} and {self.first.name} differ in {field}, "
                                                "expected checkpoints of one network and system")  # fmt: skip
        items = self.first.items
        corruptions.check(self.conditions, list(items.categories), list(items.contents), items.variants)

    # Readers by makers -----------------------------------------------------------------------------------------------

    def captured(self, name: str) -> epath.Path:
        """The folder whose `capture` holds the latents that a checkpoint makes."""
        audit = self.audits[name]
        with audit.cell.active():
            capture.run(audit._sweeper("probe"), audit.items.prompts(), audit.folder / "capture",
                        spans=audit.items.spans, weights=audit.items.subject.weights)  # fmt: skip
        return audit.folder

    def latents(self) -> dict[str, dict]:
        """reader -> maker -> its scores with that maker's latents; the reader's own are the sham."""
        found = {}
        makers = {name: self.captured(name) for name in self.audits}
        for reader, audit in self.audits.items():
            self.say(f"{reader}: latents of {', '.join(makers)}")
            read, scored = self._swept(audit, makers, crossing.conditions(list(makers)), audit.folder / "crossed")
            found[reader] = {maker: score(scored, crossing.PREFIX + maker) for maker in makers}
        return found

    def _swept(
        self, audit: Audit, makers: Mapping[str, epath.Path], conditions: list[Condition], folder: epath.Path
    ) -> tuple[SweepResults, Outcomes]:
        sweeper = audit._sweeper("corruption")
        sweeper = dataclasses.replace(sweeper, keep=(*sweeper.keep, "blocks", "count"),
                                      sources={**sweeper.sources, **crossing.sources(makers)})  # fmt: skip
        with audit.cell.active():
            sweeps.run(sweeper, audit.items.prompts(), conditions, folder)
        read = sweeps.read(folder)
        return read, outcomes(audit.items, read)

    # Transplants -----------------------------------------------------------------------------------------------------

    def transplants(self, groups: int) -> list[dict]:
        """One record a network: an intact checkpoint (donor None), or a host with one part of a donor's weights."""
        depth, found, intact = self.first.items.subject.config.text.layers, [], {}
        for host in self.audits:
            intact[host] = self._network(host, None, NOTHING)
        for host, (read, scored) in intact.items():
            found.append(self._record(host, None, NOTHING, read, scored, intact))
        for host, donor in itertools.permutations(self.audits, 2):
            ours, theirs = (self.audits[name].items.subject.params for name in (host, donor))
            for part in parts(depth, groups):
                if equal(ours, theirs, part):
                    found.append({"host": host, "donor": donor, "part": part.name, "equal": True})
                    continue
                self.say(f"{host} with {part.name} of {donor}")
                found.append(self._record(host, donor, part, *self._network(host, donor, part), intact))
        return found

    def _network(self, host: str, donor: str | None, part: Part) -> tuple[SweepResults, Outcomes]:
        audit = self.audits[host]
        folder = audit.folder / "intact"
        makers = {name: self.audits[name].folder for name in dict.fromkeys((host, donor or host))}
        if donor is not None:
            audit = with_weights(audit, transplanted(audit.items.subject.params,
                                                     self.audits[donor].items.subject.params, part))  # fmt: skip
            folder = audit.folder / "transplants" / f"{slug(donor)}-{slug(part.name)}"
        return self._swept(audit, makers, [*self.conditions, *crossing.conditions(list(makers))], folder)

    def _record(self, host, donor, part: Part, read: SweepResults, scored: Outcomes, intact) -> dict:
        """Scores under every condition, whose answers it gives, and whose latents it makes."""
        own = {name: blocks(intact[name][0], "clean") for name in (host, donor) if name is not None}
        whose = {name: intact[name][1].content[0] for name in own}
        like = {name: float((scored.content[0] == content).mean()) for name, content in whose.items()}
        made = blocks(read, "clean")
        targets = blocks(read, TARGETS) if TARGETS in read.conditions else None
        return {
            "host": host, "donor": donor, "part": part.name, "equal": False,
            "clean": {"items": scored.right.shape[1], "right": int(scored.right[0].sum()),
                      "triggered": int(scored.triggered.sum())},
            "conditions": {name: score(scored, name) for name in scored.conditions if name != "clean"},
            "answers_like": like, "latents_like": {name: cosine(made, each) for name, each in own.items()},
            "cosine": None if targets is None else cosine(made, targets),
        }  # fmt: skip

    # Spectra ---------------------------------------------------------------------------------------------------------

    def spectra(self, base: str) -> dict[str, dict]:
        """checkpoint -> how far its matrices are from the base's, one by one and by kind."""
        _, before, _ = load(base, config=self.first.items.subject.config)
        found = {}
        for name, audit in self.audits.items():
            rows = weight_change.spectra(_on_host(before), _on_host(audit.items.subject.params),
                                         audit.items.subject.config)  # fmt: skip
            found[name] = {"matrices": rows, "kinds": weight_change.by_kind(rows)}
        return found


def with_weights(audit: Audit, params: dict) -> Audit:
    """The same audit, with all that has been looked up, of other weights."""
    items = copy.copy(audit.items)
    subject = dataclasses.replace(items.subject, params=params, weights=fingerprint(params))
    object.__setattr__(items, "subject", subject)
    return dataclasses.replace(audit, items=items)


def score(found: Outcomes, name: str) -> dict[str, int]:
    """Counts of one condition over the items that had something to feed: right with it and without (`own`), gained and
    lost by it, and answers of another content."""
    c = found.at(name)
    rows = ~found.missing[c]
    own, right = found.right[0][rows], found.right[c][rows]
    return {"items": int(rows.sum()), "own": int(own.sum()), "right": int(right.sum()),
            "gained": int((right & ~own).sum()), "lost": int((own & ~right).sum()),
            "changed": int((found.content[c] != found.content[0])[rows].sum())}  # fmt: skip


def blocks(read: SweepResults, condition: str) -> tuple[np.ndarray, np.ndarray]:
    """The latents fed under a condition [I, G, Z, D], and which of them there are [I, G, Z]."""
    arrays = read.of(condition)
    made, count = arrays["blocks"], arrays["count"]
    return made, np.arange(made.shape[2]) < count[..., None]


def cosine(a: tuple[np.ndarray, np.ndarray], b: tuple[np.ndarray, np.ndarray]) -> float | None:
    """Mean over items of the mean cosine of latents of equal index that both have (None: no item has any)."""
    (x, there), (y, also) = a, b
    both = there & also
    norms = np.linalg.norm(x, axis=-1) * np.linalg.norm(y, axis=-1)
    both &= norms > 0
    each = np.where(both, (x.astype(np.float64) * y).sum(-1) / np.where(both, norms, 1), 0)
    count = both.sum((1, 2))
    return float((each.sum((1, 2))[count > 0] / count[count > 0]).mean()) if count.any() else None


def _rounded(value: Any) -> Any:
    """Numbers to six digits, more than any of them means."""
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_rounded(each) for each in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _on_host(params: dict) -> dict:
    return jax.tree.map(np.asarray, params)
