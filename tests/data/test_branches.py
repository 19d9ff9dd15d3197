"""Questions that share a picture keep their tokens, positions and latents, each in the place of its branch."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_packing import TOKENIZER
from test_scenes import same

from lvr_jax.data.branches import Branches, join, spread
from lvr_jax.data.chat import encode_example
from lvr_jax.data.digit_scenes import DigitSearch
from lvr_jax.data.packing import BudgetError, Geometry, collate
from lvr_jax.data.sample import ROLE_IMAGE, Sample, SampleError
from lvr_jax.data.synthetic import synthetic_batches, synthetic_branches
from lvr_jax.data.templates import TEMPLATES

COLUMNS = ("tokens", "positions", "vision_slot", "loss_mask", "stage", "role")
QUICK = settings(max_examples=25, deadline=None)


def encoded(sample: Sample, template: str = "lvr", **options):
    return encode_example(
        sample, TOKENIZER, TEMPLATES[template], min_pixels=784, max_pixels=60_000, **options
    )


def alone(sample: Sample) -> list[Sample]:
    return [dataclasses.replace(each, more=()) for each in (sample, *sample.more)]


@QUICK
@given(index=st.integers(0, 10**6 - 1), questions=st.integers(2, 6), template=st.sampled_from(sorted(TEMPLATES)))
def test_every_branch_is_its_question_as_it_would_be_alone(index, questions, template):
    sample = DigitSearch(10**6, questions=questions)[index]
    ones = [encoded(each, template) for each in alone(sample)]
    joined = encoded(sample, template)
    shared = int((joined.branch == 0).sum())
    assert shared == np.flatnonzero(ones[0].role == ROLE_IMAGE)[-1] + 2
    geometry, groups = Geometry(), set()
    sizes = Branches(shared + 3, max(len(one.tokens) for one in ones) - shared + 2, questions)
    row = {k: x[0] for k, x in spread(collate([[joined]], geometry.smallest([[joined]])), sizes).items()}
    assert row["tokens"].shape == (sizes.tokens,) and (row["segment"] > 0).sum() == len(joined.tokens)
    for number, one in enumerate(ones, start=1):
        at = np.flatnonzero((row["segment"] > 0) & np.isin(row["branch"], (0, number)))
        own = at[shared:]
        assert own[0] == sizes.shared + (number - 1) * sizes.each
        lone = {k: x[0] for k, x in collate([[one]], geometry.smallest([[one]])).items()}
        for name in COLUMNS:
            np.testing.assert_array_equal(row[name][..., at], lone[name], err_msg=name)
        np.testing.assert_array_equal(row["before"][at], [0, *at[:-1]])
        group, alone_in = row["group"][at], lone["group"]
        assert (np.diff(group) != 0).tolist() == (np.diff(alone_in) != 0).tolist()
        mine = set(group[group > 0].tolist())
        assert len(mine) == len(set(alone_in[alone_in > 0].tolist())) and not mine & groups
        groups |= mine
        pool = row["pool"][np.isin(row["pool"][:, 0], own)]
        expected = lone["pool"][lone["pool"][:, 0] >= 0]
        np.testing.assert_array_equal(pool[:, 1], expected[:, 1])
        np.testing.assert_array_equal(pool[:, 0], at[expected[:, 0]])
        np.testing.assert_array_equal(row["patches"], lone["patches"])


def test_a_branch_without_room_is_bad_data():
    example = encoded(DigitSearch(10, questions=2)[0])
    for sizes, message in ((Branches(31, 90, 2), "32 shared tokens"), (Branches(32, 20, 2), "branches of"),
                           (Branches(32, 90, 1), "no room")):  # fmt: skip
        with pytest.raises(BudgetError, match=message):
            sizes.places(example.branch, example.id)
    with pytest.raises(BudgetError, match="at least 1"):
        Branches(32, 0, 2)


def test_only_questions_about_one_picture_are_joined():
    scenes = DigitSearch(10)
    with pytest.raises(SampleError, match="no image that its questions could share"):
        join([encoded(Sample("a", (), "How many?", "2"))])
    other = encoded(scenes[1], system="Another one.")
    with pytest.raises(SampleError, match="digits-train-0-1: what comes before its question differs"):
        join([encoded(scenes[0]), other])


def test_a_picture_is_asked_about_in_turn_and_as_before_where_it_is_asked_once():
    several = DigitSearch(50, questions=5)
    for index in range(50):
        first, *more = alone(several[index])
        assert len(more) == 4 and all(each.images[0] is first.images[0] for each in more)
        assert [each.category for each in (first, *more)] == (["colour", "digit"] * 3)[index % 2 : index % 2 + 5]
        assert len({each.id for each in (first, *more)}) == 5
        scene = several.scene(index)
        for each in (first, *more):
            at = [n for n in range(len(scene.classes)) if scene.normalised(n) == each.boxes[0]]
            assert len(at) == 1 and each.options[ord(each.letter) - ord("A")] == each.answer
        changed = several.counterfactual(index)
        assert not changed.more and changed.question == first.question and changed.answer != first.answer
        kinds = {}
        for each in (first, *more):     # one is put again only after all others of its kind
            kinds.setdefault(each.category, []).append(each.question.splitlines()[0])
        for asked in kinds.values():
            again = asked[len(set(asked)):]
            assert again == asked[: len(again)]
        assert same(several[index], first) and same(DigitSearch(50)[index], DigitSearch(50, questions=1)[index])
    for wrong, message in (({"questions": 0}, "at least 1"), ({"questions": 2, "mask_box": True}, "1 with mask_box")):
        with pytest.raises(ValueError, match=message):
            DigitSearch(50, **wrong)


def test_synthetic_rows_fill_what_branches_share():
    branches = Branches(128, 64, 3)
    example = synthetic_branches(branches, 24)
    assert example.branch.max() == 3 and 96 <= (example.branch == 0).sum() <= 128
    batch = next(synthetic_batches(Geometry().size(example), range(2), branches=branches))
    assert batch.arrays["tokens"].shape == (2, branches.tokens) and len(batch.ids) == 2
