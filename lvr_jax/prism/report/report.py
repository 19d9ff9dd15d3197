"""Writes what a reader gets of an audit: one HTML page, and the same as PNG, PDF, CSV and JSON.

    report.html           everything, in one file that needs no network
    report.json           the analyses of all checkpoints
    figures/*.png, *.pdf  items of the gallery as png alone
    tables/*.csv          answers-NAME.csv: every item under every condition
"""

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence

from etils import epath
from matplotlib.figure import Figure

from lvr_jax.checkpoints.errors import disk_full_is_one_line
from lvr_jax.files.csv_io import to_csv
from lvr_jax.files.names import file_name
from lvr_jax.files.whole_file import write_whole
from lvr_jax.prism.audit import Audit
from lvr_jax.prism.measure.corruptions import is_content
from lvr_jax.prism.report import (
    certainty,
    figures,
    gallery,
    interventions,
    page,
    prose,
    replicates,
    setting_comparison,
    tables,
)
from lvr_jax.prism.report.paper import load_paper
from lvr_jax.prism.report.tables import Table, number

METHOD = (
    "An answer's content is the word that a reply gives before its letter, or, where replies have letters alone, the "
    "text of the option that the letter picks. Letters are drawn anew for every question: neither box nor latent can "
    "hold one, and copying it is a skill of its own.",
    "Conditions are paired with clean item by item: exact McNemar tests, Tango's interval of the difference, Holm over "
    "all conditions of a checkpoint. Margins (of the gold letter's logit) are shown and enter no verdict.",
    "Two questions have two verdicts, in points of accuracy of the content over the items in which latents were fed. "
    "Does the answer listen to what stands in the latents' place (oracles, a wrong box, other answers' latents)? Do "
    "the model's own latents carry anything (against other content of the same kind)? Whether the answer can do "
    "without them says the condition that hides them. Intervals hold for all of a verdict's comparisons together "
    "(max-t bootstrap), so that the largest effect may be singled out.",
    "“No” and “ignored” mean that an effect of a quarter of what could be lost or gained is excluded, not that there "
    "is none. A clean run that is not clearly above chance and above always giving the commonest answer has nothing "
    "that could be lost.",
    "Zeros, random directions and strong noise are off the manifold of latents, and removal changes the format: what "
    "they cost is no evidence that content is read, and does not enter the verdict.",
    "Probes show what is linearly decodable, not what is used. Control labels and baselines say what a probe scores "
    "without reading.",
    "Teacher-forced cosine sees the targets as inputs; free-running cosine is what the answer is made with.",
    "First-order sensitivity is local: where measured spread leaves the line, the margin is not linear in the latents.",
    "One benchmark; where a variant has one training run, differences between variants may be differences of seeds.",
)


def write(
    audits: Sequence[Audit], analyses: Sequence[Mapping], folder, *, title: str = "", settings: Sequence[str] = (),
    variants: Sequence[str] = (), lead: Sequence[Table] = (),
) -> epath.Path:  # fmt: skip
    """Writes the whole report into `folder`; returns the page's path. Each file is there completely or not at all.

    settings: of each checkpoint, where there are several: they are compared first. variants: of each checkpoint, where
    some are training seeds of one. The paper's tables and figures are of the first setting, a seed a variant. lead:
    tables that stand before all others.
    """
    folder, paper = epath.Path(folder), load_paper()
    files = _Files(folder)
    settings = settings or [""] * len(analyses)
    variants = variants or [a["name"] for a in analyses]
    before, across = list(lead), []
    if len(set(settings)) > 1:
        before.append(setting_comparison.table(analyses, settings))
        across.append(_picture(files, "settings", setting_comparison.figure(analyses, settings, variants),
                               setting_comparison.CAPTION))
    if (table := interventions.crossed(analyses)) is not None:
        before.append(table)
    in_first = [n for n, setting in enumerate(settings) if setting == settings[0]]
    several, names = [analyses[n] for n in in_first], [variants[n] for n in in_first]
    first = [several[n] for n in replicates.first_seeds(names)]
    if len(set(variants)) < len(variants):
        before += [replicates.spread(analyses, variants), replicates.correlations(several, names)]
    shared = figures.of_paper(first, paper) | {"sigma-curve": figures.sigma_curve(first)}
    common = [*tables.of_paper(first, paper), certainty.table(first, paper)]
    shown = [_picture(files, key, figure, figures.CAPTIONS[key]) for key, figure in shared.items() if figure]
    checkpoints = [_checkpoint(files, audit, analysis) for audit, analysis in zip(audits, analyses)]
    own = tables.of_the_papers_own(paper)
    for table in (*before, *common, *own):
        files.put(f"tables/{table.key}.csv", table_csv(table))
    files.put("report.json", json.dumps(list(analyses), indent=1) + "\n")
    one = analyses[0]
    html = page.render(
        title=title or "PRISM: " + ", ".join(a["name"] for a in analyses),
        subtitle=f"{one['items']} items of {one['benchmark']}, protocol {one['protocol']['name']}; "
                 f"{len(one['conditions'])} conditions beside the clean pass.",
        before=before, across=across, figures=shown, tables=common, paper=own, checkpoints=checkpoints, method=METHOD,
    )  # fmt: skip
    return files.put("report.html", html)


