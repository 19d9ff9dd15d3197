"""Probe accuracy and selectivity by capacity: tells what a probe reads from what it learns."""

from dataclasses import dataclass

import jax
import numpy as np

from lvr_jax.prism.probes.folds import Folds
from lvr_jax.prism.probes.ridge import ridge_scores


@dataclass(frozen=True)
class Rung:
    """One step of the ladder. kind: pca (size = rank), ridge (size = all D) or fourier (size = random features)."""

    kind: str
    size: int
    alpha: float
    accuracy: float
    control: float
    selectivity: float


def capacity_ladder(
    x, labels, controls, folds: Folds, *, n_classes, ranks=(1, 2, 4, 8, 16, 32, 64), widths=(64, 256, 1024, 4096),
    alphas=(1.0, 1e2, 1e4), alpha=1.0, standardize=True, seed=0,
) -> list[Rung]:  # fmt: skip
    """x [I, D], labels [I], controls [J, I]: PCA ranks and Fourier widths at one alpha, all of x at each of alphas.

    A probe that gains on the real labels no more than on the controls is learning, not reading.
    """
    labelings = np.concatenate([np.asarray(labels)[None], np.asarray(controls)])
    items, width = np.shape(x)

    def rungs(kind, features, sizes, at, **how):
        scores = ridge_scores(features, labelings, folds, at, n_classes=n_classes, **how)
        hits = np.asarray(scores.predicted)[..., np.asarray(folds.covered)] == labelings[:, np.asarray(folds.covered)]
        accuracy = hits.mean(-1)                                                          # [A, J + 1]
        return [
            Rung(kind, size, float(a), float(row[0]), float(row[1:].mean()), float(row[0] - row[1:].mean()))
            for size, a, row in zip(sizes, at, accuracy)
        ]

    # No training fold spans more dimensions than it has items.
    ranks = [r for r in ranks if r <= min(items, width)]
    ladder = rungs("pca", x, ranks, [alpha] * len(ranks), ranks=ranks, standardize=standardize) if ranks else []
    ladder += rungs("ridge", x, [width] * len(alphas), list(alphas), standardize=standardize)
    for size in widths:
        features = random_fourier_features(x, size, seed=seed, valid=folds.covered)
        ladder += rungs("fourier", features, [size], [alpha])
    return ladder


def random_fourier_features(x, width: int, *, bandwidth: float | None = None, seed: int = 0, valid=None) -> np.ndarray:
    """x [I, D] to [I, width]: inner products approximate exp(-|x - x'|^2 / (2 bandwidth^2)) (Rahimi and Recht, 2007).

    bandwidth None: the median distance between two valid items. Sees no label, so it may see all items. Rows of items
    that are not valid are 0.
    """
    x = np.asarray(jax.device_get(x), np.float32)
    valid = np.ones(len(x), bool) if valid is None else np.asarray(valid)
    inside = x[valid] - x[valid].mean(0)
    if bandwidth is None:
        square = (inside**2).sum(1)
        distance = np.maximum(square[:, None] + square - 2 * inside @ inside.T, 0)
        bandwidth = float(np.sqrt(np.median(distance[np.triu_indices(len(inside), 1)])))
    if not bandwidth > 0:
        raise ValueError(f"random Fourier features: bandwidth {bandwidth}; most items are identical")
    rng = np.random.default_rng(seed)
    direction = rng.standard_normal((x.shape[1], width), np.float32) / bandwidth
    phase = rng.uniform(0, 2 * np.pi, width).astype(np.float32)
    features = np.zeros((len(x), width), np.float32)
    features[valid] = np.sqrt(2 / width) * np.cos(inside @ direction + phase)
    return features
