"""Turns a picture into patches: decoded, resized and cut bit for bit as the reference does; pixels stay uint8.

The device rescales and normalises. A still image's two temporal frames are equal, so only one travels:
a patch has channel x 14 x 14 = 588 columns where the Hugging Face processor emits 1,176.
Sources: qwen-vl-utils 0.0.14 (`fetch_image`) and transformers' `Qwen2VLImageProcessorPil`.
"""

from __future__ import annotations

import math
import os

import numpy as np
from PIL import Image

from lvr_jax.data.sample import DataError, ImageSource
from lvr_jax.files.image_io import open_image

PATCH = 14
MERGE = 2
FACTOR = PATCH * MERGE                  # side of a merged token in pixels
PATCH_COLUMNS = 3 * PATCH * PATCH
MAX_ASPECT_RATIO = 200

# Pixel limits. A checkpoint's own preprocessor_config.json has the last word.
QWEN_PIXELS = (4 * FACTOR**2, 16384 * FACTOR**2)        # base checkpoints, and the defaults of qwen-vl-utils
LVR_PIXELS = (128 * FACTOR**2, 5120 * FACTOR**2)        # stage-1 training of LVR, saved with its checkpoints

# The resizes that an image goes through, in order: (rule of smart_resize, limits or None for the caller's).
PROTOCOLS: dict[str, tuple[tuple[str, tuple[int, int] | None], ...]] = {
    "train": (("fetch", None),),                                    # fetch_image; the processor has do_resize=False
    "evaluate": (("fetch", QWEN_PIXELS), ("processor", None)),      # fetch_image by its defaults, then the processor
    "processor": (("processor", None),),                            # the Hugging Face processor alone
}


class ImageError(DataError):
    """A picture that cannot be read or resized."""


def _name(source: ImageSource | Image.Image) -> str:
    if isinstance(source, Image.Image):
        return f"of {source.height} x {source.width} pixels"
    if isinstance(source, bytes):
        return f"of {len(source):,} encoded bytes"
    return f"array {source.shape}" if isinstance(source, np.ndarray) else os.fspath(source)


def _to_rgb(image: Image.Image, rule: str) -> Image.Image:
    """RGB by one of two rules, EXIF rotation ignored.

    "fetch", as `fetch_image` makes it: RGBA on white, every other mode by Pillow's conversion. "processor", as the
    Hugging Face processor (transformers 5): whatever is transparent, by a channel, a palette or a key colour, on white.
    """
    if rule == "processor" and ("A" in image.getbands() or image.info.get("transparency") is not None):
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    if image.mode == "RGBA":
        white = Image.new("RGB", image.size, (255, 255, 255))
        white.paste(image, mask=image.getchannel("A"))
        return white
    if image.mode[0] in "IF":       # I, I;16*, F: Pillow clips to 0..255, which turns a 16-bit picture white
        values = np.asarray(image)
        if not ((values >= 0) & (values <= 255) & (values == np.floor(values))).all():
            raise ImageError(
                f"pixel mode {image.mode} with values {values.min()}..{values.max()}: "
                "expected 8 bits a channel (whole numbers 0..255); convert the file first"
            )
    return image.convert("RGB")


def load_image(source: ImageSource) -> np.ndarray:
    """Reads a local or gs:// file or the bytes of one (parquet), or checks an array -> uint8 [H, W, 3].

    Raises ImageError naming the file if it is missing, unreadable, truncated, above Pillow's limit for decompression
    bombs (179 megapixels unless `PIL.Image.MAX_IMAGE_PIXELS` says otherwise) or has more than 8 bits a channel.
    """
    return np.asarray(_decoded(source, "fetch"))


def _decoded(source: ImageSource | Image.Image, rule: str) -> np.ndarray | Image.Image:
    """The checked array, or RGB by this rule as Pillow holds it."""
    if isinstance(source, np.ndarray):
        if source.dtype != np.uint8 or source.ndim != 3 or source.shape[2] != 3 or not source.size:
            raise ImageError(f"image array {source.dtype} {source.shape}: expected uint8 [H, W, 3], not empty")
        return source
    try:
        if isinstance(source, Image.Image):
            return _to_rgb(source, rule)
        with open_image(source) as image:
            return _to_rgb(image, rule)
    except ImageError as error:
        raise ImageError(f"image {_name(source)}: {error}") from error
    # Whatever a decoder stumbles over (OSError, SyntaxError, struct.error, ...) is a fault of this file.
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ImageError(f"image {_name(source)}: cannot be read ({reason})") from error


