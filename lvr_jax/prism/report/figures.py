"""The figures of a report: figures 1, 4 and 5 of the paper for this run, and ours, one function each.

Narrow (five inches) with ten-point type, so that they stay legible on a phone. White ground: they are shown on a white
card in the dark too. Published values are hollow and grey, this run's are filled; colour never stands alone.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, StrMethodFormatter

from lvr_jax.prism.audit import curve, knock_outs
from lvr_jax.prism.measure import corruptions
from lvr_jax.prism.report.paper import Paper
from lvr_jax.prism.report.tables import COLUMNS, HEADS, cosine, delta, effect
from lvr_jax.prism.statistics.across_variants import pearson

Analysis = Mapping
# Okabe and Ito's palette: told apart by colour-blind readers too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vPX"
GREY = "#777777"
STYLE: dict[Any, Any] = {"font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False,
         "svg.hashsalt": "prism", "axes.titlesize": 10,
         # Text in an svg is text, a third of what its outlines take; Verdana is as wide where DejaVu is not installed.
         "svg.fonttype": "none", "font.sans-serif": ["DejaVu Sans", "Verdana"],
         "figure.facecolor": "white", "text.parse_math": False}  # fmt: skip
WIDTH = 5.0


def _figure(height: float, rows: int = 1, **options):
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.subplots(rows, 1, squeeze=False, **options)[:, 0]


def _legend(axis, **options):
    handles, labels = axis.get_legend_handles_labels()
    if handles:
        axis.legend(handles, labels, fontsize=8, frameon=False, **options)


def log_scale(axis, *sides: str) -> None:
    """Logarithmic sides (x, y) of an axis, with plain numbers at 1, 2 and 5: matplotlib's own labels are formulas."""
    for side in sides:
        getattr(axis, f"set_{side}scale")("log")
        ticks = getattr(axis, f"{side}axis")
        ticks.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ticks.set_major_formatter(StrMethodFormatter("{x:g}"))
        ticks.set_minor_locator(NullLocator())


def _scatter(axis, xs, ys, names, published: tuple[np.ndarray, np.ndarray, Sequence[str]]):
    """This run filled, the paper hollow; r of each in the title where there are three points."""
    parts = []
    for x, y, name, n in zip(xs, ys, names, range(len(xs))):
        if x is not None and y is not None:
            axis.scatter(x, y, s=60, color=COLOURS[n % 7], marker=MARKERS[n % 7], label=name, zorder=3)
    there = [(x, y) for x, y in zip(xs, ys) if x is not None and y is not None]
    if len(there) >= 3 and np.isfinite(r := pearson(*zip(*there))):     # none where one side is constant
        parts.append(f"this run r = {r:+.2f} (n = {len(there)})")
    px, py, pn = published
    axis.scatter(px, py, s=45, facecolors="none", edgecolors=GREY, label="published", zorder=2)
    right = max([*px, *(x for x in xs if x is not None)])
    for n, (x, y, name) in enumerate(zip(px, py, pn)):
        # Neighbours' names go above and below in turn, and inwards at the right edge.
        side = "right" if x > 0.9 * right else "left"
        axis.annotate(name, (x, y), textcoords="offset points", xytext=(-5 if side == "right" else 5, 5 - 14 * (n % 2)),
                      fontsize=7, color=GREY, ha=side)  # fmt: skip
    axis.margins(0.12)
    parts.append(f"published r = {pearson(px, py):+.2f} (n = {len(px)})")
    axis.set_title("; ".join(parts), fontsize=9)


@matplotlib.rc_context(STYLE)
def figure_1(analyses: Sequence[Analysis], paper: Paper) -> Figure:
    """Cosine alignment against accuracy."""
    figure, (axis,) = _figure(3.6)
    accuracy = [100 * a["clean"]["accuracy"]["point"] for a in analyses]
    _scatter(axis, [cosine(a) for a in analyses], accuracy, [a["name"] for a in analyses],
             (paper.columns["cosine"], paper.columns["vstar"], paper.variants))  # fmt: skip
    axis.set(xlabel="teacher-forced cosine with the visual target", ylabel="accuracy (%)")
    _legend(axis)
    return figure


