"""Boxes land on the tokens that the reference puts them on, and bad boxes are refused by name."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lvr_jax.data import boxes

CASES = Path(__file__).parents[1] / "golden" / "cases"


@pytest.fixture(scope="module")
def golden():
    return dict(np.load(CASES / "B0_bbox_mapping.npz"))


def groups(golden, key):
    return np.split(golden[f"{key}_flat"], np.cumsum(golden[f"{key}_sizes"])[:-1])


def test_packed_rule_equals_reference_on_all_golden_boxes(golden):
    wanted = groups(golden, "token_idx")
    assert len(wanted) == 49
    for box, grid, tokens in zip(golden["boxes"], golden["grid_hw"], wanted):
        np.testing.assert_array_equal(boxes.box_to_tokens(box, grid), tokens, err_msg=f"{box} on {grid}")


@pytest.mark.parametrize("factor", [1.5, 1.3])
def test_expanded_boxes_equal_reference_bit_for_bit(golden, factor):
    for box, wanted in zip(golden["boxes"], golden[f"boxes_expanded{factor}"]):
        np.testing.assert_array_equal(np.array(boxes.expand(box, factor)), wanted)


def test_context_tokens_equal_reference(golden):
    for box, grid, tokens in zip(golden["boxes"], golden["grid_hw"], groups(golden, "token_idx_expanded1.5")):
        np.testing.assert_array_equal(boxes.box_to_tokens(boxes.expand(box, 1.5), grid), tokens)


def test_merged_rule_equals_the_non_packed_reference_where_it_does_not_guess(golden):
    differs = {
        4,      # starts at 1.0: the reference's index lies behind the grid
        6, 12,  # values above 1, which the reference takes for pixels
    }
    for i, tokens in enumerate(groups(golden, "alt_lvr_utils_mapper_idx")):
        ours = boxes.box_to_tokens(golden["boxes"][i], golden["grid_hw"][i], "merged")
        assert np.array_equal(ours, tokens) == (i not in differs), i


def test_box_arithmetic_is_float64(golden):
    moved = 0
    for box, grid in list(zip(golden["boxes"], golden["grid_hw"]))[-4:]:
        single = [np.float32(v) for v in box]
        moved += not np.array_equal(boxes.box_to_tokens(single, grid), boxes.box_to_tokens(box, grid))
    assert moved == 4


def test_worked_example_504_by_336():
    tokens = boxes.box_to_tokens([0.382, 0.456, 0.718, 0.656], (1, 24, 36))
    assert tokens.tolist() == [*range(96, 103), *range(114, 121), *range(132, 139)]


def test_quokka_box_in_pixels():
    box = boxes.normalise([148, 50, 550, 642], "pixel_xyxy", width=960, height=643)
    tokens = boxes.box_to_tokens(box, (1, 46, 68))
    columns, rows = tokens % 34, tokens // 34
    assert (columns.min(), columns.max(), rows.min(), rows.max()) == (5, 19, 1, 22)
    assert len(tokens) == 330 and tokens[0] == 39


def test_formats_agree_on_one_box():
    # a real row: sroie question 0, 592 x 982, as published in the metadata and in the two derived files
    size = {"width": 592, "height": 982}
    plain = boxes.normalise([57, 179, 550, 530], "pixel_xyxy", **size)
    np.testing.assert_allclose(plain, [0.0963, 0.1823, 0.9291, 0.5397], atol=5e-5)
    assert boxes.normalise([57, 179, 493, 351], "pixel_xywh", **size) == plain
    assert boxes.normalise(plain, "normalised_xyxy") == plain
    padded = boxes.normalise([0.257, 0.182, 0.759, 0.540], "padded_square_xyxy", **size)
    np.testing.assert_allclose(padded, plain, atol=1e-3 * 982 / 592)


@pytest.mark.parametrize(
    "box, box_format, complaint",
    [
        ([0.5, 0.1, 0.5, 0.2], "normalised_xyxy", r"\[0.5, 0.1, 0.5, 0.2\].*no area.*x0 < x1"),
        ([0.6, 0.1, 0.5, 0.2], "normalised_xyxy", "no area"),
        ([0.1, 0.1, float("nan"), 0.2], "normalised_xyxy", "nan.*not a finite number"),
        ([0.1, 0.1, float("inf"), 0.2], "pixel_xyxy", "inf.*not a finite number"),
        ([0.1, 0.1, 1.2, 0.2], "normalised_xyxy", "1.2.*outside the image"),
        ([-0.1, 0.1, 0.2, 0.2], "normalised_xyxy", "-0.1.*outside the image"),
        ([57, 179, 550, 530], "normalised_xyxy", "550.0.*looks like pixels.*divided by the image's width"),
        ([57, 179, 550, 530], "padded_square_xyxy", "looks like pixels"),
        ([0.1, 0.2, 0.3, 0.4], "pixel_xyxy", "looks normalised.*in pixels"),
        ([50, 50, 110, 60], "pixel_xyxy", "outside the image.*100 x 80"),
        ([50, 50, 0, 10], "pixel_xywh", "no area"),
        ([1, 2, 3], "pixel_xyxy", "3 values, expected four"),
        ([1, 2, 3, "x"], "pixel_xyxy", "expected four numbers"),
        ("1234", "pixel_xyxy", "expected four numbers"),
        (None, "pixel_xyxy", "expected four numbers"),
        ([1, 2, 3, 4], "xyxy", "'xyxy': expected one of normalised_xyxy"),
    ],
)
def test_bad_box_is_refused_with_value_and_expectation(box, box_format, complaint):
    with pytest.raises(boxes.BoxError, match=complaint) as caught:
        boxes.normalise(box, box_format, width=100, height=80)
    assert "\n" not in str(caught.value)


def test_pixel_box_without_image_size_is_refused():
    with pytest.raises(boxes.BoxError, match="needs the image's size"):
        boxes.normalise([1, 2, 3, 4], "pixel_xyxy")


def test_clip_cuts_a_box_at_the_border_and_refuses_one_outside():
    clipped = boxes.normalise([-5, 10, 50, 90], "pixel_xyxy", width=100, height=80, clip=True)
    assert clipped == (0.0, 0.125, 0.5, 1.0)
    with pytest.raises(boxes.BoxError, match="wholly outside"):
        boxes.normalise([120, 10, 150, 70], "pixel_xyxy", width=100, height=80, clip=True)


@pytest.mark.parametrize("box", [[0.1, 0.1, 0.1, 0.2], [0, 0, 1.0001, 1], [np.nan, 0, 1, 1], [3, 4, 10, 20], [0, 1]])
def test_validate_refuses_what_the_pure_mapping_accepts(box):
    with pytest.raises(boxes.BoxError):
        boxes.validate(box)


def test_unknown_rule_is_refused():
    with pytest.raises(boxes.BoxError, match="packed, merged"):
        boxes.box_to_tokens([0, 0, 1, 1], (2, 2), "nearest")


unit = st.floats(0, 1)
grids = st.tuples(st.integers(1, 60), st.integers(1, 60)).map(lambda g: (2 * g[0], 2 * g[1]))


@given(st.tuples(unit, unit, unit, unit), grids, st.sampled_from(sorted(boxes.RULES)))
def test_tokens_of_a_sound_box_are_in_range_sorted_and_never_empty(corners, grid, rule):
    x0, x1 = sorted((corners[0], corners[2]))
    y0, y1 = sorted((corners[1], corners[3]))
    if x0 == x1 or y0 == y1:
        return
    tokens = boxes.box_to_tokens(boxes.validate([x0, y0, x1, y1]), grid, rule)
    assert len(tokens) > 0 and tokens[0] >= 0 and tokens[-1] < grid[0] * grid[1] // 4
    assert (np.diff(tokens) > 0).all()


@given(st.tuples(*[st.floats(-3, 3)] * 4), grids, st.sampled_from(sorted(boxes.RULES)))
def test_tokens_of_any_box_are_in_range(box, grid, rule):
    tokens = boxes.box_to_tokens(box, grid, rule)
    assert ((tokens >= 0) & (tokens < grid[0] * grid[1] // 4)).all()


@given(st.tuples(unit, unit, unit, unit), grids, st.floats(1, 4))
def test_an_expanded_box_covers_the_box(corners, grid, factor):
    x0, x1 = sorted((corners[0], corners[2]))
    y0, y1 = sorted((corners[1], corners[3]))
    outer = boxes.expand([x0, y0, x1, y1], factor)
    np.testing.assert_array_less([outer[0] - 1e-12, outer[1] - 1e-12], [x0, y0])
    np.testing.assert_array_less([x1, y1], [outer[2] + 1e-12, outer[3] + 1e-12])
    assert min(outer) >= 0 and max(outer) <= 1


@given(st.integers(1, 900), st.integers(1, 900), st.tuples(unit, unit, unit, unit))
def test_pixel_formats_undo_each_other(width, height, corners):
    x0, x1 = sorted((int(corners[0] * width), int(corners[2] * width) + 1))
    y0, y1 = sorted((int(corners[1] * height), int(corners[3] * height) + 1))
    x1, y1 = min(x1, width), min(y1, height)
    if x0 >= x1 or y0 >= y1:
        return
    size = {"width": width, "height": height}
    plain = boxes.normalise([x0, y0, x1, y1], "pixel_xyxy", **size)
    assert boxes.normalise([x0, y0, x1 - x0, y1 - y0], "pixel_xywh", **size) == plain
    side = max(width, height)
    left, top = (side - width) // 2, (side - height) // 2
    padded = [(x0 + left) / side, (y0 + top) / side, (x1 + left) / side, (y1 + top) / side]
    np.testing.assert_allclose(boxes.normalise(padded, "padded_square_xyxy", **size), plain, atol=1e-9)
