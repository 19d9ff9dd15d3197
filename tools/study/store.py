"""The results of a study in blocks: one small JSON file a run, apart from checkpoints, made once and read by the page.

`config.results` is the folder, NAME.json a run. Counts are of items; shares and deltas are fractions, not points.

    format      1
    key         of all that the result depends on (study.jobs.result_key); a run whose result has it is not redone
    status      "done", or "failed" with the reason in `error` and none of the measured fields
    name        "bottleneck: lvr lambda=0.3 seed 1"; `recipe` is the same without the seed: what seeds share
    blocks      the study's blocks that the run belongs to; a run may belong to several
    setting     plain, bottleneck, masked, ..; config: file of configs/; seed: of training
    axes        what may differ, resolved: lambda (at the start), until (share of the run after which it is 0, or null),
                target, route, noise, attention, feedback, template, steps, at (the step whose state was looked at),
                dark (share of what is asked for that is black), head (that the run gave the network), base; read as the
                study resolves them now
    scores      of `questions`: content and letter, each {items, right}; by_category: content by kind of question
    audit       of the audit's clean pass: {items, right, letter_right, triggered, answered, latents_fed, chance,
                majority}; `right` is by content
    conditions  by name: {n, clean, right, gained, lost, delta, low, high, p, p_holm, changed, letter_delta}; on the n
                items that the condition had something to feed for, by content: clean + gained - lost = right, delta =
                (right - clean) / n, low and high its 95 % interval (Tango), p McNemar's exact one, p_holm corrected
                over the audit. `answer_blind_to_latents` is on all items: accuracy = blind + through the latents,
                audit.right = right + (audit.right - right)
    argued      by donor condition: {items, clean, fed, p}: answers that are the donor's, with own and with its latents
    alignment   by stage: {items, taught, free, mse, norm_ratio, neighbour, box_mean, dataset_mean, by_latent}; cosines
                with the visual targets, teacher-forced and as the model makes them
    cosine      of the last stage, {taught, free, box_mean}; null for a run without visual targets
    probes      by place: {items, accuracy, control, majority}: closed content read from a state by a logistic probe
    collapse    by stage: {pairwise_cosine, adjacent_cosine, participation_ratio}
    verdict     {kind, listens, carries, needed}
    training    last logged step: {step, loss_ce, loss_lvr, accuracy, cosine, grad_norm}
    seconds     by stage: {elapsed, processor} on the machine that made it

A number that an audit could not give is null.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lvr_jax.evaluation.results import read_results
from lvr_jax.files.json_io import JsonError, read_object
from lvr_jax.files.names import packaged
from lvr_jax.files.whole_file import write_whole
from lvr_jax.prism.report.report import slug
from study.runs import TEXT_ONLY, Run

FORMAT = 1
DONE, FAILED = "done", "failed"
MEASURED = ("scores", "audit", "conditions", "argued", "alignment", "cosine", "probes", "collapse", "verdict")
LOGGED = ("step", "loss_ce", "loss_lvr", "accuracy", "cosine", "grad_norm")


@dataclasses.dataclass(frozen=True)
class Store:
    """The folder of results."""

    folder: Path

    @classmethod
    def of(cls, config) -> "Store":
        return cls(Path(packaged(config.results)).absolute())

    def path(self, run: Run) -> Path:
        return self.folder / f"{run.folder.name}.json"

    def read(self, run: Run) -> dict | None:
        """What is stored for a run, whatever its key; None without a sound file."""
        if self.path(run).is_dir():
            raise JsonError(f"{self.path(run)}: is a folder, expected the result of {run.name!r}")
        try:
            found = read_object(self.path(run))
        except (FileNotFoundError, JsonError):
            return None
        return found if found.get("format") == FORMAT else None

    def has(self, run: Run, key: str) -> bool:
        found = self.read(run)
        return found is not None and found.get("key") == key and found.get("status") == DONE

    def refuse_other(self, runs: Sequence[Run], keys: Mapping[str, str]) -> None:
        """ValueError where a run would write over a finished result that is of something else."""
        for run in runs:
            found = self.read(run)
            if found is not None and found.get("status") == DONE and found.get("key") != keys[run.name]:
                raise ValueError(f"{self.path(run)}: the result of {run.name!r} in another recipe or of another base; "
                                 "name another folder as --config.results, or move it away")  # fmt: skip

    def results(self, runs: Sequence[Run], keys: Mapping[str, str]) -> tuple[list[dict], list[str]]:
        """Results of these runs in their order, with the blocks that they belong to now, and the names of those that
        have none by their key."""
        found, lacking = [], []
        for run in runs:
            result = self.read(run)
            if result is None or result.get("key") != keys[run.name]:
                lacking.append(run.name)
            else:
                found.append({**result, "blocks": list(run.blocks)})
        return found, lacking

    def write(self, run: Run, key: str, axes: Mapping[str, Any], measured: Mapping[str, Any]) -> Path:
        """Writes a result with all that says which run it is of; never over a finished one of something else."""
        self.refuse_other([run], {run.name: key})
        self.folder.mkdir(parents=True, exist_ok=True)
        known = {
            "format": FORMAT, "key": key, "status": DONE, "error": None, "name": run.name, "recipe": run.variant,
            "blocks": list(run.blocks), "setting": run.setting, "config": run.config, "seed": run.seed,
            "axes": dict(axes),
        }  # fmt: skip
        write_whole(self.path(run), json.dumps({**known, **measured}, indent=1) + "\n")
        return self.path(run)


def measured(run: Run, seconds: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """All measured fields of a run whose evaluation and audit have ended."""
    found: dict[str, Any] = {"scores": _scores(run)}
    if run.config not in TEXT_ONLY:
        found.update(from_analysis(_analysis(run)))
    return {**dict.fromkeys(MEASURED), **found, "training": _training(run), "seconds": dict(seconds)}


def from_analysis(a: Mapping[str, Any]) -> dict[str, Any]:
    """The measured fields that an audit's analysis gives."""
    clean, n = a["clean"], a["items"]
    alignment = {stage: _aligned(x) for stage, x in a["alignment"].items()}
    last = list(alignment.values())[-1] if alignment else None
    return {
        "audit": {
            "items": n, "right": _count(clean["accuracy"]["point"], n),
            "letter_right": _count(clean["letter"]["point"], n),
            **{name: clean[name] for name in ("triggered", "answered", "latents_fed", "chance", "majority")},
        },
        "conditions": {c["name"]: _condition(c) for c in a["conditions"] if c["stats"] is not None},
        "argued": {
            name: {"items": x["items"], "clean": _count(x["clean"]["point"], x["items"]),
                   "fed": _count(x["fed"]["point"], x["items"]), "p": x["p"]}
            for name, x in (a["argued"] or {}).items()
        },
        "alignment": alignment,
        "cosine": None if last is None else {name: last[name] for name in ("taught", "free", "box_mean")},
        "probes": {
            place: {"items": x["items"], "accuracy": _first(x["accuracy"]["point"]), "control": _first(x["control"]),
                    "majority": x["majority"]}
            for place, x in ((a["probes"]["content"] or {}).get("closed") or {}).items() if "accuracy" in x
        },
        "collapse": {
            stage: {name: x.get(name) for name in ("pairwise_cosine", "adjacent_cosine", "participation_ratio")}
            for stage, x in a["collapse"].items()
        },
        "verdict": None if a["verdict"] is None else {
            "kind": a["verdict"]["kind"],
            **{name: (a["verdict"][name] or {}).get("answer") for name in ("listens", "carries", "needed")},
        },
    }  # fmt: skip


