"""One made-up batch of the full static shape, again and again: how fast the device is if input costs nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from lvr_jax.data.branches import Branches, join, spread
from lvr_jax.data.images import MERGE, PATCH_COLUMNS
from lvr_jax.data.packing import Budget, Geometry, collate
from lvr_jax.data.pipeline import HostBatch
from lvr_jax.data.sample import ROLE_ANSWER, ROLE_IMAGE, ROLE_LATENT, ROLE_TEXT, DataError, Example
from lvr_jax.models.layout import mrope_positions, window_count

TEXT, LATENTS = 16, 8       # tokens of question and of answer, latent slots


def synthetic_example(budget: Budget, geometry: Geometry = Geometry(), seed: int = 0) -> Example:  # noqa: B008
    """An image of noise, a question, latents and an answer that together take as much of a row as a square image can.

    Text ids lie below 256, which every vocabulary has. DataError if the budget holds not even the smallest image.
    """
    rng = np.random.default_rng(seed)
    side = 2 * MERGE        # patches; latents come from the first merged tokens
    grid = lambda side: (1, side, side)  # noqa: E731
    fits = lambda side: (  # noqa: E731
        (side // MERGE) ** 2 + 2 * TEXT + LATENTS <= budget.tokens
        and window_count(grid(side), geometry.merge, geometry.window) <= budget.windows
    )
    if not fits(side):
        raise DataError(f"{budget}: too small for a synthetic example")
    while fits(side + MERGE):
        side += MERGE
    merged = (side // MERGE) ** 2
    parts = ((TEXT, ROLE_TEXT), (merged, ROLE_IMAGE), (LATENTS, ROLE_LATENT), (TEXT, ROLE_ANSWER))
    role = np.concatenate([np.full(n, r, np.int8) for n, r in parts])
    latent = role == ROLE_LATENT
    slot = np.full(len(role), -1, np.int32)
    slot[role == ROLE_IMAGE] = np.arange(merged)
    slot[latent] = np.arange(LATENTS) % merged
    tokens = rng.integers(0, 256, len(role)).astype(np.int32)
    placeholder = np.where(role == ROLE_IMAGE, -1, tokens)
    grids = np.array([grid(side)], np.int32)
    return Example(
        id=f"synthetic-{seed}",
        category="synthetic",
        tokens=tokens,
        positions=mrope_positions(placeholder, grids, image_token_id=-1)[0],
        vision_slot=slot,
        loss_mask=role == ROLE_ANSWER,
        stage=latent.astype(np.int8),
        group=latent.astype(np.int32),
        role=role,
        patches=rng.integers(0, 256, (side * side, PATCH_COLUMNS), np.uint8),
        grids=grids,
    )


def synthetic_branches(
    branches: Branches, windows: int, geometry: Geometry = Geometry(), seed: int = 0  # noqa: B008
) -> Example:
    """The same question `branches.count` times about one picture as large as the shared part allows."""
    own = LATENTS + TEXT - 1            # tokens of a branch: the shared part ends with the one after the picture
    if branches.each < own:
        raise DataError(f"{branches}: too small for a synthetic example")
    example = synthetic_example(Budget(branches.shared + own, windows), geometry, seed)
    return join([example] * branches.count)


def synthetic_batches(
    budget: Budget, rows: Iterable[int], geometry: Geometry = Geometry(), branches: Branches | None = None  # noqa: B008
) -> Iterator[HostBatch]:
    """The same batch for ever, one example a row; nothing is read, encoded or packed after the first.

    rows: their numbers in the whole batch, which say what they hold.
    """
    examples = [
        synthetic_branches(branches, budget.windows, geometry, int(row)) if branches
        else synthetic_example(budget, geometry, int(row)) for row in rows
    ]  # fmt: skip
    arrays = collate([[e] for e in examples], budget, geometry)
    batch = HostBatch(spread(arrays, branches) if branches else arrays, tuple((e.id,) for e in examples))
    while True:
        yield batch
