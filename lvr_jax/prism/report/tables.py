"""The tables of a report: tables 1 to 4 of the paper for this run beside the published values, and ours.

A table is data: HTML and CSV are made of the same rows. Percent and points are written as in the paper.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lvr_jax.prism.measure import corruptions
from lvr_jax.prism.report.paper import Paper, contradictions, derived_numbers
from lvr_jax.prism.statistics.across_variants import correlation

NOTHING = "–"
Analysis = Mapping


@dataclasses.dataclass(frozen=True)
class Table:
    """key: file name and anchor; rows: text by column; published: rows from here on are the paper's (None: none);
    words: columns whose cells are prose, which may break into lines."""

    key: str
    title: str
    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    published: int | None = None
    words: tuple[str, ...] = ()


def number(value: float | None, digits: int = 1, scale: float = 1.0, sign: bool = False) -> str:
    """A number as text, with a minus sign; a dash where there is none."""
    if value is None or not np.isfinite(value):
        return NOTHING
    text = f"{scale * value:{'+' if sign else ''}.{digits}f}"
    return text.replace("-", "−") if float(text) else text.replace("-", "").replace("+", "")


def percent(value: float | None, digits: int = 1) -> str:
    """A share as percent."""
    return number(value, digits, 100)


def points(value: float | None, digits: int = 1) -> str:
    """A difference of shares as signed percentage points."""
    return number(value, digits, 100, sign=True)


def within(interval: Mapping | None, scale: float = 100, digits: int = 1, sign: bool = False) -> str:
    """A value with its interval as text: point [low, high]."""
    if interval is None or interval.get("point") is None:
        return NOTHING
    p, low, high = (number(interval[key], digits, scale, sign) for key in ("point", "low", "high"))
    return f"{p} [{low}, {high}]"


def probability(p: float | None) -> str:
    """A p-value as text."""
    if p is None:
        return NOTHING
    return "< 0.0001" if p < 1e-4 else f"{p:.4f}" if p < 0.1 else f"{p:.2f}"


# Reading an analysis -------------------------------------------------------------------------------------------------


def effect(analysis: Analysis, column: str) -> Mapping | None:
    """The statistics of the condition that stands for a column of the paper."""
    stats = {e["name"]: e["stats"] for e in analysis["conditions"]}
    return next((stats[name] for name in corruptions.PAPER[column] if stats.get(name)), None)


def letter_delta(analysis: Analysis, column: str) -> float | None:
    """Of the letter, where replies name the content too."""
    letters = {e["name"]: e["letter"] for e in analysis["conditions"]}
    found = next((letters[name] for name in corruptions.PAPER[column] if letters.get(name)), None)
    return None if found is None or not analysis["clean"]["worded"] else found["delta"]


def delta(analysis: Analysis, column: str) -> float | None:
    """Points of accuracy that a condition of the paper changes; None where it was not run."""
    found = effect(analysis, column)
    return None if found is None else found["delta"]


def pair(analysis: Analysis, *path: str) -> Any:
    """A value of the paper's pair of probes, None if they could not be fitted."""
    found = analysis["probes"]["pair"]
    for key in path:
        found = found.get(key) if isinstance(found, Mapping) else None
    return found


def cosine(analysis: Analysis, way: str = "teacher_forced") -> float | None:
    """Mean cosine of the last stage, the one that the paper scores."""
    stages = list(analysis["alignment"].values())
    return stages[-1].get(way, {}).get("mean_cosine") if stages else None


COLUMNS = {
    "cosine": cosine,
    "vstar": lambda a: a["clean"]["accuracy"]["point"],
    "letter": lambda a: a["clean"]["letter"]["point"],
    "probe_a": lambda a: pair(a, "logistic", "answer", "accuracy"),
    "probe_b": lambda a: pair(a, "logistic", "last_latent", "accuracy"),
    "gap": lambda a: pair(a, "gap", "point"),
    **{column: (lambda a, column=column: delta(a, column)) for column in corruptions.PAPER},
}
HEADS = {"cosine": "cosine", "vstar": "accuracy", "letter": "letter", "probe_a": "(a)", "probe_b": "(b)",
         "gap": "G", "truncate": "zero", "noise_0.1": "σ = 0.1", "noise_0.3": "σ = 0.3", "noise_1.0": "σ = 1",
         "swap": "swap"}  # fmt: skip


