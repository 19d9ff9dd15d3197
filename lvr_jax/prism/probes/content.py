"""Probes for content: what the answer says, whatever its letter, at every position and layer.

An option's letter is drawn anew for every question, so that no latent can hold it; the word can be there all the same.

    closed    where few answers recur within a kind of question (colours, digits): ridge classification by kind
    options   where the answer set is open: the option-matching probe (`option_matching`)

Both are batched like the letter probe, with control labels, chance and the question's own state beside them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import numpy as np

from lvr_jax.prism.measure.capture import Capture
from lvr_jax.prism.probes.controls import control_labels, majority_predictions
from lvr_jax.prism.probes.folds import Folds, folds_from_splits
from lvr_jax.prism.probes.logistic_probe import logistic_probe
from lvr_jax.prism.probes.option_matching import match_scores
from lvr_jax.prism.probes.probes import ALPHAS, decodability, gap
from lvr_jax.prism.statistics import intervals
from lvr_jax.prism.statistics.intervals import Interval

KINDS_OF_PROBE = ("auto", "closed", "options", "none")
SEED = 42                       # of folds, the paper's
# Answers that occur less often than there are folds cannot be learnt and tested in each; a kind of question is closed
# if answers that do are at least this share of it.
CLOSED_SHARE, MOST_CLASSES = 0.8, 100


class ProbeError(ValueError):
    """A probe that the items cannot be asked for."""


@dataclass(frozen=True)
class Questions:
    """What content probes need of the items, [I] each: kind of question, what the right answer says, the place of the
    right option and how many there are, and features [I, O, X] of the options' texts (None: they have none)."""

    kinds: np.ndarray
    contents: Sequence[str]
    labels: np.ndarray
    options: np.ndarray
    features: np.ndarray | None


def check(which: str, kinds: Sequence[str], contents: Sequence[str], folds: int) -> None:
    """Raises ProbeError, one line, where a closed-class probe is asked for and a kind of question has one class."""
    if which != "closed":
        return
    for kind in np.unique(kinds):
        own = [c for k, c in zip(kinds, contents) if k == kind]
        often = [c for c in set(own) if own.count(c) >= folds]
        if len(often) < 2:
            raise ProbeError(f"probes.content is 'closed', but kind of question {str(kind)!r} has {len(often)} answers "
                             f"that occur {folds} times or more, expected two; use auto or options")  # fmt: skip


def closed_classes(kinds, contents, folds: int) -> np.ndarray:
    """[I] the answer's number within its kind of question, -1 for items of an open kind and for rare answers."""
    kinds, contents = np.asarray(kinds), np.asarray(contents).astype(str)
    label = np.full(len(kinds), -1)
    for kind in np.unique(kinds):
        own = kinds == kind
        names, counts = np.unique(contents[own], return_counts=True)
        often = names[counts >= folds]
        kept = own & np.isin(contents, often)
        if 2 <= len(often) <= MOST_CLASSES and kept.sum() >= CLOSED_SHARE * own.sum():
            label[kept] = np.searchsorted(often, contents[kept])
    return label


def read_content(capture: Capture, questions: Questions, which: str, *, pair, question: str, h0: str, folds: int,
                 controls: int, level: float, draws: int, seed: int) -> dict | None:  # fmt: skip
    """Everything that content probes say of a capture, ready for JSON but for dataclasses and arrays; None for none.

    pair: the paper's positions (a) and (b); question: the position of the question's own state; h0: of what is fed
    first. closed, options: by position; gap: of (a) and (b) by each probe, on the items that have both.
    """
    if which == "none":
        return None
    how = {"controls": controls, "level": level, "draws": draws, "seed": seed}
    label = closed_classes(questions.kinds, questions.contents, folds)
    found: dict = {"closed": None, "options": None, "gap": {}, "open_items": int((label < 0).sum())}
    both = capture.has(*pair)
    if which != "options" and (label >= 0).any():
        probe = lambda x, valid: closed_probe(x, questions, np.where(valid, label, -1), folds=folds, **how)  # noqa: E731
        found["closed"], found["gap"]["closed"] = _by_position(capture, probe, pair, both & (label >= 0), how)
        found["logistic"] = _logistic(capture, questions, label, (*pair, h0), folds, how)
    if which != "closed" and questions.features is not None:
        probe = lambda x, valid: option_probe(x, questions, valid, folds=folds, **how)  # noqa: E731
        found["options"], found["gap"]["options"] = _by_position(capture, probe, pair, both, how)
    found["question"] = {name: (found[name] or {}).get(question) for name in ("closed", "options")}
    return found


