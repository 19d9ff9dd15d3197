"""Tables and figures of a checkpoint's content probes, directed conditions, patching map and logit lens."""

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lvr_jax.prism.report.figures import COLOURS, GREY, MARKERS, STYLE, WIDTH, log_scale
from lvr_jax.prism.report.tables import NOTHING, Table, number, pair, percent, probability, within

Analysis = Mapping
# (a), (b) and what is fed first, as positions of the capture.
PLACES = {"answer": "(a) answer", "last_latent": "(b) last latent", "h0": "fed first", "question": "question alone"}


def _last(interval: Mapping | None) -> Mapping | None:
    """The last layer of an interval by layer."""
    return None if interval is None else {end: interval[end][-1] for end in ("point", "low", "high")}


def content_probes(a: Analysis) -> Table | None:
    """Accuracy of the content probes by position; None where none were fitted."""
    found = a["probes"].get("content")
    probed = [(name, (found or {}).get(name)) for name in ("closed", "options")]
    if not any(grid for _, grid in probed):
        return None
    rows = []
    for position in next(grid for _, grid in probed if grid):
        cells = []
        for name, grid in probed:
            p = (grid or {}).get(position)
            if p is None or "reason" in p:
                cells += [NOTHING] * 4
                continue
            floor = p["majority" if name == "closed" else "chance"]
            cells += [within(_last(p["accuracy"])), percent(floor), percent(p["control"][-1]),
                      probability(p["control_p"][-1])]  # fmt: skip
        rows.append((position, *cells))
    return Table(
        f"content-probes-{a['name']}", "Probes for what the answer says, last layer",
        "Word: closed classes within each kind of question (ridge), beside always saying the kind's commonest answer. "
        "Match: ridge to the text of the right option, ranked over the item's own options, beside chance by their "
        "number. Control: answers shuffled within the kind; one of the item's own options at random for the right one. "
        "p: share of labelings, the real one included, that the probe scores at least as well on.",
        ("position", "word", "majority", "control", "p", "match", "chance", "control", "p"), tuple(rows),
    )  # fmt: skip


def content_by_kind(a: Analysis) -> Table | None:
    """Accuracy of the content probes by kind of question; None without closed answer sets."""
    found = a["probes"].get("content") or {}
    if not found.get("closed"):
        return None
    rows = []
    for position, label in PLACES.items():
        ridge = found["closed"].get(position) or {}
        for kind, r in ridge.get("by_kind", {}).items():
            paper = (found["logistic"].get(position) or {}).get(kind, {})
            rows.append((f"{label}, {kind}", str(r["items"]), str(r["classes"]), percent(r["majority"]),
                         within(_last(r["accuracy"])), within(paper.get("accuracy"))))  # fmt: skip
    return Table(
        f"content-kinds-{a['name']}", "The word by kind of question",
        "Ridge with its strength chosen in the training fold, and the paper's logistic probe, both on the last layer.",
        ("position and kind", "items", "answers", "majority", "ridge", "logistic"), tuple(rows),
    )  # fmt: skip


def gaps(a: Analysis) -> Table | None:
    """What each position adds over the one before it; None where nothing was probed."""
    found = (a["probes"].get("content") or {}).get("gap") or {}
    if pair(a, "gap") is None and not found:
        return None
    rows = []
    if pair(a, "gap") is not None:
        rows.append(("letter, logistic (the paper's)", str(pair(a, "items")),
                     percent(pair(a, "logistic", "answer", "accuracy")),
                     percent(pair(a, "logistic", "last_latent", "accuracy")), within(pair(a, "gap"), sign=True)))
        rows.append(("letter, ridge", str(pair(a, "items")), percent(pair(a, "ridge", "answer", "point")),
                     percent(pair(a, "ridge", "last_latent", "point")), within(pair(a, "ridge_gap"), sign=True)))
    for name, label in (("closed", "word, ridge"), ("options", "text of the option, match")):
        g = found.get(name)
        if g and "gap" in g:
            rows.append((label, str(g["items"]), percent(g["answer"]), percent(g["last_latent"]),
                         within(g["gap"], sign=True)))  # fmt: skip
    return Table(
        f"gaps-{a['name']}", "The decodability gap G, for letters and for content",
        "A letter is drawn anew for every question and enters where the options are read, so that no latent can hold "
        "it: a gap for letters says little of what latents hold. What the answer says can be there; a gap for content "
        "says how much of it is nearer at the answer than at the last latent.",
        ("probe for", "items", "at (a)", "at (b)", "G"), tuple(rows),
    )  # fmt: skip


def argued(a: Analysis) -> Table | None:
    """What replies argue for under each directed condition; None where there are none."""
    rows = []
    for name, s in (a.get("argued") or {}).items():
        o = s["offered"]
        inside = [NOTHING] * 3 if not o["items"] else [percent(o["clean"]["point"]), percent(o["fed"]["point"]),
                                                       probability(o["p"])]  # fmt: skip
        rows.append((name, str(s["items"]), percent(s["clean"]["point"]), percent(s["fed"]["point"]),
                     within(s["difference"], sign=True), probability(s["p"]), str(o["items"]), *inside))  # fmt: skip
    if not rows:
        return None
    return Table(
        f"argued-{a['name']}", "Do answers move to what the latents argue for?",
        "Share of answers that say what the donor of the latents would (only donors whose question is of the same kind "
        "and whose answer is another one), or what the changed scene shows: with own latents, and with those. Exact "
        "McNemar p. On the right, the items among whose options that answer is.",
        ("condition", "items", "own latents", "fed", "difference", "p", "offered in", "own latents", "fed", "p"),
        tuple(rows),
    )  # fmt: skip