def _run_cell(column: str, value: float | None) -> str:
    if column == "cosine":
        return number(value, 3)
    return points(value) if column in corruptions.PAPER else percent(value)


def _printed(paper: Paper, column: str, v: int) -> str:
    if column == "letter":                      # letters are all that the paper's replies have
        column = "vstar"
    return paper.raw["columns"][column]["values"][v].replace("-", "−")


# The paper's tables --------------------------------------------------------------------------------------------------


def table_1(analyses: Sequence[Analysis], paper: Paper) -> Table:
    """Table 1 of the paper: accuracy, cosine and the diagnostics of every variant."""
    rows = [(a["name"], *(_run_cell(c, read(a)) for c, read in COLUMNS.items())) for a in analyses]
    rows += [(v, *(_printed(paper, c, n) for c in COLUMNS)) for n, v in enumerate(paper.variants)]
    return Table(
        "table-1", "Table 1 · Alignment, accuracy, probes, corruption",
        "Cosine is teacher-forced, of the last stage. (a): probe at the answer-decoding state, (b): at the last "
        "latent's output, G their difference. The last five columns are points against clean; negative: the model's "
        "own latents help. Accuracy and points are of the answer's content (the word before the letter, where replies "
        f"have one), with the letter's accuracy beside it. This run: {analyses[0]['benchmark']}; published: V*Bench.",
        ("checkpoint", *(HEADS[c] for c in COLUMNS)), tuple(rows), len(analyses),
    )  # fmt: skip


FEW = 5         # items: a correlation over effects of no more is marked


def table_2(analyses: Sequence[Analysis], paper: Paper) -> Table:
    """Table 2 of the paper: correlations between the columns of table 1."""
    rows, seen = [], set()
    letters = [{"x": "cosine", "y": "letter", "r": NOTHING}] if any(a["clean"]["worded"] for a in analyses) else []
    for published in [*letters, *paper.raw["correlations"]]:
        x, y = published["x"], published["y"]
        if x not in COLUMNS or y not in COLUMNS or (x, y) in seen:     # the appendix repeats some with more digits
            continue
        seen.add((x, y))
        own = ranks = p = NOTHING
        pairs = [(COLUMNS[x](a), COLUMNS[y](a)) for a in analyses]
        if len(pairs) >= 3 and all(v is not None for each in pairs for v in each):
            found = correlation(*zip(*pairs))
            if np.isfinite(found.pearson):                              # not where one side is constant
                own, ranks = number(found.pearson, 2, sign=True), number(found.spearman, 2, sign=True)
                p = probability(found.pearson_p)
                if y in corruptions.PAPER and max(abs(moved_items(a, y)) for a in analyses) <= FEW:
                    own += " †"
        rows.append((HEADS[x], HEADS[y], own, ranks, p, published["r"].replace("-", "−")))
    n = len(analyses)
    note = "Three checkpoints at least are needed. " if n < 3 else ""
    return Table(
        "table-2", "Table 2 · Correlations across checkpoints",
        f"{note}Pearson and Spearman over {n} checkpoint{'s' * (n != 1)}, p by permutation of all orders: with 5 "
        "checkpoints none below 0.0167 is possible. A handful of variants in clusters cannot show that a diagnostic "
        f"ranks models. †: no checkpoint's effect is of more than {FEW} items; such a correlation ranks noise.",
        ("x", "y", "r, this run", "rank r, this run", "p, this run", "r, published (n = 5)"), tuple(rows),
    )  # fmt: skip


def moved_items(analysis: Analysis, column: str) -> int:
    """Items gained less items lost under the condition that stands for a column of the paper."""
    found = effect(analysis, column)
    return 0 if found is None else found["gained"] - found["lost"]