def closed_probe(x, questions: Questions, label, *, controls, level, draws, seed, folds=5) -> dict:
    """x [..., I, D] for the answer's number within its kind, label [I] (-1: not probed); all kinds in one batch.

    A kind's folds train on that kind alone. accuracy, control, selectivity, control_p as `probes.Decodability`;
    majority: always the commonest answer of the kind; by_kind: the same by kind. correct [..., I]: NaN outside folds.
    """
    from sklearn.model_selection import StratifiedKFold  # late, as in `folds`

    kinds, splits = np.asarray(questions.kinds), []
    for kind in np.unique(kinds[label >= 0]):
        rows = np.flatnonzero((kinds == kind) & (label >= 0))
        counts = np.unique(label[rows], return_counts=True)[1]
        if len(counts) < 2 or counts.min() < 2:
            continue                    # items of the kind that lack this position left a class with too few
        k = min(folds, int(counts.min()))
        splits += [(rows[train], rows[held]) for train, held in
                   StratifiedKFold(k, shuffle=True, random_state=SEED).split(rows, label[rows])]  # fmt: skip
    if not splits:
        raise ValueError("no kind of question has two answers that occur twice at this position")
    made = folds_from_splits(splits, len(label))
    labels = np.maximum(label, 0)
    drawn = control_labels("per_category", labels, controls, n_classes=0, categories=np.where(made.used, kinds, ""),
                           seed=seed)  # fmt: skip
    n_classes = int(labels.max()) + 1
    probes = decodability(x, labels, drawn, made, n_classes=n_classes, level=level, draws=draws, seed=seed)
    always = np.where(made.covered, majority_predictions(labels, made) == labels, np.nan)
    by_kind = {}
    for kind in np.unique(kinds[made.covered]):
        own = made.covered & (kinds == kind)
        weights = intervals.item_weights(int(own.sum()), draws, seed)
        by_kind[str(kind)] = {
            "items": int(own.sum()), "classes": len(np.unique(labels[own])), "majority": float(always[own].mean()),
            "accuracy": intervals.item_bootstrap(probes.correct[..., own], weights, level),
        }  # fmt: skip
    return {
        "items": int(made.covered.sum()), "accuracy": probes.accuracy, "control": probes.control,
        "selectivity": probes.selectivity, "control_p": probes.control_p, "majority": float(np.nanmean(always)),
        "by_kind": by_kind, "correct": probes.correct,
    }  # fmt: skip


def option_probe(x, questions: Questions, valid, *, controls, level, draws, seed, folds=5) -> dict:
    """x [..., I, D] for the text of the right option, over the valid items [I]; fields as `closed_probe`.

    control: one of each item's own options, at random, for the right one; chance: by the number of options.
    """
    from sklearn.model_selection import KFold  # late, as in `folds`

    rows = np.flatnonzero(valid)
    if len(rows) < 2 * folds:
        raise ValueError(f"option matching: {len(rows)} items, expected {2 * folds} at least")
    splits = KFold(folds, shuffle=True, random_state=SEED).split(rows)
    made = folds_from_splits([(rows[train], rows[held]) for train, held in splits], len(valid))
    labels = np.concatenate([questions.labels[None],
                             option_labels(questions.labels, questions.options, controls, seed)])  # fmt: skip
    scores = match_scores(x, questions.features, labels, questions.options, made, ALPHAS)
    hits = np.where(made.covered, np.asarray(jax.device_get(scores.predicted_chosen)) == labels, np.nan)
    return {
        **_summed(hits, made, level, draws, seed), "chance": float((1 / questions.options[made.covered]).mean()),
        "correct": hits[..., 0, :],
    }  # fmt: skip


