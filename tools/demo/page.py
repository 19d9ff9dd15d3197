"""The playground's page: Gradio's controls around the panels, every error one line, nothing asked of any other machine.

The picture and the last answers of a visitor are kept in the memory of this process; an uploaded file is read and
removed at once.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from html import escape
from typing import Any

# Read where Gradio is imported: no version check, no usage statistics.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

import gradio as gr
import numpy as np

from demo import panels
from demo.session import (
    CUT,
    CUT_MEAN,
    DONORS,
    LABELS,
    OTHER,
    SCENES,
    Answer,
    Session,
    SessionError,
    own_item,
    plain_question,
    scene,
)
from lvr_jax.data.images import ImageError, load_image
from lvr_jax.evaluation.batches import image_size
from lvr_jax.prism.experiment import BAD_INPUT

LARGEST = 40_000_000        # pixels of a picture
ALWAYS = (CUT, CUT_MEAN)    # rows that the choice of latents switches
CSS = """
.lvr-picture, .lvr-maps img {width: 100%; image-rendering: pixelated; border-radius: 6px; display: block}
.lvr-picture {max-width: 448px; margin: auto}
.lvr-maps {display: grid; grid-template-columns: repeat(auto-fill, minmax(92px, 1fr)); gap: 10px}
.lvr-maps figure {margin: 0}
.lvr-maps figcaption {font-size: 12px; line-height: 1.35; margin-top: 4px; overflow-wrap: anywhere}
.lvr-cut img {filter: grayscale(1) brightness(.5)}
.lvr-said h3 {margin: 0 0 4px; font-size: 14px; overflow-wrap: anywhere}
.lvr-said p, .lvr-note {margin: 4px 0}
.lvr-legend {font-size: 12px; opacity: .7; margin: 4px 0}
.lvr-reply {font-family: monospace; white-space: pre-wrap; overflow-wrap: anywhere}
.lvr-z {background: #e8710a; color: #fff; border-radius: 4px; padding: 0 4px; margin: 0 1px}
.lvr-right {color: #188038}
.lvr-wrong, .lvr-changed td:nth-child(2) {color: #d93025}
.lvr-bar {display: flex; height: 12px; border-radius: 6px; overflow: hidden}
.lvr-bar i {flex-basis: 0}
.lvr-attention p {margin: 8px 0 4px}
.lvr-key {display: inline-block; width: 9px; height: 9px; margin-right: 4px}
.lvr-at-image {background: #5b8def}
.lvr-at-latents {background: #e8710a}
.lvr-at-question {background: #9aa0a6}
.lvr-at-reply {background: #34a853}
.lvr-table {width: 100%; border-collapse: collapse; border: none !important; font-size: 13px; margin: 6px 0}
.lvr-table th {text-align: left; font-weight: 600}
.lvr-table td, .lvr-table th {padding: 4px 6px !important; border: none !important}
.lvr-table tr {border: none !important; border-bottom: 1px solid var(--border-color-primary) !important}
.lvr-table td:last-child, .lvr-table th:last-child {text-align: right; white-space: nowrap}
.lvr-changed td:nth-child(2) {font-weight: 700}
.lvr-missing {opacity: .55}
.lvr-options {display: flex; gap: 2px; flex-wrap: wrap}
.lvr-options span {min-width: 33px; padding: 0 3px; font-size: 12px; border-radius: 4px;
  border: 1px solid var(--border-color-primary);
  background: linear-gradient(to right, #5b8def66 var(--p), transparent var(--p))}
.lvr-options small {float: right; margin-left: 3px}
.lvr-error {background: #d93025; color: #fff; border-radius: 6px; padding: 6px 10px; overflow-wrap: anywhere}
@media (max-width: 640px) {
  .lvr-table thead {display: none}
  .lvr-table tr {display: grid; grid-template-columns: 7em 1fr auto; padding: 3px 0}
  .lvr-table td {padding: 1px 4px !important}
  .lvr-table td:first-child {grid-column: 1 / -1; opacity: .8}
}
"""


@contextmanager
def served(sessions: Sequence[Session], host: str, port: int, largest_upload: int) -> Iterator[str]:
    """Serves the page and yields its address; ends with the block. OSError if the port cannot be had."""
    page = build(sessions)
    system = [gr.themes.Font(name) for name in ("system-ui", "sans-serif")]
    mono = [gr.themes.Font(name) for name in ("ui-monospace", "monospace")]
    with contextlib.redirect_stdout(sys.stderr):        # what Gradio says of itself
        page.launch(
            server_name=host, server_port=port, share=False, quiet=True, prevent_thread_lock=True, inbrowser=False,
            max_file_size=largest_upload, run_history=False, footer_links=[], ssr_mode=False, enable_monitoring=False,
            pwa=False, mcp_server=False, state_session_capacity=50, css=CSS,
            theme=gr.themes.Default(font=system, font_mono=mono),
        )  # fmt: skip
    try:
        yield f"http://{host}:{port}/"
    finally:
        page.close(verbose=False)


def open_sessions(checkpoints: Sequence[str], say: Callable[[str], None], **options) -> list[Session]:
    """Opens checkpoints and asks each a first question, so that a visitor waits for no compilation."""
    sessions = []
    for checkpoint in checkpoints:
        say(f"opening {checkpoint}")
        session = Session(checkpoint, **options)
        sample = scene(0)
        first = session.answer(sample)
        _panels([session], {"picture": load_image(sample.images[0]), "answers": [first], "chosen": (), "shown": ()})
        sessions.append(session)
    return sessions


def build(sessions: Sequence[Session]) -> gr.Blocks:
    """The page over one or several open checkpoints, side by side."""
    latents = max(session.latents for session in sessions)
    switches = [(label, name) for name, label in LABELS.items() if name not in ("clean", *ALWAYS)]
    first = scene(0)
    with gr.Blocks(title="lvr_jax playground", analytics_enabled=False, fill_width=True, delete_cache=(60, 60)) as page:
        visitor = gr.State(None, time_to_live=3600)
        gr.Markdown("### What does the answer owe to its latents?")
        error = gr.HTML("", elem_id="error")
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                picture = gr.HTML("", elem_id="picture")
                with gr.Row():
                    number = gr.Number(0, label="scene", minimum=0, maximum=SCENES - 1, precision=0, min_width=80,
                                       elem_id="scene")  # fmt: skip
                    draw = gr.Button("Draw", min_width=80, elem_id="draw")
                    upload = gr.UploadButton("Upload", file_types=["image"], min_width=80, elem_id="upload")
                question = gr.Textbox(plain_question(first), label="question", elem_id="question")
                options = gr.Textbox(
                    ", ".join(first.options), elem_id="options",
                    label='options, with commas between them ("a, b" is one; none: open)',
                )  # fmt: skip
                ask = gr.Button("Ask", variant="primary", elem_id="ask")
                chosen = gr.CheckboxGroup([(str(n), n) for n in range(latents)], label="knock out latents",
                                          elem_id="chosen", visible=latents > 0)  # fmt: skip
                sigma = gr.Slider(0, 10, value=1, step=0.1, label="sigma of the noise", elem_id="sigma")
                donor = gr.Slider(1, DONORS, value=1, step=1, label="another scene: which", elem_id="donor")
                with gr.Accordion("conditions in the table", open=False):
                    shown = gr.CheckboxGroup(switches, value=[name for _, name in switches], show_label=False,
                                             elem_id="shown")  # fmt: skip
            columns = []
            for n in range(len(sessions)):
                with gr.Column(scale=3, min_width=300):
                    columns += [gr.HTML("", elem_id=f"reply{n}"), gr.HTML("", elem_id=f"table{n}")]
        outputs = [visitor, error, picture, *columns]
        asked, visits = [question, options, sigma, donor, chosen], _Visits(sessions)
        # One at a time and in order: who asks while a picture is still being uploaded asks about that picture.
        quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private", "concurrency_id": "model",
                                 "concurrency_limit": 1}  # fmt: skip
        # A picture of a new size compiles, for seconds or minutes: the reply's panel counts them.
        busy = quiet | {"show_progress": "minimal", "show_progress_on": columns[0]}
        everything = [visitor, *asked, shown]
        page.load(visits.handler(visits.draw), [*everything, number], outputs, **busy)
        there = draw.click(visits.handler(visits.draw), [*everything, number], outputs, **busy)
        there.then(texts, number, [question, options], **quiet)
        upload.upload(visits.handler(visits.upload), [visitor, upload], outputs, **quiet)
        for event in (ask.click, question.submit, options.submit):
            event(visits.handler(visits.answer), everything, outputs, **busy)
        for control in (sigma, donor, chosen):
            control.change(visits.handler(visits.again), everything, outputs, trigger_mode="always_last", **quiet)
        shown.change(visits.handler(visits.show), [visitor, shown], outputs, trigger_mode="always_last", **quiet)
    return page


def texts(number: float | None) -> tuple[str, str]:
    """Question and options of a scene, as they stand in the text boxes."""
    sample = scene(int(number or 0))
    return plain_question(sample), ", ".join(sample.options)


class _Visits:
    """What the controls do to a visitor's state, a dict: picture, drawn (the scene or None), answers by session, chosen
    latents, shown conditions."""

    def __init__(self, sessions: Sequence[Session]):
        self.sessions = sessions
        self.turns = threading.Lock()       # visitors' questions are answered one after another

    def handler(self, work: Callable[..., None]) -> Callable[..., list]:
        """`work` changes the state; all panels are drawn from it, and what was wrong is one line."""

        @functools.wraps(work)
        def handle(held, *values):
            held, line = dict(held or {}), ""
            try:
                with self.turns:
                    work(held, *values)
            except (*BAD_INPUT, SessionError, OSError) as fault:
                line = f'<div class="lvr-error" role="alert">{escape(" ".join(str(fault).split()))}</div>'
            return [held, line, *_panels(self.sessions, held)]

        return handle

    def answer(self, held, question, options, sigma, donor, chosen, shown) -> None:
        if "picture" not in held:
            raise SessionError("there is no picture yet: draw a scene or upload one")
        item = own_item(held["picture"], question, options, held["drawn"])
        held.update(chosen=tuple(chosen), shown=tuple(shown), answers=None)
        held["answers"] = [
            session.answer(item, sigma, [n for n in chosen if n < session.latents], int(donor) - 1)
            for session in self.sessions
        ]

    def again(self, held, *values) -> None:
        if held.get("answers"):
            self.answer(held, *values)

    def draw(self, held, question, options, sigma, donor, chosen, shown, number) -> None:
        sample = scene(int(number or 0))
        held.update(picture=load_image(sample.images[0]), drawn=sample, answers=None)
        self.answer(held, *texts(number), sigma, donor, chosen, shown)

    def upload(self, held, path) -> None:
        held.update(picture=read_upload(path), drawn=None, answers=None)

    def show(self, held, shown) -> None:
        held["shown"] = tuple(shown)


def read_upload(path: str) -> np.ndarray:
    """The pixels of an uploaded file, which is removed. Raises ImageError, one line, without the server's own path."""
    try:
        if not os.path.getsize(path):
            raise ImageError("the file is empty")
        width, height = image_size(path)[::-1]
        if width * height > LARGEST:
            raise ImageError(f"the picture has {width} x {height} pixels, expected {LARGEST // 10**6} million at most")
        return load_image(path)
    except ImageError as error:
        raise ImageError(str(error).replace(path, os.path.basename(path))) from error
    finally:
        os.unlink(path)


def _panels(sessions: Sequence[Session], held: Mapping) -> list[str]:
    picture = panels.picture(held["picture"]) if "picture" in held else ""
    answers: Sequence[Answer | None] = held.get("answers") or [None] * len(sessions)
    found = [picture]
    for session, answer in zip(sessions, answers):
        if answer is None:
            found += ["", ""]
            continue
        reply = answer.reply
        found.append(panels.said(session.name, answer) + panels.heat_maps(held["picture"], reply, held["chosen"])
                     + panels.attention(reply))  # fmt: skip
        shown = {*held["shown"], *(ALWAYS if held["chosen"] else ())}
        donor = escape(answer.donor or "none")
        note = f'<p class="lvr-note">The other scene\'s own answer: <b>{donor}</b></p>' if OTHER in shown else ""
        found.append(note + panels.table(answer.rows, shown))
    return found
