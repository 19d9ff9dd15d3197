"""Packs examples into rows of one static shape: concatenated, told apart by segment ids, padded to a budget.

A row holds one or more examples; a batch holds rows. On the device a row is one sequence of T tokens and one set of W
windows of patches; tokens see their own example only. Images that latents are taken from, when they differ from the
images that the model sees, are more windows of the same row: `vision_slot` is one index for all of them.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from lvr_jax.data.sample import DataError, Example
from lvr_jax.models.layout import vision_layout, window_count

Batch = dict[str, np.ndarray]


class BudgetError(DataError):
    """An example, or a row of them, that is larger than the budget."""


@dataclasses.dataclass(frozen=True)
class Budget:
    """The static shape of a row: T tokens, W windows, and pooled targets (pairs of token and merged slot)."""

    tokens: int
    windows: int
    pooled: int = 0

    def __add__(self, other: "Budget") -> "Budget":
        return Budget(self.tokens + other.tokens, self.windows + other.windows, self.pooled + other.pooled)

    def holds(self, size: "Budget") -> bool:
        return size.tokens <= self.tokens and size.windows <= self.windows and size.pooled <= self.pooled


@dataclasses.dataclass(frozen=True)
class Geometry:
    """What packing has to know of the network: patches a side of a merged token, merged tokens a side of a window."""

    merge: int = 2
    window: int = 4

    def size(self, example: Example) -> Budget:
        """The budget that one example takes."""
        windows = sum(window_count(grid, self.merge, self.window) for grid in example.grids)
        if example.target_patches is not None:
            windows *= 2
        return Budget(len(example.tokens), windows, len(example.latent_pool))

    def smallest(self, rows: Iterable[Sequence[Example]]) -> Budget:
        """The smallest budget that holds every one of `rows`."""
        sizes = [sum(map(self.size, row), Budget(0, 0)) for row in rows]
        return Budget(*(max(getattr(s, f.name) for s in sizes) for f in dataclasses.fields(Budget)))


def lay_out_row(examples: Sequence[Example], budget: Budget, geometry: Geometry = Geometry()) -> Batch:  # noqa: B008
    """One row. Keys and shapes, int32 unless said:

    tokens, segment (0 padding, else 1 + number of the example), vision_slot (merged slot in window order, or -1),
    stage, group (0, else unique in the row), role, branch (as in Example): [T]; loss_mask [T] bool; positions [3, T];
    patches [W, S, C] (uint8), window_segment [W, S], rotary_ids [W, S, 2]; pool [pooled, 2] (token, merged slot; -1).
    """
    size = sum(map(geometry.size, examples), Budget(0, 0))
    if not budget.holds(size):
        raise BudgetError(f"example {', '.join(e.id for e in examples)}: needs {size}, the budget is {budget}")
    T = budget.tokens
    grids, patches = [], []
    for e in examples:
        grids += [e.grids] if e.target_patches is None else [e.grids, e.grids]
        patches += [e.patches] if e.target_patches is None else [e.patches, e.target_patches]
    layout = vision_layout(
        np.concatenate([np.reshape(g, (-1, 3)) for g in grids]) if grids else np.zeros((0, 3)),
        merge=geometry.merge, window=geometry.window, budget=budget.windows,
    )  # fmt: skip
    row = {
        "tokens": np.zeros(T, np.int32), "segment": np.zeros(T, np.int32), "vision_slot": np.full(T, -1, np.int32),
        "stage": np.zeros(T, np.int32), "group": np.zeros(T, np.int32), "role": np.zeros(T, np.int32),
        "loss_mask": np.zeros(T, bool), "positions": np.zeros((3, T), np.int32),
        "patches": layout.place(np.concatenate(patches) if patches else np.zeros((0, 588), np.uint8)),
        "window_segment": layout.segments, "rotary_ids": layout.rotary_ids,
        "pool": np.full((budget.pooled, 2), -1, np.int32),
    }  # fmt: skip
    if any(e.branch is not None for e in examples):
        row["branch"] = np.zeros(T, np.int32)
    at = merged = groups = pooled = 0  # where the next example's tokens, merged tokens, groups and pairs begin
    for number, e in enumerate(examples):
        here = slice(at, at + len(e.tokens))
        own = len(e.patches) // geometry.merge**2
        elsewhere = own if e.target_patches is not None else 0  # latents' images come after the images seen
        latent = e.stage > 0
        raster = merged + e.vision_slot + np.where(latent, elsewhere, 0)
        row["tokens"][here], row["positions"][:, here] = e.tokens, e.positions
        row["segment"][here] = number + 1
        row["vision_slot"][here] = np.where(e.vision_slot >= 0, _slot(layout.merged_slot, raster), -1)
        row["loss_mask"][here], row["stage"][here], row["role"][here] = e.loss_mask, e.stage, e.role
        row["group"][here] = np.where(e.group > 0, e.group + groups, 0)
        if e.branch is not None:
            row["branch"][here] = e.branch
        pairs = slice(pooled, pooled + len(e.latent_pool))
        row["pool"][pairs, 0] = e.latent_pool[:, 0] + at
        row["pool"][pairs, 1] = _slot(layout.merged_slot, e.latent_pool[:, 1] + merged + elsewhere)
        at, merged = here.stop, merged + own + elsewhere
        groups, pooled = groups + int(e.group.max(initial=0)), pairs.stop
    return row


def _slot(merged_slot: np.ndarray, raster: np.ndarray) -> np.ndarray:
    return merged_slot[np.clip(raster, 0, max(len(merged_slot) - 1, 0))] if len(merged_slot) else raster


def collate(rows: Sequence[Sequence[Example]], budget: Budget, geometry: Geometry = Geometry()) -> Batch:  # noqa: B008
    """Rows of examples -> one batch, every array with a leading B axis."""
    laid_out = [lay_out_row(row, budget, geometry) for row in rows]
    if any("branch" in row for row in laid_out):        # rows that a stream's end left empty have none
        laid_out = [{"branch": np.zeros_like(row["tokens"])} | row for row in laid_out]
    return {key: np.stack([row[key] for row in laid_out]) for key in laid_out[0]}


@dataclasses.dataclass(frozen=True)
class Alignment:
    """Rows whose latents sit at the same positions in each: text, latents, text, ..., text, each part of static size.

    For training on the model's own latents (latents.unroll), one example a row. Text before latents ends right before
    them, so a part's last token is the start marker; latents and the last text begin with their part. What a row does
    not fill is padding. An example with fewer blocks leaves the parts of the others empty.
    """

    text: tuple[int, ...]
    latents: tuple[int, ...]

    def __post_init__(self):
        if len(self.text) != len(self.latents) + 1 or min(self.text + self.latents, default=0) < 1:
            raise DataError(f"{self}: expected sizes of at least 1, one text more than latents")

    @property
    def bounds(self) -> tuple[tuple[int, int, bool], ...]:
        """(start, stop, latents?) of every part, in order."""
        sizes = [size for pair in zip(self.text, self.latents) for size in pair] + [self.text[-1]]
        stops = np.cumsum(sizes).tolist()
        return tuple((stop - size, stop, i % 2 == 1) for i, (size, stop) in enumerate(zip(sizes, stops)))

    @property
    def tokens(self) -> int:
        return sum(self.text) + sum(self.latents)

    def places(self, stage: np.ndarray, slot: np.ndarray, group: np.ndarray, name: str = "") -> np.ndarray:
        """Where every token of one unpadded example goes [n]. BudgetError if a part is too small for it."""
        latent = (stage > 0) & (slot >= 0)
        block = np.where(latent, group, 0)
        starts = np.flatnonzero(np.diff(block, prepend=0, append=0))                     # every change of block
        cuts = [0, *starts.tolist(), len(stage)]
        runs = [(a, b, bool(latent[a])) for a, b in zip(cuts, cuts[1:]) if a < b]
        bounds, place, part = self.bounds, np.zeros(len(stage), np.int64), 0
        for i, (a, b, is_latent) in enumerate(runs):
            last = i == len(runs) - 1
            part = len(bounds) - 1 if last and not is_latent else part
            if part >= len(bounds) or bounds[part][2] != is_latent or b - a > bounds[part][1] - bounds[part][0]:
                kind = "latents" if is_latent else "tokens of text"
                raise BudgetError(f"example {name}: part {i} has {b - a} {kind}, which {self} has no room for")
            start, stop, _ = bounds[part]
            first = start if is_latent or part == len(bounds) - 1 else stop - (b - a)
            place[a:b] = first + np.arange(b - a)
            part += 1
        return place


def align(batch: Batch, alignment: Alignment) -> Batch:
    """A collated batch of one example a row -> the same with aligned rows, and `before` [B, T]: where the token before
    each one is. BudgetError if an example does not fit; DataError if a row holds several."""

    def places(row: dict[str, np.ndarray], name: str) -> tuple[np.ndarray, np.ndarray]:
        place = alignment.places(row["stage"], row["vision_slot"], row["group"], name)
        return place, np.arange(len(place)) - 1

    return rearrange(batch, alignment.tokens, places)


def rearrange(
    batch: Batch, tokens: int, places: Callable[[dict[str, np.ndarray], str], tuple[np.ndarray, np.ndarray]]
) -> Batch:
    """A collated batch of one example a row -> rows of `tokens`, and `before` [B, T]: where the token before each one
    is, 0 for what has none.

    places: (a row's n own tokens, its name) -> where each goes [n], and the number of the token before each [n], -1 for
    none. DataError if a row holds several examples.
    """
    if batch["segment"].max(initial=0) > 1:
        raise DataError("a row holds several examples, and its parts have room for one: expected max_per_row = 1")
    B = batch["tokens"].shape[0]
    fill = {"vision_slot": -1}
    columns = ("tokens", "segment", "vision_slot", "stage", "group", "role", "loss_mask", "positions", "branch")
    along = [name for name in columns if name in batch]
    out = {
        k: np.full((*x.shape[:-1], tokens), fill.get(k, 0), x.dtype) if k in along else x for k, x in batch.items()
    }  # fmt: skip
    out["before"] = np.zeros((B, tokens), np.int32)
    out["pool"] = batch["pool"].copy()
    for b in range(B):
        n = int((batch["segment"][b] > 0).sum())
        own = {key: batch[key][b, ..., :n] for key in along}
        place, before = places(own, f"of row {b}")
        for key, values in own.items():
            out[key][b][..., place] = values
        out["before"][b, place] = np.where(before >= 0, place[before], 0)
        pooled = batch["pool"][b, :, 0] >= 0
        out["pool"][b, pooled, 0] = place[batch["pool"][b, pooled, 0]]
    return out
