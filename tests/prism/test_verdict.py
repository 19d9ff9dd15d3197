"""The verdict names what the answer does with its latents, for planted models at the size of V*Bench."""

from collections import Counter

import numpy as np
import pytest

from lvr_jax.prism import verdict as v
from lvr_jax.prism.verdict import CARRIES, FORMAT, HIDES, LISTENS, two_verdicts

N, FLOOR = 191, 0.25
ROLES = {
    "oracle": LISTENS, "wrong_box": LISTENS, "donor_directed": LISTENS, "donor": CARRIES, "mean": CARRIES,
    "distribution_matched": CARRIES, "answer_blind_to_latents": HIDES, "markers_only": FORMAT,
}  # fmt: skip
NAMES = list(ROLES)
# What of an answer's evidence comes by way of the latents, and what the answer's own way to the picture gives alone.
MODELS = {
    v.USES: {"weight": 1.0},
    v.PARTLY: {"weight": 0.5},
    v.IGNORED: {"weight": 0.0},
    v.BELIEVED: {"weight": 0.5, "alone": 1.0},
    v.EMPTY: {"weight": 0.6, "own": 0.0},
    v.FORMAT_ONLY: {"weight": 0.0, "follows": "format"},
}


def planted(seed, weight, own=1.0, alone=None, follows="word", n=N, jitter=0.05):
    """Right or wrong of content and letter under every condition of ROLES, and clean.

    An item's evidence for its answer is `weight` of what stands in the latents' place plus the rest of what the answer
    sees by itself. own: how much of the truth own latents hold; alone: how much of it is there without latents;
    follows: what letters do: `word`, `format` (follow the word until the latents are removed), or `nothing`.
    """
    rng = np.random.default_rng(seed)
    truth, seen = rng.normal(1.0, 1.2, n), rng.normal(1.0, 1.2, n)
    seen = truth if alone else seen
    wrong = lambda shift=0.0: rng.normal(-0.8 + shift, 1.2, n)  # noqa: E731
    latent = {
        "clean": own * truth + (1 - own) * 0.2, "oracle": truth + 1.2, "wrong_box": wrong(-0.4),
        "donor_directed": wrong(-0.4), "donor": own * wrong() + (1 - own) * 0.2,
        "mean": own * wrong(0.4) + (1 - own) * 0.2, "distribution_matched": own * wrong() + (1 - own) * 0.2,
    }  # fmt: skip
    absent = seen if alone else (1 - weight) * seen + weight * wrong()
    evidence = {name: weight * z + (1 - weight) * seen for name, z in latent.items()}
    evidence |= dict.fromkeys(("answer_blind_to_latents", "markers_only"), absent)
    right = {name: e + (0 if name == "clean" else jitter) * rng.standard_normal(n) > 0 for name, e in evidence.items()}
    letters = {}
    for name, words in right.items():
        chance = rng.random(n) < 0.25
        lost = follows == "nothing" or (follows == "format" and name == "markers_only")
        letters[name] = chance if lost else words
    return right, letters


def verdict(seed, draws=500, names=NAMES, **model):
    right, letters = planted(seed, **model)
    both = [np.array([each[name] for name in names]) for each in (right, letters)]
    return two_verdicts(right["clean"], both[0], names=names, roles=ROLES, floor=FLOOR,
                        letters=(letters["clean"], both[1]), draws=draws)  # fmt: skip


@pytest.mark.parametrize("kind", MODELS)
def test_a_planted_model_is_named_right_in_fifty_of_fifty_seeds(kind):
    assert Counter(verdict(seed, **MODELS[kind]).kind for seed in range(50)) == {kind: 50}


def test_content_that_latents_carry_is_seen_where_letters_are_at_chance():
    """Letters of this model have nothing to do with its words: by letter there would be nothing to find."""
    verdicts = [verdict(seed, weight=1.0, follows="nothing") for seed in range(50)]
    assert Counter(each.kind for each in verdicts) == {v.USES: 50}
    for seed in range(50):
        _, letters = planted(seed, weight=1.0, follows="nothing")
        rows = np.array([letters[name] for name in NAMES])
        by_letter = two_verdicts(letters["clean"], rows, names=NAMES, roles=ROLES, floor=FLOOR, draws=500)
        assert by_letter.kind in (v.UNTESTABLE, v.UNDECIDED, v.IGNORED)


@pytest.mark.slow
def test_false_alarms_are_at_the_nominal_rate():
    """Over all comparisons of a verdict together, where no run differs from any other but by jitter.

    Some effect is found in 5 % of the draws, within what 1,000 of them can tell (two standard errors), and no more
    draws than those are named anything that needs an effect.
    """
    found = Counter()
    for seed in range(1000):
        rng = np.random.default_rng([seed, 1])                          # not the stream that the bootstrap draws from
        words, letters = (rng.normal(0.8, 1.2, N) + 0.5 * rng.standard_normal((1 + len(NAMES), N)) > 0 for _ in "wl")
        both = dict(names=NAMES, roles=ROLES, letters=(letters[0], letters[1:]))
        moved = v._Moved(words[1:] * 1.0 - words[0], *both.values(), 0.95, 300, seed)
        found["alarm"] += any(v._excludes(effect) for effect in moved.effects)
        found[two_verdicts(words[0], words[1:], floor=FLOOR, draws=300, seed=seed, **both).kind] += 1
    assert abs(found["alarm"] / 1000 - 0.05) <= 2 * np.sqrt(0.05 * 0.95 / 1000)
    assert 1000 - found[v.IGNORED] - found[v.UNDECIDED] <= found["alarm"]


