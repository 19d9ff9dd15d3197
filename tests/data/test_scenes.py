"""The scene generators ask what only the picture answers, and say truly where the answer lies."""

import collections
import dataclasses
import pickle
import re
import subprocess
import sys

import grain.python as grain
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits

from lvr_jax.data import polyominoes, rotation_scenes
from lvr_jax.data.boxes import box_to_tokens, validate
from lvr_jax.data.digit_pictures import COLOUR_NAMES, PALETTE, _digits, load_glyphs
from lvr_jax.data.digit_scenes import DigitSearch
from lvr_jax.data.polyominoes import GRID, free_shape_of, rotate, shape_of
from lvr_jax.data.rotation_scenes import PIECES, SOLUTION_BOX, RotationAnalogies
from lvr_jax.data.scene_colours import COLOURS

INDEX = st.integers(0, 10**6 - 1)
SEED = st.integers(0, 2**40)
DIGIT_SPLIT = st.sampled_from(["train", "test"])
ROTATION_SPLIT = st.sampled_from(rotation_scenes.SPLITS)
KIND_SETS = st.sampled_from([("colour",), ("digit",), ("position",), ("relation",), ("colour", "digit"),
                             ("colour", "digit", "position", "relation")])


@st.composite
def digit_sources(draw, **fixed):
    """Digit search of any size: the numbers of digits stay within what the scene is sure to hold."""
    size = draw(st.sampled_from([14, 21, 28]))
    options = dict(
        size=10**6, split=draw(DIGIT_SPLIT), seed=draw(SEED), height=draw(st.integers(112, 200)),
        width=draw(st.integers(112, 200)), digit_size=size, digits=draw(st.integers(2, 6)),
        lattice=draw(st.sampled_from([7, 14])) if size < 28 else 14, jitter=draw(st.integers(0, 6)),
        kinds=draw(KIND_SETS), options=draw(st.sampled_from([0, 2, 4, 8])))
    return DigitSearch(**{**options, **fixed})


@st.composite
def rotation_sources(draw, **fixed):
    kind = st.sampled_from(list(rotation_scenes.DISTRACTORS))
    options = dict(size=10**6, split=draw(ROTATION_SPLIT), seed=draw(SEED), panel=draw(st.sampled_from([28, 56, 84])),
                   distractors=(draw(kind), draw(kind), draw(kind)))
    return RotationAnalogies(**{**options, **fixed})


def same(a, b):
    pictures = (a.images + (a.input_images or ()), b.images + (b.input_images or ()))
    return (all(np.array_equal(x, y) for x, y in zip(*pictures, strict=True))
            and (a.id, a.question, a.answer, a.letter, a.options, a.boxes, a.category)
            == (b.id, b.question, b.answer, b.letter, b.options, b.boxes, b.category))


# ------------------------------------------------------------------------------------------------ both generators


@settings(max_examples=30, deadline=None)
@given(source=st.one_of(digit_sources(), rotation_sources()), index=INDEX)
def test_an_item_depends_on_seed_and_index_alone(source, index):
    first = source[index]
    source[(index + 1) % len(source)]
    assert same(first, source[index])
    assert same(first, pickle.loads(pickle.dumps(source))[index])


@pytest.mark.parametrize("source", [DigitSearch(100), RotationAnalogies(100)])
def test_items_of_other_indices_seeds_and_splits_differ(source):
    others = [source[4], type(source)(100, seed=1)[3], type(source)(100, split="test")[3]]
    assert all(not np.array_equal(source[3].images[0], other.images[0]) for other in others)
    assert len({source[3].id, *(other.id for other in others)}) == 4


@pytest.mark.parametrize("source", [DigitSearch(5), RotationAnalogies(5)])
def test_a_generator_is_a_grain_source_that_pickles_small(source):
    assert isinstance(source, grain.RandomAccessDataSource)
    assert len(grain.MapDataset.source(source)) == 5
    assert len(pickle.dumps(source)) < 1000
    for index in (-1, 5):
        with pytest.raises(IndexError, match="5 items"):
            source[index]


