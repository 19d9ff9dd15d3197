"""Teaches the tiny vision tower to see: each merged token names the digit in it and its colour.

Dense supervision from the scenes' own boxes: from answers alone a network of this size did not learn to see in any
time that a laptop has. What a token shows is scored against the words' own embeddings, so that the decoder finds
digits and colours where its vocabulary has them. The merger's output is held at a root mean square of 1.
"""

import functools
from collections.abc import Callable, Iterable

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from lvr_jax.data.digit_pictures import COLOUR_NAMES, DigitScene
from lvr_jax.data.digit_scenes import DigitSearch
from lvr_jax.data.images import FACTOR, patchify
from lvr_jax.data.tokenizers import ChatTokenizer
from lvr_jax.models.families import abstract_model
from lvr_jax.models.interface import Config
from lvr_jax.models.layout import VisionLayout, vision_layout
from lvr_jax.models.records import Images
from lvr_jax.progress import tqdm

DIGITS = tuple("0123456789")
NOTHING, UNCLEAR = -1, -2       # labels: a token without a digit; one with too little of it to be judged by
SHOWN, HIDDEN = 0.25, 0.08      # of a digit's box: at least so much of it is a digit, at most so much is none
CENTRED = 1.0                   # weight of the merger's scale


def labels(scene: DigitScene) -> tuple[np.ndarray, np.ndarray]:
    """(digit, colour) of every merged token in raster order, int32 [M] each."""
    rows, columns = (side // FACTOR for side in scene.image.shape[:2])
    edges = lambda first, last, count: np.clip(  # noqa: E731
        np.minimum(last, FACTOR * (np.arange(count) + 1)) - np.maximum(first, FACTOR * np.arange(count)), 0, None
    )
    share = np.stack([
        np.outer(edges(y0, y1, rows), edges(x0, x1, columns)).ravel() / ((x1 - x0) * (y1 - y0))
        for x0, y0, x1, y1 in scene.ink.tolist()
    ])  # fmt: skip
    most, largest = share.argmax(0), share.max(0)                                        # [M]
    found = np.where(largest >= SHOWN, 0, np.where(largest > HIDDEN, UNCLEAR, NOTHING))
    return tuple(np.where(found == 0, np.asarray(x)[most], found).astype(np.int32)
                 for x in (scene.classes, scene.colours))


class _Scenes:
    """A grain source: what the tower sees of a scene, in windows, and what it should say."""

    def __init__(self, scenes: DigitSearch, layout: VisionLayout):
        self.scenes, self.layout = scenes, layout

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        scene = self.scenes.scene(int(index))
        digit, colour = labels(scene)
        return {"patches": self.layout.place(patchify(scene.image)[0]), "digit": digit, "colour": colour}


def _batches(scenes: DigitSearch, layout: VisionLayout, rows: int):
    """Every scene once, in the order of their numbers (each is drawn on its own)."""
    dataset = grain.MapDataset.source(_Scenes(scenes, layout)).batch(rows)
    return iter(dataset.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)))


def word_rows(tokenizer: ChatTokenizer, words: tuple[str, ...]) -> np.ndarray:
    """Ids of the words' first tokens, which have to differ."""
    ids = np.array([tokenizer.encode(word)[0] for word in words])
    if len(set(ids.tolist())) < len(words):
        raise ValueError(f"{words}: two of them begin with the same token")
    return ids


def same_words(embed: jax.Array, tokenizer: ChatTokenizer, words: tuple[str, ...]) -> jax.Array:
    """Embeddings [V, D] in which a word after a space begins as the word without, and letters as those of the options.

    Any large text teaches a network as much; here nothing else would say that " red" in an option is the "red" of a
    reply, and what letters are for was not found in thousands of steps.
    """
    pairs = [(f" {word}", word) for word in words] + [(f" {letter}", f"({letter}") for letter in "ABCD"]
    of, like = (np.array([tokenizer.encode(text) for text in side]) for side in zip(*pairs))
    return embed.at[of[:, 0]].set(embed[like[:, 0]])


def _loss(trained: dict, batch: dict, graph: nnx.GraphDef, layout: VisionLayout, rows: dict[str, np.ndarray]):
    model = nnx.merge(graph, trained["params"])
    over = lambda x: jnp.broadcast_to(x, (batch["patches"].shape[0], *x.shape))  # noqa: E731
    merged, _ = model.encode(Images(batch["patches"], over(layout.segments), over(layout.rotary_ids)))
    merged = merged[:, layout.merged_slot]                                               # [B, M, D], raster order
    total, right = 0.0, {}
    for kind, words in rows.items():
        classes = jnp.concatenate([model.text.embed[...][words], trained["nothing"][kind][None]])
        logits = jnp.einsum("BMD,VD->BMV", merged, classes)
        wanted = batch[kind]
        counted = wanted != UNCLEAR
        index = jnp.where(wanted == NOTHING, len(words), jnp.maximum(wanted, 0))
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, index)
        total += jnp.sum(loss * counted) / counted.sum()
        shown = wanted >= 0
        right[kind] = jnp.sum((logits.argmax(-1) == index) & shown) / shown.sum()
    rms = jnp.sqrt(jnp.mean(merged**2, -1))
    return total + CENTRED * jnp.mean((rms - 1) ** 2), right | {"rms": rms.mean()}


def fit(
    trained: dict, loss: Callable, batches: Iterable[dict], steps: int, peak: float, betas: tuple[float, float]
) -> dict:
    """Trains by AdamW with a learning rate that rises and falls; `loss(trained, batch)` also returns what to show."""
    rate = optax.warmup_cosine_decay_schedule(0.0, peak, steps // 20, steps, 0.05 * peak)
    adam = optax.adamw(rate, *betas, weight_decay=0.01)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), adam)

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state, batch):
        trained, moments = state
        grads, seen = jax.grad(loss, has_aux=True)(trained, batch)
        updates, moments = optimizer.update(grads, moments, trained)
        return (optax.apply_updates(trained, updates), moments), seen

    state = (trained, optimizer.init(trained))
    for n, batch in enumerate(bar := tqdm(batches, "vision", total=steps)):
        state, seen = step(state, batch)
        if n % 50 == 49:
            bar.set_postfix_str(", ".join(f"{k} {float(x):.3f}" for k, x in seen.items()))
    return state[0]


def warm_up(
    params: dict, config: Config, tokenizer: ChatTokenizer, *, steps: int, rows: int = 64, peak: float = 2e-3
) -> tuple[dict, dict[str, float]]:
    """Trains the tower and the embeddings; returns params and the shares of tokens named right in held-out scenes."""
    graph, _ = abstract_model(config)
    train, test = DigitSearch(steps * rows), DigitSearch(1024, split="test")
    grid = patchify(train[0].images[0])[1]
    layout = vision_layout(np.array([grid]), merge=config.vision.merge, window=config.vision.window)
    words = {"digit": word_rows(tokenizer, DIGITS), "colour": word_rows(tokenizer, COLOUR_NAMES)}
    loss = functools.partial(_loss, graph=graph, layout=layout, rows=words)
    trained = {"params": params, "nothing": {kind: jnp.zeros(config.text.hidden) for kind in words}}
    trained = fit(trained, loss, _batches(train, layout, rows), steps, peak, (0.9, 0.999))
    held_out = [jax.jit(loss)(trained, batch)[1] for batch in _batches(test, layout, 128)]
    return trained["params"], {k: float(np.mean([seen[k] for seen in held_out])) for k in held_out[0]}