def crossed(analyses: Sequence[Analysis]) -> Table | None:
    """Readers by makers of latents, over checkpoints."""
    found = {a["name"]: a["crossed"] for a in analyses if a.get("crossed")}
    makers = list(dict.fromkeys(maker for by in found.values() for maker in by))
    if not makers:
        return None
    clean = {a["name"]: a["clean"]["accuracy"]["point"] for a in analyses}
    rows = []
    for reader, by in found.items():
        cells = [within(by[m]["difference"], sign=True) if by.get(m, {}).get("items") else NOTHING for m in makers]
        rows.append((reader, percent(clean[reader]), *cells))
    return Table(
        "crossed", "Readers by makers: each checkpoint fed the latents of others",
        "Rows read, columns made the latents: points of accuracy against the reader's own latents, with Tango's "
        "interval, over the items in which both fed some.",
        ("reader", "own latents", *makers), tuple(rows),
    )  # fmt: skip


def lens(a: Analysis) -> Table | None:
    """Likeliest words of each latent under the logit lens; None where it was not measured."""
    rows = []
    for stage, latents in ((a.get("lens") or {}).get("by") or {}).items():
        for j, s in enumerate(latents):
            words = ", ".join(f"{word} {percent(share, 0)} %" for word, share in s["top"])
            rows.append((f"{stage} {j}", str(s["items"]), words, percent(s["first"]), number(s["rank"], 0),
                         percent(s["offered"]), percent(s["chance"])))  # fmt: skip
    if not rows:
        return None
    return Table(
        f"lens-{a['name']}", "Logit lens: what the LM head would say at each latent",
        "The likeliest words and the share of items in which each is; the share in which the answer's first token is "
        "the likeliest of all, its median rank, and the share in which it is the likeliest of the item's own options.",
        ("latent", "items", "likeliest words", "answer first", "median rank", "first among options", "chance"),
        tuple(rows),
    )  # fmt: skip


@matplotlib.rc_context(STYLE)
def patching_map(a: Analysis) -> Figure | None:
    """Share of changed answers that one clean state brings back, by position and layer."""
    found = a.get("patching")
    if not found or not found["changed"]:
        return None
    values = np.array([[np.nan if v is None else 100 * v for v in row] for row in found["recovered"]])
    figure = Figure(figsize=(WIDTH, 0.3 * len(values) + 1.4), layout="constrained")
    axis = figure.subplots()
    image = axis.imshow(values, cmap="viridis", vmin=0, vmax=100, aspect="auto")
    if values.shape[1] <= 10:
        for (p, layer), value in np.ndenumerate(values):
            if np.isfinite(value):
                axis.text(layer, p, f"{value:.0f}", ha="center", va="center", fontsize=8,
                          color="white" if value < 60 else "black")  # fmt: skip
    axis.set_xticks(range(values.shape[1]), [str(layer) for layer in found["layers"]])
    axis.set_yticks(range(len(values)), [name.replace("_", " ") for name in found["positions"]])
    axis.set(xlabel="layer (0: what is fed)",
             title=f"{found['condition']}: {found['changed']} of {found['of']} answers changed")  # fmt: skip
    figure.colorbar(image, ax=axis, label="clean answer is back (%)", pad=0.02)
    return figure


@matplotlib.rc_context(STYLE)
def lens_figure(a: Analysis) -> Figure | None:
    """How often the head would pick the answer's word at each latent, of the item's options, and its rank."""
    stages = {stage: rows for stage, rows in ((a.get("lens") or {}).get("by") or {}).items() if rows}
    if not stages:
        return None
    figure = Figure(figsize=(WIDTH, 4.6), layout="constrained")
    share, rank = figure.subplots(2, 1, sharex=True)
    for n, (stage, rows) in enumerate(stages.items()):
        style = {"color": COLOURS[n % 7], "marker": MARKERS[n % 7], "label": stage}
        at = np.arange(len(rows))
        pick = lambda field, scale: [np.nan if r[field] is None else scale * r[field] for r in rows]  # noqa: B023, E731
        share.plot(at, pick("offered", 100), **style)
        share.plot(at, pick("chance", 100), color=GREY, ls="--", lw=1, label=None if n else "chance")
        rank.plot(at, pick("rank", 1), **style)
    share.set(ylim=(0, 102), ylabel="first of the options (%)")
    log_scale(rank, "y")
    rank.set(ylabel="median rank", xlabel="latent, in the order it is fed")
    rank.xaxis.set_major_locator(MaxNLocator(integer=True))
    share.legend(fontsize=8, frameon=False)
    return figure


TABLES = (content_probes, content_by_kind, gaps, argued, lens)
FIGURES = {"patching": patching_map, "lens": lens_figure}
CAPTIONS = {
    "patching": "One state of the clean run put into the corrupted one: share of changed answers that come back.",
    "lens": "Logit lens: the answer's word under the LM head at each latent.",
}