@settings(max_examples=40, deadline=None)
@given(source=st.one_of(digit_sources(), rotation_sources()), index=INDEX)
def test_the_letter_points_at_the_answer_among_different_options(source, index):
    sample = source[index]
    image = sample.images[0]
    assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3
    for box in sample.boxes:
        assert validate(box) == box
    if sample.letter is None:
        assert sample.options == () and "(A)" not in sample.question
        return
    assert len(set(sample.options)) == len(sample.options) >= 2
    assert sample.options["ABCDEFGH".index(sample.letter)] == sample.answer
    written = re.findall(r"\n\(([A-H])\) (.*)", sample.question)
    assert written == list(zip("ABCDEFGH", sample.options))


def test_generators_do_not_import_jax():
    code = ("import sys; from lvr_jax.data.digit_scenes import DigitSearch as D;"
            "from lvr_jax.data.rotation_scenes import RotationAnalogies as R; import lvr_jax.data.records;"
            "D(1)[0]; R(1)[0]; sys.exit('jax' in sys.modules)")
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# --------------------------------------------------------------------------------------------------- digit search


def test_digits_are_those_of_scikit_learn():
    for own, theirs in zip(_digits(), (load_digits().images, load_digits().target), strict=True):
        np.testing.assert_array_equal(own, theirs)


def test_train_and_test_digits_are_different_samples_of_every_class():
    images, classes = load_digits().images.reshape(1797, 64), load_digits().target
    assert len(np.unique(images, axis=0)) == 1797          # so different numbers are different pictures
    pools = load_glyphs(28).pools
    for digit, (train, test) in enumerate(zip(pools["train"], pools["test"], strict=True)):
        assert not set(train) & set(test)
        assert set(train) | set(test) == set(np.flatnonzero(classes == digit))
        assert 0.28 < len(test) / (len(test) + len(train)) < 0.32


@settings(max_examples=40, deadline=None)
@given(source=digit_sources(), index=INDEX)
def test_scenes_draw_digits_of_their_own_split_only(source, index):
    scene = source.scene(index)
    pools = load_glyphs(source.digit_size).pools[source.split]
    assert all(sample in pools[digit] for sample, digit in zip(scene.samples, scene.classes, strict=True))


def test_train_and_test_scenes_are_laid_out_independently():
    train, test = DigitSearch(200), DigitSearch(200, split="test")
    pairs = [(train.scene(i), test.scene(i)) for i in range(200)]
    assert not any(np.array_equal(a.canvas, b.canvas) for a, b in pairs)
    assert sum(a.classes == b.classes or a.colours == b.colours for a, b in pairs) <= 2


@settings(max_examples=60, deadline=None)
@given(source=digit_sources(noise=0), index=INDEX)
def test_ink_boxes_cover_exactly_the_ink(source, index):
    scene = source.scene(index)
    height, width = scene.image.shape[:2]
    ground = np.bincount(scene.image.ravel()).argmax()      # one grey level, as there is no noise
    inked = (scene.image != ground).any(2)
    left = inked.copy()
    for n, (x0, y0, x1, y1) in enumerate(scene.canvas.tolist()):
        assert 0 <= x0 and 0 <= y0 and x1 <= width and y1 <= height
        rows, columns = np.nonzero(inked[y0:y1, x0:x1])
        box = [x0 + columns.min(), y0 + rows.min(), x0 + columns.max() + 1, y0 + rows.max() + 1]
        assert scene.ink[n].tolist() == box
        assert np.allclose(np.multiply(scene.normalised(n), [width, height] * 2), box, rtol=0, atol=1e-9)
        assert left[y0:y1, x0:x1].any(), "canvases overlap"
        left[y0:y1, x0:x1] = False
    assert not left.any()


@settings(max_examples=30, deadline=None)
@given(source=digit_sources(), index=INDEX)
def test_every_pixel_is_noise_under_its_digits_alpha(source, index):
    """Byte for byte what blending one digit after the other gives."""
    scene, _, rng = source._sketch(index)
    height, width = scene.image.shape[:2]
    grey = np.frombuffer(rng.bytes(height * width), np.uint8).reshape(height, width, 1)
    expected = np.repeat((grey.astype(int) * source.noise >> 8) + rng.integers(*source.background), 3, axis=2)
    alphas = load_glyphs(source.digit_size).alpha
    for sample, colour, (x0, y0, x1, y1) in zip(scene.samples, scene.colours, scene.canvas.tolist()):
        alpha, under = alphas[sample, :, :, None].astype(int), expected[y0:y1, x0:x1]
        expected[y0:y1, x0:x1] = (under * (255 - alpha) + PALETTE[colour].astype(int) * alpha + 127) // 255
    np.testing.assert_array_equal(source.scene(index).image, expected)


