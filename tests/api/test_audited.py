"""An audit from Python is the audit of tools/prism.py, and its tables are plain records."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "prism"))

import planted  # noqa: E402

import lvr_jax  # noqa: E402

SMALL = {
    "budget": 2, "switches": {"max_new_tokens": 8}, "draws": 200, "gallery": 1,
    "conditions": {"names": ["zero", "donor"], "sigmas": [0.1]}, "probes": {"controls": 2}, "alignment": {"count": 0},
}  # fmt: skip


@pytest.fixture(scope="module")
def audit(tmp_path_factory):
    place = tmp_path_factory.mktemp("audited")
    items = planted.benchmark(place / "set", 24, wrong=0)
    return lvr_jax.audit(str(planted.plant("carrier", place / "carrier")), "jsonl", str(items), light=True, **SMALL)


@pytest.mark.slow
def test_tables_are_records_of_what_the_analysis_holds(audit):
    rows = {row["condition"]: row for row in audit.table("conditions")}
    assert set(rows) == {"zero", "donor", "noise_0.1"} and {row["checkpoint"] for row in rows.values()} == {"carrier"}
    answers = audit.table("answers")
    assert len(answers) == 24 * 4
    for name, row in rows.items():
        own = [a for a in answers if a["condition"] == name and not a["missing"]]
        assert row["accuracy"] == pytest.approx(sum(a["right"] for a in own) / len(own)) and row["items"] == len(own)
        assert row["low"] <= row["delta"] <= row["high"]
    kinds = {type(value) for row in (*answers, *rows.values()) for value in row.values()}
    assert kinds <= {str, bool, int, float, type(None)}
    assert all(set(audit.table(name)[0]) > {"checkpoint"} for name in audit.tables if audit.table(name))


@pytest.mark.slow
def test_a_planted_checkpoint_uses_its_latents(audit):
    assert audit.verdict["kind"] and audit.checkpoints == ["carrier"]
    donor = next(row for row in audit.table("conditions") if row["condition"] == "donor")
    assert donor["delta"] < -0.2 and donor["evidence"]


@pytest.mark.slow
def test_the_report_is_written_where_it_is_asked_for(audit, tmp_path):
    page = audit.report(str(tmp_path / "out"))
    assert page == tmp_path / "out" / "report.html" and "carrier" in page.read_text()


@pytest.mark.parametrize("settings, said", [
    ({"limits": 3}, "limits: there is no such setting"), ({"conditions": {"name": "zero"}}, "conditions.name"),
    ({"conditions": "zero"}, "expected a dict"), ({"limit": "many"}, "limit is 'many'"),
    ({"workdir": ""}, "workdir is '', expected a folder"), ({"workdir": 5}, "workdir is 5, expected a folder"),
    ({"draws": 3}, "draws is 3, expected"), ({"conditions": {"names": ["zeros"]}}, "'zeros'"),
])  # fmt: skip
def test_a_wrong_setting_is_one_line(settings, said):
    with pytest.raises(ValueError, match=said) as error:
        lvr_jax.audit(lvr_jax.TINY_LVR, "digit_search", options={"size": 2}, light=True, **settings)
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_a_table_that_does_not_exist_is_one_line(audit):
    with pytest.raises(ValueError, match="table 'condition' does not exist, expected one of conditions, answers"):
        audit.table("condition")
