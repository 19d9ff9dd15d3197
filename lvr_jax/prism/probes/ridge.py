"""Ridge classification in closed form, for every position and layer at once.

With I items and D features, D is far above I here, so everything happens in the I x I Gram matrix: one
eigendecomposition a fold serves every regularisation, every PCA rank, every leave-one-out score and every labeling
(the real one and all controls). Equal to scikit-learn's RidgeClassifier and RidgeClassifierCV: +-1 targets, unpenalised
intercept, one alpha shared by all classes.

Letters beside the README's: F folds, R training rows of a fold, E held-out rows, A rungs (an alpha and a PCA rank
each), J labelings, Y classes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from lvr_jax.prism.probes.folds import Folds, folds_from_splits

# Exact products also where the default is bfloat16 (TPU) or TF32 (GPU).
_einsum = partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)

LOO_SCORES = ("squared_error", "accuracy")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class RidgeScores:
    """Out-of-fold results; `...` are the leading axes of x (positions, layers). Items in no fold are predicted -1.

    predicted [..., A, J, I] int8, accuracy [..., F, A, J] for every rung; loo_score [..., F, A, J] within the training
    rows (higher is better); chosen [..., F, J] the rung with the best loo_score, and predicted_chosen [..., J, I],
    accuracy_chosen [..., F, J] what it scores: the choice never sees a held-out item.
    """

    predicted: jax.Array
    accuracy: jax.Array
    loo_score: jax.Array
    chosen: jax.Array
    predicted_chosen: jax.Array
    accuracy_chosen: jax.Array


def ridge_scores(
    x, labels, folds: Folds, alphas, *, ranks=None, n_classes: int, standardize=False, loo="squared_error", cells=4
) -> RidgeScores:
    """Fits every (leading axis of x) x fold x rung x labeling and predicts the held-out items.

    x [..., I, D] floating (fp64 stays fp64, all else computes in fp32); labels [J, I] in 0 .. n_classes-1; alphas [A]
    > 0; ranks [A] keeps that many principal components of the training rows (None: all). standardize: z-score by the
    training rows. loo: one of LOO_SCORES; leave-one-out holds a truncated PCA basis fixed. `cells` leading entries are
    computed at a time, which bounds the memory. Raises ValueError on labels or alphas out of range.
    """
    labels = np.asarray(labels)
    alphas = np.asarray(alphas, np.float64)
    _check(x, labels, folds, alphas, n_classes, loo)
    rank = np.full(len(alphas), x.shape[-2]) if ranks is None else np.asarray(ranks)
    if rank.shape != alphas.shape or (rank < 1).any():
        raise ValueError(f"ridge: ranks {rank.tolist()}; expected {len(alphas)}, one an alpha, each 1 or more")
    return _scores(
        x, labels.astype(np.int32), folds, alphas, rank.astype(np.int32),
        n_classes=n_classes, standardize=standardize, loo=loo, cells=cells,
    )  # fmt: skip


def ridge_coefficients(x, labels, alpha, *, n_classes: int) -> tuple[jax.Array, jax.Array]:
    """One fit on all items: coef [Y, D] and intercept [Y], as scikit-learn's RidgeClassifier(alpha) has them.

    For two classes scikit-learn keeps only the row of class 1; here row 0 is its negative.
    """
    labels = np.asarray(labels)
    everything = np.arange(len(labels))
    whole = folds_from_splits([(everything, everything)], len(labels))
    _check(x, labels[None], whole, np.asarray([alpha], np.float64), n_classes, LOO_SCORES[0])
    return _coefficients(x, labels.astype(np.int32), np.float64(alpha), n_classes)


def _check(x, labels, folds, alphas, n_classes, loo):
    items = x.shape[-2]
    if labels.ndim != 2 or labels.shape[1] != items or len(folds.used) != items:
        raise ValueError(
            f"ridge: x has {items} items, labels have shape {labels.shape}, folds are over {len(folds.used)}; "
            f"expected labels [J, {items}] and folds over {items} items"
        )
    used = labels[:, np.asarray(folds.used)]
    if used.size and (used.min() < 0 or used.max() >= n_classes):
        raise ValueError(f"ridge: labels from {used.min()} to {used.max()}; expected 0 to {n_classes - 1}")
    if alphas.ndim != 1 or not (alphas > 0).all():
        raise ValueError(f"ridge: alphas {alphas.tolist()}; expected a list of positive numbers")
    if loo not in LOO_SCORES:
        raise ValueError(f"ridge: loo {loo!r}; expected one of {', '.join(LOO_SCORES)}")


@partial(jax.jit, static_argnames=("n_classes", "standardize", "loo", "cells"))
def _scores(x, labels, folds, alphas, ranks, *, n_classes, standardize, loo, cells):
    one = partial(
        _cell, labels=labels, folds=folds, alphas=alphas, ranks=ranks,
        n_classes=n_classes, standardize=standardize, loo=loo,
    )  # fmt: skip
    return map_cells(one, x, cells)


def map_cells(fit: Callable, x, cells: int):
    """What `fit` finds in each [I, D] of x [..., I, D], `cells` of them at a time, under the leading axes of x."""
    leading = x.shape[:-2]
    x = x.reshape(-1, *x.shape[-2:])
    found = jax.lax.map(fit, x, batch_size=min(cells, x.shape[0]))
    return jax.tree.map(lambda a: a.reshape(*leading, *a.shape[1:]), found)


def as_float(x):
    """x in fp32, or in fp64 if it is that."""
    return x if x.dtype == jnp.float64 else x.astype(jnp.float32)


def _cell(x, labels, folds, alphas, ranks, *, n_classes, standardize, loo):
    """x [I, D] of one position and layer, through all folds, rungs and labelings."""
    x = centred(as_float(x), folds.used)
    alphas = alphas.astype(x.dtype)
    gram = None if standardize else _einsum("id,jd->ij", x, x)

    def one_fold(train, train_valid, held, held_valid):
        fold_gram = scaled_gram(x, train, train_valid) if standardize else gram
        # Centred rows span no more dimensions than there are features, or rows less one.
        rank = jnp.minimum(ranks, jnp.minimum(x.shape[1], train_valid.sum() - 1))
        return _fold(fold_gram, labels, train, train_valid, held, held_valid, alphas, rank, n_classes, loo)

    guess, correct, loo_score = jax.vmap(one_fold)(folds.train, folds.train_valid, folds.held, folds.held_valid)
    chosen = jnp.argmax(loo_score, axis=1)                                               # [F, J], first of equals
    at_chosen = jnp.take_along_axis(guess, chosen[:, None, None, :], axis=1)[:, 0]       # [F, E, J]
    correct_chosen = jnp.take_along_axis(correct, chosen[:, None, :], axis=1)[:, 0]      # [F, J]

    # Padding is scattered out of range and dropped.
    to = jnp.where(folds.held_valid, folds.held, x.shape[0])
    empty = jnp.full((x.shape[0], *guess.shape[1:2], *guess.shape[3:]), -1, jnp.int8)    # [I, A, J]
    predicted = empty.at[to].set(guess.transpose(0, 2, 1, 3), mode="drop")               # guess [F, E, A, J]
    predicted_chosen = empty[:, 0].at[to].set(at_chosen, mode="drop")
    return RidgeScores(
        predicted.transpose(1, 2, 0), correct, loo_score, chosen, predicted_chosen.T, correct_chosen
    )


def centred(x, used) -> jax.Array:
    """x [I, D] with the mean of the used items taken out, and 0 at the others, which may hold anything, NaN too.

    The intercept makes any common shift immaterial; taking it out before the products keeps fp32 exact enough for
    hidden states whose mean dwarfs their spread.
    """
    used = used[:, None]
    x = jnp.where(used, x, 0)
    return jnp.where(used, x - x.sum(0) / used.sum(), 0)


def scaled_gram(x, train, train_valid) -> jax.Array:
    """Gram matrix [I, I] of x [I, D], each feature divided by its deviation over the training rows."""
    scaled = x / _scale(x[train], train_valid)
    return _einsum("id,jd->ij", scaled, scaled)


def _fold(gram, labels, train, train_valid, held, held_valid, alphas, ranks, n_classes, loo):
    """guess [A, E, J] int8 of the held-out rows, accuracy [A, J] on them, leave-one-out score [A, J] in training."""
    target = 2 * jax.nn.one_hot(labels[:, train], n_classes, dtype=gram.dtype) - 1       # [J, R, Y]
    fit = dual_fit(gram, target, train, train_valid, held, alphas, ranks)
    guess = jnp.argmax(fit.decision, axis=-1)
    hit = (guess == labels[:, held].T) & held_valid[:, None]
    accuracy = hit.sum(1) / held_valid.sum()
    rows = train_valid.astype(gram.dtype)
    if loo == "squared_error":
        score = fit.loo_score
    else:
        left_out = jnp.argmax(target.transpose(1, 0, 2) - fit.error, axis=-1)            # [A, R, J]
        score = ((left_out == labels[:, train].T) * rows[:, None]).sum(1) / rows.sum()
    return guess.astype(jnp.int8), accuracy.astype(gram.dtype), score


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class DualFit:
    """Ridge with an unpenalised intercept, fitted to the training rows of one fold.

    decision [A, E, J, Y]: predictions for the held-out rows; mean [J, Y]: of the training targets; error [A, R, J, Y]:
    training target minus its prediction by a fit without that row; loo_score [A, J]: minus the mean square of those
    """

    decision: jax.Array
    mean: jax.Array
    error: jax.Array
    loo_score: jax.Array


def dual_fit(gram, target, train, train_valid, held, alphas, ranks) -> DualFit:
    """gram [I, I] of the states, target [J, R, Y] of the training rows; padding rows may hold anything."""
    rows = train_valid.astype(gram.dtype)                                                # [R]
    kernel = gram[train[:, None], train[None]] * rows[:, None] * rows                    # [R, R]
    values, basis = _centred_eigenbasis(kernel, rows)                                    # [Q], [R, Q], Q = R - 1
    target = target.transpose(1, 0, 2) * rows[:, None, None]
    mean = target.sum(0) / rows.sum()                                                    # [J, Y]
    coordinates = _einsum("rq,rjy->qjy", basis, target)
    inverse, residual = _filters(values, alphas, ranks)                                  # [A, Q] each

    # Centring the held-out rows by the training mean; the other side is centred by the basis, which is orthogonal to 1.
    cross = gram[held[:, None], train[None]] * rows                                      # [E, R]
    projected = _einsum("er,rq->eq", cross - kernel.sum(0) / rows.sum(), basis)
    decision = _einsum("eq,aq,qjy->aejy", projected, inverse, coordinates) + mean

    # y - prediction without that row = (1 - hat) y / diag(1 - hat); exact for ridge with an intercept.
    leverage = _einsum("rq,aq,rq->ar", basis, residual, basis)
    leverage = jnp.where(train_valid, leverage, 1)
    error = _einsum("rq,aq,qjy->arjy", basis, residual, coordinates) / leverage[..., None, None]
    score = -(error**2 * rows[:, None, None]).sum((1, 3)) / (rows.sum() * target.shape[-1])
    return DualFit(decision, mean, error, score)


def _centred_eigenbasis(kernel, rows):
    """Eigenvalues [Q] and eigenvectors [R, Q] (columns) of the kernel [R, R] on the complement of the constant vector.

    A Householder reflection sends the constant vector (over valid rows) to the first axis, whose row and column are
    then left out: the intercept has no spurious near-zero eigenvalue that a small alpha could blow up.
    """
    mirror = (rows / jnp.sqrt(rows.sum())).at[0].add(1)
    scale = 2 / (mirror * mirror).sum()
    image = _einsum("rs,s->r", kernel, mirror)
    reflected = (
        kernel
        - scale * (mirror[:, None] * image + image[:, None] * mirror)
        + scale**2 * (mirror * image).sum() * mirror[:, None] * mirror
    )
    values, vectors = jnp.linalg.eigh(reflected[1:, 1:])
    vectors = jnp.concatenate([jnp.zeros_like(vectors[:1]), vectors])
    return values, vectors - scale * mirror[:, None] * _einsum("r,rq->q", mirror, vectors)


def _filters(values, alphas, ranks):
    """inverse [A, Q]: 1 / (value + alpha) for the `ranks` largest, else 0; residual [A, Q] = 1 - value * inverse.

    With I > D most directions carry no data: leaving them out by count keeps their rounding from being divided by a
    small alpha, and needs no threshold that could cut a true small eigenvalue.
    """
    q = values.shape[0]
    kept = jnp.arange(q) >= q - ranks[:, None]                                           # eigh sorts ascending
    total = jnp.maximum(values, 0) + alphas[:, None]
    return jnp.where(kept, 1 / total, 0), jnp.where(kept, alphas[:, None] / total, 1)


def _scale(x, valid):
    """Standard deviation [D] of the valid rows of x [R, D]; 1 for a constant feature, as scikit-learn scales."""
    weight = valid[:, None].astype(x.dtype)
    mean = (x * weight).sum(0) / weight.sum()
    spread = jnp.sqrt(((x - mean) ** 2 * weight).sum(0) / weight.sum())
    size = jnp.abs(x).max(0)
    return jnp.where(spread > 10 * jnp.finfo(x.dtype).eps * size, spread, 1)


@partial(jax.jit, static_argnames="n_classes")
def _coefficients(x, labels, alpha, n_classes):
    x = as_float(x)
    centre = x.mean(0)
    x = x - centre
    ones = jnp.ones(x.shape[0], x.dtype)
    values, basis = _centred_eigenbasis(_einsum("id,jd->ij", x, x), ones)
    target = 2 * jax.nn.one_hot(labels, n_classes, dtype=x.dtype) - 1                    # [I, Y]
    inverse, _ = _filters(values, alpha.astype(x.dtype)[None], jnp.full(1, min(x.shape[1], x.shape[0] - 1)))
    dual = _einsum("iq,q,qy->iy", basis, inverse[0], _einsum("iq,iy->qy", basis, target))
    coef = _einsum("iy,id->yd", dual, x)
    return coef, target.mean(0) - _einsum("yd,d->y", coef, centre)