@matplotlib.rc_context(STYLE)
def figure_4(analyses: Sequence[Analysis], paper: Paper) -> Figure:
    """Change of accuracy under each corruption, with 95 % intervals; the published bars below."""
    figure, (own, theirs) = _figure(5.8, 2)
    columns = list(corruptions.PAPER)
    for n, a in enumerate(analyses):
        found = [effect(a, c) for c in columns]
        at = np.array([i + 0.8 * (n + 0.5) / len(analyses) - 0.4 for i, e in enumerate(found) if e])
        there = [e["delta_interval"] for e in found if e]
        point = np.array([100 * e["point"] for e in there])
        low, high = (np.array([100 * e[end] for e in there]) for end in ("low", "high"))
        own.bar(at, point, 0.8 / len(analyses), color=COLOURS[n % 7], label=a["name"], alpha=0.75)
        own.errorbar(at, point, [np.maximum(point - low, 0), np.maximum(high - point, 0)], fmt="none", color="black",
                     lw=1, capsize=2)  # fmt: skip
    for v, name in enumerate(paper.variants):
        at = np.arange(len(columns)) + 0.8 * (v + 0.5) / len(paper.variants) - 0.4
        theirs.bar(at, [paper.columns[c][v] for c in columns], 0.8 / len(paper.variants), label=name,
                   color=COLOURS[v % 7], alpha=0.45, edgecolor=GREY)  # fmt: skip
    for axis, title in ((own, "this run"), (theirs, "published (no intervals)")):
        axis.axhline(0, color="black", lw=0.8)
        axis.set_xticks(range(len(columns)), [HEADS[c] for c in columns])
        axis.set(ylabel="Δ accuracy (points)", title=title)
        _legend(axis, ncols=5, loc="upper center", bbox_to_anchor=(0.5, -0.12), columnspacing=1, handlelength=1)
    return figure


@matplotlib.rc_context(STYLE)
def figure_5(analyses: Sequence[Analysis], paper: Paper) -> Figure:
    """Decodability gap against the response to noise and to zeroing."""
    figure, axes = _figure(5.8, 2)
    gaps = [COLUMNS["gap"](a) for a in analyses]
    gaps = [None if g is None else 100 * g for g in gaps]
    for axis, column in zip(axes, ("noise_0.1", "truncate")):
        deltas = [delta(a, column) for a in analyses]
        _scatter(axis, gaps, [None if d is None else 100 * d for d in deltas], [a["name"] for a in analyses],
                 (paper.columns["gap"], paper.columns[column], paper.variants))  # fmt: skip
        axis.axhline(0, color="black", lw=0.8)
        axis.set(xlabel="decodability gap G (points)", ylabel=f"Δ accuracy, {HEADS[column]}")
    _legend(axes[0])
    return figure


# Ours ----------------------------------------------------------------------------------------------------------------


@matplotlib.rc_context(STYLE)
def sigma_curve(analyses: Sequence[Analysis]) -> Figure | None:
    """Accuracy against the strength of noise, with the band of the paired 95 % interval."""
    kinds = [(r, label) for r, label in ((False, "σ, raw units"), (True, "α, share of the latent's norm"))
             if any(len(curve(a, r)) > 1 for a in analyses)]  # fmt: skip
    if not kinds:
        return None
    figure, axes = _figure(2.9 * len(kinds), len(kinds))
    for axis, (relative, label) in zip(axes, kinds):
        for n, a in enumerate(analyses):
            rows = [e for e in curve(a, relative) if e["stats"]]
            x = [e["strength"] for e in rows]
            point, low, high = ([100 * e["stats"]["delta_interval"][end] for e in rows]
                                for end in ("point", "low", "high"))  # fmt: skip
            axis.plot(x, point, marker=MARKERS[n % 7], color=COLOURS[n % 7], label=a["name"])
            axis.fill_between(x, low, high, color=COLOURS[n % 7], alpha=0.15, lw=0)
        axis.axhline(0, color="black", lw=0.8)
        log_scale(axis, "x")
        axis.set(xlabel=f"noise on every latent: {label}", ylabel="Δ accuracy (points)")
        _legend(axis)
    return figure