def option_labels(labels, options, count: int, seed: int) -> np.ndarray:
    """`count` control labelings [J, I]: the right option's text is exchanged for that of a random one of the item's."""
    return np.random.default_rng(seed).integers(0, np.asarray(options), (count, len(labels)))


def _summed(hits, folds: Folds, level, draws, seed) -> dict:
    """hits [..., 1 + J, I], the real labels first."""
    weights = intervals.item_weights(int(folds.covered.sum()), draws, seed)
    real, control = hits[..., 0, :], hits[..., 1:, :].mean(-2)
    per_labeling = np.nanmean(hits, -1)
    return {
        "items": int(folds.covered.sum()),
        "accuracy": intervals.item_bootstrap(real[..., folds.covered], weights, level),
        "control": per_labeling[..., 1:].mean(-1),
        "selectivity": intervals.item_bootstrap((real - control)[..., folds.covered], weights, level),
        "control_p": (per_labeling >= per_labeling[..., :1]).mean(-1),
    }  # fmt: skip


def _by_position(capture: Capture, probe, pair, valid, how: dict) -> tuple[dict, dict]:
    """(position -> results by layer, G of the pair); positions that the same items have are probed at once."""
    groups: dict[bytes, list[str]] = {}
    for p, name in enumerate(capture.positions):
        groups.setdefault(capture.valid[:, p].tobytes(), []).append(name)
    found: dict = {}
    of_pair = None
    for names in groups.values():
        x = np.moveaxis(capture.states[:, [capture.positions.index(name) for name in names]], 0, 2)   # [P, L, I, D]
        try:
            made = probe(x, capture.has(*names))
        except ValueError as error:
            found |= dict.fromkeys(names, {"reason": str(error)})
            continue
        correct = made.pop("correct")
        found |= {name: {key: _of(value, p) for key, value in made.items()} for p, name in enumerate(names)}
        if set(pair) <= set(names):
            of_pair = [correct[names.index(name), -1] for name in pair]
    if of_pair is None:         # items that lack one of the two positions are left out of both
        try:
            of_pair = probe(np.stack([capture.at(name) for name in pair]), valid)["correct"]
        except ValueError as error:
            return {name: found[name] for name in capture.positions}, {"items": int(valid.sum()), "reason": str(error)}
    options = {key: how[key] for key in ("level", "draws", "seed")}
    g = {"items": int(np.isfinite(of_pair[0]).sum()), "gap": gap(*of_pair, **options),
         **{name: float(np.nanmean(c)) for name, c in zip(pair, of_pair)}}  # fmt: skip
    return {name: found[name] for name in capture.positions}, g


def _of(value, p: int):
    """One position of what is by position: numbers stay as they are."""
    if isinstance(value, Interval):
        return Interval(value.point[p], value.low[p], value.high[p])
    if isinstance(value, dict):
        return {key: _of(each, p) for key, each in value.items()}
    return value[p] if isinstance(value, np.ndarray) else value


def _logistic(capture: Capture, questions: Questions, label, names, folds: int, how: dict) -> dict:
    """The paper's probe for content: position -> kind -> items, classes, majority, accuracy (last layer)."""
    kinds = np.asarray(questions.kinds)
    found: dict = {}
    for name in names:
        found[name] = {}
        for kind in np.unique(kinds[label >= 0]):
            rows = capture.has(name) & (kinds == kind) & (label >= 0)
            try:
                probe = logistic_probe(capture.at(name)[rows], label[rows], k=folds, level=how["level"],
                                       draws=how["draws"])  # fmt: skip
            except ValueError as error:
                found[name][str(kind)] = {"items": int(rows.sum()), "reason": str(error)}
                continue
            counts = np.bincount(label[rows])
            found[name][str(kind)] = {
                "items": int(rows.sum()), "classes": int((counts > 0).sum()),
                "majority": float(counts.max() / rows.sum()), "accuracy": probe.by_item,
            }  # fmt: skip
    return found
