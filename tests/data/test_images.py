"""Pictures become the pixels that the reference makes of them, or a clear error."""

import io
import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lvr_jax.data import images

CASES = Path(__file__).parents[1] / "golden" / "cases"
MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)


def normalise(patches):
    """uint8 [P, 588] -> float32 [P, 1176] as the processor emits it: rescaled, normalised, both frames."""
    pixels = (patches.reshape(-1, 3, 1, 196).astype(np.float64) * (1 / 255)).astype(np.float32)
    pixels = (pixels - MEAN[:, None, None]) / STD[:, None, None]
    return np.broadcast_to(pixels, (len(patches), 3, 2, 196)).reshape(len(patches), 1176)


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def saved(image, path, **options):
    image.save(path, **options)
    return str(path)


@pytest.mark.parametrize("name", ["A0_preprocess_150x43", "A0_preprocess_61x95"])
def test_golden_preprocessing_bit_for_bit(name):
    case = np.load(CASES / f"{name}.npz")
    meta = json.loads(str(case["meta"]))
    image = images.prepare_image(case["image_uint8"], meta["min_pixels"], meta["max_pixels"], protocol="train")
    np.testing.assert_array_equal(image, case["resized_uint8"])
    patches, grid = images.patchify(image)
    np.testing.assert_array_equal([grid], case["image_grid_thw"])
    np.testing.assert_array_equal(normalise(patches), case["pixel_values"])


@pytest.mark.parametrize("rule, columns", [("fetch", (4, 5)), ("processor", (6, 7))])
def test_golden_smart_resize(rule, columns):
    for row in np.load(CASES / "A0_smart_resize.npz")["table"].tolist():
        h, w, least, most = row[:4]
        size = images.smart_resize(h, w, min_pixels=least, max_pixels=most, rule=rule)
        assert size == (row[columns[0]], row[columns[1]]), row


