"""Rows hold exactly what their examples held, whatever the sizes, boxes and budgets."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lvr_jax.data.chat import encode_example
from lvr_jax.data.filling import fill_row
from lvr_jax.data.packing import Budget, BudgetError, Geometry, collate, lay_out_row
from lvr_jax.data.sample import ROLE_IMAGE, Sample
from lvr_jax.data.templates import TEMPLATES
from lvr_jax.data.tokenizers import load_tokenizer

TOKENIZER = load_tokenizer(Path(__file__).parents[1] / "golden" / "tokenizer.json")
QUICK = settings(max_examples=25, deadline=None)


@st.composite
def boxes(draw):
    x, y = draw(st.floats(0, 0.9)), draw(st.floats(0, 0.9))
    return x, y, min(1.0, x + draw(st.floats(0.02, 1))), min(1.0, y + draw(st.floats(0.02, 1)))


@st.composite
def examples(draw, template=None, number=0):
    """A real encoded example: one or two random pictures, boxes in them, perhaps latents from other pictures."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    picture = lambda size: rng.integers(0, 256, (*size, 3), np.uint8)  # noqa: E731
    sizes = draw(st.lists(st.tuples(st.integers(20, 260), st.integers(20, 260)), min_size=1, max_size=2))
    found = draw(st.lists(boxes(), max_size=2))
    sample = Sample(
        id=f"example-{number}",
        images=tuple(picture(size) for size in sizes),
        input_images=tuple(picture(size) for size in sizes) if draw(st.booleans()) else None,
        question=draw(st.text("abc ?", min_size=1, max_size=30)) + "?",
        answer="yes",
        boxes=tuple(found),
        box_images=tuple(draw(st.integers(0, len(sizes) - 1)) for _ in found),
    )
    name = template or draw(st.sampled_from(sorted(TEMPLATES)))
    return encode_example(sample, TOKENIZER, TEMPLATES[name], min_pixels=784, max_pixels=60_000)


def exact_budget(row, geometry=Geometry()):  # noqa: B008
    return geometry.smallest([row])


@QUICK
@given(st.data())
def test_every_index_of_a_row_is_in_range_and_padding_is_empty(data):
    row = [data.draw(examples(number=i)) for i in range(data.draw(st.integers(1, 3)))]
    size = exact_budget(row)
    extra = Budget(*(data.draw(st.integers(0, 40)) for _ in range(3)))
    budget = size + extra
    laid = lay_out_row(row, budget)
    slots, windows = laid["vision_slot"], laid["window_segment"]
    assert slots.max() < windows.size // 4 and slots.min() >= -1
    used = slots[slots >= 0]
    assert (windows.reshape(-1, 4)[used] > 0).all(), "a token points at a window slot that holds no patch"
    assert not laid["patches"][windows == 0].any()
    text = laid["segment"] == 0
    assert text.sum() == extra.tokens and not laid["tokens"][text].any() and not laid["loss_mask"][text].any()
    assert (slots[text] == -1).all() and not laid["stage"][text].any() and not laid["group"][text].any()
    pool = laid["pool"][laid["pool"][:, 0] >= 0]
    assert len(pool) == size.pooled and (laid["stage"][pool[:, 0]] > 0).all()
    assert (windows.reshape(-1, 4)[pool[:, 1]] > 0).all()


