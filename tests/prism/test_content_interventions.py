"""What directed donors, patches and the lens say of made-up outcomes, and how the report shows it."""

import dataclasses
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from lvr_jax.evaluation.rows import Row
from lvr_jax.latents import conditions as cond
from lvr_jax.latents.sources import SourceError
from lvr_jax.latents.sweep_files import SweepFiles, SweepResults
from lvr_jax.prism import crossing, patching
from lvr_jax.prism.argued import argued
from lvr_jax.prism.audit import _answers, plain
from lvr_jax.prism.measure import corruptions, lens
from lvr_jax.prism.outcomes import Outcomes
from lvr_jax.prism.report import interventions

I = 8
WORDS = ["red", "blue", "red", "blue", "1", "2", "1", "2"]
NAMES = ("clean", "donor", "mean")


def outcomes(content, missing=None, names=NAMES) -> Outcomes:
    content = np.array(content, object)
    flag = np.zeros(content.shape, bool)
    missing = flag if missing is None else missing
    return Outcomes(tuple(names), flag, content, flag, content, flag.astype(float), ~flag, content, None, missing,
                    np.full(content.shape, 2), True)  # fmt: skip


def items(**more):
    kinds = np.array(["colour"] * 4 + ["digit"] * 4)
    options = [["red", "blue"]] * 4 + [["1", "2", "3"]] * 3 + [["2", "3"]]
    return SimpleNamespace(
        ids=[f"item{i}" for i in range(I)], categories=kinds, contents=np.array(WORDS, object),
        option_contents=lambda i: options[i], places=lambda ids: np.array([int(i[4:]) for i in ids]), **more,
    )  # fmt: skip


def test_only_donors_of_the_kind_with_another_answer_argue_and_their_answers_are_counted():
    """Items in another order on disk; item 0 gets item 1 (blue), 1 gets 3 (the same answer), 2 gets 4 (another kind),
    7 gets 4, whose answer it does not offer; 5 has none to feed."""
    donor = {0: 1, 1: 3, 2: 4, 3: 2, 4: 5, 5: 6, 6: 7, 7: 4}
    order = [3, 0, 1, 2, 7, 6, 5, 4]
    place = {i: r for r, i in enumerate(order)}
    found = np.full((3, I), -1)
    found[1] = [place[donor[i]] for i in order]
    records = [cond.clean(), cond.replaced("donor"), cond.replaced("mean")]
    results = SweepResults(list(NAMES), [f"item{i}" for i in order], {}, found < -1, found, records)
    missing = np.zeros((3, I), bool)
    missing[1, 5] = True
    said = [WORDS, ["blue", "blue", "1", "red", "1", "1", "2", "1"], WORDS]
    told = argued(outcomes(said, missing), items(), results, 0.95)
    assert list(told) == ["donor"]                                   # the mean argues for nothing
    row = told["donor"]
    assert row["items"] == 5                                          # 0, 3, 4, 6, 7
    assert row["clean"].point == 0 and row["fed"].point == pytest.approx(4 / 5)      # all but 4
    assert row["offered"]["items"] == 4 and row["offered"]["fed"].point == pytest.approx(3 / 4)
    assert row["p"] == pytest.approx(2 * 0.5**4)
    rows = [Row(f"item{i}", "Which?", "A", "") for i in range(I)]
    answers = _answers(outcomes(said, missing), items(benchmark=SimpleNamespace(rows=rows)), results)
    assert [a["donors"] for a in answers] == [{"donor": f"item{donor[i]}"} if i in donor else {} for i in range(I)]


def test_the_map_counts_changed_answers_that_come_back():
    base = cond.replaced("donor")
    runs = patching.conditions(base, 1, (0, 2))
    names = ["clean", *(c.name for c in runs)]
    said = np.tile(np.array(["a"] * 4 + ["b"] * 4, object), (len(names), 1))
    said[1:, :4] = "b"                                               # four of eight change
    at = names.index("donor|latent_0:2")
    said[at, :3] = "a"                                               # three come back there
    missing = np.zeros(said.shape, bool)
    missing[names.index("donor|h0:0")] = True
    found = patching.recovered(outcomes(said, missing, names), base, 1, (0, 2))
    assert (found["changed"], found["of"]) == (4, 8)
    assert found["positions"] == ("h0", "latent_0", "after_1", "after_2", "after_3", "after_4")
    assert found["recovered"][1] == [0.0, 0.75] and found["recovered"][0] == [None, 0.0]
    assert found["items"][0] == [0, 4]