def test_an_accuracy_at_the_floor_cannot_be_tested_unless_something_lifts_it():
    rng = np.random.default_rng(6)
    guessing = rng.random(N) < 0.25
    same = np.tile(guessing, (3, 1))
    names = ("oracle", "donor", "mean")
    found = two_verdicts(guessing, same[1:], names=names[1:], roles=ROLES, floor=FLOOR)
    assert found.kind == found.carries.answer == found.listens.answer == v.UNTESTABLE
    assert "not clearly above 25.0%" in " ".join(found.sentences)
    lifted = same.copy()
    lifted[0] = rng.random(N) < 0.95
    found = two_verdicts(guessing, lifted, names=names, roles=ROLES, floor=FLOOR)
    assert (found.kind, found.listens.condition, found.carries.answer) == (v.EMPTY, "oracle", v.NO)
    # Above chance, but not above always giving the commonest answer.
    skewed = rng.random(N) < 0.36
    found = two_verdicts(skewed, np.tile(skewed, (2, 1)), names=names[1:], roles=ROLES, floor=0.372)
    assert found.kind == v.UNTESTABLE


def test_a_replacement_that_helps_is_called_harmful_latents():
    right, letters = planted(3, weight=1.0)
    better = right["oracle"]
    found = two_verdicts(right["clean"] & right["donor"], better[None], names=["mean"], roles=ROLES, floor=0.1)
    assert found.kind == v.HARMFUL and found.carries.effect.low > 0 and "do harm" in found.sentences[0]


def test_the_format_is_named_beside_what_latents_do():
    """Letters fall when latents go, the words do not: said of a model that believes its latents, and of one that does
    not; no such thing is found where there are letters alone."""
    believed = verdict(1, weight=0.5, alone=1.0, follows="format")
    assert believed.kind == v.BELIEVED and believed.form.condition == "markers_only"
    assert any("while the content stays" in sentence for sentence in believed.sentences)
    assert verdict(1, weight=0.5, alone=1.0).form is None
    right, _ = planted(1, weight=0.0)
    rows = np.array([right[name] for name in NAMES])
    assert two_verdicts(right["clean"], rows, names=NAMES, roles=ROLES, floor=FLOOR).form is None


def test_without_a_condition_that_hides_latents_redundancy_is_not_claimed():
    names = [name for name in NAMES if name not in ("answer_blind_to_latents", "markers_only")]
    found = verdict(0, names=names, weight=0.5, alone=1.0)
    assert found.kind == v.PARTLY and found.needed is None


def test_items_without_anything_to_feed_are_in_no_comparison():
    right, _ = planted(0, weight=1.0)
    rows = np.array([right["donor"], right["mean"]], float)
    rows[0, :150] = np.nan
    found = two_verdicts(right["clean"], rows, names=("donor", "mean"), roles=ROLES, floor=FLOOR)
    assert found.kind == v.USES
    few = np.mean(rows[0, 150:] - right["clean"][150:])
    assert [q.effect.point for q in (found.listens,)] == [min(few, np.mean(rows[1] - right["clean"]))]


def test_what_n_cannot_show_is_undecided_and_said():
    clean = np.arange(24) < 17
    worse = clean.copy()
    worse[:4], worse[-1] = False, True
    found = two_verdicts(clean, worse[None], names=["mean"], roles=ROLES, floor=FLOOR)
    assert found.kind == v.UNDECIDED and found.carries.p > 0.05
    assert "would usually go unnoticed" in found.sentences[-1]


def test_the_published_deltas_alone_cannot_say_that_latents_are_bypassed():
    # LVR's truncation at its clearest: 5 of 134 right answers lost, none gained. Up to a tenth of the edge may be gone.
    clean = np.arange(N) < 134
    found = two_verdicts(clean, (np.arange(N) < 129)[None], names=["mean"], roles=ROLES, floor=FLOOR)
    assert found.kind == v.IGNORED and found.carries.p > 0.01
    assert -found.carries.effect.low > 0.08 * (134 / N - FLOOR) and found.smallest > 0.04


@pytest.mark.parametrize("roles", [{"mean": "matters"}, {}, {"mean": HIDES}])
def test_roles_that_make_no_verdict_are_refused(roles):
    with pytest.raises(ValueError, match="roles"):
        two_verdicts(np.ones(4), np.ones((1, 4)), names=["mean"], roles=roles, floor=0.25)