@settings(max_examples=30, deadline=None)
@given(source=digit_sources(), index=INDEX)
def test_canvases_never_overlap(source, index):
    canvas = source.scene(index).canvas
    cover = np.zeros((source.height, source.width), int)
    for x0, y0, x1, y1 in canvas.tolist():
        assert x1 - x0 == y1 - y0 == source.digit_size
        cover[y0:y1, x0:x1] += 1
    assert cover.max() == 1


def referent(name, scene):
    """The only digit that "the 7" or "the red digit" can mean."""
    what = re.fullmatch(r"the (\d|\w+ digit)", name)[1]
    values, value = ((scene.classes, int(what)) if what.isdigit() else
                     (scene.colours, COLOUR_NAMES.index(what.removesuffix(" digit"))))
    found = [n for n, v in enumerate(values) if v == value]
    assert len(found) == 1, f"{name} could be any of {found}"
    return found[0]


def answered(text, scene):
    """Reads question and scene afresh: (answer, numbers of the digits asked about, distance from a doubtful case)."""
    centre = (scene.ink[:, :2] + scene.ink[:, 2:]) / 2
    height, width = scene.image.shape[:2]
    if match := re.fullmatch(r"What colour is (the \d)\?", text):
        n = referent(match[1], scene)
        return COLOUR_NAMES[scene.colours[n]], (n,), np.inf
    if match := re.fullmatch(r"Which digit is (\w+)\?", text):
        n = referent(f"the {match[1]} digit", scene)
        return str(scene.classes[n]), (n,), np.inf
    if match := re.fullmatch(r"Is (the .+) in the (left|top) or the (right|bottom) half of the picture\?", text):
        n, axis = referent(match[1], scene), int(match[2] == "top")
        offset = centre[n, axis] - (width, height)[axis] / 2
        return match[2 if offset < 0 else 3], (n,), abs(offset)
    match = re.fullmatch(r"Is (the .+) (left of|above) or (right of|below) (the .+)\?", text)
    n, m, axis = referent(match[1], scene), referent(match[4], scene), int(match[2] == "above")
    assert n != m
    offset = centre[n, axis] - centre[m, axis]
    return match[2 if offset < 0 else 3], (n, m), abs(offset)


@settings(max_examples=150, deadline=None)
@given(source=digit_sources(), index=INDEX)
def test_questions_have_one_referent_one_true_answer_and_the_box_of_it(source, index):
    sample, scene = source[index], source.scene(index)
    answer, targets, distance = answered(sample.question.split("\n")[0], scene)
    assert sample.answer == answer
    assert source.target(index) == targets
    assert sample.boxes == tuple(scene.normalised(n) for n in targets)
    assert distance >= source.digit_size / 4
    assert sample.category in source.kinds


@settings(max_examples=60, deadline=None)
@given(source=digit_sources(kinds=("colour", "digit"), options=4), index=INDEX)
def test_wrong_options_come_from_the_scene_first(source, index):
    sample, scene = source[index], source.scene(index)
    shown = ({COLOUR_NAMES[c] for c in scene.colours} if sample.category == "colour" else set(map(str, scene.classes)))
    suggested = [option for option in sample.options if option in shown - {sample.answer}]
    assert len(suggested) == min(3, len(shown) - 1)


def uniform(counts, total, places):
    """Within five standard deviations of even shares."""
    counts = np.array(list(counts.values()))
    return len(counts) == places and np.abs(counts - total / places).max() < 5 * np.sqrt(total / places)


