"""Puts several questions about one picture in one sequence: what they share once, then a branch for each.

System turn and picture are the same for every question about it, and are most of a sequence: 1,120 of 1,200 tokens of
a megapixel picture. In a row of branches they are computed once. Each question sees what is shared and its own branch,
as if it were alone, at the positions that it would have alone (`branches` of models.records.Tokens): losses and
gradients are those of the questions one by one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from lvr_jax.data.packing import Batch, BudgetError, rearrange
from lvr_jax.data.sample import ROLE_IMAGE, Example, SampleError


@dataclasses.dataclass(frozen=True)
class Branches:
    """The static parts of a row that holds one picture and its questions: `shared` tokens, then `count` branches of
    `each`. What a part does not fill is padding at its end."""

    shared: int
    each: int
    count: int

    def __post_init__(self):
        if min(self.shared, self.each, self.count) < 1:
            raise BudgetError(f"{self}: expected sizes of at least 1")

    @property
    def tokens(self) -> int:
        return self.shared + self.each * self.count

    def places(self, branch: np.ndarray, name: str = "") -> np.ndarray:
        """Where every token of one unpadded example goes [n]. BudgetError if a part is too small for it."""
        sizes = np.bincount(branch, minlength=1)
        room = np.full(len(sizes), self.each)
        room[0] = self.shared
        if len(sizes) - 1 > self.count or (sizes > room).any():
            raise BudgetError(f"example {name}: {sizes[0]} shared tokens, branches of {sizes[1:].tolist()}, which "
                              f"{self} has no room for")  # fmt: skip
        starts = np.where(branch > 0, self.shared + self.each * (branch - 1), 0)
        return starts + np.arange(len(branch)) - (np.cumsum(sizes) - sizes)[branch]


def join(examples: Sequence[Example]) -> Example:
    """The questions of one picture, encoded one by one, as one example with branches.

    They share everything up to the last image's end marker; SampleError if they do not, or if there is no image.
    """
    first = examples[0]
    images = np.flatnonzero(first.role == ROLE_IMAGE)
    if not len(images):
        raise SampleError(f"sample {first.id}: no image that its questions could share")
    shared = int(images[-1]) + 2
    for e in examples[1:]:
        if not np.array_equal(e.tokens[:shared], first.tokens[:shared]) or (e.role[shared:] == ROLE_IMAGE).any():
            raise SampleError(f"sample {e.id}: what comes before its question differs from that of {first.id}")
    owns = [slice(shared if number else 0, len(e.tokens)) for number, e in enumerate(examples)]
    at = np.cumsum([0, *(own.stop - own.start for own in owns)])            # where each one's part begins
    groups = np.cumsum([0, *(int(e.group.max(initial=0)) for e in examples)], dtype=np.int32)
    branch = np.repeat(np.arange(1, len(examples) + 1, dtype=np.int32), np.diff(at))
    branch[:shared] = 0

    def joined(column: Callable[[Example], np.ndarray]) -> np.ndarray:
        return np.concatenate([column(e)[..., own] for e, own in zip(examples, owns)], axis=-1)

    return dataclasses.replace(
        first,
        tokens=joined(lambda e: e.tokens), positions=joined(lambda e: e.positions), role=joined(lambda e: e.role),
        vision_slot=joined(lambda e: e.vision_slot), loss_mask=joined(lambda e: e.loss_mask),
        stage=joined(lambda e: e.stage),
        # Blocks of latents are told apart by their groups.
        group=joined(lambda e: e.group) + np.where(joined(lambda e: e.group) > 0, groups[np.maximum(branch - 1, 0)], 0),
        latent_pool=np.concatenate(
            [e.latent_pool + np.array([start - own.start, 0], np.int32) for e, own, start in zip(examples, owns, at)]
        ),
        branch=branch,
    )  # fmt: skip


def spread(batch: Batch, branches: Branches) -> Batch:
    """A collated batch of one example a row -> the same with every branch in its place, and `before` [B, T]: where the
    token before each one is, the last shared one for a branch's first."""

    def places(row: dict[str, np.ndarray], name: str) -> tuple[np.ndarray, np.ndarray]:
        branch = row["branch"]
        before = np.arange(len(branch)) - 1
        before[np.diff(branch, prepend=0) > 0] = (branch == 0).sum() - 1
        return branches.places(branch, name), before

    return rearrange(batch, branches.tokens, places)
