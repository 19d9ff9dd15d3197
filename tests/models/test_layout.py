"""Window slots and M-RoPE positions equal the reference's, for grids of any shape."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lvr_jax.models.layout import (
    TRANSFORMERS_5,
    LayoutError,
    mrope_positions,
    vision_layout,
    window_count,
)

CASES = Path(__file__).parents[1] / "golden" / "cases"
IMAGE, VIDEO, START = 392, 393, 389

GRIDS = st.lists(
    st.tuples(st.integers(1, 3), st.integers(1, 11).map(lambda n: 2 * n), st.integers(1, 11).map(lambda n: 2 * n)),
    min_size=1,
    max_size=4,
)


def raster(grid):
    """Frame, row and column of every patch in the processor's order, spelled out as loops."""
    t, h, w = grid
    return np.array(
        [
            (f, 2 * r + i, 2 * c + j)
            for f in range(t) for r in range(h // 2) for c in range(w // 2) for i in range(2) for j in range(2)
        ]
    )  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(grids=GRIDS, window=st.integers(1, 5), spare=st.integers(0, 3))
def test_every_patch_has_its_own_slot_beside_its_window_mates_only(grids, window, spare):
    need = sum(window_count(grid, window=window) for grid in grids)
    layout = vision_layout(np.array(grids), window=window, budget=need + spare)
    S = (2 * window) ** 2
    assert layout.segments.shape == (need + spare, S)
    assert len(np.unique(layout.patch_slot)) == sum(int(np.prod(grid)) for grid in grids)
    assert layout.patch_slot.min() >= 0 and layout.patch_slot.max() < need * S, "spare windows come last"
    np.testing.assert_array_equal(layout.patch_slot[::4], layout.merged_slot * 4)

    places = [raster(grid) for grid in grids]
    frames = np.concatenate([place[:, 0] + sum(g[0] for g in grids[:i]) for i, place in enumerate(places)])
    rows_columns = np.concatenate([place[:, 1:] for place in places])
    flat = lambda x: x.reshape(-1, *x.shape[2:])  # noqa: E731
    np.testing.assert_array_equal(flat(layout.segments)[layout.patch_slot], frames + 1)
    np.testing.assert_array_equal(flat(layout.rotary_ids)[layout.patch_slot], rows_columns)
    empty = np.ones(layout.segments.size, bool)
    empty[layout.patch_slot] = False
    assert not flat(layout.segments)[empty].any()

    # Window mates: patches of one frame whose row and column fall into the same square, and no others.
    square = np.column_stack([frames, rows_columns // (2 * window)])
    _, mine = np.unique(square, axis=0, return_inverse=True)
    _, given_window = np.unique(layout.patch_slot // S, return_inverse=True)
    pairs = set(zip(mine.reshape(-1).tolist(), given_window.reshape(-1).tolist()))
    assert len(pairs) == len(np.unique(mine)) == len(np.unique(given_window)) == need


@settings(max_examples=30, deadline=None)
@given(grids=GRIDS)
def test_place_puts_each_patch_into_its_slot_and_zeros_elsewhere(grids):
    layout = vision_layout(np.array(grids))
    patches = np.arange(1, len(layout.patch_slot) + 1)[:, None].repeat(2, 1)
    placed = layout.place(patches)
    np.testing.assert_array_equal(placed.reshape(-1, 2)[layout.patch_slot], patches)
    assert np.count_nonzero(placed) == patches.size


@pytest.mark.parametrize(
    "case", ["A1_single_tiny_tied", "A2_two_images_tiny_tied", "A4_window_10x14_tiny_tied", "A4_window_6x18_tiny_tied",
             "A4_window_8x16_tiny_tied"],
)  # fmt: skip
def test_windows_equal_the_reference(case):
    golden = np.load(CASES / f"{case}.npz")
    layout = vision_layout(golden["image_grid_thw"])
    np.testing.assert_array_equal(np.argsort(layout.merged_slot), golden["window_index"])
    patches = (layout.segments > 0).sum(1)
    np.testing.assert_array_equal(patches, np.diff(golden["cu_window_seqlens"]))


@pytest.mark.parametrize(
    "grid, patches, order",
    [
        ((1, 8, 8), [64], range(16)),
        ((1, 10, 6), [48, 12], range(15)),
        ((1, 46, 68), None, [0, 1, 2, 3, 34, 35, 36, 37, 68]),
    ],
)
def test_published_window_examples(grid, patches, order):
    layout = vision_layout([grid])
    np.testing.assert_array_equal(np.argsort(layout.merged_slot)[: len(order)], order)
    if patches is None:
        assert len(layout.segments) == 54 == window_count(grid)
    else:
        np.testing.assert_array_equal((layout.segments > 0).sum(1), patches)


@pytest.mark.parametrize(
    "case", ["A1_single_tiny_tied", "A1_single_tiny_untied", "A2_two_images_tiny_tied", "A3_batch_leftpad_tiny_tied",
             "A3_batch_rightpad_tiny_tied", "A5_video_spg0.5_tiny_tied", "A5_video_spg1.0_tiny_tied",
             "A5_video_spg2.0_tiny_tied"],
)  # fmt: skip
def test_mrope_positions_equal_the_reference(case):
    golden = np.load(CASES / f"{case}.npz")
    grids = golden["video_grid_thw" if "video_grid_thw" in golden else "image_grid_thw"]
    seconds = golden["second_per_grid_ts"].tolist() if "second_per_grid_ts" in golden else ()
    taken = 0
    for row, (ids, mask) in enumerate(zip(golden["input_ids"], golden["attention_mask"])):
        tokens = ids[mask == 1]
        pictures = int((tokens == START).sum())
        positions, following = mrope_positions(
            tokens, grids[taken : taken + pictures], image_token_id=IMAGE, video_token_id=VIDEO,
            seconds_per_grid=seconds,
        )  # fmt: skip
        taken += pictures
        np.testing.assert_array_equal(positions, golden["position_ids"][:, row, mask == 1])
        assert following == golden["rope_deltas"][row, 0] + len(ids)


def test_a_long_video_pushes_the_next_position_but_not_the_text_after_it_in_transformers_5():
    tokens = [1, START, VIDEO, VIDEO, VIDEO, 2]
    grid, ids = [(3, 2, 2)], {"image_token_id": IMAGE, "video_token_id": VIDEO, "seconds_per_grid": [2.0]}
    positions, following = mrope_positions(tokens, grid, rule=TRANSFORMERS_5, **ids)
    np.testing.assert_array_equal(positions[0], [0, 1, 2, 6, 10, 3])
    assert following == 11
    positions, following = mrope_positions(tokens, grid, **ids)
    np.testing.assert_array_equal(positions[0], [0, 1, 2, 6, 10, 11])
    assert following == 12


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: vision_layout([(1, 3, 4)]), r"grid \(1, 3, 4\): height and width must be positive multiples of 2"),
        (lambda: vision_layout([(0, 4, 4)]), r"grid \(0, 4, 4\): .*positive"),
        (lambda: vision_layout([(1, 16, 16)], budget=3), "the images take 4 windows of 64 patches, the budget is 3"),
        (lambda: vision_layout([(1, 4, 4)]).place(np.zeros((5, 2))), "5 patches for grids of 16 patches"),
        (
            lambda: mrope_positions([1, IMAGE, 2], [(1, 4, 4)], image_token_id=IMAGE),
            r"grid \(1, 4, 4\) needs 4 placeholders from token 1 on",
        ),
        (
            lambda: mrope_positions([1, IMAGE, 2, IMAGE], [(1, 2, 2)], image_token_id=IMAGE),
            "token 3 is a placeholder without a grid",
        ),
        (lambda: mrope_positions([1, 2], [(1, 2, 2)], image_token_id=IMAGE), "needs 1 placeholders from token 2 on"),
        (lambda: mrope_positions([1, 2], [(1, 0, 2)], image_token_id=IMAGE), r"grid \(1, 0, 2\): .*positive"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(call, message):
    with pytest.raises(LayoutError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
