"""The paper's own tables give its derived numbers, and contradict its words where they do."""

import pytest

from lvr_jax.prism.report.paper import CORRUPTIONS, Derived, contradictions, derived_numbers, load_paper
from lvr_jax.prism.statistics.across_variants import cluster_correlation, pearson

PAPER = load_paper()
DERIVED = derived_numbers(PAPER)
CONTRADICTIONS = {c.item: c for c in contradictions(PAPER)}


@pytest.mark.parametrize("row", DERIVED, ids=lambda row: f"{row.source}: {row.name}")
def test_a_derived_number_comes_out_to_the_printed_digit(row):
    assert row.agrees, f"printed {row.printed}, computed {row.computed}"


def test_all_derived_numbers_are_there():
    sources = [row.source for row in DERIVED]
    assert sum(s.startswith("Table 2") for s in sources) == 12
    assert sum(s.startswith("Table 3, r with") for s in sources) == 5
    assert sum("bootstrap" in row.name for row in DERIVED) == 8
    assert sum("leave-one-out" in row.name for row in DERIVED) == 2
    assert sum("|" in row.name for row in DERIVED) == 1


def test_agreement_is_to_the_digit_and_no_closer():
    assert Derived("", "", "-0.94", -0.9388).agrees
    assert not Derived("", "", "-0.94", -0.9349).agrees
    assert Derived("", "", "+.694", 0.69401).agrees
    assert not Derived("", "", "-0.940", -0.9388).agrees


def test_every_number_has_a_source_and_every_column_a_value_for_each_variant():
    for name, column in PAPER.raw["columns"].items():
        assert column["source"].startswith("Table"), name
        assert len(column["values"]) == len(PAPER.variants) == 5
        assert all(isinstance(v, str) for v in column["values"]), f"{name}: printed digits would be lost"
    for group in ("cells", "claims"):
        assert all(row["source"] for row in PAPER.raw[group].values())
    assert PAPER.value("vstar", "N-LVR") == 71.7


# The contradictions are numbered as in lvr_jax/prism/report/paper.py.


def test_4_within_the_single_stage_variants_cosine_goes_with_accuracy():
    found = CONTRADICTIONS[4]
    assert not found.holds
    assert {k: round(v, 2) for k, v in found.found.items()} == {"cosine": 0.73, "gap": -0.79, "probe_a": 0.01}
    clusters = [name for v in PAPER.variants for name, members in PAPER.raw["clusters"].items() if v in members]
    split = cluster_correlation(PAPER.columns["cosine"], PAPER.columns["vstar"], clusters)
    assert split.within["single_stage"] == pytest.approx(found.found["cosine"])
    assert split.between_share_y > 0.98  # nearly all of the accuracy's variance is progressive against the rest


def test_5_the_gap_predicts_only_the_two_conditions_shown():
    found = CONTRADICTIONS[5]
    assert not found.holds
    assert {k: round(v, 2) for k, v in found.found.items()} == {
        "truncate": -0.77, "noise_0.1": -0.93, "noise_0.3": -0.33, "noise_1.0": -0.49, "swap": -0.22,
    }  # fmt: skip
    by_probe_a = [round(float(pearson(PAPER.columns["probe_a"], PAPER.columns[d])), 2) for d in CORRUPTIONS]
    assert by_probe_a == [-0.92, -0.98, -0.54, -0.70, -0.57]
    assert round(float(pearson(PAPER.columns["probe_b"], PAPER.columns["swap"])), 2) == -0.85


def test_7_the_largest_delta_exceeds_four_points():
    assert CONTRADICTIONS[7].found == {"largest": 4.2} and not CONTRADICTIONS[7].holds


def test_8_zeroing_moves_both_variants_alike():
    assert CONTRADICTIONS[8].found == {"LVR": -2.6, "N-LVR": -2.6} and not CONTRADICTIONS[8].holds


def test_9_the_smallest_probe_accuracy_is_not_the_one_in_the_text():
    found = CONTRADICTIONS[9]
    assert min(found.found, key=found.found.get) == "P-LVR-3" and found.found["P-LVR-3"] == 48.7
    assert found.found["P-LVR-2"] == 50.2 and not found.holds
    # The other end of the printed range does agree.
    top = PAPER.raw["claims"]["probe_a_maximum"]
    assert PAPER.value("probe_a", top["variant"]) == PAPER.columns["probe_a"].max() == float(top["value"])


def test_10_the_majority_letter_beats_probe_b_in_all_variants_but_one():
    found = dict(CONTRADICTIONS[10].found)
    majority = found.pop("majority letter")
    assert majority == pytest.approx(37.2, abs=0.05) and not CONTRADICTIONS[10].holds
    assert [v for v, accuracy in found.items() if accuracy > majority] == ["N-LVR"]


def test_every_delta_of_table_1_is_a_whole_number_of_questions_but_one():
    n = PAPER.raw["benchmarks"]["vstar"]["n"]
    broken = []
    for condition in CORRUPTIONS:
        for variant, printed in zip(PAPER.variants, PAPER.raw["columns"][condition]["values"]):
            questions = round(float(printed) * n / 100)
            if round(100 * questions / n, 1) != float(printed):
                broken.append((variant, condition, printed))
    assert broken == [("D-LVR", "truncate", "-1.1")]
    # Table 4 prints what two questions are.
    assert float(PAPER.raw["cells"]["truncate_d_lvr_table4"]["value"]) == round(-100 * 2 / n, 1) == -1.0


def test_benchmark_counts_add_up():
    vstar = PAPER.raw["benchmarks"]["vstar"]
    assert vstar["direct_attributes"] + vstar["relative_position"] == vstar["n"] == 191
    assert sum(vstar["letters"].values()) == vstar["n"]
