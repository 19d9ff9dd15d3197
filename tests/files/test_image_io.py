"""Pictures are opened by decoders of self-contained bitmaps alone, whatever a file is called."""

import io
from unittest import mock

import pytest
from PIL import EpsImagePlugin, Image, UnidentifiedImageError

from lvr_jax.files.image_io import open_image

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 56 56\n%%EndComments\n0 0 moveto\nshowpage\n%%EOF\n"


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.eps"])
def test_no_picture_starts_a_program(tmp_path, name):
    """Pillow hands EPS to Ghostscript, and takes it for EPS by its first bytes."""
    (tmp_path / name).write_bytes(EPS)
    assert Image.open(io.BytesIO(EPS)).format == "EPS"
    with mock.patch.object(EpsImagePlugin, "Ghostscript", side_effect=AssertionError("started")):
        for source in (tmp_path / name, EPS):
            with pytest.raises(UnidentifiedImageError):
                open_image(source)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
def test_pictures_are_opened_by_their_content(tmp_path, kind):
    Image.new("RGB", (8, 6), (200, 30, 60)).save(tmp_path / "a.bin", kind)
    assert open_image(tmp_path / "a.bin").size == open_image((tmp_path / "a.bin").read_bytes()).size == (8, 6)
