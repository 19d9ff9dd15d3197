"""Alignment, retrieval and collapse are what their definitions say, down to padding and ties."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.decomposition import PCA

from lvr_jax.prism.measure import alignment, collapse, geometry, teacher

CASES = sorted((Path(__file__).parents[2] / "golden" / "cases").glob("G_alignment_*.npz"))
RNG = np.random.default_rng(0)
I, Z, D = 7, 5, 24
VALID = np.arange(Z) < np.array([5, 3, 1, 0, 5, 2, 4])[:, None]
TARGET = (RNG.standard_normal((I, Z, D)) + 0.5).astype(np.float32)
PREDICTED = (0.5 * TARGET + RNG.standard_normal((I, Z, D))).astype(np.float32)


def cosine(a, b):
    a, b = a.astype(np.float64), b.astype(np.float64)
    return (a @ b) / np.sqrt((a @ a) * (b @ b))


def test_every_token_metric_equals_its_definition_in_fp64():
    found = alignment.token_alignment(PREDICTED, TARGET, VALID)
    for i, z in zip(*np.nonzero(VALID)):
        p, t = PREDICTED[i, z].astype(np.float64), TARGET[i, z].astype(np.float64)
        expected = {
            "cosine": cosine(p, t), "mse": np.mean((p - t) ** 2), "distance": np.linalg.norm(p - t),
            "predicted_norm": np.linalg.norm(p), "target_norm": np.linalg.norm(t),
            "norm_ratio": np.linalg.norm(p) / np.linalg.norm(t),
        }  # fmt: skip
        for name, value in expected.items():
            assert float(getattr(found, name)[i, z]) == pytest.approx(value, rel=2e-6), name


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
@pytest.mark.parametrize("stage", ["target", "context"])
def test_the_summary_of_recorded_tokens_equals_the_released_script(path, stage):
    case = np.load(path)
    if f"{stage}_per_token_cosine" not in case:
        assert stage == "context" and "lvr_0" in path.stem or "lvr_1" in path.stem  # single-stage: no context
        return
    square = case[f"{stage}_per_token_mse"][None]
    nothing = np.zeros_like(square)
    width = 64
    tokens = alignment.TokenAlignment(
        case[f"{stage}_per_token_cosine"][None], square, np.sqrt(square * width), nothing, nothing, nothing
    )
    summary = alignment.summarise(tokens, np.ones_like(square, bool))
    assert int(summary["count"][0]) == case[f"{stage}_n_tokens"]
    for ours, theirs in [
        ("mean_cosine", "mean_cosine_sim"), ("std_cosine", "std_cosine_sim"), ("mean_mse", "mean_mse"),
        ("std_mse", "std_mse"), ("mean_distance", "mean_l2_dist"),
    ]:  # fmt: skip
        # fp32 on both sides, summed in another order.
        assert float(summary[ours][0]) == pytest.approx(float(case[f"{stage}_{theirs}"]), rel=2e-6), ours
    if stage == "target":
        assert alignment.over_items(summary)["mean_cosine"] == pytest.approx(float(case["mean_cosine_sim"]), rel=2e-6)


def test_the_headline_is_a_mean_over_items_and_not_over_tokens():
    tokens = alignment.token_alignment(PREDICTED, TARGET, VALID)
    summary = alignment.summarise(tokens, VALID)
    one = [[cosine(PREDICTED[i, z], TARGET[i, z]) for z in np.flatnonzero(VALID[i])] for i in range(I)]
    per_item = [np.mean(values) for values in one if values]
    found = alignment.over_items(summary)
    assert found["items"] == 6 and found["mean_cosine"] == pytest.approx(np.mean(per_item), rel=1e-5)
    assert np.isnan(summary["mean_cosine"][3]) and np.isnan(summary["std_cosine"][2])


def test_padding_may_hold_anything():
    rubbish = [np.where(VALID[..., None], a, np.nan) for a in (PREDICTED, TARGET)]
    clean, dirty = (alignment.summarise(alignment.token_alignment(*pair, VALID), VALID)
                    for pair in ((PREDICTED, TARGET), rubbish))  # fmt: skip
    for name in clean:
        np.testing.assert_array_equal(clean[name], dirty[name])
    for name, values in alignment.trivial_baselines(rubbish[1], VALID).items():
        np.testing.assert_array_equal(values, alignment.trivial_baselines(TARGET, VALID)[name])
    np.testing.assert_array_equal(alignment.pooled(rubbish[0], VALID), alignment.pooled(PREDICTED, VALID))
    assert collapse.collapse(rubbish[0], VALID) == collapse.collapse(PREDICTED, VALID)


def test_trivial_baselines_leave_out_the_target_they_are_compared_with():
    found = alignment.trivial_baselines(TARGET, VALID)
    flat = TARGET[VALID].reshape(-1, D)
    item = np.nonzero(VALID)[0]
    for i, z in zip(*np.nonzero(VALID)):
        others = flat[item != i].mean(0)
        assert float(found["dataset_mean"][i, z]) == pytest.approx(cosine(others, TARGET[i, z]), rel=1e-4, abs=1e-6)
        rest = [TARGET[i, k] for k in np.flatnonzero(VALID[i]) if k != z]
        if rest:
            assert float(found["box_mean"][i, z]) == pytest.approx(cosine(np.mean(rest, 0), TARGET[i, z]), rel=1e-4)
        else:
            assert np.isnan(found["box_mean"][i, z])
        if z:
            assert float(found["neighbour"][i, z]) == pytest.approx(cosine(TARGET[i, z - 1], TARGET[i, z]), rel=1e-4)
        else:
            assert np.isnan(found["neighbour"][i, z])
    assert np.isnan(found["dataset_mean"][~VALID]).all()


def test_a_target_finds_itself_and_a_collapsed_prediction_finds_chance():
    gallery = RNG.standard_normal((40, D))
    assert alignment.retrieval(3 * gallery, gallery) == {"R@1": 1, "R@5": 1, "R@10": 1, "mean_rank": 1, "mrr": 1}
    collapsed = alignment.retrieval(np.tile(gallery[:1], (40, 1)), gallery)
    assert collapsed["R@1"] == pytest.approx(1 / 40) and collapsed["mean_rank"] == pytest.approx(20.5)
    # A gallery of one repeated vector gives no information: everyone ties at the middle.
    assert alignment.retrieval(gallery, np.tile(gallery[:1], (40, 1)))["mean_rank"] == pytest.approx(20.5)


def test_retrieval_ranks_by_cosine():
    gallery, noise = RNG.standard_normal((2, 40, D))
    predicted = gallery + 1.5 * noise
    similarity = np.array([[cosine(p, g) for g in gallery] for p in predicted])
    rank = (similarity >= np.diagonal(similarity)[:, None]).sum(1)
    found = alignment.retrieval(predicted, gallery)
    assert 1 < rank.mean() < 15
    assert found["mean_rank"] == pytest.approx(rank.mean()) and found["mrr"] == pytest.approx((1 / rank).mean())
    assert [found[f"R@{k}"] for k in (1, 5, 10)] == pytest.approx([(rank <= k).mean() for k in (1, 5, 10)])
    with pytest.raises(ValueError, match="finite"):
        alignment.retrieval(np.full((2, 3), np.nan), np.ones((2, 3)))


def test_pooling_is_the_mean_of_valid_latents():
    found = alignment.pooled(TARGET, VALID)
    np.testing.assert_allclose(found[1], TARGET[1, :3].mean(0), rtol=1e-5)
    assert np.isnan(found[3]).all()


def test_pairwise_and_adjacent_cosine_equal_a_loop():
    states = TARGET[:, 0]
    pairs = [cosine(states[i], states[j]) for i in range(I) for j in range(I) if i != j]
    everyone = np.ones(I, bool)
    assert float(collapse.pairwise_cosine(states, everyone)) == pytest.approx(np.mean(pairs), rel=1e-4)
    assert float(collapse.pairwise_cosine(np.outer(np.arange(1, 1 + I), states[0]), everyone)) == pytest.approx(1)
    two = np.arange(I) < 2
    assert float(collapse.pairwise_cosine(states, two)) == pytest.approx(cosine(states[0], states[1]), rel=1e-4)
    assert np.isnan(collapse.pairwise_cosine(states, np.arange(I) < 1))
    adjacent = collapse.adjacent_cosine(TARGET, VALID)
    assert adjacent[1, 0] == pytest.approx(cosine(TARGET[1, 0], TARGET[1, 1]), rel=1e-4)
    np.testing.assert_array_equal(np.isfinite(adjacent), VALID[:, 1:])


@pytest.mark.parametrize("items", [10, 200])
def test_the_spectrum_is_that_of_pca(items):
    states = RNG.standard_normal((items, D)) * np.geomspace(1, 0.01, D) + 5
    variances = collapse.spectrum(states)
    reference = PCA().fit(states).explained_variance_ * (items - 1) / items
    np.testing.assert_allclose(variances[: len(reference)], reference, rtol=1e-3, atol=1e-5)
    expected = int(np.searchsorted(np.cumsum(reference) / reference.sum(), 0.9) + 1)
    assert collapse.rank_for_variance(variances) == expected
    assert collapse.participation_ratio(variances) == pytest.approx(
        reference.sum() ** 2 / (reference**2).sum(), rel=1e-3
    )


def test_dimensions_of_planted_spectra():
    assert collapse.participation_ratio(np.ones(6)) == pytest.approx(6)
    assert collapse.participation_ratio([4.0, 0, 0]) == pytest.approx(1)
    assert collapse.rank_for_variance([5.0, 4.0, 0.5, 0.5], 0.9) == 2
    assert np.isnan(collapse.participation_ratio(np.zeros(3))) and collapse.rank_for_variance(np.zeros(3)) == 0


def test_a_collapsed_loop_is_seen_as_such():
    direction = RNG.standard_normal(D)
    narrow = direction + 0.05 * RNG.standard_normal((I, Z, D))
    wide = RNG.standard_normal((I, Z, D))
    near, far = (collapse.collapse(a, np.ones((I, Z), bool)) for a in (narrow, wide))
    assert near["pairwise_cosine"] > 0.98 and near["adjacent_cosine"] > 0.98
    assert abs(far["pairwise_cosine"]) < 0.1 and far["participation_ratio"] > 10
    line = np.linspace(-1, 1, I * Z).reshape(I, Z, 1) * direction
    flat = collapse.collapse(line, np.ones((I, Z), bool))
    assert flat["rank_90"] == 1 and flat["participation_ratio"] == pytest.approx(1, rel=1e-4)


def test_free_and_taught_latents_are_compared_index_by_index_and_on_the_same_latents():
    """Two items: a box of two tokens, of which two latents of three are fed, and one of one token. The first latent is
    the same both ways; the second is right when taught and opposite when free."""
    target = np.array([[[1.0, 0], [0, 1.0]], [[1.0, 0], [0, 0]]], np.float32)
    valid = np.array([[True, True], [True, False]])
    taught = target.copy()
    free = np.zeros((2, 1, 3, 2), np.float32)
    free[:, 0, 0], free[0, 0, 1], free[1, 0, 1:], free[0, 0, 2] = [1, 0], [0, -1], [0, 1], [0, -5]
    captured = SimpleNamespace(items=["a", "b"], blocks=free, count=np.array([[3], [3]]))
    found = geometry.aligned([teacher.Forced("lvr", ["a", "b"], taught, target, valid)], captured)["lvr"]
    assert [(r["latent"], r["items"]) for r in found["by_latent"]] == [(0, 2), (1, 1)]
    assert [r["teacher_forced"] for r in found["by_latent"]] == pytest.approx([1, 1])
    assert [r["free_running"] for r in found["by_latent"]] == pytest.approx([1, -1])
    # Item a: (1 - 1) / 2, item b: 1; without the first latent only item a is left.
    assert found["free_running"]["mean_cosine"] == found["matched"]["free_running"]["mean_cosine"] == pytest.approx(0.5)
    assert found["later"]["free_running"] | {"items": 1} == found["later"]["free_running"]
    assert found["later"]["free_running"]["mean_cosine"] == pytest.approx(-1)
    assert found["later"]["teacher_forced"]["mean_cosine"] == pytest.approx(1)
    # Block means (free) of both are far from their own target; cut to its box, b's is its target.
    assert found["retrieval_matched"]["R@1"] == 0.5 and found["retrieval_free_running"]["R@1"] == 0.0
