"""Renders a report as one page that needs no network: a template, with every picture inside it."""

import base64
import io
from pathlib import Path
from urllib.parse import quote

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
    """The figure as a file of this kind (png, pdf, svg, webp), without a date: equal figures are equal files."""
    buffer = io.BytesIO()
    undated = {"png": {"Software": None}, "pdf": {"CreationDate": None}, "svg": {"Date": None}}.get(kind)
    more = {"pil_kwargs": {"quality": 80}} if kind == "webp" else {"metadata": undated}
    with matplotlib.rc_context(STYLE):
        figure.savefig(buffer, format=kind, dpi=170, **more)
    figure.set_layout_engine(None)      # its other kinds have the same places, and take less than half the time
    return buffer.getvalue()


def inline(data: bytes, kind: str) -> str:
    """A data: address. Figures are lines (svg), photographs are not (webp).

    Text stays text, three quarters of what base64 takes. An address may hold no line break, and in the page's template
    no quotes, brackets, ampersands or `url(`.
    """
    if kind == "svg":
        return "data:image/svg+xml," + quote(" ".join(data.decode().split()), safe=" *,-./:;=?@[]_{}")
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