@pytest.mark.parametrize(
    "height, width, tokens",
    [
        (1500, 2000, (3834, 3834, 3834)),
        (1440, 5759, (10506, 5005, 10506)),
        (224, 224, (64, 144, 1296)),
        (64, 64, (4, 144, 1296)),
        (2160, 3840, (10549, 5035, 10549)),
        (4320, 7680, (16320, 5035, 16320)),
        (375, 500, (234, 234, 1302)),
    ],
)
def test_published_token_counts(height, width, tokens):
    limits = [images.QWEN_PIXELS, images.LVR_PIXELS, (1003520, images.QWEN_PIXELS[1])]
    for rule in ("fetch", "processor"):
        sizes = [images.smart_resize(height, width, 28, least, most, rule=rule) for least, most in limits]
        assert tuple(h * w // 784 for h, w in sizes) == tokens


def test_the_two_rules_differ_for_a_thin_image_only():
    assert images.smart_resize(10, 1000, min_pixels=3136, max_pixels=10**6, rule="processor") == (28, 560)
    assert images.smart_resize(10, 1000, min_pixels=3136, max_pixels=10**6, rule="fetch") == (28, 1008)


def test_sizes_and_pixels_equal_hugging_face_processor_bit_for_bit():
    hf = pytest.importorskip("transformers.models.qwen2_vl.image_processing_pil_qwen2_vl")
    rng = np.random.default_rng(3)
    for limits in (images.QWEN_PIXELS, images.LVR_PIXELS, (784, 60000)):
        processor = hf.Qwen2VLImageProcessorPil(min_pixels=limits[0], max_pixels=limits[1])
        for height, width in [(64, 64), (643, 960), (1, 1), (13, 500), *rng.integers(20, 700, (4, 2)).tolist()]:
            image = noise(height, width, seed=height)
            wanted = processor(images=Image.fromarray(image), return_tensors="np")
            patches, grid = images.patchify(images.prepare_image(image, *limits, protocol="processor"))
            np.testing.assert_array_equal([grid], wanted["image_grid_thw"])
            np.testing.assert_array_equal(normalise(patches), wanted["pixel_values"])


@settings(max_examples=300)
@given(st.integers(1, 9000), st.integers(1, 9000), st.integers(1, 3000), st.integers(0, 10**6))
def test_smart_resize_equals_hugging_face_on_random_sizes(height, width, least, span):
    hf = pytest.importorskip("transformers.models.qwen2_vl.image_processing_pil_qwen2_vl")
    try:
        wanted = hf.smart_resize(height, width, 28, least * 100, least * 100 + span)
    except ValueError:
        with pytest.raises(images.ImageError, match="aspect ratio"):
            images.smart_resize(height, width, 28, least * 100, least * 100 + span)
    else:
        assert images.smart_resize(height, width, 28, least * 100, least * 100 + span) == wanted


@given(st.integers(1, 3000), st.integers(1, 3000), st.sampled_from(["fetch", "processor"]))
def test_resized_sides_are_multiples_within_the_limits(height, width, rule):
    if max(height, width) > 200 * min(height, width):
        return
    least, most = 4 * 784, 2000 * 784
    h, w = images.smart_resize(height, width, min_pixels=least, max_pixels=most, rule=rule)
    assert h % 28 == w % 28 == 0 and least <= h * w <= most


@settings(max_examples=25)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 100))
def test_patches_hold_every_pixel_in_merge_block_order(rows, columns, seed):
    image = noise(28 * rows, 28 * columns, seed)
    patches, grid = images.patchify(image)
    assert patches.dtype == np.uint8 and patches.shape == (4 * rows * columns, 588)
    assert grid == (1, 2 * rows, 2 * columns)
    for p in range(len(patches)):
        block, inner = divmod(p, 4)
        y = 28 * (block // columns) + 14 * (inner // 2)
        x = 28 * (block % columns) + 14 * (inner % 2)
        np.testing.assert_array_equal(patches[p].reshape(3, 14, 14), image[y : y + 14, x : x + 14].transpose(2, 0, 1))


def test_evaluation_resizes_twice_and_training_once():
    image = noise(47, 61)
    once = images.prepare_image(image, *images.LVR_PIXELS, protocol="train")
    twice = images.prepare_image(image, *images.LVR_PIXELS, protocol="evaluate")
    first = Image.fromarray(image).resize((56, 56), Image.Resampling.BICUBIC)      # 3,136 pixels and more
    h, w = images.smart_resize(56, 56, 28, *images.LVR_PIXELS)
    np.testing.assert_array_equal(twice, np.asarray(first.resize((w, h), Image.Resampling.BICUBIC)))
    assert once.shape != twice.shape        # the first resize has changed the aspect ratio
    with pytest.raises(images.ImageError, match="train, evaluate, processor"):
        images.prepare_image(image, *images.LVR_PIXELS, protocol="test")


def as_fetched(image):
    """What qwen-vl-utils makes of a mode, written down independently of the module under test."""
    if image.mode != "RGBA":
        return np.asarray(image.convert("RGB"))
    return np.asarray(Image.composite(image.convert("RGB"), Image.new("RGB", image.size, "white"), image.split()[3]))


@pytest.mark.filterwarnings("ignore:Palette images with Transparency")
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "CMYK"])
def test_every_pixel_mode_reads_as_in_the_reference(tmp_path, mode):
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (30, 40, 4), np.uint8), "RGBA").convert(mode)
    path = saved(image, tmp_path / ("x.tiff" if mode == "CMYK" else "x.png"))
    ours = images.load_image(path)
    assert ours.dtype == np.uint8 and ours.shape == (30, 40, 3)
    with Image.open(path) as again:
        assert again.mode == mode
        np.testing.assert_array_equal(ours, as_fetched(again))


def test_transparent_pixels_are_white(tmp_path):
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    assert (images.load_image(saved(clear, tmp_path / "clear.png")) == 255).all()