def _condition(c: Mapping[str, Any]) -> dict[str, Any]:
    s, letter = c["stats"], c["letter"]
    clean = _count(s["clean_accuracy"], s["n"])
    return {
        "n": s["n"], "clean": clean, "right": clean + s["gained"] - s["lost"], "gained": s["gained"], "lost": s["lost"],
        "delta": s["delta"], "low": s["delta_interval"]["low"], "high": s["delta_interval"]["high"],
        "p": s["p_mcnemar"], "p_holm": s["p_mcnemar_holm"], "changed": c["changed"],
        "letter_delta": None if letter is None else letter["delta"],
    }  # fmt: skip


def _aligned(x: Mapping[str, Any]) -> dict[str, Any]:
    taught, trivial = x.get("teacher_forced") or {}, x.get("trivial") or {}
    return {
        "items": x["items"], "taught": taught.get("mean_cosine"),
        "free": (x.get("free_running") or {}).get("mean_cosine"), "mse": taught.get("mean_mse"),
        "norm_ratio": taught.get("mean_norm_ratio"),
        **{name: trivial.get(name) for name in ("neighbour", "box_mean", "dataset_mean")},
        "by_latent": [
            {"items": each["items"], "taught": each.get("teacher_forced"), "free": each.get("free_running")}
            for each in x.get("by_latent", ())
        ],
    }  # fmt: skip


def _scores(run: Run) -> dict[str, Any]:
    results = read_results(run.scored_in)
    content = results.content_marks()
    tally = lambda marks: {"items": len(marks), "right": sum(m.correct for m in marks)}  # noqa: E731
    categories = sorted({m.category for m in content})
    return {
        "content": tally(content), "letter": tally(results.marks()),
        "by_category": {name: tally([m for m in content if m.category == name]) for name in categories},
    }  # fmt: skip


def _analysis(run: Run) -> dict[str, Any]:
    return read_object(run.folder / "audit" / slug(run.name) / "audit.json")["analysis"]


def _training(run: Run) -> dict[str, Any] | None:
    path = run.trained_in / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    lines = [line for line in lines if "loss_ce" in line and (run.at is None or line["step"] <= run.at)]
    return {name: lines[-1].get(name) for name in LOGGED} if lines else None


def _count(share: float, items: int) -> int:
    return round(share * items)


def _first(values: Sequence[float]) -> float | None:
    return values[0] if values else None
