"""Teaches the tower of the rotation base to read shapes: each panel of an analogy names what a decoder can look up.

Dense supervision, as of digits (`tiny.warm_up`): a panel tells which of its cells are filled, by a linear reading; by
how many degrees its shape is turned, shape 2 against shape 1 and the others against shape 3, as the words' own
embeddings; and its place in the bottom row, likewise. A solution in view names the place of the option that it equals,
so that a true latent says which option is right. So the tower turns and compares; the decoder looks up and answers.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from lvr_jax.data.images import patchify
from lvr_jax.data.polyominoes import GRID, Cells, rotate
from lvr_jax.data.rotation_scenes import DEGREES, ORDINALS, TOKEN, RotationAnalogies, piece_mask
from lvr_jax.data.tokenizers import ChatTokenizer
from lvr_jax.models.families import abstract_model
from lvr_jax.models.interface import Config
from lvr_jax.models.layout import VisionLayout, vision_layout
from lvr_jax.models.records import Images
from tiny.warm_up import CENTRED, NOTHING, fit, word_rows

WORDS = {"turn": DEGREES, "place": ORDINALS}
# What is in view: everything, all but the solution, all but solution and shape 3.
VIEWS: tuple[dict[str, Any], ...] = ({"mask_box": False}, {"mask_box": True}, {"mask_box": True, "mask_query": True})
HELD_OUT = 1152                 # pictures that what was learnt is measured on, a third of each view
CELLS = 4.0                     # weight of the reading of cells, whose loss is a mean over them


def filled(cells: Cells) -> np.ndarray:
    """[GRID * GRID] bool: the cells as a panel draws them, centred."""
    return piece_mask(cells, TOKEN)[4::(TOKEN - 4) // GRID, 4::(TOKEN - 4) // GRID][:GRID, :GRID].reshape(-1)


def labels(scenes: RotationAnalogies, index: int) -> dict[str, np.ndarray]:
    """Of the eight panels of item `index`, as the model's input shows them: cells [8, 16] bool, and turn and place
    [8] int32, numbers of words."""
    a = scenes.analogy(index)
    solution, third = not scenes.mask_box, not scenes.mask_query
    empty = np.zeros(GRID * GRID, bool)
    drawn = [a.first, rotate(a.first, a.quarters), a.third, a.solution, *a.options]
    cells = np.stack([filled(piece) for piece in drawn])
    turned = [next(q for q in range(4) if rotate(a.third, q) == option) for option in a.options]
    turn = np.array([NOTHING, a.quarters - 1, NOTHING, a.quarters - 1, *(q - 1 for q in turned)], np.int32)
    place = np.array([NOTHING, NOTHING, NOTHING, a.slot, 0, 1, 2, 3], np.int32)
    if not solution:
        cells[3], turn[3], place[3] = empty, NOTHING, NOTHING
    if not third:
        cells[2], turn[4:] = empty, NOTHING
    return {"cells": cells, "turn": turn, "place": place}


class _Views:
    """A grain source: one picture in one of its views, in windows, and what its panels should say."""

    def __init__(self, size: int, split: str, seed: int, layout: VisionLayout):
        self.views = [RotationAnalogies(size, split=split, seed=seed, **view) for view in VIEWS]
        self.layout = layout

    def __len__(self) -> int:
        return len(self.views[0])

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        # Places cycle by four and views by three.
        index = int(index)
        scenes = self.views[index % len(self.views)]
        sample = scenes[index]
        picture = np.asarray((sample.input_images or sample.images)[0])
        return {"patches": self.layout.place(patchify(picture)[0]), **labels(scenes, index)}


def _batches(views: _Views, rows: int) -> Iterator[dict]:
    dataset = grain.MapDataset.source(views).batch(rows)
    return iter(dataset.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)))


def _loss(trained: dict, batch: dict, graph: nnx.GraphDef, layout: VisionLayout, rows: dict[str, np.ndarray]):
    model = nnx.merge(graph, trained["params"])
    over = lambda x: jnp.broadcast_to(x, (batch["patches"].shape[0], *x.shape))  # noqa: E731
    merged, _ = model.encode(Images(batch["patches"], over(layout.segments), over(layout.rotary_ids)))
    merged = merged[:, layout.merged_slot]                                              # [B, 8, D], raster order
    read = merged @ trained["cells"] + trained["cell_bias"]                             # [B, 8, 16]
    total = CELLS * optax.sigmoid_binary_cross_entropy(read, batch["cells"]).mean()
    right = {"cells": jnp.all((read > 0) == batch["cells"], -1).mean()}
    for kind, words in rows.items():
        classes = jnp.concatenate([model.text.embed[...][words], trained["nothing"][kind][None]])
        logits = jnp.einsum("BMD,VD->BMV", merged, classes)
        wanted = batch[kind]
        index = jnp.where(wanted == NOTHING, len(words), wanted)
        total += optax.softmax_cross_entropy_with_integer_labels(logits, index).mean()
        named, shown = logits.argmax(-1) == index, wanted >= 0
        right[kind] = jnp.sum(named & shown) / shown.sum()
        right[f"solution's {kind}"] = jnp.sum((named & shown)[:, 3]) / shown[:, 3].sum()
    rms = jnp.sqrt(jnp.mean(merged**2, -1))
    return total + CENTRED * jnp.mean((rms - 1) ** 2), right | {"rms": rms.mean()}


def warm_up(
    params: dict, config: Config, tokenizer: ChatTokenizer, *, steps: int, seed: int, rows: int = 128,
    peak: float = 2e-3
) -> tuple[dict, dict]:
    """Trains the tower and the embeddings; returns params and, by split, the shares of panels named right in `pictures`
    pictures."""
    graph, _ = abstract_model(config)
    grid = patchify(np.asarray(RotationAnalogies(1)[0].images[0]))[1]
    layout = vision_layout(np.array([grid]), merge=config.vision.merge, window=config.vision.window)
    words = {kind: word_rows(tokenizer, each) for kind, each in WORDS.items()}
    loss = functools.partial(_loss, graph=graph, layout=layout, rows=words)
    D = config.text.hidden
    trained: dict = {
        "params": params, "nothing": {kind: jnp.zeros(D) for kind in words},
        "cells": 0.05 * jax.random.normal(jax.random.key(seed), (D, GRID * GRID)), "cell_bias": jnp.zeros(GRID * GRID),
    }  # fmt: skip
    batches = _batches(_Views(steps * rows, "train", seed, layout), rows)
    # Of so few steps, 0.999 would remember all.
    trained = fit(trained, loss, batches, steps, peak, (0.9, 0.99))
    found: dict = {"pictures": HELD_OUT}
    for split in ("validation", "test"):
        seen = [jax.jit(loss)(trained, batch)[1] for batch in _batches(_Views(HELD_OUT, split, seed, layout), 128)]
        found[split] = {k: float(np.mean([each[k] for each in seen])) for k in seen[0]}
    return trained["params"], found


def carry(embed: jax.Array, old: ChatTokenizer, new: ChatTokenizer, seed: int) -> jax.Array:
    """Embeddings [V, D] of another tokenizer's tokens: those that both have are kept, others are drawn as wide."""
    known, named = old.backend.get_vocab(), new.backend.get_vocab()
    both = [token for token in named if token in known]
    drawn = jax.random.normal(jax.random.key(seed), embed.shape) * embed[:len(known)].std()
    kept = np.array([known[token] for token in both])
    return drawn.at[np.array([named[token] for token in both])].set(embed[kept])
