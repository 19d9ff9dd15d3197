"""The figures of the full study's page."""

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from lvr_jax.prism.report.figures import COLOURS, GREY, MARKERS, STYLE
from lvr_jax.prism.report.paper import Paper
from study.page import findings
from study.page.findings import Line

SIZE = (8.0, 4.4)


@matplotlib.rc_context(STYLE)
def headline(lines: Sequence[Line], paper: Paper, panels: Sequence[Line]) -> Figure:
    """Accuracy against cosine, a line for each thing that varies; beside it accuracy by lambda in its two parts."""
    figure = Figure(figsize=(SIZE[0], SIZE[1] + 1.2 * max(len(panels) - 2, 0)), layout="constrained")
    grid = figure.add_gridspec(max(len(panels), 1), 2, width_ratios=(2.1, 1))
    axis = figure.add_subplot(grid[:, 0] if panels else grid[:, :])
    for n, line in enumerate(lines):
        # Where colours come again, markers are others.
        colour, marker = COLOURS[n % len(COLOURS)], MARKERS[(n + n // len(COLOURS)) % len(MARKERS)]
        there = findings.pairs(line.checkpoints, "cosine", "accuracy")
        axis.scatter([x for _, x, _ in there], [y for _, _, y in there], s=16, alpha=0.45, linewidths=0, zorder=2,
                     color=colour, marker=marker)  # fmt: skip
        means = [[np.mean([getattr(c, side) for c in seeds]) for seeds in line.ordered]
                 for side in ("cosine", "accuracy")]  # fmt: skip
        axis.plot(*means, markersize=6, linewidth=1.4, label=line.label, zorder=3, color=colour, marker=marker)
    axis.scatter(paper.columns["cosine"], paper.columns["vstar"], s=42, facecolors="none", edgecolors=GREY,
                 label="published, on V*", zorder=4)  # fmt: skip
    axis.set(xlabel="cosine of latents with their visual targets, teacher-forced",
             ylabel="accuracy of the answer's content, %", ylim=(0, 102))  # fmt: skip
    axis.legend(fontsize=7, loc="lower right")
    for row, line in enumerate(panels):
        _parts(figure.add_subplot(grid[row, 1]), line, legend=not row)
    return figure


def _parts(axis, line: Line, legend: bool) -> None:
    """Stacked bars: what the answer gives blind to its latents and their marker, and what these add or take; points:
    what it gives with the marker and without latents."""
    ordered = line.ordered
    blind, through = (np.array([np.mean([getattr(c, part) for c in seeds]) for seeds in ordered])
                      for part in ("blind", "through"))  # fmt: skip
    place, lost = np.arange(len(ordered)), through < 0
    axis.bar(place, np.minimum(blind, blind + through), color="#bbbbbb", label="blind to the block")
    axis.bar(place, np.maximum(through, 0), bottom=blind, color=COLOURS[0], label="through it")
    axis.bar(place[lost], -through[lost], bottom=(blind + through)[lost], color="white", edgecolor=COLOURS[1],
             hatch="////", linewidth=0.8, label="lost through it")  # fmt: skip
    removed = [[v for v in (c.delta("markers_only") for c in seeds) if v is not None] for seeds in ordered]
    kept = [np.mean([c.accuracy for c in seeds]) + np.mean(each) if each else np.nan
            for seeds, each in zip(ordered, removed)]  # fmt: skip
    axis.plot(place, kept, linestyle="", marker="D", markersize=4, color="white", markeredgecolor="black",
              markeredgewidth=0.8, label="marker kept, latents removed")  # fmt: skip
    axis.set_xticks(place, [f"{line.place(seeds[0]):g}" for seeds in ordered], fontsize=8)
    axis.set_title(line.label, fontsize=9)
    axis.set(xlabel=line.along, ylim=(0, 102))
    if legend:
        axis.legend(fontsize=6, loc="lower right", framealpha=0.85, frameon=True)


@matplotlib.rc_context(STYLE)
def dose(line: Line, measures: Mapping[str, str], along: str) -> Figure:
    """Measures (label -> name) against what varies, every seed a point and a line through the means."""
    figure = Figure(figsize=(SIZE[0] / 1.6, 3.2), layout="constrained")
    axis = figure.subplots()
    for n, (label, name) in enumerate(measures.items()):
        there = findings.pairs(line.checkpoints, line.along, name)
        axis.scatter([x for _, x, _ in there], [y for _, _, y in there], s=14, alpha=0.45, linewidths=0,
                     color=COLOURS[n], marker=MARKERS[n])  # fmt: skip
        ordered = Line(label, line.along, tuple(c for c, _, _ in there)).ordered
        means = [np.mean([c.measure(name) for c in seeds]) for seeds in ordered]
        axis.plot([line.place(seeds[0]) for seeds in ordered], means, linewidth=1.4, label=label, color=COLOURS[n],
                  marker=MARKERS[n])  # fmt: skip
    axis.axhline(0, color=GREY, linewidth=0.6)
    axis.set(xlabel=along, ylabel="points of accuracy")
    axis.legend(fontsize=7)
    return figure


@matplotlib.rc_context(STYLE)
def transplants(records: Sequence[Mapping], host: str, donor: str) -> Figure:
    """What each part of a donor's weights takes along: cosine of the latents with their targets, and accuracy."""
    whole = {(t["host"], t["donor"], t["part"]): t for t in records}
    ends = [whole[name, None, "nothing"] for name in (host, donor)]
    rows = [t for t in records if (t["host"], t["donor"]) == (host, donor) and not t["equal"]]
    figure = Figure(figsize=(SIZE[0], 0.9 + 0.28 * len(rows)), layout="constrained")
    for axis, label, value in zip(figure.subplots(1, 2, sharey=True), ("cosine with targets", "accuracy, %"), (
        lambda t: t["cosine"], lambda t: 100 * t["clean"]["right"] / t["clean"]["items"])):  # fmt: skip
        shown = [(n, value(t)) for n, t in enumerate(rows) if value(t) is not None]
        axis.barh([n for n, _ in shown], [x for _, x in shown], color=COLOURS[5], height=0.6)
        for end, name, style in zip(ends, (host, donor), ("-", "--")):
            if value(end) is not None:
                axis.axvline(value(end), color=COLOURS[6], linestyle=style, linewidth=1, label=f"{name}, intact")
        axis.set_xlabel(label)
        axis.set_yticks(range(len(rows)), [t["part"] for t in rows], fontsize=8)
    figure.axes[0].invert_yaxis()       # of both: they share it
    figure.axes[0].legend(fontsize=7)
    figure.axes[0].set_title(f"{host} with one part of {donor}", fontsize=9)
    return figure
