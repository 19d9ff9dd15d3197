"""Opens pictures, in the formats that pictures come in and no other.

Pillow chooses a decoder by a file's first bytes, not by its name, and some decoders start programs (EPS starts
Ghostscript) or read other files. Only self-contained bitmap formats are tried here.
"""

from __future__ import annotations

import functools
import io
import os

from PIL import ExifTags, Image

_BITMAPS = ("PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")


@functools.cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in _BITMAPS if name in Image.OPEN)       # AVIF is not in every build of Pillow


def open_image(source: str | os.PathLike | bytes) -> Image.Image:
    """Opens a local or gs:// file, or the bytes of one: the header is read, pixels when they are asked for.

    Raises what Pillow raises: UnidentifiedImageError for no such format, OSError, DecompressionBombError, and, from
    damaged files, almost anything.
    """
    if isinstance(source, bytes):
        return Image.open(io.BytesIO(source), formats=_formats())
    if os.fspath(source).startswith(("http://", "https://")):
        raise OSError("nothing is read from the web, expected a local file or gs://")
    if "://" in os.fspath(source):
        # epath's backends take a while to import, and local files do not need them
        from etils import epath

        return open_image(epath.Path(source).read_bytes())
    return Image.open(source, formats=_formats())


def is_turned(source: str | os.PathLike | bytes) -> bool:
    """Whether an EXIF tag asks viewers to turn a picture, which nothing here does. False where its tags are damaged, as
    viewers take it then."""
    with open_image(source) as image:
        try:
            return image.getexif().get(ExifTags.Base.Orientation, 1) not in (0, 1)
        except Exception:       # whatever Pillow stumbles over in tags that nobody needs
            return False


def is_scaled_copy(size: tuple[int, int], of: tuple[int, int]) -> bool:
    """Whether a picture of `size` (width, height) can be one of size `of`, resized with its sides rounded.

    Not where the sides are swapped, as in a record of a photograph that was turned by its EXIF tag.
    """
    (width, height), (w, h) = size, of
    return abs(w / width - h / height) <= 1.5 / min(width, height)
