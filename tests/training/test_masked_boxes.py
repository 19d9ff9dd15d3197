"""The control without its boxes: the model sees every box black and nothing else changed, latents come from the clean
image."""

import dataclasses

import numpy as np
import pytest

from lvr_jax.data.digit_scenes import DigitSearch
from lvr_jax.data.sample import Sample, SampleError
from lvr_jax.training.masked_boxes import MaskedBoxes


def pictures(*sizes: tuple[int, int]) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(0)
    return tuple(rng.integers(1, 256, (*size, 3), np.uint8) for size in sizes)


def masked(**fields) -> Sample:
    sample = Sample(**{"id": "a", "question": "What?", "answer": "this", **fields})
    return MaskedBoxes([sample])[0]


def test_every_pixel_that_a_box_touches_is_black_in_its_own_image():
    images = pictures((10, 20), (30, 30))
    boxes = ((0.26, 0.31, 0.5, 0.6), (0.0, 0.9, 0.04, 1.0))
    found = masked(images=images, boxes=boxes, box_images=(0, 1))
    expected = [image.copy() for image in images]
    expected[0][3:6, 5:10] = 0
    expected[1][27:30, 0:2] = 0
    for seen, wanted, clean, source in zip(found.input_images, expected, found.images, images):
        np.testing.assert_array_equal(seen, wanted)
        np.testing.assert_array_equal(clean, source)


def test_boxes_are_of_the_first_image_unless_said():
    found = masked(images=pictures((8, 8), (8, 8)), boxes=((0, 0, 1, 1),))
    assert not found.input_images[0].any() and found.input_images[1].all()


def test_what_has_no_box_or_another_input_already_stays():
    images = pictures((8, 8))
    assert masked(images=images).input_images is None
    assert masked(images=images, boxes=((0, 0, 1, 1),), input_images=images).input_images is images


def test_several_questions_about_a_picture_are_refused():
    """What hides one's box would be seen by the others."""
    source = MaskedBoxes(DigitSearch(4, questions=2))
    with pytest.raises(SampleError, match="digits-train-0-1: several questions about its images"):
        source[1]
    one = MaskedBoxes(DigitSearch(4))[1]
    assert len(source) == 4 and not np.array_equal(one.input_images[0], one.images[0])
    assert dataclasses.replace(one, input_images=None).boxes == DigitSearch(4)[1].boxes
