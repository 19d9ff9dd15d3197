"""The aggregations give the published numbers, and the intervals cover what they should."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from lvr_jax.evaluation import scoring
from lvr_jax.evaluation.rows import BenchmarkError, Row
from lvr_jax.evaluation.scoring import Mark

REPLIES = Path(__file__).parents[1] / "golden" / "blink_replies" / "GPT4o.jsonl.gz"


def marks(verdicts, **fields):
    """One mark a character, "1" is right; a field is a value for all or a list."""
    return [Mark(str(i), verdict == "1", **{name: value if isinstance(value, str) else value[i]
                                            for name, value in fields.items()})
            for i, verdict in enumerate(verdicts)]


PAIRS = marks("11100100", group=[f"pair {i // 2}" for i in range(8)])
CYCLES = marks("1101" "1000" "1100", cycle=[f"{i % 4}" for i in range(12)], group=[f"q{i // 4}" for i in range(12)])


@pytest.mark.parametrize("name, items, value", [
    ("single", PAIRS, 4 / 8),
    ("pair", PAIRS, 1 / 4),                                                # one pair is right in both halves
    ("micro", marks("1110", category=list("aaab")), 3 / 4),
    ("macro", marks("1110", category=list("aaab")), 1 / 2),
    ("cycle_mean", CYCLES, (3 / 3 + 2 / 3 + 0 / 3 + 1 / 3) / 4),
    # An unfinished run: the mean of the cycles is not the share of the items.
    ("cycle_mean", CYCLES[:5], (2 / 2 + 1 + 0 + 1) / 4),
])
def test_aggregation_gives_the_value_computed_by_hand(name, items, value):
    assert scoring.aggregate(name, items) == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize("name, items, message", [
    ("pair", PAIRS[:3], "pair 1 has 1 items"),
    ("pair", marks("11"), "no group has 2 items"),
    ("cycle_mean", marks("11"), "item 0 has no cycle"),
    ("average", PAIRS, "no aggregation 'average', expected one of single, micro"),
    ("micro", [], "no items to aggregate"),
])
def test_aggregation_refuses_what_it_cannot_average(name, items, message):
    with pytest.raises(BenchmarkError, match=message):
        scoring.aggregate(name, items)


def test_blink_micro_and_macro_of_real_replies():
    with gzip.open(REPLIES, "rt", encoding="utf-8") as lines:
        items = [Mark(each["idx"], each["extracted"] == each["gold"], each["task"]) for each in map(json.loads, lines)]
    right = {"Counting": 59, "IQ_Test": 47, "Jigsaw": 83, "Relative_Reflectance": 50, "Spatial_Relation": 99}
    total = {"Counting": 120, "IQ_Test": 150, "Jigsaw": 150, "Relative_Reflectance": 134, "Spatial_Relation": 143}
    scores = {(score.aggregation, score.category): score for score in scoring.summarise(items, ("micro", "macro"))}
    assert scores["micro", ""].value == pytest.approx(338 / 697)
    assert scores["macro", ""].value == pytest.approx(np.mean([right[task] / total[task] for task in right]))
    for task in right:
        assert scores["micro", task].value == pytest.approx(right[task] / total[task])
        assert scores["micro", task].items == total[task]


def test_wilson_equals_its_formula():
    z, p, n = 1.959963984540054, 134 / 191, 191
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    assert scoring.wilson(134, 191) == pytest.approx((centre - half, centre + half), abs=1e-12)
    assert scoring.wilson(0, 5)[0] == 0.0 and scoring.wilson(5, 5)[1] == pytest.approx(1.0)


@pytest.mark.parametrize("right, total", [(3, 2), (-1, 2), (0, 0)])
def test_wilson_refuses_impossible_counts(right, total):
    with pytest.raises(BenchmarkError, match="expected 0 <= right <= total"):
        scoring.wilson(right, total)


def random_marks(n, group_size, correlated, seed=0):
    rng = np.random.default_rng(seed)
    right = np.repeat(rng.random(n // group_size) < 0.6, group_size) if correlated else rng.random(n) < 0.6
    return [Mark(str(i), bool(right[i]), group=f"g{i // group_size}", cycle=str(i % group_size)) for i in range(n)]


def test_bootstrap_of_independent_items_agrees_with_the_normal_interval():
    items = marks("1" * 240 + "0" * 160)
    low, high = scoring.bootstrap("micro", items, resamples=20000)
    half = 1.96 * np.sqrt(0.6 * 0.4 / 400)
    assert (low, high) == pytest.approx((0.6 - half, 0.6 + half), abs=0.006)     # resampling noise of the 2.5 % points


def test_bootstrap_draws_whole_groups():
    # Four orders that are always right or wrong together carry the information of one item, not of four: the interval
    # is twice as wide (sqrt 4) as for independent items.
    def width(items):
        low, high = scoring.bootstrap("cycle_mean", items, resamples=8000)
        return high - low
    together, apart = random_marks(800, 4, True), random_marks(800, 4, False)
    assert width(together) / width(apart) == pytest.approx(2.0, rel=0.15)


def test_bootstrap_of_pairs_equals_that_of_pair_verdicts():
    rng = np.random.default_rng(1)
    items = marks("".join(rng.choice(["0", "1"], 300)), group=[f"pair {i // 2}" for i in range(300)])
    verdicts = marks("".join("1" if items[i].correct and items[i + 1].correct else "0" for i in range(0, 300, 2)))
    assert scoring.bootstrap("pair", items) == scoring.bootstrap("micro", verdicts)


def test_macro_interval_combines_those_of_its_categories():
    # One category is all right, the other all wrong: each limit is a limit of Wilson's, at 0 and 1 on one side.
    items = marks("1" * 3 + "0" * 50, category=["a"] * 3 + ["b"] * 50)
    low, high = scoring.wilson(3, 3)[0], scoring.wilson(0, 50)[1]
    assert scoring.combined(items) == pytest.approx((0.5 - (1 - low) / 2, 0.5 + high / 2))
    one = marks("1100", category=["a"] * 4)
    assert scoring.combined(one) == pytest.approx(scoring.wilson(2, 4))


def test_macro_interval_covers_the_true_mean_of_small_categories():
    rng, rates, covered = np.random.default_rng(0), (0.1, 0.5, 0.95), 0
    for _ in range(400):
        items = [scoring.Mark(f"{c}{i}", bool(rng.random() < rate), c)
                 for c, rate in zip("abc", rates) for i in range(12)]
        low, high = scoring.combined(items)
        covered += low <= np.mean(rates) <= high
    assert 0.93 < covered / 400 < 0.99                      # 95 %, with three standard errors of 400 draws


@pytest.mark.parametrize("name", ["micro", "cycle_mean", "macro"])
@pytest.mark.parametrize("verdict", "01")
def test_no_interval_of_groups_that_are_all_alike_has_width_0(name, verdict):
    items = marks(verdict * 8, group=[f"q{i // 2}" for i in range(8)], cycle=["x", "y"] * 4, category=list("aaaabbbb"))
    score, = [each for each in scoring.summarise(items, (name,)) if not each.category]
    assert score.high - score.low > 0.2 and 0 <= score.low <= score.value <= score.high <= 1


def test_bootstrap_is_a_function_of_its_seed():
    items = random_marks(80, 4, False)
    assert scoring.bootstrap("micro", items, seed=3) == scoring.bootstrap("micro", items, seed=3)
    assert scoring.bootstrap("micro", items, seed=3) != scoring.bootstrap("micro", items, seed=4)


def test_summary_says_which_interval_it_used():
    by_name = {score.aggregation: score for score in scoring.summarise(PAIRS, ("single", "pair"))}
    assert by_name["pair"].interval == "wilson" and by_name["pair"].items == 4
    assert (by_name["pair"].low, by_name["pair"].high) == scoring.wilson(1, 4)
    # Two images of a pair are no independent items.
    assert by_name["single"].interval == "bootstrap" and by_name["single"].items == 8


@pytest.mark.parametrize("harness, family, names", [
    ("lvr", "mmvp", ("single",)), ("own", "mmvp", ("pair",)), ("own", "blink", ("macro",)),
    ("vlmevalkit", "blink", ("micro",)), ("lmms_eval", "hrbench", ("cycle_mean",)),
    ("clean", "mmvp", ("single", "pair")), ("prism", "jsonl", ("micro",)),
])
def test_harness_reports_its_own_numbers(harness, family, names):
    assert scoring.reported(harness, family) == names


def test_judge_compares_what_the_rule_returns_with_the_gold_letter():
    row = Row("1", "Which?", "B", "blue", ("red", "blue"), category="c", group="g", cycle="2")
    assert scoring.judge(row, "(B)", "first_character") == ("(", False)
    assert scoring.judge(row, "(B)", "strict_mapping") == ("B", True)
    assert scoring.judge(row, "perhaps", "strict_mapping") == (None, False)
    assert scoring.mark(row, True) == Mark("1", True, "c", "g", "2")
