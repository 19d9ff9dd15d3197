"""Compares the same interventions across settings: where they have effects, a null result elsewhere is informative.

A setting is how a checkpoint was trained and is asked: the picture visible to all, only to the latents, or masked.
"""

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from lvr_jax.prism.report.figures import COLOURS, MARKERS, STYLE, WIDTH
from lvr_jax.prism.report.tables import NOTHING, Table, cosine, number, percent, points, probability

# Conditions that tell the settings apart, and what a reader calls them.
INTERVENTIONS = {
    "markers_only": "latents removed", "zero": "zeros", "mean": "mean latent", "donor": "another item's latents",
    "norm_matched": "random direction", "oracle": "oracle latents", "wrong_box": "oracle of a wrong box",
}  # fmt: skip


CAPTION = "What each intervention does, setting by setting; 95 % intervals of the paired difference."


def stats_of(analysis: Mapping, name: str) -> Mapping | None:
    """Of a condition; None where it was not run or had nothing to feed."""
    return next((e["stats"] for e in analysis["conditions"] if e["name"] == name), None)


def table(analyses: Sequence[Mapping], settings: Sequence[str]) -> Table:
    """Accuracy, cosine and the change of accuracy under each condition, with the exact p of each."""
    rows = []
    for setting, a in zip(settings, analyses):
        cells = []
        for name in INTERVENTIONS:
            s = stats_of(a, name)
            cells.append(NOTHING if s is None else f"{points(s['delta'])} (p {_p(s['p_mcnemar'])})" + _letter(a, name))
        clean = a["clean"]
        letter = f"; {percent(clean['letter']['point'])}" if clean["worded"] else ""
        rows.append((
            a["name"], setting, percent(clean["accuracy"]["point"]) + letter, number(cosine(a), 3),
            number(cosine(a, "free_running"), 3), *cells,
        ))  # fmt: skip
    return Table(
        "settings", "The same interventions in every setting",
        "Points of accuracy, by the answer's content, against the checkpoint's own clean run, with the exact McNemar p "
        "of each; after the semicolon the letter's, where replies have a word before it. Bottleneck: only "
        "the latents see the picture, so taking them away must cost. Masked: what is asked for is black, so oracle "
        "latents must help, and own ones cannot.",
        ("checkpoint", "setting", "accuracy", "cosine, taught", "cosine, free", *INTERVENTIONS.values()), tuple(rows),
    )  # fmt: skip


def _letter(a: Mapping, name: str) -> str:
    letter = next(e["letter"] for e in a["conditions"] if e["name"] == name)
    return f"; {points(letter['delta'])}" if a["clean"]["worded"] and letter else ""


def _p(p: float) -> str:
    text = probability(p)
    return text if text.startswith("<") else f"= {text}"


@matplotlib.rc_context(STYLE)
def figure(analyses: Sequence[Mapping], settings: Sequence[str], variants: Sequence[str]) -> Figure:
    """Change of accuracy under each condition, a panel a setting, with 95 % intervals; a colour a variant."""
    kinds = list(dict.fromkeys(settings))
    drawn = Figure(figsize=(WIDTH, 0.9 + 2.3 * len(kinds)), layout="constrained")
    axes = drawn.subplots(len(kinds), 1, squeeze=False, sharex=True)[:, 0]
    places = np.arange(len(INTERVENTIONS))
    for axis, kind in zip(axes, kinds):
        own = [(variant, a) for a, setting, variant in zip(analyses, settings, variants) if setting == kind]
        named = list(dict.fromkeys(variant for variant, _ in own))
        own.sort(key=lambda pair: named.index(pair[0]))                 # seeds of a variant side by side
        for place, (variant, a) in enumerate(own):
            n, shift = named.index(variant), 0.7 * ((place + 0.5) / len(own) - 0.5)
            for at, name in zip(places, INTERVENTIONS):
                s = stats_of(a, name)
                if s is None:
                    continue
                p, low, high = (100 * s["delta_interval"][end] for end in ("point", "low", "high"))
                axis.plot([at + shift] * 2, [low, high], color=COLOURS[n % 7], lw=1.5)
                axis.plot(at + shift, p, MARKERS[n % 7], color=COLOURS[n % 7], ms=5)
        for n, variant in enumerate(named):
            axis.plot([], [], MARKERS[n % 7], color=COLOURS[n % 7], ms=5, label=variant)
        axis.axhline(0, color="black", lw=0.8)
        axis.set(title=kind, ylabel="Δ accuracy (points)")
        axis.margins(y=0.25)                    # room for the legend, below what is drawn
        axis.legend(fontsize=7, frameon=False, ncols=3, loc="lower left")
    axes[-1].set_xticks(places, INTERVENTIONS.values(), rotation=25, ha="right", fontsize=8)
    return drawn
