"""Draws an answer as pieces of HTML: picture, reply, a heat map for each latent, attention, a table of conditions.

Pictures are data: no file is written, and nothing is fetched.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Collection, Sequence
from html import escape

import matplotlib
import numpy as np
from PIL import Image

from demo.session import LABELS, Answer, Row
from lvr_jax.api.reply import Reply

LONGEST = 448       # pixels of a picture on the page
WORDS, LIKELY = 3, 0.01     # of the logit lens: so many, and none that is less likely
_COLOURS = (matplotlib.colormaps["inferno"](np.linspace(0, 1, 256))[:, :3] * 255).astype(np.uint8)


def picture(image: np.ndarray) -> str:
    """The picture that is asked about, uint8 [H, W, 3]."""
    return f'<img class="lvr-picture" alt="the picture" src="{_source(_shown(image))}">'


def said(name: str, answer: Answer) -> str:
    """The clean reply with its latents marked in their places."""
    reply = answer.reply
    parts = [escape(piece.text) if piece.latent is None else f'<span class="lvr-z" title="a latent is fed here">'
             f"z{piece.latent}</span>" for piece in reply.pieces]  # fmt: skip
    verdict = {None: "", True: ' <b class="lvr-right">right</b>', False: ' <b class="lvr-wrong">wrong</b>'}[reply.right]
    return (
        f'<div class="lvr-said"><h3>{escape(name)}</h3><p class="lvr-reply">{"".join(parts)}</p>'
        f'<p>answer: <b>{escape(reply.content or "none")}</b>{verdict}; {len(reply.latents)} latents; '
        f"{len(answer.rows)} conditions in {answer.seconds:.2f} s</p></div>"
    )


def heat_maps(image: np.ndarray, reply: Reply, chosen: Collection[int] = ()) -> str:
    """For each latent: where in the first picture the image tokens are like it, and the words the head reads in it."""
    if not len(reply.latents):
        return '<p class="lvr-none">No latent was fed in this reply.</p>'
    base, found, places = _shown(image), [], _places(reply.stages)
    for n, (cosines, words) in enumerate(zip(reply.similarity[0], reply.lens)):
        cut = places[n] in chosen
        read = ", ".join(f"{escape(word.strip() or '·')} {100 * p:.0f} %" for word, p in words[:WORDS]
                         if p >= LIKELY)  # fmt: skip
        stage = f" ({escape(reply.stages[n])})" if len(set(reply.stages)) > 1 else ""
        found.append(
            f'<figure class="{"lvr-cut" if cut else ""}">'
            f'<img alt="latent {n}" src="{_source(heat(base, cosines))}">'
            f"<figcaption><b>latent {places[n]}</b>{stage}{', knocked out' if cut else ''}<br>{read}<br>"
            f"cosine {cosines.min():.2f} to {cosines.max():.2f}</figcaption></figure>"
        )
    legend = "Bright: the image tokens most like the latent; below it the words that the LM head reads in it."
    return f'<div class="lvr-maps">{"".join(found)}</div><p class="lvr-legend">{legend}</p>'


def heat(base: np.ndarray, cosines: np.ndarray) -> np.ndarray:
    """A grey picture uint8 [H, W, 3] under the colours of cosines [rows, columns], from the least to the largest."""
    low, high = float(cosines.min()), float(cosines.max())
    level = np.rint((cosines - low) / max(high - low, 1e-9) * 255).astype(np.uint8)
    height, width = base.shape[:2]
    rows, columns = (np.arange(n) * k // n for n, k in zip((height, width), cosines.shape))
    colour = _COLOURS[level[rows][:, columns]]                                            # [H, W, 3]
    grey = base.mean(-1, keepdims=True)
    return np.rint(0.4 * grey + 0.6 * colour).astype(np.uint8)


def attention(reply: Reply) -> str:
    """What the position that picks the answer attends to: one bar of four shares."""
    shares = reply.attention
    if shares is None:
        return ""
    parts = {"image": shares.image, "latents": shares.latents, "question": shares.text, "reply": shares.reply}
    bar = "".join(f'<i class="lvr-at-{name}" style="flex-grow:{share:.4f}"></i>' for name, share in parts.items())
    text = ", ".join(f'<span class="lvr-key lvr-at-{name}"></span>{name} {100 * share:.0f} %' for name, share in
                     parts.items())  # fmt: skip
    return f'<div class="lvr-attention"><p>the answer attends to: {text}</p><div class="lvr-bar">{bar}</div></div>'


def table(rows: Sequence[Row], shown: Collection[str]) -> str:
    """The answers under the conditions in `shown`, the clean one always."""
    places = {name: n for n, name in enumerate(LABELS)}
    ordered = sorted(rows, key=lambda row: places[row.condition])
    lines = "".join(_line(row) for row in ordered if row.condition == "clean" or row.condition in shown)
    return (
        '<table class="lvr-table"><thead><tr><th>latents</th><th>answer</th><th>options</th>'
        f'<th title="of the margin, in nats">shift</th></tr></thead><tbody>{lines}</tbody></table>'
    )


def _line(row: Row) -> str:
    label = f'<td title="{escape(row.text)}">{escape(row.label)}</td>'
    if row.missing:
        return f'<tr class="lvr-missing">{label}<td colspan="3">nothing to feed here</td></tr>'
    bars = "".join(f'<span style="--p:{100 * p:.1f}%" title="{escape(letter)} {100 * p:.1f} %">{escape(letter)}'
                   f"<small>{100 * p:.0f}</small></span>" for letter, p in row.probabilities.items())  # fmt: skip
    answer = escape(" ".join(filter(None, (row.content or "–", row.letter and f"({row.letter})"))))
    shift = "" if row.shift is None or row.condition == "clean" else f"{row.shift:+.1f}".replace("-", "−")
    shift = "0.0" if shift[1:] == "0.0" else shift
    return (f'<tr class="{"lvr-changed" if row.changed else ""}">{label}<td>{answer}</td>'
            f'<td><div class="lvr-options">{bars}</div></td><td>{shift}</td></tr>')  # fmt: skip


def _places(stages: Sequence[str]) -> list[int]:
    """The place of each latent within its block."""
    return [n - stages.index(stage) for n, stage in enumerate(stages)]


def _shown(image: np.ndarray) -> np.ndarray:
    """No side longer than LONGEST."""
    scale = LONGEST / max(image.shape[:2])
    if scale >= 1:
        return image
    height, width = (max(round(side * scale), 1) for side in image.shape[:2])
    return np.asarray(Image.fromarray(image).resize((width, height)))


def _source(image: np.ndarray) -> str:
    held = io.BytesIO()
    Image.fromarray(image).save(held, "PNG")
    return f"data:image/png;base64,{base64.b64encode(held.getvalue()).decode()}"
