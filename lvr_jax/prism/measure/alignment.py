"""Compares predicted latents with their visual targets, and with what a trivial guess would reach.

Pure arrays, teacher-forced or free-running alike: predicted and target latents [I, Z, D] with valid [I, Z] (a box has
as many latents as patches). Vectors are compared in fp32, on the host, where they are: op by op, JAX would compile
thirty programs for every new shape. Source of the per-token metrics: "Cosine Misleads" appendix D, whose released
script scores the target stage of P-LVR only; pass each stage by itself.
"""

from dataclasses import dataclass, fields

import numpy as np

# torch's cosine_similarity floors each norm here; keeps a zero vector at cosine 0.
_TINY = 1e-8


@dataclass(frozen=True)
class TokenAlignment:
    """One value a latent, [I, Z], 0 where not valid. mse is the mean over D, distance the Euclidean length."""

    cosine: np.ndarray
    mse: np.ndarray
    distance: np.ndarray
    predicted_norm: np.ndarray
    target_norm: np.ndarray
    norm_ratio: np.ndarray


def cosine_similarity(a, b) -> np.ndarray:
    """Cosine over the last axis in fp32; leading axes broadcast."""
    a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
    norms = np.maximum(np.linalg.norm(a, axis=-1), _TINY) * np.maximum(np.linalg.norm(b, axis=-1), _TINY)
    return (a * b).sum(-1) / norms


def token_alignment(predicted, target, valid) -> TokenAlignment:
    """predicted, target [I, Z, D], valid [I, Z]."""
    valid = np.asarray(valid, bool)
    # Padding may hold anything, NaN too, so it goes before the arithmetic.
    predicted, target = (np.where(valid[..., None], np.asarray(a, np.float32), 0) for a in (predicted, target))
    square = ((predicted - target) ** 2).mean(-1)
    length, goal = np.linalg.norm(predicted, axis=-1), np.linalg.norm(target, axis=-1)
    return TokenAlignment(
        cosine_similarity(predicted, target), square, np.sqrt(square * predicted.shape[-1]),
        length, goal, length / np.maximum(goal, _TINY),
    )  # fmt: skip


def summarise(tokens: TokenAlignment, valid) -> dict[str, np.ndarray]:
    """mean_* [I] and std_* [I] (sample deviation) over each item's valid latents; NaN where too few to say."""
    valid = np.asarray(valid, bool)
    count = valid.sum(-1)
    summary = {"count": count}
    for field in fields(tokens):
        values = np.where(valid, getattr(tokens, field.name), 0)
        mean = values.sum(-1) / np.where(count > 0, count, np.nan)
        spread = np.where(valid, values - mean[:, None], 0)
        summary[f"mean_{field.name}"] = mean
        summary[f"std_{field.name}"] = np.sqrt((spread**2).sum(-1) / np.where(count > 1, count - 1, np.nan))
    return summary


def over_items(summary: dict[str, np.ndarray]) -> dict[str, float]:
    """The paper's headline: each item's mean, then the mean over items that have latents. 'items' counts those."""
    there = summary["count"] > 0
    names = [name for name in summary if name.startswith("mean_")]
    items = int(there.sum())
    return {"items": items} | {n: float(np.where(there, summary[n], 0).sum() / (items or np.nan)) for n in names}


def trivial_baselines(target, valid) -> dict[str, np.ndarray]:
    """Cosine with the target, [I, Z], of guesses without a model: what a model's has to beat.

    neighbour: the target before it in raster order (NaN for a block's first), what a copying head scores; box_mean: the
    mean of the item's other targets (NaN for a lone one). Both use the answer's own box. dataset_mean: the mean over
    all other items' targets, the one that knows nothing of the question. Each leaves out the target it is compared
    with. NaN where not valid.
    """
    valid = np.asarray(valid, bool)
    target = np.where(valid[..., None], np.asarray(target, np.float32), 0)
    box, count = target.sum(1, keepdims=True), valid.sum(1)[:, None]
    others = target.sum((0, 1)) - box
    before = np.pad(target, ((0, 0), (1, 0), (0, 0)))[:, :-1]
    has_before = valid & np.pad(valid, ((0, 0), (1, 0)))[:, :-1]
    rows = {
        "neighbour": (before, has_before),
        "box_mean": (box - target, valid & (count > 1)),
        "dataset_mean": (others, valid & (valid.sum() - count > 0)),
    }
    return {name: np.where(there, cosine_similarity(guess, target), np.nan) for name, (guess, there) in rows.items()}


def pooled(latents, valid) -> np.ndarray:
    """Mean over each item's valid latents: [I, Z, D] to [I, D]; NaN for an item without any."""
    valid = np.asarray(valid, bool)
    total = np.where(valid[..., None], np.asarray(latents, np.float32), 0).sum(1)
    count = valid.sum(1)[:, None]
    return total / np.where(count > 0, count, np.nan)


def retrieval(predicted, gallery, ranks=(1, 5, 10)) -> dict[str, float]:
    """How often a latent finds its own item's target by cosine: predicted [I, D] against gallery [I, D], row by row.

    R@k, mean_rank (1 is best) and mrr. Gallery entries that tie with the own one count half, so that a collapsed
    predictor scores chance and not luck. Rows must be finite: drop items without latents first.
    """
    predicted, gallery = np.asarray(predicted, np.float32), np.asarray(gallery, np.float32)
    if predicted.shape != gallery.shape or not bool(np.isfinite(predicted).all() & np.isfinite(gallery).all()):
        raise ValueError(f"retrieval: predicted {predicted.shape}, gallery {gallery.shape}; expected equal and finite")
    unit = [a / np.maximum(np.linalg.norm(a, axis=-1, keepdims=True), _TINY) for a in (predicted, gallery)]
    similarity = unit[0] @ unit[1].T
    own = np.diagonal(similarity)[:, None]
    tied = np.abs(similarity - own) <= 1e-6
    rank = 1 + ((similarity > own) & ~tied).sum(1) + 0.5 * (tied.sum(1) - 1)
    scores = {f"R@{k}": float((rank <= k).mean()) for k in ranks}
    return scores | {"mean_rank": float(rank.mean()), "mrr": float((1 / rank).mean())}
