"""Sources feed what they say, drawn by item and not by place."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from latent_models import plan_of

from lvr_jax.latents import regions, sources
from lvr_jax.latents.sources import SOURCES, Clean, Request, SourceError

I, G, Z, D = 12, 1, 5, 3


def clean_of(seed=0, counts=None, labels=None) -> Clean:
    rng = np.random.default_rng(seed)
    count = np.full((I, G), Z) if counts is None else np.array(counts)[:, None]
    latents = rng.standard_normal((I, G, Z, D)).astype(np.float32)
    latents[np.arange(Z) >= count[..., None]] = 0
    label = np.arange(I) % 3 if labels is None else np.array(labels)
    return Clean(rng.permutation(10_000)[:I].astype(np.int32), latents, count, label)


def reordered(clean: Clean, order) -> Clean:
    return Clean(clean.item[order], clean.latents[order], clean.count[order], clean.label[order])


def blocks(name: str, clean: Clean, rows=None, seed=0, **more):
    rows = np.arange(I) if rows is None else np.asarray(rows)
    request = Request(plan_of("lvr", Z), Z, D, seed, clean.item[rows], rows, clean, **more)
    return SOURCES[name].make(request)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.permutations(range(I)), st.sampled_from([n for n in SOURCES if SOURCES[n].of_clean]))
def test_a_source_of_the_clean_pass_does_not_depend_on_order_or_batches(seed, order, name):
    clean = clean_of(counts=[5, 5, 3, 0, 5, 2, 5, 1, 5, 5, 4, 5])
    whole, missing = blocks(name, clean, seed=seed)
    other, other_missing = blocks(name, reordered(clean, order), seed=seed)
    np.testing.assert_array_equal(other, whole[order])
    np.testing.assert_array_equal(other_missing, missing[order])
    part, _ = blocks(name, clean, rows=[7, 2], seed=seed)
    np.testing.assert_array_equal(part, whole[[7, 2]])


def test_donors_are_others_of_the_label_asked_for():
    clean = clean_of(counts=[5, 5, 3, 0, 5, 2, 5, 1, 5, 5, 4, 5])
    rows = np.arange(I)
    for seed in range(20):
        for same, wanted in ((None, None), (True, True), (False, False)):
            donor = sources.donors(clean, seed, same_label=same)
            assert (donor != rows).all() and (clean.count[donor] > 0).all()
            if wanted is not None:
                assert ((clean.label[donor] == clean.label) == wanted).all()
    assert (sources.donors(clean, 0) != sources.donors(clean, 1)).any()


def test_the_papers_donors_come_from_a_pool_and_may_be_the_item_itself():
    clean = clean_of()
    drawn = np.array([sources.donors(clean, seed, itself=True, pool=4) for seed in range(60)])
    assert all(len(set(row)) <= 4 for row in drawn)
    assert (drawn == np.arange(I)).any() and len(set(drawn.ravel())) == I


def test_an_item_without_a_donor_is_flagged_and_keeps_its_own_latents():
    clean = clean_of(labels=[0] * 11 + [1])
    made, missing = blocks("donor_same_label", clean)
    assert missing.tolist() == [False] * 11 + [True]
    np.testing.assert_array_equal(made[11], clean.latents[11])
    _, missing = blocks("donor_other_label", clean_of(labels=[-1] * I))
    assert missing.all()


def test_a_short_donor_goes_on_with_its_last_latent():
    clean = clean_of(counts=[2] + [5] * 11)
    made = clean.blocks(np.array([0]))[0, 0]
    np.testing.assert_array_equal(made[2:], np.repeat(clean.latents[0, 0, 1:2], 3, 0))


def test_rearranged_steps():
    clean = clean_of(counts=[3, 1] + [5] * 10)
    own, permuted, first = (blocks(n, clean)[0][:, 0] for n in ("self", "permuted", "first_repeat"))
    for i, n in enumerate(clean.count[:, 0]):
        np.testing.assert_array_equal(np.sort(permuted[i, :n], 0), np.sort(own[i, :n], 0))
        assert (permuted[i, :n] != own[i, :n]).any() == (n > 1)
        np.testing.assert_array_equal(first[i], np.repeat(own[i, :1], Z, 0))
        np.testing.assert_array_equal(own[i, :n], clean.latents[i, 0, :n])


def test_mean_and_spread_are_those_of_the_latents_that_were_fed():
    clean = clean_of(counts=[5, 4, 3, 2] + [1] * 8)
    fed = np.concatenate([clean.latents[i, 0, :n] for i, n in enumerate(clean.count[:, 0])])
    np.testing.assert_allclose(blocks("mean", clean)[0][4, 0], np.broadcast_to(fed.mean(0), (Z, D)), rtol=1e-5)
    np.testing.assert_allclose(sources.spread(clean), fed.std(0), rtol=1e-5)
    np.testing.assert_allclose(blocks("step_mean", clean)[0][0, 0, 3], clean.latents[:2, 0, 3].mean(0), rtol=1e-5)


def test_latents_of_a_trace_are_its_first_blocks_by_stage():
    latent = np.array([[0, 1, 1, 0, 1, 1, 0, 1]], bool)
    stage, index = np.array([[0, 0, 0, 0, 1, 1, 0, 0]]), np.array([[0, 0, 1, 0, 0, 1, 0, 0]])
    fed = np.arange(8, dtype=np.float32).reshape(1, 8, 1)
    trace = {"fed": fed, "latent": latent, "live": np.ones_like(latent), "stage": stage, "index": index}
    made, count = sources.latents_of(trace, 2, 4)
    assert made[0, :, :, 0].tolist() == [[1, 2, 0, 0], [4, 5, 0, 0]] and count.tolist() == [[2, 2]]


def test_oracles_average_contiguous_groups_and_drop_the_remainder():
    features = np.arange(11, dtype=np.float32)[:, None]
    assert sources.pool(features, 5)[:, 0].tolist() == [0.5, 2.5, 4.5, 6.5, 8.5]         # 10 is dropped, as in LanteRn
    assert sources.leading(features, 3)[:, 0].tolist() == [0, 1, 2]
    assert sources.pool(features[:2], 5)[:, 0].tolist() == [0, 0, 0, 1, 1]
    merged = np.arange(2 * 20 * D, dtype=np.float32).reshape(2, 20, D)
    wanted = {"box": [[np.array([7, 3, 11, 2, 5])], None]}
    request = {"merged": lambda: merged, "regions": wanted}
    clean = clean_of()
    for name in ("oracle", "oracle_first"):
        made, missing = blocks(name, clean, rows=[0, 1], **request)
        np.testing.assert_array_equal(made[0, 0], merged[0][[7, 3, 11, 2, 5]])
        assert missing.tolist() == [False, True]
    with pytest.raises(SourceError, match=r"needs the region 'wrong_box', the prompts have \['box'\]"):
        blocks("wrong_box", clean, rows=[0, 1], **request)


def test_a_moved_box_has_the_same_size_and_no_token_in_common_where_there_is_room():
    box = regions.rectangle((8, 9), 1, 2, 3, 4)
    for item in range(30):
        other = regions.moved(box, (8, 9), item, 0)
        assert len(other) == len(box) and not set(other) & set(box)
        assert other.min() >= 0 and other.max() < 72
    full = regions.moved(regions.rectangle((3, 3), 0, 0, 3, 3, first=5), (3, 3), 1, 0, first=5)
    assert full.tolist() == list(range(5, 14))              # no other place: the same


def test_random_crops_lie_in_the_image_and_vary():
    drawn = {tuple(regions.random_crop((10, 6), item, 0)) for item in range(40)}
    assert len(drawn) > 20 and all(0 <= min(d) and max(d) < 60 for d in drawn)
    assert all(2 * 1 <= len(d) <= 6 * 4 for d in drawn)


def test_slots_point_at_the_regions_features_of_the_right_pictures():
    grids = np.array([[1, 4, 6], [1, 8, 4]])
    first = regions.slots(np.arange(14), grids, window=4)
    assert len(set(first)) == 14
    behind = regions.slots(np.arange(14), grids, window=4, elsewhere=True)
    assert not set(first) & set(behind)
    with pytest.raises(regions.RegionError, match="region of tokens 3..14, the images have 14"):
        regions.slots(np.array([3, 14]), grids)
