"""The report says what the analysis says, beside what was published, and stays one self-contained page."""

import base64
import csv
import io
import re
from urllib.parse import unquote
from xml.etree import ElementTree

import numpy as np
import pytest

from lvr_jax.latents import conditions as cond
from lvr_jax.prism.audit import curve, knock_outs, plain
from lvr_jax.prism.measure import corruptions
from lvr_jax.prism.outcomes import Outcomes, effects, verdict
from lvr_jax.prism.probes import readout
from lvr_jax.prism.report import certainty, figures, page, prose, replicates, report, setting_comparison, tables
from lvr_jax.prism.report.paper import contradictions, derived_numbers, load_paper
from lvr_jax.prism.verdict import IGNORED, PARTLY, USES

I, CONDITIONS = 120, ("clean", "zero", "noise_0.1", "noise_0.3", "noise_1", "donor_paper", "self", "zero@0", "zero@1")
HOW = {"level": 0.95, "draws": 300, "seed": 0}


def found(lost: float = 0.0, seed: int = 0, missing=(), unfamiliar: float | None = None) -> Outcomes:
    """Outcomes in which every content condition flips a share of the right answers, and so do unfamiliar inputs."""
    rng = np.random.default_rng(seed)
    right = np.tile(rng.random(I) < 0.8, (len(CONDITIONS), 1))
    margin = np.where(right, 2.0, -2.0) + rng.normal(0, 0.3, (1, I))
    for c, name in enumerate(CONDITIONS):
        share = lost if corruptions.is_content(name) or unfamiliar is None else unfamiliar
        if corruptions.is_content(name) or corruptions.is_unfamiliar(name):
            flipped = right[0] & (rng.random(I) < share)
            right[c] &= ~flipped
            margin[c] -= 4.0 * flipped
    gone = np.zeros(right.shape, bool)
    for name in missing:
        gone[CONDITIONS.index(name), :40] = True
    word, letter = np.where(right, "red", "blue").astype(object), np.where(right, "A", "B").astype(object)
    reply = word + " <answer> " + letter + " </answer>"
    return Outcomes(CONDITIONS, right, word, right.copy(), letter, np.ones(right.shape), np.ones(right.shape, bool),
                    reply, margin, gone, np.full(right.shape, 4), worded=True)  # fmt: skip


def analysis(name: str = "tiny", outcomes: Outcomes | None = None, seed: int = 0) -> dict:
    """What an audit writes of them, with everything that a small model may lack left out."""
    outcomes = found() if outcomes is None else outcomes
    return plain({
        "name": name, "checkpoint": "folder", "system": "lvr", "benchmark": "set", "items": I, "protocol":
        {"name": "clean"}, "latents": {"lvr": 4}, "notes": ["something to know"],
        "clean": {"accuracy": {"point": float(outcomes.right[0].mean()), "low": 0.7, "high": 0.9}, "by_category": {},
                  "letter": {"point": float(outcomes.letter_right[0].mean()), "low": 0.7, "high": 0.9}, "worded": True,
                  "follows": 1.0, "chance": 0.25, "majority": 0.3, "triggered": I, "answered": I, "unreadable": 0,
                  "latents_fed": 4.0, "tagged": I},
        "conditions": effects(outcomes, **HOW), "verdict": verdict(outcomes, 0.25, **HOW),
        "sham": {"items": I, "flips": 0, "margin_moved": 0.0},
        "probes": {"grid": {"answer": {"items": 3, "without": 0, "reason": "too few"}},
                   "pair": {"items": 3, "dropped": 0, "reason": "too few"}},
        "alignment": {}, "collapse": {"lvr": {"items": 0}}, "sensitivity": None, "attention": None, "answers": [
            {"id": "item0", "category": "", "gold": "A", "gold_content": "red", "latents": 4, "reply": "red A",
             "replies": {"zero": "blue\nA"}, "missing": ["zero"], "content": {"clean": "red", "zero": "blue"},
             "right": {"clean": True, "zero": False}, "letter": {"clean": "A", "zero": "A"},
             "letter_right": {"clean": True, "zero": True}, "follows": {"clean": 1.0, "zero": 0.0},
             "readable": {"clean": True, "zero": True}, "margin": None, "donors": {}}],
        "gallery": [],
    })  # fmt: skip


