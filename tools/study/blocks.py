"""A study in blocks: results are stored as runs finish, what is stored is not run again, and predictions are checked.

A prediction of `config.predictions` is a dict:

    name, block     of its own, and of the block that it is about
    statement       what is expected, in words
    direction       up, down, none (about zero) or level (about a value)
    quantity        what is estimated, over checkpoints with seeds as units:
                    "mean"          of `of` over the runs of `where`
                    "difference"    mean of `of` over `where` less that over `against`, paired by seed
                    "correlation"   of `x` and `of` over the runs of `where`
                    "within"        the same inside each group of equal `by`, pooled (Fisher's z)
                    "carried"       slope of `of` on accuracy over the runs of `where`: the share of accuracy's change
                                    that this part carries
    of, x           measures: accuracy (points, by content, of the audit's clean pass), blind (of the answer that cannot
                    see its latents), through (accuracy - blind), cosine, free, "delta CONDITION" (points), "follows
                    CONDITION" (points: answers that are what the fed latents argue for, fed less clean)
    where, against  axes (name: value or tuple of values) or any of setting, config, that choose runs of the block;
                    {} is all of them
    by              a name of an axis
    low, high       bounds (null: none). Held: the whole interval lies within; failed: the whole lies outside; else
                    undecided
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from ml_collections import ConfigDict

from lvr_jax.multihost.hosts import StopSignal
from lvr_jax.prism.measure.corruptions import COUNTERFACTUAL
from lvr_jax.prism.report.tables import NOTHING, Table, number, percent, points
from study import store
from study.content import axes_of
from study.jobs import Job, light_conditions, result_key, training_settings
from study.runs import Run, runs
from study.workers import JobFailed, Workers

QUANTITIES = {
    "mean": {"of"}, "difference": {"of", "against"}, "correlation": {"of", "x"}, "within": {"of", "x", "by"},
    "carried": {"of"},
}  # fmt: skip
ALWAYS = {"name", "block", "statement", "direction", "quantity", "where", "low", "high"}
DIRECTIONS = ("up", "down", "none", "level")
MEASURES = ("accuracy", "blind", "through", "cosine", "free")
SHOWN = {"answer_blind_to_latents": "blind", "donor_directed": "another's", "oracle": "oracle"}


def chosen(results: Sequence[Mapping], prediction: Mapping, which: str = "where") -> list[Mapping]:
    """The stored results that a prediction's `where` or `against` names, among those of its block."""
    asked = prediction[which]
    found = []
    for result in results:
        known = {**result["axes"], "setting": result["setting"], "config": result["config"], "seed": result["seed"]}
        if prediction["block"] in result["blocks"] and all(_among(known[name], v) for name, v in asked.items()):
            found.append(result)
    return found


def _among(value: object, asked: object) -> bool:
    return value in asked if isinstance(asked, tuple | list) else value == asked


def check(
    predictions: Sequence[Mapping], order: Sequence[str], axes: Sequence[Mapping], conditions: Sequence[str]
) -> None:
    """ValueError for a prediction that cannot be decided; axes: of all runs, with setting, config and seed; conditions:
    of their audits."""
    names = set().union(*axes)
    seen: set[str] = set()
    for p in predictions:
        if not isinstance(p, Mapping):
            raise ValueError(f"predictions: {p!r}, expected a dict of the fields that tools/study/blocks.py lists")
        where = f"predictions: {p.get('name', '?')!r}"
        if where in seen:
            raise ValueError(f"{where} is there twice")
        seen.add(where)
        quantity = p.get("quantity")
        if quantity not in QUANTITIES:
            raise ValueError(f"{where} has quantity {quantity!r}, expected one of {', '.join(QUANTITIES)}")
        if wrong := set(p) ^ (ALWAYS | QUANTITIES[quantity]):
            raise ValueError(f"{where} should not lack, or have, {sorted(wrong)[0]!r}")
        if p["block"] not in order:
            raise ValueError(f"{where} is of block {p['block']!r}, expected one of {', '.join(order)}")
        if p["direction"] not in DIRECTIONS:
            raise ValueError(f"{where} has direction {p['direction']!r}, expected one of {', '.join(DIRECTIONS)}")
        for name in {"of", "x"} & set(p):
            verb, _, condition = str(p[name]).partition(" ")
            # A donor's latents, and those of a changed scene, argue for an answer of their own (prism.argued).
            argues = condition.startswith("donor") or condition == COUNTERFACTUAL
            audited = condition in conditions and (verb == "delta" or argues)
            if p[name] not in MEASURES and not (verb in ("delta", "follows") and audited):
                raise ValueError(f"{where} has {name} {p[name]!r}, expected one of {', '.join(MEASURES)}, delta or (of "
                                 f"donors) follows CONDITION, of {', '.join(conditions)}")  # fmt: skip
        if "by" in p and p["by"] not in names:
            raise ValueError(f"{where} has by {p['by']!r}, expected one of {', '.join(sorted(names))}")
        low, high = p["low"], p["high"]
        bounds = [bound for bound in (low, high) if bound is not None]
        if not bounds or not all(isinstance(bound, int | float) and math.isfinite(bound) for bound in bounds):
            raise ValueError(f"{where} has low {low!r} and high {high!r}, expected a number for one or both, else None")
        if len(bounds) == 2 and low >= high:
            raise ValueError(f"{where} has low {low} and high {high}, expected low below high")
        for which in {"where", "against"} & set(p):
            if not isinstance(p[which], Mapping):
                raise ValueError(f"{where} has {which} {p[which]!r}, expected a dict of axes")
            if unknown := set(p[which]) - names:
                raise ValueError(f"{where} chooses by {sorted(unknown)[0]!r}, expected some of "
                                 f"{', '.join(sorted(names))}")  # fmt: skip
            if not any(all(_among(a[n], v) for n, v in p[which].items()) for a in axes if p["block"] in a["blocks"]):
                raise ValueError(f"{where} chooses no run of {p['block']} by {which}={p[which]!r}")