def test_cmyk_jpeg_and_first_frame_of_an_animation_read(tmp_path):
    path = saved(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), tmp_path / "c.jpg")
    assert (images.load_image(path)[..., 0] > 200).all()
    frames = [Image.new("RGB", (6, 6), colour) for colour in ("red", "blue")]
    path = saved(frames[0], tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert images.load_image(path)[0, 0].tolist() == [255, 0, 0]


def test_exif_orientation_is_ignored_as_in_the_reference(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    assert images.load_image(saved(Image.new("RGB", (40, 20)), tmp_path / "r.jpg", exif=exif)).shape == (20, 40, 3)


def test_sixteen_bits_are_refused_where_the_reference_would_clip_to_white(tmp_path):
    deep = saved(Image.fromarray(np.full((5, 5), 40000, np.uint16)), tmp_path / "deep.png")
    with pytest.raises(images.ImageError, match=r"deep\.png: pixel mode I;16 with values 40000\.\.40000.*8 bits"):
        images.load_image(deep)
    shallow = saved(Image.fromarray(np.full((5, 5), 200, np.uint16)), tmp_path / "shallow.png")
    assert (images.load_image(shallow) == 200).all()
    floats = saved(Image.fromarray(np.full((5, 5), 0.5, np.float32)), tmp_path / "f.tiff")
    with pytest.raises(images.ImageError, match=r"f\.tiff: pixel mode F"):
        images.load_image(floats)


def test_one_pixel_becomes_the_smallest_picture(tmp_path):
    path = saved(Image.new("RGB", (1, 1), (9, 8, 7)), tmp_path / "dot.png")
    image = images.prepare_image(path, *images.QWEN_PIXELS)
    assert image.shape == (56, 56, 3) and (image == (9, 8, 7)).all()


def test_gigapixel_is_refused_before_decoding(tmp_path):
    def chunk(kind, data=b""):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    path = tmp_path / "giga.png"
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 40000, 30000, 8, 2, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b"x") + chunk(b"IEND"))
    with pytest.raises(images.ImageError, match=r"giga\.png.*1200000000 pixels.*limit"):
        images.load_image(path)


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "webp", "tiff", "bmp"])
def test_truncated_files_are_refused_by_name(tmp_path, suffix):
    path = tmp_path / f"cut.{suffix}"
    Image.fromarray(noise(200, 200)).save(path)
    whole = path.read_bytes()
    for share in (0, 0.02, 0.5, 0.9):
        path.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(images.ImageError, match=rf"cut\.{suffix}") as caught:
            images.load_image(path)
        assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@settings(max_examples=150, deadline=None)
@given(st.sampled_from(["PNG", "JPEG", "GIF", "TIFF", "WEBP"]), st.integers(0, 10**6), st.integers(0, 255))
def test_a_damaged_byte_gives_a_picture_or_an_image_error(tmp_path_factory, kind, where, value):
    buffer = io.BytesIO()
    Image.fromarray(noise(24, 24)).save(buffer, kind)
    data = bytearray(buffer.getvalue())
    data[where % len(data)] = value
    path = tmp_path_factory.getbasetemp() / "damaged"
    path.write_bytes(data)
    try:
        assert images.load_image(path).shape[2] == 3
    except images.ImageError as error:
        assert "damaged" in str(error)


def test_missing_file_and_foreign_file_are_named(tmp_path):
    with pytest.raises(images.ImageError, match=r"nowhere\.png: cannot be read.*No such file"):
        images.load_image(tmp_path / "nowhere.png")
    (tmp_path / "notes.png").write_text("not a picture")
    with pytest.raises(images.ImageError, match=r"notes\.png: cannot be read.*cannot identify"):
        images.load_image(str(tmp_path / "notes.png"))


@pytest.mark.parametrize(
    "array", [np.zeros((4, 4, 3)), np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8), np.zeros((0, 4, 3), "u1")]
)
def test_arrays_of_another_kind_are_refused(array):
    with pytest.raises(images.ImageError, match=r"expected uint8 \[H, W, 3\]"):
        images.load_image(array)


def test_aspect_ratio_over_200_is_refused_with_the_file_name(tmp_path):
    path = saved(Image.new("RGB", (2010, 10)), tmp_path / "thin.png")
    with pytest.raises(images.ImageError, match=r"thin\.png: image of 10 x 2010 pixels: aspect ratio 201\.0.*200"):
        images.prepare_image(path, *images.QWEN_PIXELS)
    assert images.smart_resize(10, 2000) == (28, 812)


def test_limits_that_exclude_each_other_are_refused():
    with pytest.raises(images.ImageError, match="min_pixels 5000, max_pixels 4000"):
        images.smart_resize(10, 10, min_pixels=5000, max_pixels=4000)