def answers_of(outcomes: Outcomes) -> list[dict]:
    """What correlations read of them."""
    both = zip(outcomes.right.T.tolist(), outcomes.letter_right.T.tolist())
    return [{"right": dict(zip(CONDITIONS, r)), "letter_right": dict(zip(CONDITIONS, w))} for r, w in both]


@pytest.fixture(scope="module")
def paper():
    return load_paper()


def rows_of(table) -> dict[str, dict[str, str]]:
    return {row[0]: dict(zip(table.columns, row)) for row in table.rows}


def test_the_papers_tables_hold_this_run_beside_the_published_values(paper):
    run = analysis("tiny", found(0.3))
    first = rows_of(tables.table_1([run], paper))
    assert first["LVR"]["letter"] == first["LVR"]["accuracy"] == "70.2"
    assert first["LVR"]["cosine"] == "0.555" and first["P-LVR-3"]["σ = 0.3"] == "+4.2"
    stats = next(e["stats"] for e in run["conditions"] if e["name"] == "zero")
    assert first["tiny"]["zero"] == f"−{abs(100 * stats['delta']):.1f}"
    assert first["tiny"]["(a)"] == tables.NOTHING                     # a probe that could not be fitted is not a 0
    fourth = rows_of(tables.table_4([run], paper))
    low, high = stats["delta_interval"]["low"], stats["delta_interval"]["high"]
    letter = f"−{abs(100 * stats['delta']):.1f}"                      # letters of these outcomes go with the words
    assert fourth["tiny"]["zero"].endswith(f"[−{abs(100 * low):.1f}, −{abs(100 * high):.1f}]; {letter}")
    assert fourth["P-LVR-2"]["clean"] == "55.5"
    third = rows_of(tables.table_3([run], paper))
    assert third["N-LVR"]["(b)"] == "41.9 ± 3.9" and third["D-LVR"]["majority"] == "37.2"


def test_correlations_need_three_checkpoints(paper):
    two, three = ([analysis(f"m{n}", found(0.1 * n, seed=n)) for n in range(k)] for k in (2, 3))
    for a, cosine in zip(three, (0.1, 0.5, 0.9)):
        a["alignment"] = {"lvr": {"teacher_forced": {"mean_cosine": cosine}}}
    assert all(row[2] == tables.NOTHING for row in tables.table_2(two, paper).rows)
    row = next(r for r in tables.table_2(three, paper).rows if r[:2] == ("cosine", "zero"))
    deltas = [tables.delta(a, "truncate") for a in three]
    assert row[2].replace("−", "-") == f"{np.corrcoef((0.1, 0.5, 0.9), deltas)[0, 1]:+.2f}" and row[5] == "+0.75"
    pairs = [row[:2] for row in tables.table_2(three, paper).rows]
    assert len(pairs) == len(set(pairs))


def test_a_correlation_over_effects_of_a_handful_of_items_is_marked(paper):
    runs = [analysis(f"m{n}", found(0.0, seed=n)) for n in range(3)]
    for a, (cosine, lost) in zip(runs, ((0.1, 1), (0.5, 3), (0.9, 5))):
        a["alignment"] = {"lvr": {"teacher_forced": {"mean_cosine": cosine}}}
        e = next(e for e in a["conditions"] if e["name"] == "zero")
        e["stats"] |= {"lost": lost, "gained": 0, "delta": -lost / I}
    r = lambda: next(row for row in tables.table_2(runs, paper).rows if row[:2] == ("cosine", "zero"))[2]  # noqa: E731
    assert r() == "−1.00 †"
    next(e for e in runs[0]["conditions"] if e["name"] == "zero")["stats"]["lost"] = 6
    assert r() == "−1.00"


def test_the_papers_statements_and_numbers_stand_beside_its_own_tables(paper):
    claims, derived = tables.of_the_papers_own(paper)
    assert [row[3] for row in claims.rows] == ["no"] * len(contradictions(paper)) and len(claims.rows) == 6
    assert "cosine ranks the variants backwards" in claims.rows[0][0] and "cosine 0.73" in claims.rows[0][2]
    assert [row[4] for row in derived.rows] == ["yes"] * len(derived_numbers(paper))