def table_3(analyses: Sequence[Analysis], paper: Paper) -> Table:
    """Table 3 of the paper: accuracy of logistic probes at its pair of positions."""
    def probe(a, name):
        found = pair(a, "logistic", name)
        return NOTHING if found is None else f"{percent(found['accuracy'])} ± {percent(found['accuracy_std'])}"

    rows = [
        (a["name"], str(pair(a, "items") or 0), probe(a, "answer"),
         number(pair(a, "logistic", "answer", "cross_entropy"), 3),
         number(pair(a, "logistic", "answer", "mi_empirical"), 3), probe(a, "last_latent"), probe(a, "question"),
         percent(pair(a, "baselines", "majority", "point")), percent(a["clean"]["accuracy"]["point"]))
        for a in analyses
    ]  # fmt: skip
    majority = max(paper.raw["benchmarks"]["vstar"]["letters"].values()) / paper.raw["benchmarks"]["vstar"]["n"]
    cell = lambda c, n: f"{_printed(paper, c, n)} ± {_printed(paper, c + '_se', n)}"  # noqa: E731
    rows += [
        (v, "191", cell("probe_a", n), _printed(paper, "cross_entropy_a", n), _printed(paper, "mi_lower_bound", n),
         cell("probe_b", n), cell("question_mean", n), percent(majority), _printed(paper, "vstar", n))
        for n, v in enumerate(paper.variants)
    ]  # fmt: skip
    return Table(
        "table-3", "Table 3 · Probes",
        "The paper's logistic probe (z-scored, C = 1, 5 folds, seed 42); ± is the deviation over folds. Items without "
        "latents or without an answer are not in the probe. Majority: always the commonest letter, the honest floor "
        "(25 % is not).",
        ("checkpoint", "items", "(a)", "CE (a)", "MI bound", "(b)", "question mean", "majority", "accuracy"),
        tuple(rows), len(analyses),
    )  # fmt: skip


def table_4(analyses: Sequence[Analysis], paper: Paper) -> Table:
    """Table 4 of the paper: points that each corruption changes."""
    rows = []
    for a in analyses:
        cells = [within(None if (e := effect(a, c)) is None else e["delta_interval"], sign=True)
                 for c in corruptions.PAPER]  # fmt: skip
        letters = [f"; {points(d)}" if (d := letter_delta(a, c)) is not None else "" for c in corruptions.PAPER]
        clean = percent(a["clean"]["accuracy"]["point"])
        clean += f"; {percent(a['clean']['letter']['point'])}" if a["clean"]["worded"] else ""
        rows.append((a["name"], clean, *(cell + letter for cell, letter in zip(cells, letters))))
    rows += [(v, _printed(paper, "corruption_clean", n), *(_printed(paper, c, n) for c in corruptions.PAPER))
             for n, v in enumerate(paper.variants)]  # fmt: skip
    return Table(
        "table-4", "Table 4 · Corruption",
        "Clean accuracy of the corruption run, and points against it with the 95 % interval of the paired difference "
        "(Tango), by content; after the semicolon the letter's. The paper prints no interval and has letters alone; "
        "one V*Bench item is 0.5 points.",
        ("checkpoint", "clean", *(HEADS[c] for c in corruptions.PAPER)), tuple(rows), len(analyses),
    )  # fmt: skip


# Ours, for one checkpoint --------------------------------------------------------------------------------------------


def conditions(a: Analysis) -> Table:
    """Every condition of a checkpoint: accuracy, difference from clean, interval and test."""
    rows = []
    for e in a["conditions"]:
        s, letter = e["stats"], e["letter"]
        if s is None:
            rows.append((e["name"], "0", *[NOTHING] * 13))
            continue
        rows.append((
            e["name"], str(s["n"]), percent(s["accuracy"]["point"]), within(s["delta_interval"], sign=True),
            f"{s['lost']} / {s['gained']}", probability(s["p_mcnemar"]), probability(s["p_mcnemar_holm"]),
            points(letter["delta"]), probability(letter["p_mcnemar"]), percent(e["follows"]),
            str(e["unreadable"]), percent(e["changed"] / s["n"], 0),
            within(s["margin_delta"], 1, 2, sign=True), percent(s["minimum_effect"]), "yes" if e["content"] else "",
        ))  # fmt: skip
    return Table(
        f"conditions-{a['name']}", "Every condition against clean",
        "By the answer's content: points with 95 % interval; items lost / gained; exact McNemar p, and Holm over all "
        "conditions. By letter: points and p, and the share of letters that are those of the reply's own word. Replies "
        "without a readable answer, and share of replies that are not the clean one, word for word; shift of the gold "
        "letter's logit margin with interval; the smallest loss that so many items would show with 80 % power; whether "
        "the condition counts as evidence on the latents' content.",
        ("condition", "items", "accuracy", "Δ points", "lost / gained", "p", "Holm", "Δ letter", "p (letter)",
         "letter follows", "no readable answer", "reply changed", "Δ margin", "detectable", "evidence"), tuple(rows),
    )  # fmt: skip