def test_letters_answers_and_kinds_are_balanced_and_the_named_attribute_says_nothing():
    source = DigitSearch(2400)
    samples = [source[i] for i in range(2400)]
    assert collections.Counter(s.category for s in samples) == {"colour": 1200, "digit": 1200}
    assert uniform(collections.Counter(s.letter for s in samples), 2400, 4)
    named = {"colour": r"the (\d)", "digit": r"is (\w+)"}
    pairs = collections.Counter((re.search(named[s.category], s.question)[1], s.answer) for s in samples)
    assert len(pairs) == 160                # every class with every colour, asked from either end
    assert max(pairs.values()) < 15 + 5 * np.sqrt(15)
    colours = collections.Counter(s.answer for s in samples if s.category == "colour")
    digits = collections.Counter(s.answer for s in samples if s.category == "digit")
    assert uniform(colours, 1200, 8) and uniform(digits, 1200, 10)


@settings(max_examples=60, deadline=None)
@given(source=digit_sources(kinds=("colour", "digit"), mask_box=True), index=INDEX)
def test_masked_input_hides_all_ink_of_the_target_and_changes_nothing_else(source, index):
    sample, scene = source[index], source.scene(index)
    (clean,), (seen,) = sample.images, sample.input_images
    assert np.array_equal(clean, scene.image)
    (n,) = source.target(index)
    x0, y0, x1, y1 = scene.canvas[n].tolist()
    assert not seen[y0:y1, x0:x1].any()
    outside = np.ones(clean.shape[:2], bool)
    outside[y0:y1, x0:x1] = False           # the padding: the whole canvas, which is one size whatever the digit
    assert np.array_equal(clean[outside], seen[outside])
    left, top, right, bottom = scene.ink[n].tolist()
    assert x0 <= left < right <= x1 and y0 <= top < bottom <= y1


@settings(max_examples=30, deadline=None)
@given(source=digit_sources(kinds=("colour", "digit"), mask_box=True), index=INDEX, share=st.floats(0.05, 1))
def test_a_share_of_the_mask_is_part_of_every_larger_one_and_of_its_size(source, index, share):
    """In cells of a seventh of the canvas, 4 px of 28: their number is exact; elsewhere sizes vary."""
    clean = source[index].images[0]
    hidden = {}
    for each in (share, 1.0):
        seen = dataclasses.replace(source, mask_share=each)
        assert same(seen[index], seen[index])
        hidden[each] = (seen[index].input_images[0] == 0).all(-1)
        assert np.array_equal(seen[index].input_images[0][~hidden[each]], clean[~hidden[each]])
    less, whole = hidden[share], hidden[1.0]
    assert not (less & ~whole).any() and np.array_equal(whole, (source[index].input_images[0] == 0).all(-1))
    cells = round(share * 49)
    pixels = source.digit_size // 7
    assert cells * pixels**2 <= less.sum() <= cells * (pixels + source.digit_size % 7) ** 2


def test_the_cells_of_a_mask_differ_between_items_and_are_drawn_apart_from_the_scene():
    clean, half = DigitSearch(20), DigitSearch(20, mask_box=True, mask_share=0.5)
    places = set()
    for n in range(20):
        assert np.array_equal(clean[n].images[0], half[n].images[0])
        x0, y0, x1, y1 = half.scene(n).canvas[half.target(n)[0]].tolist()
        places.add((half[n].input_images[0][y0:y1, x0:x1] == 0).all(-1).tobytes())
    assert len(places) == 20


def test_a_counterfactual_asks_the_same_of_a_scene_in_which_the_target_alone_is_another():
    """Another answer, which is among the options; pixels outside the target's canvas are the same, noise included."""
    source = DigitSearch(60, split="test", seed=3)
    for index in range(60):
        own, other, scene = source[index], source.counterfactual(index), source.scene(index)
        (target,) = source.target(index)
        assert (other.question, other.options) == (own.question, own.options) and other.answer != own.answer
        assert other.options["ABCD".index(other.letter)] == other.answer
        different = (own.images[0] != other.images[0]).any(-1)
        x0, y0, x1, y1 = scene.canvas[target]
        assert different[y0:y1, x0:x1].any()
        different[y0:y1, x0:x1] = False
        assert not different.any()
        assert own.boxes == other.boxes or own.category == "digit"              # the ink of another digit is elsewhere
    assert same(source.counterfactual(4), source.counterfactual(4))
    assert DigitSearch(4, kinds=("position",)).counterfactual(0) is None
    with_hole = DigitSearch(4, mask_box=True)
    np.testing.assert_array_equal(with_hole.counterfactual(1).input_images[0], with_hole[1].input_images[0])