def test_items_whose_answer_changes_are_patched_first():
    said = [["a"] * 8, ["a", "b"] * 4]
    found = outcomes(said, names=("clean", "donor"))
    assert patching.chosen_items(found, "donor", 6) == [0, 1, 2, 3, 5, 7]


@pytest.mark.parametrize("name, kinds, contents, said", [
    ("donor_directed", "ccd", "rb1", "kind of question 'd' has one item, expected two"),
    ("donor_directed", "ccdd", "rb11", "kind of question 'd' has 2 items with the one answer '1', expected two"),
    ("blank_image", "cc", "rb", "needs the prompt 'blank' of each item, these items have own"),
])  # fmt: skip
def test_conditions_that_the_items_cannot_serve_are_refused_in_one_line(name, kinds, contents, said):
    with pytest.raises(cond.ConditionError, match=said) as error:
        corruptions.check(corruptions.named([name]), list(kinds), list(contents), ["own"])
    assert "\n" not in str(error.value) and repr(name) in str(error.value)
    corruptions.check(corruptions.named([name]), list("ccdd"), list("rb12"), ["own", "blank"])


def test_layers_of_a_map_are_those_of_the_network():
    assert patching.layers((), 4) == (0, 1, 2, 3, 4)
    assert len(patching.layers((), 36)) == patching.MOST_LAYERS and patching.layers((), 36)[-1] == 36
    with pytest.raises(cond.ConditionError, match="patching.layers has 5, this network has 0"):
        patching.layers((1, 5), 4)


class _Letters:
    """A tokenizer of one token a character."""

    def encode(self, text):
        return [ord(c) - 96 if c != " " else 0 for c in text]

    def decode(self, ids):
        return "".join(chr(int(i) + 96) if i else " " for i in ids)


def test_the_lens_reads_a_planted_word_and_its_rank(tmp_path):
    """Latent 0 of item i is the embedding of its answer's first letter plus twice that of `z`; latent 1 is `q`'s."""
    rng, V, D = np.random.default_rng(0), 27, 64
    embed = np.linalg.qr(rng.standard_normal((D, D)))[0][:V].astype(np.float32)
    rows = [Row(f"item{i}", "?", "AB"[i % 2], "", ("apple", "bear") if i < 6 else ("pear", "pea")) for i in range(I)]
    first = [ord(row.choices[row.letter][0]) - 96 for row in rows]
    blocks = np.zeros((I, 1, 2, D), np.float32)
    blocks[:, 0, 0] = embed[first] + 2 * embed[26]
    blocks[:, 0, 1] = embed[17]
    count = np.full((I, 1), 2)
    count[3] = 1
    asked = SimpleNamespace(
        subject=SimpleNamespace(params={"text": {"embed": jnp.asarray(embed)}}, tokenizer=_Letters()),
        benchmark=SimpleNamespace(rows=rows), options=np.full(I, 2), labels=np.array([i % 2 for i in range(I)]),
        places=lambda ids: np.array([int(i[4:]) for i in ids]),
    )  # fmt: skip
    order = [5, 0, 1, 2, 3, 4, 7, 6]                                  # items on disk in another order
    folder = SweepFiles(tmp_path / "capture")
    folder.open({"items": [[f"item{i}" for i in order]], "plan": {"quota": [2]}, "labels": [[0] * I]})
    folder.write("clean", 0, {"count": count[order], "blocks": blocks[order]})
    lens.run(asked, tmp_path / "capture", tmp_path / "lens")
    found = lens.read(tmp_path / "lens", asked, ["lvr"], shown=[0, 3])
    zero, one = found["by"]["lvr"]
    assert (zero["items"], one["items"]) == (8, 7)
    assert zero["top"] == [["z", 1.0]] and one["top"] == [["q", 1.0]]
    assert zero["rank"] == 2 and zero["first"] == 0
    assert zero["told"] == 6 and zero["offered"] == 1.0 and zero["chance"] == 0.5    # pear and pea begin alike
    assert found["words"][0]["lvr"][0][:2] == ["z", "a"] and len(found["words"][3]["lvr"]) == 1


