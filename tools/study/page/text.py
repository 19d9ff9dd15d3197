"""Writes the full study's page from its results alone: equal results give equal bytes.

Every sentence that states a result of the study is made of the numbers, so that none can disagree with them.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from lvr_jax.prism.report.paper import load_paper
from lvr_jax.prism.statistics.across_variants import pearson
from lvr_jax.prism.statistics.correlation_intervals import fisher
from lvr_jax.prism.statistics.intervals import Interval
from lvr_jax.prism.statistics.nested import detectable_correlation
from study.page import figures as drawn
from study.page import findings, judged, shared_section
from study.page.findings import Checkpoint, Line, average, recipes
from study.page.words import NOTHING, limits, listed, p_value, plural, signed, table

TITLE = "# Does cosine tell who answers? The full study"
WORDS = (judged.HELD, judged.FAILED, judged.UNDECIDED)
FIGURES = {"headline": "headline.svg", "dial": "dial.svg", "transplants": "transplants.svg"}


@dataclasses.dataclass(frozen=True)
class Block:
    """What one block of the study asks, and what came of it. planned: names of its runs; failed: name -> why."""

    name: str
    title: str
    question: str
    planned: tuple[str, ...]
    checkpoints: tuple[Checkpoint, ...]
    failed: Mapping[str, str]

    @property
    def begun(self) -> bool:
        """Whether there is a result of its own: until then it has those alone that an earlier block asked for."""
        return any(c.block == self.name for c in self.checkpoints)

    @property
    def missing(self) -> list[str]:
        done = {c.name for c in self.checkpoints} | set(self.failed)
        return [name for name in self.planned if name not in done]

    @property
    def systems(self) -> dict[str, tuple[Checkpoint, ...]]:
        """Checkpoints by what they were trained as (Checkpoint.system)."""
        return {name: tuple(c for c in self.checkpoints if c.system == name)
                for name in dict.fromkeys(c.system for c in self.checkpoints)}  # fmt: skip

    @property
    def rows(self) -> list[tuple[str, tuple[Checkpoint, ...]]]:
        """The same under the block's title, which alone is the name where there is one system."""
        alone = len(self.systems) == 1
        return [(self.title if alone else f"{self.title}: {name}", there) for name, there in self.systems.items()]

    @property
    def recipes(self) -> dict[str, list[Checkpoint]]:
        """Seeds by recipe, in the order that was planned, whichever of them failed."""
        order = list(dict.fromkeys(re.sub(r" seed \d+$", "", name) for name in self.planned))
        return dict(sorted(recipes(self.checkpoints).items(), key=lambda item: order.index(item[0])))


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What was written beforehand: the claim, the quantity in words, its bounds, and what estimates it at a level.

    checkpoints: units that the estimate rests on; waiting: runs that it is about and that have not ended. Until none is
    left nothing is decided, so that no verdict depends on when it was looked at.
    """

    block: str
    claim: str
    quantity: str
    low: float
    high: float
    estimate: Callable[[float], Interval | None]
    checkpoints: int
    waiting: int = 0

    def judged_on(self, level: float) -> Interval | None:
        """The estimate that a verdict may rest on."""
        return None if self.waiting else self.estimate(level)


# The page ------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Findings:
    """All that the page is made of.

    unplanned: titles of blocks that the design has and this study lacks
    lines: of the headline figure; panels: lines along lambda that are taken apart beside it; dial: along the share of
    the asked digit that is black; shared: what tools/transplant.py found (None: not run)
    """

    blocks: tuple[Block, ...]
    unplanned: tuple[str, ...]
    predictions: tuple[Prediction, ...]
    lines: tuple[Line, ...]
    panels: tuple[Line, ...]
    dial: Line
    shared: Mapping[str, Any] | None
    command: str

    @property
    def checkpoints(self) -> list[Checkpoint]:
        """Each once, in the order of blocks."""
        return list({c.name: c for block in self.blocks for c in block.checkpoints}.values())


def figures(found: Findings) -> dict[str, Figure]:
    """Name of the file -> figure, of what there are results for."""
    made = {}
    lines = [line for line in (with_measure(line, "cosine") for line in found.lines) if line.checkpoints]
    if lines:
        panels = [line for line in (with_measure(line, "blind") for line in found.panels) if line.checkpoints]
        made[FIGURES["headline"]] = drawn.headline(lines, load_paper(), panels)
    if found.dial.checkpoints:
        made[FIGURES["dial"]] = drawn.dose(found.dial, DIAL, "share of the asked digit that is black")
    pair = shared_section.shown_pair(found.shared)
    if found.shared and pair:
        made[FIGURES["transplants"]] = drawn.transplants(found.shared["transplants"], *pair)
    return made


def with_measure(line: Line, measure: str) -> Line:
    """The line without checkpoints that lack a measure."""
    return dataclasses.replace(line, checkpoints=tuple(c for c in line.checkpoints if c.measure(measure) is not None))


# What is drawn against the dial: points of accuracy.
DIAL = {
    "more answers that are the donor's": "follows donor_directed", "another item's latents": "delta donor_directed",
    "oracle latents": "delta oracle", "through the latents": "through",
}  # fmt: skip


def page(found: Findings) -> str:
    """The page as Markdown."""
    judgements = judged.judge([p.judged_on for p in found.predictions], [(p.low, p.high) for p in found.predictions])
    parts = [
        _opening(found), _short(found, judgements), _run(found), _predictions(found, judgements), _relations(found),
        _decomposition(found),
        *(_block(found, block) for block in found.blocks if block.begun),
        shared_section.section(found.shared, FIGURES["transplants"]), _limits(found), _method(found),
    ]  # fmt: skip
    return "\n\n".join(part for part in parts if part) + "\n"


def _opening(found: Findings) -> str:
    paper = load_paper()
    published = fisher(float(pearson(paper.columns["cosine"], paper.columns["vstar"])), len(paper.variants))
    said = [
        TITLE,
        f"The paper's five checkpoints give r = {limits(published)} between accuracy and the cosine of latents with "
        "their visual targets (Fisher's interval over checkpoints). Here the same is asked of "
        f"{plural(len(found.checkpoints), 'checkpoint')} of {_bases(found)}, in blocks in each of which one thing "
        "varies. The unit is a trained checkpoint: intervals are over training seeds and recipes, not over questions, "
        "unless they say so.",
    ]
    if any(c.cosine is not None for line in found.lines for c in line.checkpoints):
        said += [f"![Accuracy against cosine, by what varies]({FIGURES['headline']})", _caption(found)]
    return "\n\n".join(said)


def _bases(found: Findings) -> str:
    count = len({c.axes.get("base") for c in found.checkpoints})
    return "one small base" if count <= 1 else f"{count} small bases"


def _short(found: Findings, judgements: Sequence[judged.Judgement]) -> str:
    """The predictions by what became of them, in their own words, with their estimates."""
    said, total = [], len(judgements)
    told = [(f"*{p.block}*: {p.claim} ({p.quantity} {limits(j.interval)}", j)
            for p, j in zip(found.predictions, judgements)]  # fmt: skip
    for word in (judged.HELD, judged.FAILED):
        claims = [f"{claim})" for claim, j in told if j.stands == word]
        if claims:
            said.append(f"- **{word[0].upper()}{word[1:]}**, {len(claims)} of {total}: " + " ".join(claims))
    alone = [f"{claim}: {j.verdict})" for claim, j in told if j.stands == judged.UNDECIDED != j.verdict]
    if alone:
        said.append(f"- **Decided by its own interval alone**, not once all are corrected, {len(alone)} of {total}: "
                    + " ".join(alone))  # fmt: skip
    left = sum(j.stands == j.verdict == judged.UNDECIDED for j in judgements)
    waiting = sum(bool(p.waiting) for p in found.predictions)
    if left:
        still = f" ({waiting} of them wait for runs)" if waiting else ""
        said.append(f"- **Undecided**, {left} of {len(judgements)}{still}: the table below has them.")
    return "\n".join(["## In short", "", "What was predicted before the first run, corrected for asking all of it "
                      "together:", "", *said]) if said else ""  # fmt: skip


def _caption(found: Findings) -> str:
    lines = [line for line in (with_measure(line, "cosine") for line in found.lines) if line.checkpoints]
    each = "; ".join(f"{line.label} r = {limits(findings.related(line.checkpoints))} (n = {len(line.checkpoints)})"
                     for line in lines)  # fmt: skip
    return (
        "*Small points are checkpoints, large ones means over a recipe's seeds; a line joins the recipes in which one "
        "thing varies. Hollow: the paper's five, on V\\*. Right: accuracy by lambda, as the answer gives it blind to "
        "its latents and their opening marker, and what these add or take; rhombs: with the marker and without "
        f"latents.* Along each line: {each}."
    )


def _run(found: Findings) -> str:
    rows = [(b.title, *(str(len(each)) for each in (b.planned, b.checkpoints, b.failed, b.missing)))
            for b in found.blocks]  # fmt: skip
    lines = []
    for b in found.blocks:
        if b.failed:
            why = "; ".join(f"`{name}` ({reason})" for name, reason in b.failed.items())
            lines.append(f"- Block {b.name}, failed: {why}.")
        if b.missing:
            whole = " (all of it)" if len(b.missing) == len(b.planned) else ""
            lines.append(f"- Block {b.name}, not run{whole}: {listed(b.missing)}.")
    if found.shared is None:
        lines.append("- Shared parameters (latents and weights moved between checkpoints): not run.")
    lines += [f"- Designed, without runs in this study: {title}." for title in found.unplanned]
    done, planned = (sum(len(getattr(b, which)) for b in found.blocks) for which in ("checkpoints", "planned"))
    return "\n".join([
        "## What was run", "",
        f"{done} of {planned} runs are done; one that several blocks ask for is counted in each.", "",
        table(("block", "planned", "done", "failed", "not run"), rows), "",
        *(lines or ["Every planned run is done; none failed."]),
    ])  # fmt: skip


def _predictions(found: Findings, judgements: Sequence[judged.Judgement]) -> str:
    if not found.predictions:
        return ""
    rows = [
        (p.block, p.claim, p.quantity, _bounds(p.low, p.high), str(p.checkpoints),
         f"{limits(p.estimate(0.95))} so far" if p.waiting and p.checkpoints else limits(j.interval),
         f"**{j.verdict}**", NOTHING if math.isnan(j.holm) else p_value(j.holm).removeprefix("= "), j.stands)
        for p, j in zip(found.predictions, judgements)
    ]  # fmt: skip
    alone, together = (", ".join(f"{sum(getattr(j, field) == word for j in judgements)} {word}" for word in WORDS)
                       for field in ("verdict", "stands"))  # fmt: skip
    head = ("block", "prediction", "quantity", "bound", "n", "estimate", "verdict", "p (Holm)", "corrected")
    return "\n\n".join([
        "## What was predicted, and whether it held",
        f"Written down with their bounds before the first run. Of {len(judgements)}, {alone}; corrected for asking all "
        f"of them (Holm), {together}. A prediction has held if the whole 95 % interval lies within its bounds, has "
        "failed if all of it lies outside, and is undecided otherwise, or where there are too few checkpoints. While "
        "runs that it is about are missing it is undecided, too, whatever the others say so far.",
        table(head, rows, 4),
    ])  # fmt: skip


def _bounds(low: float, high: float) -> str:
    if math.isinf(low):
        return f"below {high:g}".replace("-", "−")
    if math.isinf(high):
        return f"above {low:g}".replace("-", "−")
    return f"{low:g} to {high:g}".replace("-", "−")


def _relations(found: Findings) -> str:
    """r and slopes inside blocks and between them, side by side."""
    whole = [c for c in found.checkpoints if c.is_whole]
    known, model = findings.by_group(whole), findings.modelled(whole)
    if known is None:
        return ""
    rows = []
    for title, there in (row for block in found.blocks if block.begun for row in block.rows):
        if known_there := findings.pairs(there, "cosine", "accuracy"):
            rows.append((title, str(len(known_there)), limits(findings.related(there))))
    rows += [("**inside blocks** (about their means)", str(known.checkpoints), f"**{limits(known.within)}**"),
             ("**between blocks** (their means)", str(known.blocks), f"**{limits(known.between)}**")]  # fmt: skip
    inside, between = (detectable_correlation(n) for n in (known.checkpoints - known.blocks + 1, known.blocks))
    said = [
        "## Cosine and accuracy, inside blocks and between them", table(("", "n", "r of cosine and accuracy"), rows),
        f"{plural(known.checkpoints, 'checkpoint')} in {plural(known.blocks, 'block')} would tell |r| = {inside:.2f} "
        f"inside blocks from none with 80 % power, and {between:.2f} between them. A checkpoint of several blocks "
        "counts in each of their rows, and once, in its first, below; settings inside a block count as blocks; earlier "
        "states of a run count in their block's row alone. No correlation over all of them together is given: it would "
        "mix the two.",
    ]
    if model is not None:
        among = "" if model.between is None else f", between blocks {limits(_tenth(model.between))}"
        said.append(
            "A mixed model (accuracy on cosine, random intercepts of blocks and of the recipes in them, REML) gives "
            f"for 0.1 of cosine {limits(_tenth(model.within))} points of accuracy inside blocks (p "
            f"{p_value(model.p_within)}){among}.{' A variance was estimated as zero.' if model.at_bound else ''}"
            f"{'' if model.converged else ' The fit did not converge.'}"
        )
    return "\n\n".join(said)


def _tenth(interval: Interval) -> Interval:
    return Interval(*(each / 10 for each in (interval.point, interval.low, interval.high)))


def _decomposition(found: Findings) -> str:
    """Where a change of accuracy comes from, block by block."""
    rows = []
    for title, every in (row for b in found.blocks if b.begun for row in b.rows):
        there = [c for c in every if c.blind is not None]
        share = findings.carried(there)
        if share is None:
            continue
        spread = max(c.accuracy for c in there) - min(c.accuracy for c in there)
        rows.append((title, str(len(there)), f"{spread:.1f}", limits(share),
                     limits(findings.carried(there, "through"))))  # fmt: skip
    if not rows:
        return ""
    return "\n".join([
        "## Accuracy in two parts", "",
        "Accuracy is what the answer gives blind to its latents (attention to them closed, everything else as it is) "
        "plus what comes through them, exactly and checkpoint by checkpoint. The share of a block's change that each "
        "part carries is its slope on accuracy; the two sum to one. Where accuracy hardly varies, the shares say "
        "nothing, and their intervals show it.", "",
        "The marker that opens a block counts with its latents here, as in the mask of the bottleneck: it sees the "
        "picture, and can carry an answer alone. What an answer loses when the latents are *removed* and the marker "
        "stays, in the tables below, it needed latents for; the rest of what comes through the block needs the marker "
        "alone. *Another item's* latents may cost more than none: they argue for something else.", "",
        table(("block", "n", "accuracy varies by, points", "carried blind", "carried through the block"), rows),
    ])  # fmt: skip


# Column -> measure, digits, whether it is a change and has a sign.
COLUMNS = {
    "accuracy": ("accuracy", 1, False), "cosine": ("cosine", 3, False), "blind": ("blind", 1, False),
    "through the block": ("through", 1, True), "another item's": ("delta donor_directed", 1, True),
    "says the donor's": ("follows donor_directed", 1, True), "removed": ("delta markers_only", 1, True),
    "oracle": ("delta oracle", 1, True),
}  # fmt: skip


def _block(found: Findings, block: Block) -> str:
    rows = []
    for recipe, seeds in block.recipes.items():
        means = {measure: average(seeds, measure) for measure, _, _ in COLUMNS.values()}
        accuracy, blind, through = (means[part] for part in ("accuracy", "blind", "through"))
        if accuracy and blind and through:
            means["through"] = _rest(accuracy, blind, through)
        cells = [limits(means[measure], digits, sign).removesuffix(" [one seed]")
                 for measure, digits, sign in COLUMNS.values()]  # fmt: skip
        rows.append((f"`{recipe}`", str(len(seeds)), *cells))
    said = [
        f"## {block.title[0].upper()}{block.title[1:]}", block.question, _told(block),
        table(("recipe", "seeds", *COLUMNS), rows),
        "Means over seeds with 95 % t intervals (none for one seed), by the content of the answer: accuracy, and "
        "points of accuracy gained or lost; *says the donor's*: points by which more answers are what another item's "
        "latents argue for.",
    ]  # fmt: skip
    if found.dial.checkpoints and all(c in block.checkpoints for c in found.dial.checkpoints):
        said.append(f"![The dial: points of accuracy against the share of the digit that is black]({FIGURES['dial']})")
    return "\n\n".join(part for part in said if part)


def _rest(accuracy: Interval, blind: Interval, through: Interval) -> Interval:
    """`through` with its point rounded so that the printed parts sum to the printed accuracy."""
    return dataclasses.replace(through, point=round(accuracy.point, 1) - round(blind.point, 1))


def _told(block: Block) -> str:
    """The block in one sentence, of its numbers."""
    every, known = block.checkpoints, findings.pairs(block.checkpoints, "cosine", "accuracy")
    low, high = (least(c.accuracy for c in every) for least in (min, max))
    said = [f"Accuracy lies between {low:.1f} and {high:.1f} %"]
    if known:
        less, more = (f"{least(x for _, x, _ in known):.2f}".replace("-", "−") for least in (min, max))
        if len(block.systems) == 1:
            r = limits(findings.related(every))
        else:
            by_system = {name: findings.related(there) for name, there in block.systems.items()}
            r = ", ".join(f"{limits(value)} ({name})" for name, value in by_system.items() if value) or NOTHING
        said.append(f"cosine between {less} and {more}, and their correlation is {r} over "
                    f"{plural(len(known), 'checkpoint')}")  # fmt: skip
    parts = [(c.through, c.name) for c in every if c.through is not None]
    if parts:
        most, name = max(parts, key=lambda part: abs(part[0]))
        said.append(f"through the block of latents come at most {abs(most):.1f} points in size ({signed(most)} in "
                    f"`{name}`)")  # fmt: skip
    shares = {kind: [100 * c.kinds[kind][1] / c.kinds[kind][0] for c in every if kind in c.kinds]
              for kind in dict.fromkeys(kind for c in every for kind in c.kinds)}  # fmt: skip
    if len(shares) > 1:
        said.append("by kind of question accuracy lies between " + ", ".join(
            f"{min(each):.1f} and {max(each):.1f} % ({kind})" for kind, each in shares.items()))  # fmt: skip
    return "; ".join(said) + "."


# The end -------------------------------------------------------------------------------------------------------------


def _limits(found: Findings) -> str:
    seeds = sorted({c.seed for c in found.checkpoints})
    single = [recipe for b in found.blocks for recipe, each in b.recipes.items() if len(each) == 1]
    points = [
        f"{_bases(found).capitalize()} of 1.24 million parameters and drawn scenes, with one kind of question each: "
        "signs and mechanisms, not sizes that would carry over to a network of billions.",
        f"{plural(len(seeds), 'training seed')} ({', '.join(map(str, seeds))}) and one set of held-out scenes. "
        "Intervals over so few seeds are wide, and an undecided prediction is no evidence against it.",
        *([f"One seed alone, and so no interval: {listed(single)}."] if single else []),
        "Fisher's intervals take checkpoints as independent. Seeds of one recipe are alike, so that intervals inside a "
        "block are somewhat too narrow; the mixed model is the one that knows of recipes.",
        *(["States of one run are more alike still: intervals of r in time are of that many checkpoints, and of far "
           "fewer runs."] if any(not c.is_whole for c in found.checkpoints) else []),
        "All runs have one optimizer, the study's own (configs/full_study.py). Nothing here says how the same would "
        "come out with the one that the tiny configs have today, which moves cosine and the bottleneck further in as "
        "many steps.",
        "Closing attention to the latents is an intervention, too: answers were trained with the latents in sight. And "
        "it leaves one way open: the token right after the block is picked at the last latent itself. Another item's "
        "latents, which change that token too, tell where this matters.",
        "Cosine is that of teacher-forced latents, as the paper's. The paper's five points are of another network and "
        "another benchmark: drawn to be seen beside these, not pooled with them.",
    ]
    return "\n".join(["## What this does not show", "", *(f"- {point}" for point in points)])


def _method(found: Findings) -> str:
    spent = [c.seconds for c in found.checkpoints if c.seconds is not None]
    took = f" The checkpoints on it took {sum(spent) / 3600:.1f} hours of processor time." if spent else ""
    return "\n".join([
        "## How it was made", "", f"    {found.command}", "",
        "trains, audits and writes this page; with `--config.only=report` the page alone, from the results beside it, "
        f"byte for byte the same.{took}",
    ])  # fmt: skip
