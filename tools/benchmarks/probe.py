"""Batched ridge probes against a scikit-learn loop that does the same work.

16 layers x 6 positions x 5 folds x 9 alphas x 20 control labelings, N = 191, D = 2048. Ours does all of it: held-out
predictions at every alpha and the leave-one-out choice. scikit-learn is timed on random (layer, position, fold,
labeling) units and scaled to all of them. Two loops that a user could write are timed, RidgeClassifier at each alpha
(predictions at every alpha) and RidgeClassifierCV (the choice only), with BLAS threads free and held to one; the
fastest of the four is the baseline, and ours gets the same choice of threads. Predictions and chosen alphas of the
timed units must equal ours, or it fails.
"""

import itertools
import time
from functools import partial
from statistics import median

import jax
import numpy as np
from sklearn.linear_model import RidgeClassifier, RidgeClassifierCV
from threadpoolctl import threadpool_limits

from lvr_jax.prism.probes.folds import stratified_folds
from lvr_jax.prism.probes.ridge import ridge_scores

LAYERS, POSITIONS, ITEMS, WIDTH, FOLDS, LABELINGS, CLASSES = 16, 6, 191, 2048, 5, 20, 4
ALPHAS = np.logspace(-2, 6, 9)
GOAL = 50
# What threadpoolctl limits BLAS to. Two BLAS threads on small matrices only pay where no other work wants the cores.
THREADS = {"all": None, "one": 1}


def run(rounds: int = 5, units: int = 8, seed: int = 0) -> dict:
    """Medians of interleaved rounds; `units` scikit-learn units are timed a round, others each round."""
    rng = np.random.default_rng(seed)
    states = rng.standard_normal((LAYERS, POSITIONS, ITEMS, WIDTH), np.float32) + 3
    labels = rng.integers(0, CLASSES, (LABELINGS, ITEMS))
    folds = stratified_folds(labels[0], FOLDS, seed)
    on_device = jax.device_put(states)

    def ours():
        return jax.block_until_ready(ridge_scores(on_device, labels, folds, ALPHAS, n_classes=CLASSES))

    scores = jax.device_get(ours())  # compiles; also the results that every timed unit is compared with
    everything = list(itertools.product(range(LAYERS), range(POSITIONS), range(FOLDS), range(LABELINGS)))
    loops = {(name, threads): [] for name in _LOOPS for threads in THREADS}
    own, compared, close = {threads: [] for threads in THREADS}, 0, 0
    for _ in range(rounds):
        for threads, limit in THREADS.items():
            with threadpool_limits(limit):
                own[threads].append(_seconds(ours)[0])
        drawn = [everything[u] for u in rng.choice(len(everything), units, replace=False)]
        for (name, threads), times in loops.items():
            with threadpool_limits(THREADS[threads]):
                seconds, results = _seconds(partial(_all_units, _LOOPS[name], states, labels, folds, drawn))
            times.append(seconds * len(everything) / units)
            for unit, result in zip(drawn, results):
                checked, ties = _CHECKS[name](scores, folds, unit, result)
                compared, close = compared + checked, close + ties
    own = {f"{threads} BLAS threads": median(times) for threads, times in own.items()}
    seconds = min(own.values())
    baselines = {f"{name}, {threads} BLAS threads": median(times) for (name, threads), times in loops.items()}
    fastest = min(baselines, key=baselines.get)
    ratio = baselines[fastest] / seconds
    return {
        "name": "probe", "ratio": ratio, "goal": GOAL, "holds": bool(ratio >= GOAL),
        "seconds": seconds, "baseline_seconds": baselines[fastest],
        "details": {
            "baseline": f"{fastest}; {units} of {len(everything)} units timed a round, scaled to all",
            "all_baseline_seconds": baselines, "all_seconds": own,
            "ratio_same_outputs": min(v for k, v in baselines.items() if k.startswith("RidgeClassifier per")) / seconds,
            "rounds": rounds, "device": jax.devices()[0].device_kind,
            "results_compared": compared, "ties_within_rounding": close,
        },
    }  # fmt: skip


def _all_units(loop, states, labels, folds, units):
    return [loop(states, labels, folds, *unit) for unit in units]


def _seconds(work):
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def _rows(folds, f):
    return folds.train[f][folds.train_valid[f]], folds.held[f][folds.held_valid[f]]


def _path(states, labels, folds, layer, position, f, j):
    """Decision values [A, E, Y] of the held-out rows."""
    (train, held), x = _rows(folds, f), states[layer, position]
    return [RidgeClassifier(alpha=a).fit(x[train], labels[j, train]).decision_function(x[held]) for a in ALPHAS]


def _choice(states, labels, folds, layer, position, f, j):
    """The alpha chosen by leave-one-out and the held-out decision values [E, Y] under it."""
    (train, held), x = _rows(folds, f), states[layer, position]
    model = RidgeClassifierCV(alphas=ALPHAS).fit(x[train], labels[j, train])
    return model.alpha_, model.decision_function(x[held])


def _same(guess, decision, what):
    """(values compared, ties): guess [E] must be the largest of decision [E, Y], but for ties within fp32 rounding."""
    differs = guess != decision.argmax(1)
    top = np.sort(decision, axis=1)
    tied = top[:, -1] - top[:, -2] < 1e-5
    if (differs & ~tied).any():
        raise RuntimeError(f"probe: {(differs & ~tied).sum()} predictions differ from scikit-learn's at {what}")
    return len(guess), int(differs.sum())


def _check_path(scores, folds, unit, result):
    layer, position, f, j = unit
    _, held = _rows(folds, f)
    guesses = scores.predicted[layer, position, :, j][:, held]
    pairs = [_same(g, d, f"{unit}, alpha {a}") for g, d, a in zip(guesses, result, ALPHAS)]
    return tuple(map(sum, zip(*pairs)))


def _check_choice(scores, folds, unit, result):
    layer, position, f, j = unit
    (alpha, decision), (_, held) = result, _rows(folds, f)
    loo = np.sort(scores.loo_score[layer, position, f, :, j])
    if alpha != ALPHAS[scores.chosen[layer, position, f, j]]:
        if loo[-1] - loo[-2] > 1e-5:
            raise RuntimeError(f"probe: chosen alpha differs from scikit-learn's {alpha} at {unit}")
        return 1, 1
    compared, ties = _same(scores.predicted_chosen[layer, position, j, held], decision, unit)
    return compared + 1, ties


_LOOPS = {"RidgeClassifier per alpha": _path, "RidgeClassifierCV": _choice}
_CHECKS = {"RidgeClassifier per alpha": _check_path, "RidgeClassifierCV": _check_choice}
