"""Logit lens: applies the LM head to every latent that was fed, as if to pick a token from it.

Latents are states after the final norm, as the head reads them. That the head would say the answer there shows where
the word is, not that it is used.
"""

import functools
from collections import Counter
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from lvr_jax.latents.sweep_files import SweepFiles
from lvr_jax.multihost.cell import Cell
from lvr_jax.prism.measure.items import Items

TOP, SHOWN, ROWS = 3, 5, 256


@jax.jit
def _lens(unembedding, latents, ids):
    """latents [N, D], ids [N, O, W] (-1: none) -> the TOP ids [N, TOP], and by option the least rank and the largest
    logit of its first tokens [N, O] (rank 1: nothing is likelier)."""
    logits = jnp.einsum("ND,VD->NV", latents, unembedding.astype(latents.dtype), preferred_element_type=jnp.float32)
    own = jnp.take_along_axis(logits[:, None], jnp.maximum(ids, 0), axis=2)
    own = jnp.where(ids >= 0, own, -jnp.inf).max(-1)                                     # [N, O]
    rank = 1 + (logits[:, None] > own[..., None]).sum(-1)
    return jax.lax.top_k(logits, TOP)[1], rank, own


@functools.partial(jax.jit, static_argnums=2)
def likeliest(unembedding, latents, count: int) -> tuple[jax.Array, jax.Array]:
    """latents [N, D] -> the ids [N, count] of the likeliest words if the LM head read them, and their probabilities."""
    logits = jnp.einsum("ND,VD->NV", latents.astype(unembedding.dtype), unembedding, preferred_element_type=jnp.float32)
    values, ids = jax.lax.top_k(jax.nn.softmax(logits), count)
    return ids, values


def run(items: Items, capture_folder, folder, cell: Cell = Cell()) -> None:  # noqa: B008
    """Reads the latents of a finished capture, once, into `folder`."""
    files, captured = SweepFiles(folder), SweepFiles(capture_folder)
    ids, manifest = _first_tokens(items), captured.manifest()
    files.open({"lens": TOP, "capture": manifest, "ids": ids.tolist()}, cell)
    if files.missing(["lens"], 1, cell)["lens"]:
        made = _read(items, captured, manifest, ids, cell)
        if cell.is_writer:
            files.write("lens", 0, made)
    cell.hosts.wait("lens is finished")


def _read(items: Items, captured: SweepFiles, manifest: dict, ids: np.ndarray, cell: Cell) -> dict[str, np.ndarray]:
    """top [I, G, Z, TOP], rank and own [I, G, Z, O] in the benchmark's order, -1 and -inf where nothing was fed."""
    parts = [captured.load("clean", number, ("blocks", "count")) for number in range(len(manifest["items"]))]
    blocks, count = (np.concatenate([part[key] for part in parts]) for key in ("blocks", "count"))
    at = items.places([i for batch in manifest["items"] for i in batch])
    fed = np.arange(blocks.shape[2]) < count[..., None]                                   # [I, G, Z]
    text = items.subject.params["text"]
    of = np.broadcast_to(ids[at][:, None, None], (*fed.shape, *ids.shape[1:]))[fed]
    top, rank, own = _batched(text.get("head", text["embed"]), blocks[fed], of, cell)
    put = lambda values, empty: _scattered(values, fed, at, empty)  # noqa: E731
    return {"top": put(top, -1), "rank": put(rank, -1), "own": put(own, -np.inf), "ids": ids}


def _scattered(values: np.ndarray, fed: np.ndarray, at: np.ndarray, empty) -> np.ndarray:
    """Values of the latents fed [N, ...] -> [I, G, Z, ...] in the benchmark's order."""
    whole = np.full((*fed.shape, *values.shape[1:]), empty, values.dtype)
    whole[fed] = values
    return whole[np.argsort(at)]


def read(folder, items: Items, names: Sequence[str], shown: Sequence[int]) -> dict:
    """by: stage -> latent by latent, over the items that fed it; words: item of `shown` -> stage -> its top words.

    top: the likeliest words, and the share of items in which each is; first: share in which the answer's first token is
    the likeliest of all; rank: its median place; offered: share in which it is the likeliest of the item's own options
    (of `told`, the items whose options begin with different tokens), chance: by their number
    """
    found = SweepFiles(folder).load("lens", 0)
    decode = items.subject.tokenizer.decode
    by: dict[str, list] = {}
    words: dict[int, dict] = {i: {} for i in shown}
    for g, stage in enumerate(names):
        fed = found["top"][:, g, :, 0] >= 0                                               # [I, Z]
        by[stage] = [_summed(found["top"][rows, g, j], found["rank"][rows, g, j], found["own"][rows, g, j],
                             found["ids"][rows], items.labels[rows], items.options[rows], decode)
                     for j, rows in enumerate(fed.T) if rows.any()]  # fmt: skip
        for i in shown:
            words[i][stage] = [[decode([int(t)]) for t in found["top"][i, g, j]] for j in np.flatnonzero(fed[i])]
    return {"by": by, "words": words}


def _first_tokens(items: Items) -> np.ndarray:
    """[I, O, 2] the first token of each option's text, at the start of a line and after a space; -1: none."""
    encode, rows = items.subject.tokenizer.encode, items.benchmark.rows
    found = np.full((len(rows), int(items.options.max()), 2), -1, np.int32)
    for i, row in enumerate(rows):
        for o, text in enumerate(row.choices.values()):
            for w, lead in enumerate(("", " ")):
                # A space that is a token of its own says nothing of the word.
                tokens = [t for t in encode(lead + text.strip()) if items.subject.tokenizer.decode([int(t)]).strip()]
                if tokens:
                    found[i, o, w] = int(tokens[0])
    return found


def _batched(unembedding, latents: np.ndarray, ids: np.ndarray, cell: Cell) -> tuple[np.ndarray, ...]:
    """`_lens` over any number of latents, ROWS at a time, so that it is one program."""
    parts = []
    for start in range(0, max(len(latents), 1), ROWS):
        x, own = latents[start : start + ROWS], ids[start : start + ROWS]
        fill = lambda a: np.concatenate([a, np.zeros((ROWS - len(a), *a.shape[1:]), a.dtype)])  # noqa: E731
        found = _lens(unembedding, cell.whole(fill(x)), cell.whole(fill(own)))
        parts.append([each[: len(x)] for each in cell.fetch(found)])
    return tuple(np.concatenate(each) for each in zip(*parts))


def _summed(top, rank, own, ids, labels, options, decode) -> dict:
    likeliest = Counter(decode([int(t)]).strip() or "␣" for t in top[:, 0])
    place = np.arange(len(top))
    known = ids[place, labels].max(-1) >= 0
    gold = rank[place, labels][known]
    offered = np.arange(own.shape[1]) < options[:, None]
    apart = np.array([len(set(row[there].tolist())) == there.sum() for row, there in zip(ids[..., 0], offered)]) & known
    best = np.where(offered, own, -np.inf).argmax(1) == labels
    return {
        "items": len(top), "top": [[word, n / len(top)] for word, n in likeliest.most_common(SHOWN)],
        "first": float((gold == 1).mean()) if len(gold) else None,
        "rank": float(np.median(gold)) if len(gold) else None,
        "told": int(apart.sum()), "offered": float(best[apart].mean()) if apart.any() else None,
        "chance": float((1 / options[apart]).mean()) if apart.any() else None,
    }  # fmt: skip
