"""Text features of options: the centred mean of their tokens' input embeddings."""

from collections.abc import Sequence

import jax
import numpy as np

from lvr_jax.evaluation.rows import Row
from lvr_jax.evaluation.subject import Subject
from lvr_jax.multihost.cell import Cell


@jax.jit
def _rows(table, ids):
    return table[ids]


def option_features(subject: Subject, rows: Sequence[Row], cell: Cell) -> np.ndarray | None:
    """[I, O, D] fp32, zero where an item has fewer options; None if an item's options have no texts of their own.

    Centred by the mean over all options of all items, which knows no answer.
    """
    texts = [list(row.choices.values()) for row in rows]
    if not all(text.strip() for own in texts for text in own):
        return None
    unique = sorted({text for own in texts for text in own})
    ids = {text: np.asarray(subject.tokenizer.encode(text)) for text in unique}
    known, inverse = np.unique(np.concatenate(list(ids.values())), return_inverse=True)
    embedded = cell.fetch(_rows(subject.params["text"]["embed"], known)).astype(np.float32)[inverse]
    ends = np.cumsum([len(i) for i in ids.values()])
    vectors = {text: part.mean(0) for text, part in zip(ids, np.split(embedded, ends[:-1]))}
    centre = np.mean([vectors[text] for own in texts for text in own], axis=0)
    found = np.zeros((len(rows), max(map(len, texts)), embedded.shape[1]), np.float32)
    for i, own in enumerate(texts):
        found[i, : len(own)] = [vectors[text] - centre for text in own]
    return found
