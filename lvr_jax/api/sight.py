"""What the latents of an item can be compared with: its image tokens, and the words of the vocabulary."""

from __future__ import annotations

import dataclasses
import functools

import jax
import numpy as np

from lvr_jax.data.images import MERGE
from lvr_jax.data.packing import collate
from lvr_jax.data.sample import Example, Sample
from lvr_jax.evaluation.batches import image_size
from lvr_jax.latents import regions
from lvr_jax.latents.reading import TAPS
from lvr_jax.latents.routing import blocked
from lvr_jax.latents.sweep import prefill
from lvr_jax.models.layers import Compute
from lvr_jax.prism.measure.items import Items
from lvr_jax.prism.measure.lens import likeliest

WORDS = 5


@dataclasses.dataclass(frozen=True, eq=False)
class Sight:
    """Item `index` of `items` (which hold that one alone in their batch), looked at when something is asked for."""

    items: Items
    index: int
    compute: Compute

    @functools.cached_property
    def _prompt(self) -> tuple[Sample, Example]:
        return self.items.prompt(self.index)

    @functools.cached_property
    def _merged(self) -> np.ndarray:
        """[M, D] fp32: the image tokens in raster order, all pictures one after another. One prefill of the item."""
        items, subject = self.items.part([self.index]), self.items.subject
        (batch,) = items.batches
        example = self._prompt[1]
        arrays = collate([[example]], batch.budget, items.geometry)
        _, out = prefill(
            subject.graph, subject.params, arrays, np.zeros(1, np.int32), compute=self.compute,
            remember_ids=items.protocol.repetition_penalty != 1, taps=TAPS, blocked=blocked(subject.attention),
        )  # fmt: skip
        c, total = subject.config.vision, int(self._sizes.sum())
        slots = regions.slots(np.arange(total), example.grids, merge=c.merge, window=c.window)
        return np.asarray(jax.device_get(out["merged"][0]), np.float32)[slots]

    @property
    def _sizes(self) -> np.ndarray:
        """[n] image tokens of each picture."""
        return self._prompt[1].grids.astype(np.int64).prod(1) // MERGE**2

    def similarity(self, latents: np.ndarray) -> list[np.ndarray]:
        """[Z, rows, columns] a picture: cosine of each latent with each image token."""
        unit = lambda x: x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-8)  # noqa: E731
        cosine = unit(latents) @ unit(self._merged).T                                           # [Z, M]
        cuts = np.split(cosine, np.cumsum(self._sizes)[:-1], axis=1)
        grids = self._prompt[1].grids // (1, MERGE, MERGE)
        return [cut.reshape(len(latents), h, w) for cut, (_, h, w) in zip(cuts, grids)]

    def place(self, token: int, cosine: float) -> tuple[tuple[float, float, float, float], float, int]:
        """Fields of a `Region`: the box, in pixels of the picture as it was given, of an image token."""
        sample, example = self._prompt
        ends = np.cumsum(self._sizes)
        image = int(np.searchsorted(ends, token, side="right"))
        _, h, w = example.grids[image] // (1, MERGE, MERGE)
        row, column = divmod(token - int(ends[image] - self._sizes[image]), int(w))
        height, width = image_size(sample.images[image])
        x, y = width / int(w), height / int(h)
        return (column * x, row * y, (column + 1) * x, (row + 1) * y), cosine, image

    def draw(self, maps: np.ndarray, title: str):
        """The first picture, as the model sees it, with its box and these heat maps [Z, rows, columns]."""
        # Imported here, because matplotlib takes a second.
        from lvr_jax.prism.report.gallery import MOST, drawn, first_picture

        sample, example = self._prompt
        boxes = [b for b, i in zip(sample.boxes, sample.box_images or (0,) * len(sample.boxes)) if i == 0]
        return drawn(first_picture(example.patches, example.grids), list(maps[:MOST]), boxes, title)

    def lens(self, latents: np.ndarray) -> list[list[tuple[str, float]]]:
        """The likeliest words of each latent, as the LM head reads it, with their probabilities."""
        if not len(latents):
            return []
        text, decode = self.items.subject.params["text"], self.items.subject.tokenizer.decode
        ids, probabilities = jax.device_get(likeliest(text.get("head", text["embed"]), latents, WORDS))
        return [[(decode([int(t)]), float(p)) for t, p in zip(*row)] for row in zip(ids, probabilities)]
