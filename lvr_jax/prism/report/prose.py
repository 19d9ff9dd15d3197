"""Writes the paragraph about a checkpoint: the verdict, the numbers behind it, and what they cannot show."""

from collections.abc import Mapping

from lvr_jax.prism.measure.corruptions import is_unfamiliar
from lvr_jax.prism.report.tables import cosine, number, pair, percent, probability, within


def paragraph(a: Mapping) -> list[str]:
    """Sentences, the verdict first. Each follows from numbers of the analysis; what n cannot show is named."""
    parts = (_verdict, _unfamiliar, _trigger, _sham, _gap, _alignment, _collapse, _sensitivity)
    told = [sentence for part in parts if (sentence := part(a))]
    return [told[0], *(a["verdict"] or {}).get("sentences", [""])[1:], *told[1:]]


def _verdict(a: Mapping) -> str:
    if a["verdict"] is None:
        return ("No verdict on the latents: the clean pass fed latents in fewer than two items, or no condition on "
                "their content was run.")  # fmt: skip
    return a["verdict"]["sentences"][0]


def _unfamiliar(a: Mapping) -> str:
    """The largest loss among conditions that cannot tell content from form."""
    found = {e["name"]: e["stats"] for e in a["conditions"] if e["stats"] and is_unfamiliar(e["name"])}
    lost = {name: s for name, s in found.items() if s["p_mcnemar_holm"] <= 0.05 and s["delta"] < 0}
    if not lost or a["verdict"] is None:
        return ""
    worst = min(lost, key=lambda name: lost[name]["delta"])
    points, p = number(-lost[worst]["delta"], 1, 100), probability(lost[worst]["p_mcnemar_holm"])
    return (f"Inputs that no latent ever was, or another format, cost up to {points} points ('{worst}', Holm p {p}). "
            "That alone shows that something has to stand in the latents' place, not that what stands there is read.")


def _trigger(a: Mapping) -> str:
    fed, n = a["clean"]["triggered"], a["items"]
    text = f"The model opened a latent block in {fed} of {n} items ({percent(fed / n, 0)} %)"
    if fed < n:
        return f"{text}; the verdict is about those, and accuracies over all items are diluted by the others."
    return f"{text}."


def _sham(a: Mapping) -> str:
    sham = a["sham"]
    if sham is None or not sham["items"]:
        return "No sham condition was run, so the instrument's own noise is not known."
    text = f"Feeding every item its own latents again changed {sham['flips']} of {sham['items']} answers"
    return f"{text}: that is the instrument's own noise (blocks after the first get the first one's latents)."


def _gap(a: Mapping) -> str:
    gap = pair(a, "gap")
    if gap is None:
        return f"No probe could be fitted: {pair(a, 'reason')}."
    base = pair(a, "baselines", "majority")
    last = pair(a, "logistic", "last_latent", "by_item")
    text = (f"The answer is decodable at (a) with {percent(pair(a, 'logistic', 'answer', 'accuracy'))} % and at (b) "
            f"with {percent(pair(a, 'logistic', 'last_latent', 'accuracy'))} %, a gap of {within(gap, sign=True)} "
            f"points on {pair(a, 'items')} items.")  # fmt: skip
    if gap["low"] is not None and gap["low"] <= 0 <= gap["high"]:
        text += " The interval of the gap includes 0: these items do not show one."
    if last and last["low"] is not None and last["low"] <= base["point"]:
        text += f" (b) is not shown to beat always guessing the commonest letter ({percent(base['point'])} %)."
    return text + " A probe says what is linearly decodable, not what is used; (a) is nearly the model's own answer."


def _alignment(a: Mapping) -> str:
    stages = list(a["alignment"].values())
    if not stages:
        return ""
    forced, free = cosine(a), cosine(a, "free_running")
    later = stages[-1].get("later", {})
    if later.get("free_running", {}).get("mean_cosine") is not None:
        text_later = (f" (without the first latent, which is the same both ways, "
                      f"{number(later['teacher_forced']['mean_cosine'], 3)} and "
                      f"{number(later['free_running']['mean_cosine'], 3)})")  # fmt: skip
    else:
        text_later = ""
    trivial = stages[-1]["trivial"]
    text = f"Cosine with the visual targets is {number(forced, 3)} teacher-forced and "
    text += f"{number(free, 3)} free-running" if free is not None else "unknown free-running: no such block was opened"
    text += text_later
    if trivial.get("dataset_mean") is not None:
        text += f"; the mean over other items, which knows no question, scores {number(trivial['dataset_mean'], 3)}"
    own = {name: trivial[name] for name in ("neighbour", "box_mean") if trivial.get(name) is not None}
    if own:
        best = max(own, key=lambda name: own[name])
        text += f", and a guess from the answer's own box ({best.replace('_', ' ')}) {number(own[best], 3)}"
    return text + "."


def _collapse(a: Mapping) -> str:
    found = [c for c in a["collapse"].values() if c.get("pairwise_cosine") is not None]
    if not found:
        return ""
    last = found[-1]
    return (f"Latents of different items have a mean cosine of {number(last['pairwise_cosine'], 3)} with each other, "
            f"and {number(last['participation_ratio'], 1)} directions in use.")  # fmt: skip


def _sensitivity(a: Mapping) -> str:
    found = a["sensitivity"]
    if not found or not found["elasticity"]:
        return ""
    largest = max(range(len(found["elasticity"])), key=found["elasticity"].__getitem__)
    return (f"Moving one latent by its own norm along the gradient would move the margin by "
            f"{number(found['elasticity'][largest], 2)} logits at most on average (latent {largest}, "
            f"{found['items']} items), to first order.")  # fmt: skip
