"""Measures how far training moved every matrix from where it started, and along how many directions.

    spectra(base, trained, config)      # one record a matrix of the Hugging Face checkpoint, layer by layer
"""

from collections.abc import Mapping

import numpy as np

from lvr_jax.checkpoints.orbax_io import flat
from lvr_jax.models.families import leaves
from lvr_jax.models.interface import Config
from lvr_jax.prism.network_parts import kind_of

# Of the summed squares of a difference: singular values below it are rounding (fp32 weights, 2^-23 each).
NEGLIGIBLE = 1e-12


def spectra(before: Mapping, after: Mapping, config: Config) -> list[dict]:
    """The difference of two checkpoints of one network, matrix by matrix as Hugging Face stores them.

    parameter, layer (None: outside of layers), kind, shape: which matrix; a vector is one of a single row
    norm, moved: Frobenius norms of `before` and of the difference; relative: the second over the first (None: over 0)
    rank:     effective rank, exp of the entropy of the singular values' shares (Roy and Vetterli, 2007)
    top:      share of the squared norm along the first singular direction
    rank and top are None for vectors, and where nothing changed. Norms are taken in fp64.
    """
    old, new, found = flat(dict(before)), flat(dict(after)), []
    for path, members in leaves(config).items():
        for _, slot in members:
            rows = ... if slot.layer is None else slot.layer
            a, b = (slot.to_hf(np.asarray(side[path])[rows].astype(np.float64)) for side in (old, new))
            flattened = (len(a), -1) if a.ndim > 1 else (1, -1)
            found.append({"parameter": path, "layer": slot.layer, "kind": kind_of(path), "shape": list(a.shape),
                          **change(a.reshape(flattened), b.reshape(flattened))})  # fmt: skip
    return found


def change(before: np.ndarray, after: np.ndarray) -> dict[str, float | None]:
    """norm, moved, relative, rank and top (see `spectra`) of one matrix."""
    difference = after - before
    norm, moved = float(np.linalg.norm(before)), float(np.linalg.norm(difference))
    found = {"norm": norm, "moved": moved, "relative": moved / norm if norm else None, "rank": None, "top": None}
    if moved and min(difference.shape) > 1:
        squares = _squared_singular_values(difference) / moved**2
        squares = squares[squares > NEGLIGIBLE]
        shares = np.sqrt(squares) / np.sqrt(squares).sum()
        found |= {"rank": float(np.exp(-(shares * np.log(shares)).sum())), "top": float(squares.max())}
    return found


def _squared_singular_values(x: np.ndarray) -> np.ndarray:
    """Of the smaller Gram matrix: an embedding of 150,000 rows needs no decomposition of its own size."""
    gram = x.T @ x if x.shape[0] > x.shape[1] else x @ x.T
    return np.maximum(np.linalg.eigvalsh(gram), 0)


def by_kind(rows: list[dict]) -> dict[str, dict]:
    """kind -> how many matrices, the change of all of them taken together, and the means of rank and top over them."""
    found = {}
    for kind in dict.fromkeys(row["kind"] for row in rows):
        mine = [row for row in rows if row["kind"] == kind]
        ranked = [row for row in mine if row["rank"] is not None]
        rank, top = (float(np.mean([row[key] for row in ranked])) if ranked else None for key in ("rank", "top"))
        before, moved = (float(np.sqrt(sum(row[key] ** 2 for row in mine))) for key in ("norm", "moved"))
        found[kind] = {"matrices": len(mine), "relative": moved / before if before else None, "rank": rank, "top": top}
    return found
