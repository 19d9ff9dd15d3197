"""Writes what came of the study: one report over all runs, and its headline as a table in the terminal."""

from collections.abc import Callable, Mapping
from pathlib import Path

from etils import epath
from ml_collections import ConfigDict

from configs import prism as prism_config
from lvr_jax.evaluation.results import read_results
from lvr_jax.evaluation.scoring import summarise
from lvr_jax.prism import experiment
from lvr_jax.prism.report import report
from lvr_jax.prism.report.tables import NOTHING, Table, cosine, number, percent, points
from study.jobs import is_light, prism_settings
from study.runs import TEXT_ONLY, Run, runs

# Corruptions in the headline: what takes the latents' content away, and what hands the answer over.
SHOWN = {"zero": "zeros", "donor": "swapped", "markers_only": "removed", "oracle": "oracle"}


def write_report(
    config: ConfigDict, workdir: Path, check: Callable[[], None] = lambda: None
) -> tuple[epath.Path, Table]:
    """The page, and the headline. What was audited is read from its folders; nothing is run again.

    check: called between runs; raises where the report is no longer wanted
    """
    audits, analyses, settings, variants, rows = [], {}, [], [], []
    for run in runs(config, workdir):
        check()
        if run.config not in TEXT_ONLY:
            audit = _audit(config, run)
            analyses[run.name] = audit.run()
            audits.append(audit)
            settings.append(run.setting)
            variants.append(run.variant)
        rows.append(_row(run, analyses.get(run.name)))
    table = Table(
        "headline", "All runs",
        f"Accuracy on {config.questions} held-out scenes with 95 % interval (Wilson), of the answer's content and of "
        f"its letter; on the first {config.audited} of them cosine with the visual targets, verdict, and points of "
        "accuracy (content) lost or gained under four interventions.",
        ("run", "accuracy", "letter", "cosine, taught", "cosine, free", *SHOWN.values(), "verdict"),
        tuple(rows), words=("verdict",),
    )  # fmt: skip
    page = report.write(audits, list(analyses.values()), workdir / "report", title="Cosine misleads, in miniature",
                        settings=settings, variants=variants, lead=[table])  # fmt: skip
    return page, table


def _audit(config: ConfigDict, run: Run):
    c = prism_config.get_config("light" if is_light(config, run) else "")
    for name, value in prism_settings(config, run).items():
        *path, last = name.split(".")
        node = c
        for part in path:
            node = node[part]
        node[last] = str(value) if isinstance(value, Path) else value
    place = epath.Path(run.folder / "audit" / report.slug(run.name))
    return experiment.prepare(c, experiment.settings_of(c), c.checkpoint, run.name, place, False, lambda line: None)


def _row(run: Run, a: Mapping | None) -> tuple[str, ...]:
    results = read_results(run.scored_in)
    scores = [summarise(marks, ["micro"])[0] for marks in (results.content_marks(), results.marks())]
    accuracy = [f"{percent(s.value)} [{percent(s.low)}, {percent(s.high)}]" for s in scores]
    if a is None:
        return (run.name, *accuracy, *[NOTHING] * (2 + len(SHOWN)), "no latents")
    stats = {e["name"]: e["stats"] for e in a["conditions"]}
    moved = [NOTHING if stats.get(name) is None else points(stats[name]["delta"]) for name in SHOWN]
    kind = a["verdict"]["kind"] if a["verdict"] else "no verdict"
    return (run.name, *accuracy, number(cosine(a), 3), number(cosine(a, "free_running"), 3), *moved, kind)


def headline(table: Table) -> str:
    """Columns for a terminal."""
    lines = [table.columns, *table.rows]
    widths = [max(len(line[n]) for line in lines) for n in range(len(table.columns))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(line, widths)).rstrip() for line in lines)