def finished(folder, ids, width=3, quota=2):
    files = SweepFiles(folder / "capture")
    files.open({"items": [ids], "plan": {"quota": [quota]}})
    blocks = np.arange(len(ids) * quota * width, dtype=np.float32).reshape(len(ids), 1, quota, width)
    files.write("clean", 0, {"blocks": blocks, "count": np.full((len(ids), 1), quota)})
    return folder


def test_audits_of_other_items_or_another_width_are_refused_in_one_line(tmp_path):
    folder = finished(tmp_path / "lvr", ["item0", "item1"])
    crossing.check(folder, ["item1", "item0"], 3, "reader")
    for ids, width, message in (
        (["item0", "item7"], 3, "is an audit of other items, 1 of 2 are not in it \\(the first: item7\\)"),
        (["item0"], 4, "has latents of width 3, reader has 4; expected the same"),
    ):  # fmt: skip
        with pytest.raises(SourceError, match=message) as error:
            crossing.check(folder, ids, width, "reader")
        assert "\n" not in str(error.value)
    with pytest.raises(SourceError, match="has no capture, expected the folder of a finished audit"):
        crossing.check(tmp_path, ["item0"], 3, "reader")


def test_latents_of_another_audit_are_another_sweep_when_that_audit_is(tmp_path):
    one, two = (crossing.source(finished(tmp_path / name, ids)) for name, ids in
                (("a", ["item0", "item1"]), ("b", ["item1", "item0"])))  # fmt: skip
    assert one.digest and one.digest != two.digest


def test_a_reader_is_compared_on_the_items_that_both_fed():
    names = ("clean", "latents_of_b")
    right = np.array([[1, 1, 1, 0, 0, 1, 0, 0], [1, 0, 0, 1, 0, 0, 1, 1]], bool)
    missing = np.zeros((2, I), bool)
    missing[1, 6:] = True
    found = dataclasses.replace(outcomes(right.astype(str), missing, names), right=right)
    row = crossing.table(found, ["b"], 0.95)["b"]
    assert row["items"] == 6 and row["own"].point == pytest.approx(4 / 6) and row["fed"].point == pytest.approx(2 / 6)
    assert row["difference"].point == pytest.approx(-2 / 6)
    shown = interventions.crossed([plain({"name": "a", "clean": {"accuracy": {"point": 0.5}}, "crossed": {"b": row}})])
    assert shown.columns == ("reader", "own latents", "b") and shown.rows[0][:2] == ("a", "50.0")
    assert shown.rows[0][2].startswith("−33.3")
    assert interventions.crossed([{"name": "a"}]) is None


def test_the_report_shows_them_and_leaves_out_what_was_not_run():
    share = {"point": 0.1, "low": 0.0, "high": 0.2}
    row = {"items": 5, "clean": share, "fed": share, "difference": share, "p": 0.5}
    a = plain({
        "name": "tiny", "probes": {"pair": {"reason": "too few"}, "content": None},
        "argued": {"donor_directed": {**row, "offered": {"items": 0}}},
        "patching": {"condition": "donor", "of": 8, "changed": 4, "positions": ("h0", "latent_0"), "layers": [0, 2],
                     "recovered": [[None, 0.25], [0.0, 0.75]], "items": [[0, 4], [4, 4]]},
        "lens": {"by": {"lvr": [{"items": 8, "top": [["red", 0.5]], "first": 0.5, "rank": 2.0, "told": 8,
                                 "offered": 0.75, "chance": 0.25}]}, "words": {}},
    })  # fmt: skip
    tables = {t.key: t for t in (make(a) for make in interventions.TABLES) if t is not None}
    assert set(tables) == {"argued-tiny", "lens-tiny"}
    assert tables["lens-tiny"].rows == (("lvr 0", "8", "red 50 %", "50.0", "2", "75.0", "25.0"),)
    assert tables["argued-tiny"].rows[0][:4] == ("donor_directed", "5", "10.0", "10.0")
    drawn = {key: make(a) for key, make in interventions.FIGURES.items()}
    texts = {t.get_text() for t in drawn["patching"].axes[0].texts}
    assert texts == {"25", "0", "75"} and drawn["lens"] is not None
    ticks = drawn["lens"].axes[1].yaxis
    assert [ticks.get_major_formatter()(value) for value in (1, 20, 500)] == ["1", "20", "500"]    # and no formulas
    bare = {"name": "x", "probes": {"pair": {}}}
    assert all(make(bare) is None for make in (*interventions.TABLES, *interventions.FIGURES.values()))