@matplotlib.rc_context(STYLE)
def knock_out_map(a: Analysis) -> Figure | None:
    """What one latent alone does: accuracy and margin, by condition and latent."""
    found = knock_outs(a)
    if not found:
        return None
    names, latents = list(found), max(e["latent"] for rows in found.values() for e in rows) + 1
    measures = [("delta", 100, "Δ accuracy (points)")]
    if any(e["stats"] and e["stats"]["margin_delta"]["point"] is not None for rows in found.values() for e in rows):
        measures.append(("margin_delta", 1, "Δ margin (logits)"))
    figure, axes = _figure((0.45 * len(names) + 1.2) * len(measures), len(measures))
    for axis, (field, scale, title) in zip(axes, measures):
        values = np.full((len(names), latents), np.nan)
        for r, name in enumerate(names):
            for e in found[name]:
                value = None if e["stats"] is None else e["stats"][field]
                value = value["point"] if isinstance(value, Mapping) else value
                values[r, e["latent"]] = np.nan if value is None else scale * value
        span = np.nanmax(np.abs(values), initial=0) or 1.0
        image = axis.imshow(values, cmap="RdBu", vmin=-span, vmax=span, aspect="auto")
        if latents <= 12:
            for (r, j), value in np.ndenumerate(values):
                if np.isfinite(value):
                    text = f"{value:+.1f}" if span >= 1 else f"{value:+.1g}"
                    axis.text(j, r, text, ha="center", va="center", fontsize=8,
                              color="white" if abs(value) > 0.6 * span else "black")  # fmt: skip
        axis.set_yticks(range(len(names)), names)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.set(xlabel="latent (the others stay clean)", title=title)
        figure.colorbar(image, ax=axis, pad=0.02)
    return figure


ROLE_COLOURS = {"text": "#999999", "image": "#56B4E9", "latent": "#E69F00", "answer": "#009E73"}


@matplotlib.rc_context(STYLE)
def attention(a: Analysis) -> Figure | None:
    """To whom the answer state, and the latents, attend; clean and corrupted."""
    found = a["attention"]
    places = [p for p in ("answer", "latents") if found and any(p in entry for entry in found.values())]
    if not places:
        return None
    figure, axes = _figure((0.38 * len(found) + 1.1) * len(places), len(places))
    for axis, place in zip(axes, places):
        names = [name for name in found if place in found[name]]
        left = np.zeros(len(names))
        for role, colour in ROLE_COLOURS.items():
            share = np.array([100 * found[name][place][role] for name in names])
            axis.barh(range(len(names)), share, left=left, color=colour, label=role, edgecolor="white")
            for y, (start, width) in enumerate(zip(left, share)):
                if width >= 8:
                    axis.text(start + width / 2, y, f"{width:.0f}", ha="center", va="center", fontsize=8)
            left += share
        axis.set_yticks(range(len(names)), names)
        axis.invert_yaxis()
        axis.set(xlim=(0, 100), xlabel="share of attention (%)", title=f"from the {place.removesuffix('s')} states")
    axes[0].legend(fontsize=8, frameon=False, ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.12))
    return figure


