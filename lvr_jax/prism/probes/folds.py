"""Stratified cross-validation folds of a probe, as static index arrays."""

from dataclasses import dataclass

import jax
import numpy as np


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Folds:
    """Index arrays of F folds over I items, padded to the longest fold so that folds can be vmapped.

    train [F, R] and held [F, E] are item numbers, `*_valid` mark the entries that are not padding (padding points at
    item 0; the first entry of a row is always valid). covered [I] marks items that some fold holds out, used [I] those
    that some fold trains on or holds out.
    """

    train: jax.Array | np.ndarray
    train_valid: jax.Array | np.ndarray
    held: jax.Array | np.ndarray
    held_valid: jax.Array | np.ndarray
    covered: jax.Array | np.ndarray
    used: jax.Array | np.ndarray


def stratified_folds(labels, k: int = 5, seed: int = 42, valid=None) -> Folds:
    """scikit-learn's shuffled StratifiedKFold of labels [I], k reduced to the count of the rarest label.

    valid [I] (bool) leaves out items that cannot be probed, for example those without latents; they are in no fold.
    Raises ValueError when the rarest label occurs once only, for then no fold can both train on it and test it.
    """
    # Late: scikit-learn, with the pandas that it looks for, takes a quarter of the time that an audit takes to start.
    from sklearn.model_selection import StratifiedKFold

    labels = np.asarray(labels)
    valid = np.ones(len(labels), bool) if valid is None else np.asarray(valid, bool)
    items = np.flatnonzero(valid)
    if len(items) == 0:
        raise ValueError("stratified_folds: no valid item to split")
    names, counts = np.unique(labels[items], return_counts=True)
    k = min(k, int(counts.min()))
    if k < 2 or len(names) < 2:
        raise ValueError(
            f"stratified_folds: labels {names.tolist()} occur {counts.tolist()} times; "
            "expected two or more labels, each at least twice"
        )
    splits = StratifiedKFold(k, shuffle=True, random_state=seed).split(np.zeros(len(items)), labels[items])
    return folds_from_splits([(items[train], items[held]) for train, held in splits], len(labels))


def folds_from_splits(splits, n_items: int) -> Folds:
    """Folds over n_items from (train, held) pairs of item numbers, such as any scikit-learn splitter yields."""
    train, train_valid = _padded([train for train, _ in splits])
    held, held_valid = _padded([held for _, held in splits])
    covered = np.zeros(n_items, bool)
    covered[held[held_valid]] = True
    used = covered.copy()
    used[train[train_valid]] = True
    return Folds(train, train_valid, held, held_valid, covered, used)


def _padded(rows):
    width = max(len(row) for row in rows)
    index = np.zeros((len(rows), width), np.int32)
    valid = np.zeros((len(rows), width), bool)
    for f, row in enumerate(rows):
        index[f, : len(row)] = row
        valid[f, : len(row)] = True
    return index, valid