def test_alignment_is_told_by_latent_and_on_the_same_latents():
    way = lambda cosine: {"items": 3, "mean_cosine": cosine, "mean_mse": 1.0, "mean_norm_ratio": 1.0}  # noqa: E731
    run = analysis()
    run["alignment"] = {"lvr": {
        "items": 3, "teacher_forced": way(0.43), "free_running": way(0.42), "retrieval_teacher_forced": {},
        "retrieval_free_running": {"R@1": 0.098}, "retrieval_matched": {"R@1": 0.13},
        "matched": {"teacher_forced": way(0.44)}, "later": {"teacher_forced": way(0.39), "free_running": way(0.34)},
        "by_latent": [{"latent": 0, "items": 3, "teacher_forced": 0.472, "free_running": 0.472}],
        "trivial": {"neighbour": 0.422, "box_mean": 0.432, "dataset_mean": 0.124}, "collapse_of_targets": {},
    }}  # fmt: skip
    rows = {row[1]: row for row in tables.alignment(run).rows}
    assert rows["free-running"][6] == "9.8" and rows["free-running, as many as the box has"][6] == "13.0"
    later = [rows[f"{way}, without the first"][3] for way in ("teacher-forced", "free-running")]
    assert later == ["0.390", "0.340"]
    assert "guess: mean of the answer's box" in rows and "guess: mean over other items" in rows
    assert tables.alignment_by_latent(run).rows == (("lvr, latent 0", "3", "0.472", "0.472"),)
    text = " ".join(prose.paragraph(run))
    assert "the mean over other items, which knows no question, scores 0.124" in text
    assert "a guess from the answer's own box (box mean) 0.432" in text


def test_the_capacity_ladder_is_shown():
    run = analysis()
    rung = {"kind": "pca", "size": 4, "alpha": 1.0, "accuracy": 0.5, "control": 0.3, "selectivity": 0.2}
    run["probes"]["pair"]["ladder"] = {"answer": [rung], "last_latent": [rung]}
    assert tables.capacity(run).rows == (("rank 4", "1", "50.0", "30.0", "+20.0", "50.0", "30.0", "+20.0"),)
    assert tables.capacity(analysis()) is None


@pytest.mark.parametrize("lost, kind", [(0.0, IGNORED), (0.3, PARTLY), (0.97, USES)])
def test_the_verdict_is_in_words_and_names_what_n_cannot_show(lost, kind):
    run = analysis("tiny", found(lost))
    assert run["verdict"]["kind"] == kind
    text = " ".join(prose.paragraph(run))
    assert "would usually go unnoticed" in text and f"{I} of {I} items" in text and "No probe could be fitted" in text


def test_no_verdict_where_no_latent_was_fed_or_nothing_can_be_lost():
    silent = found()
    silent.fed[0] = 0
    run = analysis("silent", silent)
    assert run["verdict"] is None and prose.paragraph(run)[0].startswith("No verdict on the latents")
    hopeless = found()
    hopeless.right[:], hopeless.margin[:] = False, -1.0
    text = prose.paragraph(analysis("hopeless", hopeless))[0]
    assert text.startswith("Cannot be tested") and "nan" not in text and "inf" not in text


def test_items_that_a_condition_had_nothing_for_are_left_out_and_counted():
    by_name = {e.name: e for e in effects(found(0.3, missing=("donor_paper",)), **HOW)}
    assert by_name["donor_paper"].missing == 40 and by_name["donor_paper"].stats.n == I - 40
    assert by_name["zero"].missing == 0 and by_name["zero"].stats.n == I
    p = np.array([e.stats.p_mcnemar for e in by_name.values()])
    holm = np.array([e.stats.p_mcnemar_holm for e in by_name.values()])
    smallest = p.argmin()                                             # adjusted over all, though compared in two groups
    assert holm[smallest] == pytest.approx(min(1, p[smallest] * len(p)))