def smart_resize(
    height: int,
    width: int,
    factor: int = FACTOR,
    min_pixels: int = QWEN_PIXELS[0],
    max_pixels: int = QWEN_PIXELS[1],
    *,
    rule: str = "processor",
) -> tuple[int, int]:
    """The size that an image is resized to: multiples of `factor`, area within the limits, aspect ratio about kept.

    `rule` matters only for sides below half a `factor`: "processor" (transformers) rounds them to zero and so always
    scales them up, "fetch" (qwen-vl-utils) keeps at least one `factor`. Where shrinking would leave a side below one
    `factor`, both keep one: qwen-vl-utils asks for a zero-pixel image there and fails.
    Raises ImageError for an aspect ratio above 200 or limits that exclude each other.
    """
    if rule not in ("fetch", "processor"):
        raise ImageError(f"resize rule {rule!r}: expected 'fetch' or 'processor'")
    if not 0 < min_pixels <= max_pixels:
        raise ImageError(f"min_pixels {min_pixels}, max_pixels {max_pixels}: expected 0 < min_pixels <= max_pixels")
    if min(height, width) < 1:
        raise ImageError(f"image of {height} x {width} pixels: expected at least 1 x 1")
    if max(height, width) / min(height, width) > MAX_ASPECT_RATIO:
        raise ImageError(
            f"image of {height} x {width} pixels: aspect ratio {max(height, width) / min(height, width):.1f}, "
            f"expected at most {MAX_ASPECT_RATIO}"
        )
    least = factor if rule == "fetch" else 0
    h, w = (max(least, round(side / factor) * factor) for side in (height, width))     # Python's round half to even
    if h * w > max_pixels:
        beta = math.sqrt(height * width / max_pixels)
        h, w = (max(factor, math.floor(side / beta / factor) * factor) for side in (height, width))
    elif h * w < min_pixels:
        beta = math.sqrt(min_pixels / (height * width))
        h, w = (math.ceil(side * beta / factor) * factor for side in (height, width))
    return h, w


def resize(
    image: np.ndarray | Image.Image, min_pixels: int, max_pixels: int, *, rule: str = "processor"
) -> np.ndarray | Image.Image:
    """Pillow's bicubic resize of RGB to `smart_resize`'s size -> Pillow's picture; the same where that changes nothing.

    Pillow itself returns a copy for an unchanged size, so skipping the call changes no pixel.
    """
    width, height = image.size if isinstance(image, Image.Image) else image.shape[1::-1]
    h, w = smart_resize(height, width, min_pixels=min_pixels, max_pixels=max_pixels, rule=rule)
    if (h, w) == (height, width):
        return image
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    return picture.resize((w, h), Image.Resampling.BICUBIC)


def prepare_image(
    source: ImageSource | Image.Image, min_pixels: int, max_pixels: int, *, protocol: str = "train"
) -> np.ndarray:
    """Loads (or takes Pillow's) and resizes by a named protocol -> uint8 [H, W, 3], sides multiples of 28.

    "train": one resize, as the training code. "evaluate": the paper's evaluation, first by the defaults of
    qwen-vl-utils and then by the checkpoint's limits (the ones given here). "processor": Hugging Face's processor.
    """
    if protocol not in PROTOCOLS:
        raise ImageError(f"image protocol {protocol!r}: expected one of {', '.join(PROTOCOLS)}")
    image = _decoded(source, PROTOCOLS[protocol][0][0])
    try:
        for rule, limits in PROTOCOLS[protocol]:
            image = resize(image, *(limits or (min_pixels, max_pixels)), rule=rule)
    except ImageError as error:
        if isinstance(source, np.ndarray):
            raise
        raise ImageError(f"image {_name(source)}: {error}") from error
    return np.asarray(image)


def patchify(image: np.ndarray) -> tuple[np.ndarray, tuple[int, int, int]]:
    """Cuts uint8 [H, W, 3] into patches [P, 588] and the grid (1, H / 14, W / 14).

    Row order: merged row, merged column, then the 2 x 2 patches of a merged token; columns: channel, row, column.
    """
    height, width = image.shape[:2]
    if height % FACTOR or width % FACTOR:
        raise ImageError(f"image of {height} x {width} pixels: expected multiples of {FACTOR} (resize it first)")
    cut = image.reshape(height // FACTOR, MERGE, PATCH, width // FACTOR, MERGE, PATCH, 3)
    patches = cut.transpose(0, 3, 1, 4, 6, 2, 5).reshape(-1, PATCH_COLUMNS)
    return patches, (1, height // PATCH, width // PATCH)
