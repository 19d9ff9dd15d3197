"""The full study's findings: accuracy in two exact parts, and predictions judged by rule."""

import dataclasses
import math
from fractions import Fraction

import pytest
from scipy import stats

from lvr_jax.prism.statistics import nested
from lvr_jax.prism.statistics.intervals import Interval
from study.page import findings, judged
from study.page.findings import BLIND, Checkpoint, Counts


def checkpoint(right=90, blind=80, items=100, **fields):
    counts = Counts(items, right, blind, max(blind - right, 0), max(right - blind, 0))
    made = {"name": "lvr", "blocks": ("lambda",), "recipe": "lvr", "seed": 0, "axes": {"lambda": 0.1}, "cosine": 0.5,
            "free": 0.4, "conditions": {BLIND: counts}}  # fmt: skip
    return Checkpoint(items=items, right=right, **{**made, **fields})


@pytest.mark.parametrize("right, blind", [(381, 379), (379, 381), (0, 397), (400, 0), (133, 133)])
def test_accuracy_is_the_blind_part_and_what_comes_through_the_latents(right, blind):
    c = checkpoint(right, blind, 400)
    assert c.accuracy == pytest.approx(c.blind + c.through, abs=1e-12)
    assert Fraction(right, 400) == Fraction(blind, 400) + Fraction(right - blind, 400)
    assert c.through == 100 * (right - blind) / 400


def test_parts_of_other_items_are_refused_by_name():
    wrong = checkpoint(conditions={BLIND: Counts(90, 80, 75, 0, 5)})
    with pytest.raises(ValueError, match="lvr: answer_blind_to_latents has 90 items and 80 right without it, expected"):
        wrong.measure("through")


def test_the_two_parts_carry_all_of_a_change():
    """Slopes of the parts on accuracy sum to one whatever the data: accuracy is their sum."""
    seeds = [checkpoint(r, b, 100, seed=n) for n, (r, b) in enumerate([(50, 45), (70, 52), (90, 60), (91, 58)])]
    blind, through = findings.carried(seeds), findings.carried(seeds, "through")
    assert blind.point + through.point == pytest.approx(1) and 0 < blind.point < 1
    assert blind.high - blind.low == pytest.approx(through.high - through.low)


def test_a_condition_is_compared_on_its_own_items():
    counts = Counts(80, 60, 40, 5, 25)
    c = checkpoint(conditions={"donor_directed": counts}, argued={"donor_directed": (50, 5, 20)})
    assert c.delta("donor_directed") == -25 and c.measure("follows donor_directed") == 30
    assert counts.interval.low < -25 < counts.interval.high
    assert c.blind is None and c.through is None and c.delta("oracle") is None and c.follows("mean") is None


def test_seeds_are_the_unit_and_one_seed_has_no_limits():
    three = [checkpoint(r, seed=n) for n, r in enumerate((90, 92, 97))]
    assert findings.average(three, "accuracy") == nested.mean([90, 92, 97])
    one = findings.average(three[:1], "accuracy")
    assert one.point == 90 and math.isnan(one.low)
    assert findings.average([dataclasses.replace(three[0], cosine=None)], "cosine") is None


# Predictions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("interval, verdict", [
    (Interval(0.8, 0.7, 0.9), judged.HELD), (Interval(0.8, 0.69, 0.9), judged.UNDECIDED),
    (Interval(0.2, 0.0, 0.6), judged.FAILED), (Interval(0.8, 0.2, 1.1), judged.UNDECIDED), (None, judged.UNDECIDED),
    (Interval(0.8, float("nan"), float("nan")), judged.UNDECIDED),
])  # fmt: skip
def test_an_interval_decides_by_where_it_lies(interval, verdict):
    assert judged.decide(interval, 0.7, 1.0) == verdict


def normal(point, error=1.0):
    def estimate(level):
        half = stats.norm.ppf((1 + level) / 2) * error
        return Interval(point, point - half, point + half)
    return estimate


def test_p_of_a_decision_is_that_of_the_test_against_the_nearest_bound():
    for point, low, high, distance in ((3, 0, math.inf, 3), (-2.5, 0, math.inf, 2.5), (1, -4, 3, 2), (5, -4, 3, 2)):
        assert judged.decision_p(normal(point), low, high) == pytest.approx(2 * stats.norm.sf(distance), rel=1e-6)
    assert math.isnan(judged.decision_p(lambda level: None, 0, 1))
    assert judged.decision_p(normal(0), 0, math.inf) == 1.0, "on the bound nothing decides"


def test_each_outcome_and_its_correction():
    """Five predictions of z 4, 2, -3.5, 0.5 and none: Holm keeps what is far from its bound."""
    estimates = [normal(4), normal(2), normal(-3.5), normal(0.5), lambda level: None]
    found = judged.judge(estimates, [(0, math.inf)] * 5)
    assert [j.verdict for j in found] == ["held", "held", "failed", "undecided", "undecided"]
    assert [j.stands for j in found] == ["held", "undecided", "failed", "undecided", "undecided"]
    assert found[1].p < 0.05 < found[1].holm and math.isnan(found[4].holm)
    assert found[0].holm == pytest.approx(4 * 2 * stats.norm.sf(4), rel=1e-4), "over those that have an interval"