@matplotlib.rc_context(STYLE)
def probe_map(a: Analysis) -> Figure | None:
    """Ridge accuracy at every position (and layer), with interval and control."""
    grid = {name: p for name, p in a["probes"]["grid"].items() if "reason" not in p}
    if not grid:
        return None
    names, layers = list(grid), len(next(iter(grid.values()))["control"])
    figure, (axis,) = _figure(0.3 * len(names) + 1.2)
    if layers > 1:
        values = np.array([[100 * v for v in grid[name]["accuracy"]["point"]] for name in names])
        image = axis.imshow(values, aspect="auto", cmap="viridis")
        figure.colorbar(image, ax=axis, label="accuracy (%)")
        axis.set_xlabel("layer (last: after the final norm)")
    else:
        for y, name in enumerate(names):
            p = {end: 100 * grid[name]["accuracy"][end][-1] for end in ("point", "low", "high")}
            axis.plot([p["low"], p["high"]], [y, y], color=COLOURS[0], lw=2)
            axis.plot(p["point"], y, "o", color=COLOURS[0], label=None if y else "labels, with 95 % interval")
            axis.plot(100 * grid[name]["control"][-1], y, "x", color=COLOURS[1], label=None if y else "control labels")
        base = (a["probes"]["pair"].get("baselines") or {}).get("majority")
        if base:
            axis.axvline(100 * base["point"], color=GREY, ls="--", lw=1, label="majority")
        axis.set_xlabel("probe accuracy (%)")
        axis.invert_yaxis()
        axis.legend(fontsize=8, frameon=False, ncols=3, loc="lower center", bbox_to_anchor=(0.4, 1.0))
    axis.set_yticks(range(len(names)), names)
    return figure


@matplotlib.rc_context(STYLE)
def sensitivity(a: Analysis) -> Figure | None:
    """Sensitivity by latent, and first-order against measured response to noise."""
    found = a["sensitivity"]
    if not found or not found["elasticity"]:
        return None
    rows = [r for r in found["response"] if r["measured"] and r["predicted"]]
    figure, axes = _figure(2.7 * (1 + bool(rows)), 1 + bool(rows))
    axes[0].bar(range(len(found["elasticity"])), found["elasticity"], color=COLOURS[0])
    axes[0].xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[0].set(xlabel="latent, in the order it was fed", ylabel="|gradient| · |latent| (logits)")
    if rows:
        for relative, marker, label in ((False, "o", "absolute noise"), (True, "s", "relative noise")):
            part = [r for r in rows if r["relative"] == relative]
            axes[1].plot([r["predicted"] for r in part], [r["measured"] for r in part], marker, color=COLOURS[relative],
                         label=label if part else None)  # fmt: skip
        ends = [min(r["predicted"] for r in rows), max(r["predicted"] for r in rows)]
        axes[1].plot(ends, ends, color=GREY, ls="--", lw=1, label="locally linear")
        log_scale(axes[1], "x", "y")
        axes[1].set(xlabel="margin spread predicted to first order",
                    ylabel="measured")  # fmt: skip
        _legend(axes[1])
    return figure


def of_paper(analyses: Sequence[Analysis], paper: Paper) -> dict[str, Figure]:
    """Figures 1, 4 and 5 of the paper, for this run."""
    return {"figure-1": figure_1(analyses, paper), "figure-4": figure_4(analyses, paper),
            "figure-5": figure_5(analyses, paper)}  # fmt: skip


OF_CHECKPOINT = {"knock-outs": knock_out_map, "attention": attention, "probes": probe_map, "sensitivity": sensitivity}
CAPTIONS = {
    "figure-1": "Figure 1 · Cosine alignment against accuracy.",
    "figure-4": "Figure 4 · Change of accuracy under each corruption; bars of this run carry 95 % intervals.",
    "figure-5": "Figure 5 · Decodability gap against the response to noise of 0.1 and to zeroed latents.",
    "sigma-curve": "Response to noise of growing strength, with 95 % band.",
    "knock-outs": "One latent at a time replaced, all others clean.",
    "attention": "Whom the answer state and the latents attend to; mean over items, heads and layers.",
    "probes": "Where the answer is decodable (ridge probe).",
    "sensitivity": "How far the margin moves with a latent: by the gradient, and as measured under small noise.",
}
