"""How does a report become one page that needs no network? A template, with every picture inside it."""

import base64
import io
from pathlib import Path

import jinja2
import matplotlib
from matplotlib.figure import Figure

from lvr_jax.prism.report.figures import STYLE

_TEMPLATE = Path(__file__).with_name("page.html")


def render(**content) -> str:
    """The page; everything that is put into the template is escaped."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    return environment.from_string(_TEMPLATE.read_text()).render(**content)


def image_bytes(figure: Figure, kind: str) -> bytes:
    """The figure as a file of this kind (png, pdf, svg), without a date, so that equal figures are equal files."""
    buffer = io.BytesIO()
    undated = {"png": {"Software": None}, "pdf": {"CreationDate": None}, "svg": {"Date": None}}[kind]
    with matplotlib.rc_context(STYLE):
        figure.savefig(buffer, format=kind, dpi=170, metadata=undated)
    return buffer.getvalue()


def inline(data: bytes, kind: str) -> str:
    """A data: address. Figures are lines (svg), photographs are not (png)."""
    mime = {"png": "image/png", "svg": "image/svg+xml"}[kind]
    return f"data:{mime};base64,{base64.b64encode(data).decode()}"