def test_only_conditions_on_the_latents_content_are_evidence():
    evidence = {e.name for e in effects(found(), **HOW) if e.content}
    assert evidence == {"donor_paper"}
    for name in (
        "zero", "norm_matched", "markers_only", "noise_1", "self", "oracle", "donor_other_label",
        "latents_blind_to_image", "format_only", "budget_4", "zero@1",
    ):  # fmt: skip
        assert not corruptions.is_content(name)
    assert set(corruptions.CONTENT) | set(corruptions.UNFAMILIAR) <= set(corruptions.NAMED)
    assert not set(corruptions.CONTENT) & set(corruptions.UNFAMILIAR)


def test_a_loss_to_unfamiliar_inputs_alone_is_said_but_is_no_verdict():
    run = analysis("tiny", found(0.0, unfamiliar=0.6))
    assert run["verdict"]["kind"] == IGNORED
    assert "not that what stands there is read" in " ".join(prose.paragraph(run))
    assert "not that what stands there" not in " ".join(prose.paragraph(analysis("tiny", found(0.0))))


def test_noise_is_ordered_by_strength_and_single_latents_by_place():
    run = analysis()
    assert [e["strength"] for e in curve(run, False)] == [0.1, 0.3, 1.0] and curve(run, True) == []
    assert [e["latent"] for e in knock_outs(run)["zero"]] == [0, 1]


def test_the_grid_has_every_condition_once_and_refuses_unknown_names():
    made = corruptions.grid(("zero", "self"), (0.01, 3.0), (0.1,), (2,), ("zero",), 3)
    assert [c.name for c in made] == ["zero", "self", "noise_0.01", "noise_3", "relative_noise_0.1", "budget_2",
                                      "zero@0", "zero@1", "zero@2"]  # fmt: skip
    with pytest.raises(cond.ConditionError, match="conditions.names has 'nought', expected some of zero"):
        corruptions.grid(("nought",), (), (), (), (), 1)