def probes(a: Analysis) -> Table:
    """Probe accuracy and selectivity by position and layer."""
    rows = []
    for name, p in a["probes"]["grid"].items():
        if "reason" in p:
            rows.append((name, str(p["items"]), *[NOTHING] * 4))
            continue
        last = {key: {end: p[key][end][-1] for end in ("point", "low", "high")} for key in ("accuracy", "selectivity")}
        rows.append((name, str(p["items"]), within(last["accuracy"]), percent(p["control"][-1]),
                     within(last["selectivity"], sign=True), probability(p["control_p"][-1])))  # fmt: skip
    return Table(
        f"probes-{a['name']}", "Ridge probe at every position, last layer",
        "Accuracy with item-bootstrap interval, mean accuracy on control labels, selectivity, and the share of "
        "labelings that the probe scores at least as well on. A position that items lack is probed on those that "
        "have it.",
        ("position", "items", "accuracy", "control", "selectivity", "p"), tuple(rows),
    )  # fmt: skip


def floor(a: Analysis) -> Table | None:
    """The probes' baselines and controls: accuracy that is reached without reading a latent."""
    base, controls = pair(a, "baselines"), pair(a, "controls")
    if base is None:
        return None
    rows = [(name.replace("_", " "), within(value), NOTHING) for name, value in base.items()]
    for kind, by in controls.items():
        label = f"control labels, {kind.replace('_', ' ')}"
        for name, short in (("answer", "(a)"), ("last_latent", "(b)")):
            rows.append((f"{label}, at {short}", percent(by[name]["control"]),
                         within(by[name]["selectivity"], sign=True)))  # fmt: skip
    return Table(f"floor-{a['name']}", "What a probe scores without reading",
                 "Baselines on the probes' own folds, and accuracy on control labels with the probe's selectivity.",
                 ("baseline", "accuracy", "selectivity of the probe"), tuple(rows))  # fmt: skip


# Guesses by what they know.
GUESSES = {"neighbour": "guess: neighbouring token of the answer's box", "box_mean": "guess: mean of the answer's box",
           "dataset_mean": "guess: mean over other items"}  # fmt: skip


def alignment(a: Analysis) -> Table | None:
    """Cosine between latents and their targets; None where there are no targets."""
    rows = []
    for stage, s in a["alignment"].items():
        matched, later = s.get("matched", {}), s.get("later", {})
        none: dict[str, Any] = {}
        free = s.get("free_running", {})
        lines = [("teacher-forced", s["teacher_forced"], s["retrieval_teacher_forced"]),
                 ("free-running", free, s.get("retrieval_free_running", none)),
                 ("free-running, as many as the box has", free, s.get("retrieval_matched", none)),
                 ("teacher-forced, latents that were fed", matched.get("teacher_forced", none), none),
                 ("teacher-forced, without the first", later.get("teacher_forced", none), none),
                 ("free-running, without the first", later.get("free_running", none), none)]  # fmt: skip
        rows += [(stage, way, str(m.get("items", 0)), number(m.get("mean_cosine"), 3), number(m.get("mean_mse"), 3),
                  number(m.get("mean_norm_ratio"), 2), percent(r.get("R@1")), percent(r.get("chance_R@1")),
                  number(r.get("mrr"), 3)) for way, m, r in lines]  # fmt: skip
        rows += [(stage, GUESSES[name], str(s["items"]), number(value, 3), *[NOTHING] * 5)
                 for name, value in s["trivial"].items()]  # fmt: skip
    if not rows:
        return None
    return Table(
        f"alignment-{a['name']}", "Alignment with the visual targets",
        "Teacher-forced, as the paper measures it, and free-running, as the answer is made; retrieval of the own "
        "target among all items by block means. The first latent is the same vector both ways, for nothing was fed "
        "before it: compare the ways without it. A box of fewer tokens than the budget leaves latents without a "
        "target; retrieval free-running takes all that were fed, or as many as the box has. Of the guesses, neighbour "
        "and box mean use the answer's own box; only the mean over other items knows nothing of the question.",
        ("stage", "latents", "items", "cosine", "MSE", "norm ratio", "R@1", "chance", "MRR"), tuple(rows),
    )  # fmt: skip