def _checkpoint(files: "_Files", audit: Audit, a: Mapping) -> dict:
    name, anchor = a["name"], slug(a["name"])
    drawn = {key: make(a) for key, make in {**figures.OF_CHECKPOINT, **interventions.FIGURES}.items()}
    captions = figures.CAPTIONS | interventions.CAPTIONS
    made = [*tables.of_checkpoint(a), *filter(None, (make(a) for make in interventions.TABLES))]
    own = [dataclasses.replace(t, key=slug(t.key)) for t in made]
    for table in own:
        files.put(f"tables/{table.key}.csv", table_csv(table))
    files.put(f"tables/answers-{anchor}.csv", answers_csv(a))
    latents = ", ".join(f"{n} {stage}" for stage, n in a["latents"].items())
    clean = a["clean"]
    return {
        "name": name, "anchor": anchor, "kind": a["verdict"]["kind"] if a["verdict"] else "no verdict",
        "paragraph": prose.paragraph(a), "notes": a["notes"], "tables": own,
        "about": f"System {a['system']}, budget {latents}; clean accuracy "
                 f"{tables.within(clean['accuracy'])} %{_letter(clean)}, chance {tables.percent(clean['chance'])} %, "
                 f"always the commonest answer {tables.percent(clean['majority'])} %; latents in "
                 f"{clean['triggered']} of {a['items']} items, {clean['unreadable']} without a readable answer.",
        "figures": [_picture(files, f"{key}-{anchor}", figure, captions[key])
                    for key, figure in drawn.items() if figure],
        "gallery": [_item(files, audit, a, index) for index in a["gallery"]],
    }  # fmt: skip


def _letter(clean: Mapping) -> str:
    """What the letters of a format with words add to its accuracy."""
    if not clean["worded"]:
        return ""
    return (f" by content, {tables.within(clean['letter'])} % by letter, which is that of the reply's own word in "
            f"{tables.percent(clean['follows'])} %")  # fmt: skip


def _item(files: "_Files", audit: Audit, a: Mapping, index: int) -> dict:
    answer = a["answers"][index]
    figure = gallery.draw(audit.items, index, audit.folder / "capture", answer["latents"])
    caption = f"Item {answer['id']}: image, box, and the image tokens nearest to each latent."
    key = f"item-{slug(a['name'])}-{file_name(answer['id'])}"
    content, margin = answer["content"], answer["margin"] or {}
    rows = [{"name": c, "answer": content[c], "letter": answer["letter"][c] if a["clean"]["worded"] else "",
             "right": answer["right"][c], "margin": number(margin.get(c), 2, sign=True)}
            for c in content if c not in answer["missing"]]  # fmt: skip
    changed = sum(is_content(c) and content[c] != content["clean"] for c in content)
    return {
        "id": answer["id"], "gold": answer["gold_content"], "clean": content["clean"], "changed": changed,
        "conditions": rows,
        "question": audit.items.benchmark[index].question, "reply": answer["reply"],
        "figure": _picture(files, key, figure, caption, kind="webp"),
    }  # fmt: skip


def _picture(files: "_Files", key: str, figure: Figure, caption: str, kind: str = "svg") -> dict:
    """Draws a figure in every format it is kept in: svg in the page, with png and pdf as files.

    Photographs are webp in the page, a tenth of the size, with png as a file.
    """
    drawn = {each: page.image_bytes(figure, each) for each in (kind, "png", *(("pdf",) if kind == "svg" else ()))}
    for each in drawn.keys() - {kind}:
        files.put(f"figures/{key}.{each}", drawn[each])
    return {"key": key, "caption": caption, "source": page.inline(drawn[kind], kind)}


def slug(name: str) -> str:
    """A name as a file name and as an anchor."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-.") or "checkpoint"


def table_csv(table: Table) -> str:
    """A table as CSV, each row marked as this run's or published."""
    rows = [("source", *table.columns)]
    first = len(table.rows) if table.published is None else table.published
    rows += [("run" if n < first else "published", *row) for n, row in enumerate(table.rows)]
    return to_csv(rows)


def answers_csv(a: Mapping) -> str:
    """A line an item and condition: content and letter, whether they are right and agree, margin, the donor of the
    latents with its right answer, and the reply, in which what does not print is escaped, so that lines stay lines."""
    rows = [("id", "category", "gold", "gold_content", "condition", "content", "right", "letter", "letter_right",
             "follows", "readable", "changed", "margin", "missing", "donor", "donor_content", "donor_letter",
             "reply")]  # fmt: skip
    flag = lambda value: "" if value is None else int(value)  # noqa: E731
    gold = {answer["id"]: (answer["id"], answer["gold_content"], answer["gold"]) for answer in a["answers"]}
    for answer in a["answers"]:
        margin = answer["margin"] or {}
        rows += [(answer["id"], answer["category"], answer["gold"], answer["gold_content"], c, content,
                  *(flag(answer[key][c]) if key != "letter" else answer[key][c]
                    for key in ("right", "letter", "letter_right", "follows", "readable")),
                  int(c in answer["replies"]), "" if margin.get(c) is None else f"{margin[c]:.6g}",
                  int(c in answer["missing"]), *gold.get(answer["donors"].get(c), ("", "", "")),
                  _printable(answer["replies"].get(c, answer["reply"])))
                 for c, content in answer["content"].items()]  # fmt: skip
    return to_csv(rows)


def _printable(text: str) -> str:
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


class _Files:
    """Writes under one folder, each file under a temporary name first."""

    def __init__(self, folder: epath.Path):
        self.folder = folder

    def put(self, name: str, content: str | bytes) -> epath.Path:
        path = self.folder / name
        with disk_full_is_one_line(self.folder):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, content)
        return path