class Blocks:
    """A study's runs, their keys and the folder of their results."""

    def __init__(self, config: ConfigDict, workdir: Path):
        self.config, self.workdir = config, workdir
        self.runs = runs(config, workdir)
        self.keys = {run.name: result_key(config, run) for run in self.runs}
        self.store = store.Store.of(config)
        self._known = {run.name: axes_of(run, training_settings(config, run)) for run in self.runs}
        known = [{**run["axes"], **{name: run[name] for name in ("setting", "config", "seed", "blocks")}}
                 for run in self.planned()]  # fmt: skip
        check(config.predictions, config.order, known, light_conditions(config).split(","))

    def planned(self) -> list[dict]:
        """What a result says of its run, for every run of the study."""
        return [{"name": run.name, "axes": self._axes(run), "setting": run.setting, "config": run.config,
                 "seed": run.seed, "blocks": run.blocks} for run in self.runs]  # fmt: skip

    def finished(self) -> set[str]:
        """Names of runs whose results are there."""
        return {run.name for run in self.runs if self.store.has(run, self.keys[run.name])}

    def run(
        self, todo: Sequence[Job], every: Sequence[Job], workers: Workers, progress: bool,
        stop: StopSignal | None = None,
    ) -> None:  # fmt: skip
        """Does jobs and stores results as runs finish; a failure is stored too, and the other runs go on."""
        named = {run.name: run for run in self.runs}
        jobs: dict[str, list[Job]] = {}
        for job in every:
            jobs.setdefault(job.run, []).append(job)
        failed: list[str] = []

        def ended(job: Job, failure: JobFailed | None) -> bool:
            run = named.get(job.run)
            if run is None:             # a base's conversion: all others need it
                return False
            if failure is not None:
                failed.append(job.name)
                reason = {"status": store.FAILED, "error": f"{job.name}: {str(failure).splitlines()[-1][:200]}"}
                self.store.write(run, self.keys[run.name], self._axes(run), reason)
            else:
                self._keep(run, jobs[run.name], workers)
            return True

        self.store.refuse_other([named[name] for name in named if name in {job.run for job in todo}], self.keys)
        for name in set(jobs) & set(named):     # killed between the last job and its result
            self._keep(named[name], jobs[name], workers)
        workers.run(todo, progress, ended, stop)
        if failed:
            raise JobFailed(f"{len(failed)} jobs failed, the same command tries them again: {', '.join(failed)}")

    def _keep(self, run: Run, jobs: Sequence[Job], workers: Workers) -> None:
        measured = [job.stage for job in jobs if job.stage != "train"]
        if measured and all(workers.is_done(job) for job in jobs):
            seconds = {job.stage: workers.seconds(job) for job in jobs}
            self.store.write(run, self.keys[run.name], self._axes(run), store.measured(run, seconds))

    def _axes(self, run: Run) -> dict:
        return self._known[run.name]

    def results(self) -> tuple[list[dict], list[str]]:
        """All stored results in the order of the study, and the names of runs without one."""
        found, lacking = self.store.results(self.runs, self.keys)
        return [{**result, "axes": self._known[result["name"]]} for result in found], lacking

    def table(self) -> Table:
        """A line for every run; made of results alone."""
        found, lacking = self.results()
        rows = [_row(result) for result in found] + [(name, *[NOTHING] * 7, "no result") for name in lacking]
        return Table(
            "blocks", "All runs", "Accuracy of the answer's content on all questions; on the audited ones cosine with "
            "the visual targets, and points of accuracy lost or gained.",
            ("run", "blocks", "accuracy", "cosine", "box mean", *SHOWN.values(), "verdict"), tuple(rows),
        )  # fmt: skip


def _row(result: Mapping) -> tuple[str, ...]:
    if result["status"] == store.FAILED:
        return (result["name"], " ".join(result["blocks"]), *[NOTHING] * 6, f"failed: {result['error']}")
    content, cosine = result["scores"]["content"], result["cosine"] or {}
    conditions = result["conditions"] or {}
    return (
        result["name"], " ".join(result["blocks"]), percent(content["right"] / content["items"]),
        number(cosine.get("taught"), 3), number(cosine.get("box_mean"), 3),
        *(points(conditions[name]["delta"]) if name in conditions else NOTHING for name in SHOWN),
        (result["verdict"] or {}).get("kind") or NOTHING,
    )  # fmt: skip