@QUICK
@given(st.data())
def test_packed_content_is_the_unpacked_content(data):
    row = [data.draw(examples(number=i)) for i in range(data.draw(st.integers(1, 4)))]
    laid = lay_out_row(row, exact_budget(row) + Budget(7, 3, 5))
    pixels = laid["patches"].reshape(-1, 4, 588)                                    # by merged slot
    groups = set()
    for number, e in enumerate(row):
        here = np.flatnonzero(laid["segment"] == 1 + number)
        for key in ("tokens", "stage", "role", "loss_mask"):
            np.testing.assert_array_equal(laid[key][here], getattr(e, key))
        np.testing.assert_array_equal(laid["positions"][:, here], e.positions)
        np.testing.assert_array_equal(laid["group"][here] > 0, e.group > 0)
        own = {(int(a), int(b)) for a, b in zip(e.group, laid["group"][here]) if a}
        assert len(own) == len({a for a, _ in own}) == len({b for _, b in own}), "groups are renamed one to one"
        assert not groups & {b for _, b in own}, "groups of two examples are never the same"
        groups |= {b for _, b in own}
        latents = e.patches if e.target_patches is None else e.target_patches
        for t, slot in zip(here, e.vision_slot):
            if slot < 0:
                assert laid["vision_slot"][t] == -1
                continue
            seen = e.patches if laid["role"][t] == ROLE_IMAGE else latents
            np.testing.assert_array_equal(pixels[laid["vision_slot"][t]], seen[4 * slot : 4 * slot + 4])
        pairs = laid["pool"][np.isin(laid["pool"][:, 0], here)]
        np.testing.assert_array_equal(pairs[:, 0] - here[0], e.latent_pool[:, 0])
        for (_, packed), (_, raster) in zip(pairs, e.latent_pool):
            np.testing.assert_array_equal(pixels[packed], latents[4 * raster : 4 * raster + 4])


@QUICK
@given(st.data())
def test_an_example_is_laid_out_the_same_alone_and_in_company(data):
    row = [data.draw(examples(number=i)) for i in range(2)]
    both = lay_out_row(row, exact_budget(row))
    for number, e in enumerate(row):
        alone = lay_out_row([e], exact_budget([e]))
        here = both["segment"] == 1 + number
        for key in ("tokens", "stage", "role", "loss_mask"):
            np.testing.assert_array_equal(both[key][here], alone[key])
        windows = slice(0, len(alone["patches"])) if number == 0 else slice(-len(alone["patches"]), None)
        np.testing.assert_array_equal(both["patches"][windows], alone["patches"])
        np.testing.assert_array_equal(both["rotary_ids"][windows], alone["rotary_ids"])
        slots, base = both["vision_slot"][here], 16 * len(both["patches"][: windows.start])
        np.testing.assert_array_equal(np.where(slots >= 0, slots - base, -1), alone["vision_slot"])


def test_a_row_that_does_not_fit_names_its_examples():
    sample = Sample(id="big one", images=(np.zeros((112, 112, 3), np.uint8),), question="what?", answer="yes")
    e = encode_example(sample, TOKENIZER, TEMPLATES["lvr"], min_pixels=784, max_pixels=60_000)
    with pytest.raises(BudgetError, match="big one: needs .*tokens=.*windows=1.* the budget is .*tokens=10"):
        lay_out_row([e], Budget(10, 1))
    batch = collate([[e], []], Budget(len(e.tokens), 1))
    assert batch["segment"][1].max() == 0, "an empty row is all padding"


sizes = st.builds(Budget, st.integers(1, 100), st.integers(0, 20), st.integers(0, 5))


@given(st.lists(sizes, min_size=1, max_size=12), st.none() | st.integers(1, 4))
def test_a_filled_row_fits_and_takes_the_oldest(waiting, limit):
    budget = Budget(100, 20, 5)
    chosen = fill_row(waiting, budget, limit)
    assert chosen[0] == 0 and chosen == sorted(set(chosen)) and len(chosen) <= (limit or len(waiting))
    assert budget.holds(sum((waiting[i] for i in chosen), Budget(0, 0)))


@given(st.lists(st.integers(1, 100), min_size=1, max_size=9))
def test_a_filled_row_is_the_fullest_possible(lengths):
    waiting = [Budget(n, 0) for n in lengths]
    best = max(
        total
        for subset in range(2 ** (len(lengths) - 1))
        if (total := lengths[0] + sum(n for i, n in enumerate(lengths[1:]) if subset >> i & 1)) <= 100
    )
    assert sum(lengths[i] for i in fill_row(waiting, Budget(100, 0))) == best


def test_full_packing_is_a_limit_of_zero():
    waiting = [Budget(10, 1)] * 9
    assert fill_row(waiting, Budget(100, 20), 4) == [0, 1, 2, 3]
    assert fill_row(waiting, Budget(100, 20), 0) == fill_row(waiting, Budget(100, 20)) == list(range(9))