@pytest.mark.slow
def test_a_report_without_pictures_of_items_is_whole_and_needs_no_network(tmp_path):
    runs = [analysis("one <b>", found(0.3)), analysis("two", found(0.0, seed=1))]
    path = report.write([None, None], runs, tmp_path / "report")
    text = path.read_text()
    assert "<b>" not in text and "one &lt;b&gt;" in text
    sources = re.findall(r'(?:src|href)="([^"]+)"', text)
    assert sources and all(s.startswith(("data:image/", "#")) for s in sources)
    assert not re.search(r"@import|url\(|<script|<link", text)
    anchors = re.findall(r'href="#([^"]+)"', text)
    assert all(f'id="{anchor}"' in text for anchor in anchors)
    ids = re.findall(r' id="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    assert text.count("<img") == text.count("alt=") and 'lang="en"' in text and "viewport" in text
    assert all("<thead>" in t and 'scope="row"' in t for t in re.findall(r"<table.*?</table>", text, re.S))
    assert sorted(p.name for p in (tmp_path / "report").iterdir()) == ["figures", "report.html", "report.json",
                                                                       "tables"]  # fmt: skip
    again = report.write([None, None], runs, tmp_path / "again")
    assert again.read_bytes() == path.read_bytes()


def test_csv_says_what_is_this_runs_and_what_is_published(paper):
    table = tables.table_1([analysis()], paper)
    rows = list(csv.reader(io.StringIO(report.table_csv(table))))
    assert [row[0] for row in rows] == ["source", "run", *["published"] * 5]
    assert rows[1][1:] == list(table.rows[0])
    a = analysis()
    other = a["answers"][0] | {"id": "item1", "gold": "B", "gold_content": "blue"}
    a["answers"] = [a["answers"][0] | {"donors": {"zero": "item1"}}, other]
    answers = list(csv.DictReader(io.StringIO(report.answers_csv(a))))[:2]
    assert [a["condition"] for a in answers] == ["clean", "zero"] and answers[1]["missing"] == "1"
    told = {"gold_content": "red", "content": "blue", "right": "0", "letter": "A", "letter_right": "1",
            "follows": "0", "readable": "1", "changed": "1", "reply": "blue\\nA",
            "donor": "item1", "donor_content": "blue", "donor_letter": "B"}  # fmt: skip
    assert told.items() <= answers[1].items() and (answers[0]["changed"], answers[0]["reply"]) == ("0", "red A")
    assert answers[0]["donor"] == answers[0]["donor_content"] == ""


def test_a_figure_stands_in_the_page_as_text_that_a_browser_reads_back():
    """The svg itself but for white space, its words as words; a fifth smaller than base64 would be."""
    svg = page.image_bytes(figures.sigma_curve([analysis("one", found(0.3))]), "svg")
    kind, _, text = page.inline(svg, "svg").partition(",")
    assert kind == "data:image/svg+xml" and not set(text) & set("\n\"'<>&#()")
    assert ElementTree.fromstring(unquote(text)).tag.endswith("svg") and unquote(text).split() == svg.decode().split()
    assert len(text) < 0.85 * len(base64.b64encode(svg))
    assert b">one</text>" in svg and b"'DejaVu Sans', 'Verdana'" in svg


def test_figures_are_narrow_enough_for_a_phone(paper):
    runs = [analysis("one", found(0.3)), analysis("two", found(0.1, seed=1))]
    drawn = figures.of_paper(runs, paper) | {"sigma": figures.sigma_curve(runs), "map": figures.knock_out_map(runs[0])}
    for name, figure in drawn.items():
        assert figure.get_size_inches()[0] <= 5.5, name
        sizes = [t.get_fontsize() for axis in figure.axes for t in (*axis.get_xticklabels(), axis.xaxis.label)]
        assert min(sizes) >= 8, name
    assert figures.attention(runs[0]) is None and figures.sensitivity(runs[0]) is None
    twice = [page.image_bytes(figures.knock_out_map(runs[0]), "svg") for _ in range(2)]
    assert twice[0] == twice[1]


def test_numbers_that_do_not_exist_become_null_and_a_dash():
    assert plain({"a": float("nan"), "b": np.float32(1.5), "c": np.array([1.0, np.inf])}) == {
        "a": None, "b": 1.5, "c": [1.0, None]}  # fmt: skip
    assert tables.number(None) == tables.within(None) == tables.NOTHING
    assert tables.number(-0.01, 1) == "0.0" and tables.points(-0.026) == "−2.6" and tables.points(0.0) == "0.0"


def test_probes_of_a_capture_that_cannot_be_split_say_why():
    from lvr_jax.prism.measure.capture import Capture

    states = np.random.default_rng(0).standard_normal((6, 3, 1, 4)).astype(np.float32)
    empty = {"count": np.ones((6, 1)), "blocks": np.zeros((6, 1, 1, 4)), "letters": np.zeros((6, 2)),
             "margin": np.zeros(6), "answer_step": np.zeros(6)}  # fmt: skip
    one = Capture([f"i{n}" for n in range(6)], ("answer", "last_latent", "question"), states,
                  np.ones((6, 3), bool), np.array([0, 0, 0, 0, 0, 1]), **empty)  # fmt: skip
    told = readout.read_out(one, np.full(6, 2), np.array(["x"] * 6), readout.Settings(draws=100))
    assert "each at least twice" in told["pair"]["reason"] and told["pair"]["items"] == 6
    assert "each at least twice" in told["grid"]["answer"]["reason"]


def test_the_correlations_carry_their_uncertainty():
    """This run's r and the paper's, each with intervals; nothing is claimed of fewer than three checkpoints."""
    paper = load_paper()
    three = []
    for n, lost in enumerate((0.1, 0.4, 0.7)):
        outcomes = found(lost, seed=n)
        a = analysis(f"run{n}", outcomes)
        a["alignment"] = {"latent": {"teacher_forced": {"mean_cosine": 0.2 + 0.3 * n}}}
        a["answers"] = answers_of(outcomes)
        three.append(a)
    rows = certainty.table(three, paper).rows
    own, theirs = rows[0], rows[1]
    assert own[:4] == ("cosine", "accuracy", "this run", "3") and theirs[2:5] == ("published", "5", "−0.94")
    low, high = (float(v.replace("−", "-")) for v in theirs[6].strip("[]").split(", "))
    assert low < -0.94 < high and theirs[8] == "−1.00 to −0.90"
    assert theirs[7] == "[−1.00, −0.33]", "tanh(atanh(-0.94) +- 1.96 / sqrt(5 - 3))"
    assert theirs[9] == "+0.73 (n = 3)", "the paper's own single-stage variants say the opposite"
    assert own[4] != "–" and own[5].startswith("[") and own[6].startswith("[")
    assert own[9] == "–", "one cluster"
    assert rows[2][:3] == ("cosine", "letter", "this run"), "letters beside content, where replies have both"
    alike = [dict(three[0], alignment=a["alignment"]) for a in three]
    assert certainty.table(alike, paper).rows[0][4:] == ("–",) * 6, "equal accuracies have no r"
    assert certainty.table(three[:2], paper).rows[0][4:] == ("–",) * 6
    three[2]["latents"] = {"context": 8, "target": 4}
    assert certainty.table([*three, dict(three[1])], paper).rows[0][9].endswith("(n = 3)")


def seeds_of_three_variants(wobble: float) -> tuple[list[dict], list[str]]:
    """Three seeds each, interleaved; accuracy falls as cosine rises, and between seeds they rise together."""
    runs, variants = [], []
    for seed in range(3):
        for n, lost in enumerate((0.1, 0.4, 0.7)):
            outcomes = found(lost, seed=3 * n + seed)
            a = analysis(f"v{n}, seed {seed}", outcomes)
            a["answers"] = answers_of(outcomes)
            a["clean"]["accuracy"]["point"] = 0.9 - 0.2 * n + wobble * (seed - 1)
            a["alignment"] = {"latent": {"teacher_forced": {"mean_cosine": 0.2 + 0.3 * n + wobble * (seed - 1)}}}
            runs.append(a)
            variants.append(f"v{n}")
    return runs, variants


def test_seeds_of_a_variant_are_one_row_and_their_correlations_are_split():
    runs, variants = seeds_of_three_variants(0.01)
    rows = rows_of(replicates.spread(runs, variants))
    assert list(rows) == ["v0", "v1", "v2"] and rows["v1"]["seeds"] == "3"
    assert rows["v1"]["accuracy"] == "70.0 ± 1.0" and rows["v2"]["cosine, taught"] == "0.800 ± 0.010"
    zeros = [next(e["stats"]["delta"] for e in a["conditions"] if e["name"] == "zero") for a in runs[1::3]]
    assert rows["v1"]["zeros"] == f"{tables.points(np.mean(zeros))} ± {tables.percent(np.std(zeros, ddof=1))}"
    assert rows["v1"]["verdicts"] == f"{runs[1]['verdict']['kind']} 3" and rows["v1"]["oracle latents"] == "–"
    one = dict(zip(*(lambda t: (t.columns, t.rows[0]))(replicates.correlations(runs, variants))))
    assert (one["variants × seeds"], one["r between"], one["r within"]) == ("3 × 3", "−1.00", "+1.00")
    assert float(one["between, x"]) > 0.9
    for fewer in (slice(0, 8), slice(0, 3)):
        assert set(replicates.correlations(runs[fewer], variants[fewer]).rows[0][2:]) == {"–"}


def test_a_report_of_several_seeds_keeps_one_of_each_for_the_papers_tables(tmp_path):
    runs, variants = seeds_of_three_variants(0.01)
    places = ["plain"] * 9 + ["masked"]
    runs.append(analysis("masked", found(0.2)))
    report.write([], runs, tmp_path, settings=places, variants=[*variants, "masked"])
    read = lambda name: list(csv.DictReader(io.StringIO((tmp_path / f"tables/{name}.csv").read_text())))  # noqa: E731
    assert [r["checkpoint"] for r in read("table-4") if r["source"] == "run"] == [f"v{n}, seed 0" for n in range(3)]
    assert [r["variant"] for r in read("seeds")] == ["v0", "v1", "v2", "masked"]
    assert len(read("settings")) == 10 and read("seed-correlations")[0]["variants × seeds"] == "3 × 3"
    drawn = setting_comparison.figure(runs, places, [*variants, "masked"])
    assert [text.get_text() for text in drawn.axes[0].get_legend().get_texts()] == ["v0", "v1", "v2"]