def alignment_by_latent(a: Analysis) -> Table | None:
    """Cosine between latents and their targets, latent by latent; None where there are none."""
    rows = [(f"{stage}, latent {row['latent']}", str(row["items"]), number(row["teacher_forced"], 3),
             number(row["free_running"], 3))
            for stage, s in a["alignment"].items() for row in s.get("by_latent", ())]  # fmt: skip
    if not rows:
        return None
    return Table(f"by-latent-{a['name']}", "Alignment by latent",
                 "Cosine of each latent with its own vision token, over the items whose box has such a token and in "
                 "which the latent was fed: taught and free are of the same items.",
                 ("latent", "items", "teacher-forced", "free-running"), tuple(rows))  # fmt: skip


def capacity(a: Analysis) -> Table | None:
    """The ladder of the pair: does a probe of more capacity read more, or learn more?"""
    ladder = pair(a, "ladder")
    if not ladder:
        return None
    kinds = {"pca": "rank {}", "ridge": "all {} dimensions", "fourier": "{} random features"}
    columns = {name: {(r["kind"], r["size"], r["alpha"]): r for r in rungs} for name, rungs in ladder.items()}
    rows = []
    for key in next(iter(columns.values())):
        cells = [cell for name in ("answer", "last_latent") if (r := columns.get(name, {}).get(key)) is not None
                 for cell in (percent(r["accuracy"]), percent(r["control"]), points(r["selectivity"]))]  # fmt: skip
        if len(cells) == 6:
            rows.append((kinds[key[0]].format(key[1]), f"{key[2]:g}", *cells))
    return Table(
        f"capacity-{a['name']}", "Capacity ladder of the letter probe",
        "Accuracy, accuracy on control labels, and their difference at (a) and (b), as the probe grows: principal "
        "components, all dimensions by ridge strength, random Fourier features. A probe that gains on the labels no "
        "more than on controls is learning, not reading.",
        ("probe", "alpha", "(a)", "control", "selectivity", "(b)", "control", "selectivity"), tuple(rows),
    )  # fmt: skip


def collapse(a: Analysis) -> Table:
    """How alike the latents of different items are."""
    named = [(f"{stage}, own latents", c) for stage, c in a["collapse"].items()]
    named += [(f"{stage}, targets", s["collapse_of_targets"]) for stage, s in a["alignment"].items()]
    rows = [
        (name, str(c.get("items", 0)), number(c.get("pairwise_cosine"), 3), number(c.get("adjacent_cosine"), 3),
         number(c.get("participation_ratio"), 1), str(c.get("rank_90", NOTHING))) for name, c in named
    ]  # fmt: skip
    return Table(
        f"collapse-{a['name']}", "Collapse",
        "Mean cosine between items at the same step, between neighbouring steps, participation ratio, and axes for "
        "90 % of the variance; the visual targets for comparison.",
        ("latents", "items", "across items", "adjacent", "participation", "rank 90 %"), tuple(rows),
    )  # fmt: skip


def of_checkpoint(a: Analysis) -> list[Table]:
    """All tables of one checkpoint that have something to say."""
    made = (conditions(a), probes(a), capacity(a), floor(a), alignment(a), alignment_by_latent(a), collapse(a))
    return [t for t in made if t is not None]


def of_paper(analyses: Sequence[Analysis], paper: Paper) -> list[Table]:
    """Tables 1 to 4 of the paper, for this run."""
    return [make(analyses, paper) for make in (table_1, table_2, table_3, table_4)]


def of_the_papers_own(paper: Paper) -> list[Table]:
    """Checks the paper's printed statements and numbers against its own printed tables; nothing is of this run."""
    told = lambda found: ", ".join(f"{HEADS.get(k, k)} {number(v, 2, sign=v < 0)}" for k, v in found.items())  # noqa: E731
    claims = tuple((c.claim, c.source, told(c.found), "yes" if c.holds else "no") for c in contradictions(paper))
    derived = tuple((d.name, d.source, d.printed.replace("-", "−"), number(d.computed, 3, sign=True),
                     "yes" if d.agrees else "no") for d in derived_numbers(paper))  # fmt: skip
    return [
        Table("paper-claims", "The paper's statements against its own tables",
              "Statements of “Cosine Misleads” beside what its printed tables give.",
              ("statement", "source", "its tables", "holds"), claims),
        Table("paper-derived", "The paper's derived numbers, recomputed",
              "Every printed number that follows from the printed tables, recomputed from them alone.",
              ("number", "source", "printed", "computed", "agrees"), derived),
    ]  # fmt: skip
