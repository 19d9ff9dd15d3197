"""Summarises latents without regard to answers: alignment with targets, collapse, attention to them."""

from collections.abc import Mapping, Sequence

import numpy as np

from lvr_jax.latents.sweep_files import SweepResults
from lvr_jax.prism.measure.alignment import over_items, pooled, retrieval, summarise, token_alignment, trivial_baselines
from lvr_jax.prism.measure.capture import Capture
from lvr_jax.prism.measure.collapse import collapse
from lvr_jax.prism.measure.teacher import Forced

ROLES = ("text", "image", "latent", "answer")


def filled(capture: Capture) -> np.ndarray:
    """[I, G, Z] bool: the latents that were fed."""
    return np.arange(capture.blocks.shape[2]) < capture.count[..., None]


def aligned(stages: Sequence[Forced], capture: Capture) -> dict:
    """For each visual stage: teacher-forced and free-running alignment, trivial guesses, retrieval of the own target.

    Free-running latent j is compared with vision token j of the box, as it was trained to be; latents beyond the box,
    and tokens beyond the budget, have no partner. Latent 0 is the same vector taught and free, for it comes of the
    prompt alone: `by_latent` tells the indices apart, `matched` compares both ways on the same latents, `later` on
    those of them after the first. Retrieval compares means over a block; `retrieval_matched` over as many latents as
    the box has, where `retrieval_free_running` takes all that were fed.
    """
    found = {}
    for g, stage in enumerate(stages):
        entry = {"items": len(stage.items), "teacher_forced": _alignment(stage.predicted, stage.target, stage.valid)}
        guesses = trivial_baselines(stage.target, stage.valid)
        entry["trivial"] = {name: _mean(value) for name, value in guesses.items()}
        entry["retrieval_teacher_forced"] = _retrieval(stage.predicted, stage.valid, stage.target, stage.valid)
        entry["collapse_of_targets"] = collapsed(stage.target, stage.valid)
        if len(stages) == capture.count.shape[1]:
            rows = [capture.items.index(item) for item in stage.items]
            blocks, fed = capture.blocks[rows, g], filled(capture)[rows, g]
            Z = min(blocks.shape[1], stage.target.shape[1])
            both, target = fed[:, :Z] & stage.valid[:, :Z], stage.target[:, :Z]
            after = both & (np.arange(Z) > 0)
            ways = {"teacher_forced": stage.predicted[:, :Z], "free_running": blocks[:, :Z]}
            entry["free_running"] = _alignment(blocks[:, :Z], target, both)
            entry["matched"] = {way: _headline(latents, target, both) for way, latents in ways.items()}
            entry["later"] = {way: _headline(latents, target, after) for way, latents in ways.items()}
            entry["by_latent"] = [
                {"latent": j, "items": int(both[:, j].sum())}
                | {way: _headline(x[:, j : j + 1], target[:, j : j + 1], both[:, j : j + 1]).get("mean_cosine")
                   for way, x in ways.items()} for j in range(Z) if both[:, j].any()
            ]  # fmt: skip
            entry["retrieval_free_running"] = _retrieval(blocks, fed, stage.target, stage.valid)
            entry["retrieval_matched"] = _retrieval(blocks[:, :Z], both, stage.target, stage.valid)
        found[stage.stage] = entry
    return found


def _alignment(predicted, target, valid) -> dict:
    if not np.any(valid):
        return {"items": 0}
    summary = summarise(token_alignment(predicted, target, valid), valid)
    cosine = summary["mean_cosine"]
    return over_items(summary) | {"cosine_by_item": cosine[np.isfinite(cosine)]}


def _headline(predicted, target, valid) -> dict:
    return {key: value for key, value in _alignment(predicted, target, valid).items() if key != "cosine_by_item"}


def _mean(values) -> float:
    """Mean over items of each item's mean over latents; NaN marks what has none."""
    values = np.asarray(values, np.float64)
    there = np.isfinite(values)
    per_item = np.where(there, values, 0).sum(1) / np.where(there.any(1), there.sum(1), np.nan)
    per_item = per_item[np.isfinite(per_item)]
    return float(per_item.mean()) if len(per_item) else float("nan")


def _retrieval(predicted, fed, target, valid) -> dict:
    both = np.any(fed, 1) & np.any(valid, 1)
    if both.sum() < 2:
        return {"items": int(both.sum())}
    scores = retrieval(pooled(predicted[both], fed[both]), pooled(target[both], valid[both]))
    n = int(both.sum())
    return scores | {"items": n, "chance_R@1": 1 / n, "chance_mean_rank": (n + 1) / 2}


def collapsed(latents, valid) -> dict:
    """Measures of collapse over the items that fed latents; only their number if fewer than two did."""
    if np.any(valid, 1).sum() < 2:
        return {"items": int(np.any(valid, 1).sum())}
    return collapse(latents, valid) | {"items": int(np.any(valid, 1).sum())}


def collapse_by_stage(capture: Capture, names: Sequence[str]) -> dict:
    """The latents really fed, stage by stage."""
    fed = filled(capture)
    return {name: collapsed(capture.blocks[:, g], fed[:, g]) for g, name in enumerate(names)}


def attention_shares(results: SweepResults) -> dict[str, Mapping]:
    """By condition: the share of attention that the answer state, and the latents, pay to each role.

    answer, latents: role -> share, mean over items, heads and layers; by_layer: the answer state's, role -> [L]
    """
    found: dict[str, Mapping] = {}
    for name in results.conditions:
        arrays = results.of(name)
        entry = {}
        for place in ("answer", "latents"):
            shares = arrays[f"attention@{place}"]                                        # [I, L, N, R]
            there = np.isfinite(shares).all((1, 2, 3))
            if there.any():
                mean = shares[there].mean((0, 2))                                        # [L, R]
                entry[place] = dict(zip(ROLES, mean.mean(0).tolist()))
                if place == "answer":
                    entry["by_layer"] = dict(zip(ROLES, mean.T))
        found[name] = entry
    return found
