"""Option-matching probe: reads the text of the right option from a state, where the answer set is open.

Ridge from the state to a text feature of the right option, several outputs at once; of a held-out item's own options,
the one whose feature has the largest cosine with the prediction is chosen, both taken from the training mean. The
letters never enter. Closed form and batched like the letter probe (`ridge`): one eigendecomposition a fold serves every
alpha and every labeling. A control labeling takes one of each item's own options at random for the right one.

Letters beside those of `ridge`: O options, X width of a text feature.
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from lvr_jax.prism.probes.folds import Folds
from lvr_jax.prism.probes.ridge import _einsum, as_float, centred, dual_fit, map_cells, scaled_gram


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class MatchScores:
    """Out-of-fold choices; `...` are the leading axes of x (positions, layers). Items in no fold are predicted -1.

    predicted [..., A, J, I] int32: place among the item's own options; loo_score [..., F, A, J] within the training
    rows (higher is better); chosen [..., F, J], the rung with the best one, and predicted_chosen [..., J, I]
    """

    predicted: jax.Array
    loo_score: jax.Array
    chosen: jax.Array
    predicted_chosen: jax.Array


def match_scores(x, features, labels, options, folds: Folds, alphas, *, standardize=True, cells=4) -> MatchScores:
    """x [..., I, D] states, features [I, O, X] of each item's options [I], labels [J, I] the right one's place.

    The right option of a training item is its target, so that labels [J, I] of other options are control labelings.
    fp64 states compute in fp64, all else in fp32. Raises ValueError on shapes or labels that disagree.
    """
    features, labels, options = np.asarray(features), np.asarray(labels), np.asarray(options)
    I, O = features.shape[:2]  # noqa: E741
    if x.shape[-2] != I or labels.shape[1:] != (I,) or options.shape != (I,) or len(folds.used) != I:
        raise ValueError(f"option matching: x has {x.shape[-2]} items, features {I}, labels {labels.shape}, folds are "
                         f"over {len(folds.used)}; expected the same items")  # fmt: skip
    used = np.asarray(folds.used)
    if (labels < 0)[:, used].any() or (labels >= options)[:, used].any() or (options > O).any():
        raise ValueError("option matching: a label is not among its item's options")
    return _scores(
        x, compact(features, options), labels.astype(np.int32), options.astype(np.int32), folds, np.asarray(alphas),
        standardize=standardize, cells=cells,
    )  # fmt: skip


def compact(features, options) -> np.ndarray:
    """features [I, O, X] rotated into the span of the options' own: the same inner products in fewer dimensions."""
    features = np.asarray(features, np.float64)
    offered = np.arange(features.shape[1]) < np.asarray(options)[:, None]
    flat = np.unique(features[offered], axis=0)
    if len(flat) >= features.shape[-1]:
        return features
    _, sizes, basis = np.linalg.svd(flat, full_matrices=False)
    return features @ basis[sizes > sizes.max(initial=0) * np.finfo(np.float64).eps * len(flat)].T


@partial(jax.jit, static_argnames=("standardize", "cells"))
def _scores(x, features, labels, options, folds, alphas, *, standardize, cells):
    one = partial(_cell, features=features, labels=labels, options=options, folds=folds, alphas=alphas,
                  standardize=standardize)  # fmt: skip
    return map_cells(one, x, cells)


def _cell(x, features, labels, options, folds, alphas, *, standardize):
    """x [I, D] of one position and layer, through all folds, alphas and labelings."""
    x = centred(as_float(x), folds.used)
    features, alphas = features.astype(x.dtype), alphas.astype(x.dtype)
    gram = None if standardize else _einsum("id,jd->ij", x, x)
    right = jax.vmap(lambda j: jnp.take_along_axis(features, j[:, None, None], 1)[:, 0])(labels)      # [J, I, X]

    def one_fold(fold):
        train, train_valid, held = fold
        fold_gram = scaled_gram(x, train, train_valid) if standardize else gram
        rank = jnp.full(len(alphas), jnp.minimum(x.shape[1], train_valid.sum() - 1))
        fit = dual_fit(fold_gram, right[:, train], train, train_valid, held, alphas, rank)
        moved = fit.decision - fit.mean                                                  # [A, E, J, X]
        offered = features[held][:, None] - fit.mean[None, :, None]                      # [E, J, O, X]
        length = jnp.linalg.norm(offered, axis=-1)
        score = _einsum("aejx,ejox->aejo", moved, offered) / jnp.where(length > 0, length, 1)
        there = jnp.arange(features.shape[1]) < options[held][:, None, None]             # [E, 1, O]
        return jnp.argmax(jnp.where(there, score, -jnp.inf), -1).astype(jnp.int32), fit.loo_score

    guess, loo_score = jax.lax.map(one_fold, (folds.train, folds.train_valid, folds.held))
    chosen = jnp.argmax(loo_score, axis=1)                                               # [F, J], first of equals
    at_chosen = jnp.take_along_axis(guess, chosen[:, None, None, :], axis=1)[:, 0]       # [F, E, J]
    to = jnp.where(folds.held_valid, folds.held, x.shape[0])                             # padding is dropped
    empty = jnp.full((x.shape[0], *guess.shape[1:2], *guess.shape[3:]), -1, jnp.int32)   # [I, A, J]
    predicted = empty.at[to].set(guess.transpose(0, 2, 1, 3), mode="drop")
    predicted_chosen = empty[:, 0].at[to].set(at_chosen, mode="drop")
    return MatchScores(predicted.transpose(1, 2, 0), loo_score, chosen, predicted_chosen.T)