def test_the_default_scene_has_the_box_sizes_that_were_seen_to_be_learnable():
    source = DigitSearch(2000)
    tokens = collections.Counter(len(box_to_tokens(source[i].boxes[0], (1, 8, 8))) for i in range(2000))
    assert set(tokens) == {1, 2, 4}
    # The measured study had shares of 20, 53 and 28 per cent; 3 points are three standard errors of 2,000 items.
    assert np.allclose([tokens[k] / 2000 for k in (1, 2, 4)], [0.20, 0.53, 0.28], rtol=0, atol=0.035)


@pytest.mark.parametrize("field, value", [
    ("size", 0), ("split", "val"), ("seed", -1), ("digits", 7), ("digits", 0), ("kinds", ()), ("kinds", ("shape",)),
    ("options", 1), ("options", 9), ("digit_size", 4), ("digit_size", 200), ("noise", -1), ("background", (90, 40)),
    ("jitter", -1), ("lattice", 0), ("mask_share", 0), ("mask_share", 1.5), ("mask_share", 0.5)])
def test_a_bad_digit_setting_is_named(field, value):
    with pytest.raises(ValueError, match=r"DigitSearch\.\w+ = .*expected") as caught:
        DigitSearch(**{"size": 10, field: value})
    assert "digits" in str(caught.value) if field == "digit_size" and value == 200 else field in str(caught.value)


def test_place_questions_are_refused_where_the_hole_would_answer_them():
    with pytest.raises(ValueError, match="give the place away"):
        DigitSearch(10, kinds=("colour", "position"), mask_box=True)


# ---------------------------------------------------------------------------------------------- rotation analogies


def test_shapes_are_as_many_as_counted_by_hand():
    # L, J and T; of the 12 free pentominoes all but I, X and Z, five of them in two mirror forms
    assert len(polyominoes.asymmetric_shapes(4)) == 3
    assert len(polyominoes.asymmetric_shapes(5)) == 14
    assert len({free_shape_of(shape) for shape in polyominoes.asymmetric_shapes(5)}) == 9
    assert [len({free_shape_of(s) for s in polyominoes.held_out() if len(s) == size}) for size in (5, 6)] == [2, 5]


@pytest.mark.parametrize("size", [4, 5, 6, 7])
def test_every_shape_has_four_rotations_fits_and_is_connected(size):
    for shape in polyominoes.asymmetric_shapes(size):
        turned = {rotate(shape, quarters) for quarters in range(4)}
        assert len(turned) == 4 and {shape_of(cells) for cells in turned} == {shape}
        assert all(polyominoes.fits(cells) and polyominoes.connected(cells) for cells in turned)


def test_a_quarter_turn_is_clockwise_as_seen():
    for shape in polyominoes.asymmetric_shapes(5):
        board = np.zeros((GRID, GRID), bool)
        board[tuple(np.transpose(shape))] = True
        for quarters in range(4):
            seen = np.rot90(board, -quarters)               # negative: clockwise, with rows counted downwards
            assert rotate(shape, quarters) == polyominoes.normalise(np.argwhere(seen).tolist())


def read_panel(image, place, panel):
    """Cells of a panel, read from the pixels: (cells, colour), cells () if it is empty."""
    row, column = divmod(place, 4)
    view = image[row * panel:(row + 1) * panel, column * panel:(column + 1) * panel].astype(int)
    unit = (panel - 4) // GRID
    margin = (panel - unit * GRID) // 2
    centres = view[margin + unit // 2::unit, margin + unit // 2::unit][:GRID, :GRID]
    lit = centres.max(2) > 150
    colours = {tuple(rgb) for rgb in centres[lit].tolist()}
    assert len(colours) <= 1
    return polyominoes.normalise(np.argwhere(lit).tolist()) if lit.any() else (), colours.pop() if colours else None


@settings(max_examples=60, deadline=None)
@given(source=rotation_sources(), index=INDEX)
def test_the_picture_shows_the_analogy_and_one_right_option(source, index):
    sample = source[index]
    clean, seen = sample.images[0], sample.input_images[0]
    (one, _), (two, _), (three, _) = (read_panel(seen, place, source.panel) for place in range(3))
    quarters = int(sample.category.removeprefix("turn_")) // 90
    assert two == rotate(one, quarters) != one and quarters in (1, 2, 3)
    assert len(one) != len(three)
    options = [read_panel(seen, 4 + slot, source.panel)[0] for slot in range(4)]
    solution = rotate(three, quarters)
    assert [n for n, option in enumerate(options) if option == solution] == ["ABCD".index(sample.letter)]
    assert len(set(options)) == 4
    assert read_panel(clean, 3, source.panel) == (solution, (255, 255, 255))
    analogy = source.analogy(index)
    assert (analogy.first, analogy.third, analogy.quarters, analogy.options) == (one, three, quarters, tuple(options))


@settings(max_examples=30, deadline=None)
@given(source=rotation_sources(), index=INDEX)
def test_the_input_lacks_the_solution_and_nothing_else(source, index):
    sample = source[index]
    clean, seen = sample.images[0], sample.input_images[0]
    p = source.panel
    outside = np.ones(clean.shape[:2], bool)
    outside[:p, 3 * p:] = False
    assert sample.boxes == (SOLUTION_BOX,) and np.array_equal(clean[outside], seen[outside])
    assert read_panel(seen, 3, p) == ((), None)
    assert seen[2:p - 2, 3 * p + 2:-2].max() == rotation_scenes.BACKGROUND


@pytest.mark.parametrize("panel, tokens", [(28, [3]), (56, [6, 7, 14, 15])])
def test_the_box_is_whole_merged_tokens(panel, tokens):
    height, width = RotationAnalogies(1, panel=panel)[0].images[0].shape[:2]
    assert box_to_tokens(SOLUTION_BOX, (1, height // 14, width // 14)).tolist() == tokens


@settings(max_examples=20, deadline=None)
@given(source=rotation_sources(), start=st.integers(0, 10**6 - 8))
def test_the_right_place_cycles(source, start):
    letters = [source[i].letter for i in range(start, start + 8)]
    assert sorted(letters[:4]) == list("ABCD") and letters[:4] == letters[4:]


@settings(max_examples=60, deadline=None)
@given(source=rotation_sources(), index=INDEX)
def test_no_training_picture_holds_a_held_out_shape_and_test_asks_about_nothing_else(source, index):
    analogy = source.analogy(index)
    asked = [analogy.first, analogy.third]
    unseen = {free_shape_of(shape) for shape in polyominoes.held_out()}
    if source.split in ("train", "validation"):
        for cells in asked + list(analogy.options):
            assert len(cells) < 7 and free_shape_of(cells) not in unseen
    else:
        assert free_shape_of(analogy.first) in unseen
        hard = source.split == "test_hard"
        assert len(analogy.third) == 7 if hard else free_shape_of(analogy.third) in unseen


def test_train_and_validation_share_no_configuration_and_each_comes_once():
    def configurations(split, count):
        source = RotationAnalogies(count, split=split, seed=5)
        drawn = (source.analogy(i) for i in range(count))
        return [(a.first, a.third, a.quarters) for a in drawn]      # as drawn, so orientations are in it
    validation = configurations("validation", 2242)
    train = configurations("train", 5000)
    assert len(set(train)) == 5000 and len(set(validation)) == 2242
    assert not set(train) & set(validation)
    orders = [rotation_scenes._order(split, seed) for split in ("train", "validation") for seed in (0, 7)]
    assert set(orders[0]) == set(orders[1]) and set(orders[2]) == set(orders[3])     # the division knows no seed
    assert set(orders[0]) | set(orders[2]) == set(range(len(rotation_scenes._pairs("train")) * 48))


def test_colours_say_nothing_about_the_right_option():
    source = RotationAnalogies(2000)
    colours, as_third = collections.Counter(), 0
    for i in range(2000):
        sample = source[i]
        image = sample.images[0]
        right = read_panel(image, 4 + "ABCD".index(sample.letter), 28)[1]
        colours[right] += 1
        as_third += right == read_panel(image, 2, 28)[1]
    assert set(colours) == set(map(tuple, PIECES.tolist())) == set(COLOURS.values()) - {COLOURS["white"]}
    assert uniform(colours, 2000, 7)
    assert abs(as_third - 2000 / 7) < 5 * np.sqrt(2000 / 7)


@settings(max_examples=30, deadline=None)
@given(index=INDEX, kind=st.sampled_from(["rotation", "cell", "family", "random"]), split=ROTATION_SPLIT)
def test_wrong_options_are_of_the_kind_asked_for(index, kind, split):
    analogy = RotationAnalogies(10**6, split=split, distractors=(kind,) * 3).analogy(index)
    right = analogy.solution
    for cells in analogy.options:
        if cells == right:
            continue
        same_shape, same_family = shape_of(cells) == shape_of(right), len(cells) == len(right)
        if kind == "rotation":
            assert same_shape and analogy.third in analogy.options and analogy.third != right
        elif kind == "family":
            assert same_family and not same_shape
        elif kind == "random":
            assert not same_shape


def test_a_cell_option_has_one_cell_more_or_less():
    source = RotationAnalogies(400, distractors=("cell", "rotation", "rotation"))
    for i in range(400):
        analogy = source.analogy(i)
        edited = [cells for cells in analogy.options if len(cells) != len(analogy.third)]
        assert [abs(len(cells) - len(analogy.third)) for cells in edited] == [1]
        assert polyominoes.connected(edited[0])


def test_switches_show_the_solution_or_hide_the_query():
    plain, shown, blind = (RotationAnalogies(9, **kw)[5] for kw in ({}, {"mask_box": False}, {"mask_query": True}))
    assert shown.input_images is None and np.array_equal(shown.images[0], plain.images[0])
    assert np.array_equal(blind.images[0], plain.images[0])
    assert read_panel(plain.input_images[0], 2, 28)[0] and read_panel(blind.input_images[0], 2, 28) == ((), None)
    differs = (blind.input_images[0] != plain.input_images[0]).any(2)
    assert differs.any() and not np.delete(differs, np.s_[56:84], axis=1).any() and not differs[28:].any()


def test_the_turn_can_be_said():
    said = RotationAnalogies(9, state_rotation=True)[2]
    assert f"turned by {said.category.removeprefix('turn_')} degrees clockwise" in said.question
    assert "degrees" not in RotationAnalogies(9)[2].question


def test_a_step_of_the_analogy_can_be_asked_alone():
    """Of the same picture: by how many degrees shape 2 is turned, and which option is shape 3 turned by so many."""
    for index in range(12):
        whole, turn, place = (RotationAnalogies(12, **kw)[index] for kw in ({}, {"asks": "turn"}, {"asks": "place"}))
        degrees = whole.category.removeprefix("turn_")
        assert np.array_equal(whole.images[0], turn.images[0]) and np.array_equal(whole.images[0], place.images[0])
        assert turn.answer == degrees == turn.options["ABC".index(turn.letter)] and turn.boxes == ((0.25, 0, 0.5, 0.5),)
        assert degrees in place.question and "Shape 1" not in place.question
        assert degrees not in turn.question.split("\n")[0]
        assert (place.answer, place.letter, place.boxes) == (whole.answer, whole.letter, whole.boxes)
        assert len({whole.id, turn.id, place.id}) == 3


@pytest.mark.parametrize("field, value", [
    ("size", 0), ("split", "ood"), ("seed", -1), ("panel", 30), ("panel", 0), ("distractors", ("cell",)),
    ("distractors", ("cell", "cell", "colour")), ("asks", "shape")])
def test_a_bad_rotation_setting_is_named(field, value):
    with pytest.raises(ValueError, match=rf"RotationAnalogies\.{field} = .*expected"):
        RotationAnalogies(**{"size": 10, field: value})
    with pytest.raises(ValueError, match="mask_query"):
        RotationAnalogies(10, mask_box=False, mask_query=True)
    with pytest.raises(ValueError, match="state_rotation = True: expected False where a step alone is asked for"):
        RotationAnalogies(10, asks="turn", state_rotation=True)
