"""Reads the rows that this process feeds into a step: its shards of the data, in the layout of the step.

The data is cut into shards that have nothing to do with processes: shard s makes the s-th block of a step's rows. A
process reads the shards that its rows lie in and keeps its rows of them, so that with the same number of shards a run
sees the same batches, row by row, on any number of hosts and any placement of their devices.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from absl import logging

from lvr_jax.data.branches import Branches, join, spread
from lvr_jax.data.device import Placement
from lvr_jax.data.from_config import DataConfig, make_encode, make_sources
from lvr_jax.data.packing import Alignment, align
from lvr_jax.data.pipeline import HostBatch, Pipeline, Source
from lvr_jax.data.progress import reshard
from lvr_jax.data.sample import DataError, Example, Sample
from lvr_jax.data.synthetic import synthetic_batches
from lvr_jax.data.tokenizers import ChatTokenizer
from lvr_jax.training.masked_boxes import MaskedBoxes


def _fitting(sample: Sample, encode: Callable[[Sample], Example], alignment: Alignment) -> Example:
    """An example that does not fit the alignment is bad data: counted and skipped, as one that exceeds the budget."""
    example = encode(sample)
    alignment.places(example.stage, example.vision_slot, example.group, example.id)
    return example


def _branched(sample: Sample, encode: Callable[[Sample], Example], branches: Branches) -> Example:
    """The same for rows of branches; a single question is a branch, too."""
    example = encode(sample)
    if example.branch is None:
        example = join([example])
    assert example.branch is not None
    branches.places(example.branch, example.id)
    return example


def sources_of(data: DataConfig, mask_boxes: bool) -> list[Source]:
    """The data sources of a config, with boxes blacked out in the model's input if `mask_boxes`."""
    sources = make_sources(data)
    return [dataclasses.replace(s, data=MaskedBoxes(s.data)) for s in sources] if mask_boxes else sources


class Input:
    """Endless batches of this process's rows.

    data: the config's fields, `rows` those of the whole step; placement: which of them this process holds, None for
    all; shards: 0 for the fewest of which every process reads whole ones.
    """

    def __init__(
        self,
        data: DataConfig,
        tokenizer: ChatTokenizer,
        *,
        placement: Placement | None = None,
        shards: int = 0,
        alignment: Alignment | None = None,
        branches: Branches | None = None,
        mask_boxes: bool = False,
        skip_log: str | None = None,
    ):
        placement = placement or Placement.whole(data.rows)
        self.shards = shards or placement.shards
        if data.rows % self.shards:
            raise DataError(f"shards = {self.shards}: expected a number that divides the {data.rows} rows of a step")
        if (alignment or branches) and data.max_per_row != 1:
            raise DataError(f"data.max_per_row = {data.max_per_row}: rows of parts hold one example, expected 1")
        size = data.rows // self.shards
        self.numbers = np.unique(placement.rows // size).tolist()
        self.read = size * len(self.numbers)        # rows; those of other processes among them are dropped
        starts = {number: number * size for number in self.numbers}
        made = np.concatenate([start + np.arange(size) for start in starts.values()])
        self._kept = np.flatnonzero(np.isin(made, placement.rows))
        if self.read > len(self._kept):
            logging.warning(
                "shards = %d: this process reads %d rows a step and keeps %d; with shards = %d none are read in vain",
                self.shards, self.read, len(self._kept), placement.shards,
            )  # fmt: skip
        self.alignment, self.branches = alignment, branches
        data = dataclasses.replace(data, rows=size, workers=-(-data.workers // len(self.numbers)))
        encode = make_encode(data, tokenizer)
        encode = functools.partial(_fitting, encode=encode, alignment=alignment) if alignment else encode
        encode = functools.partial(_branched, encode=encode, branches=branches) if branches else encode
        sources = sources_of(data, mask_boxes)
        # Of the processes that read a shard one lists what it skipped; all of them count it.
        listed = lambda start: skip_log is not None and placement.first_of(start, start + size)  # noqa: E731
        self._iterators = [
            iter(
                Pipeline(
                    sources, encode, data.settings, shard_index=number, shard_count=self.shards,
                    workers=data.workers, prefetch=data.prefetch,
                    skip_log=f"{skip_log}.{number}.jsonl" if listed(start) else None,
                )
            )
            for number, start in starts.items()
        ]  # fmt: skip

    def __next__(self) -> HostBatch:
        parts = [next(iterator) for iterator in self._iterators]
        arrays = {key: np.concatenate([part.arrays[key] for part in parts]) for key in parts[0].arrays}
        ids = [row for part in parts for row in part.ids]
        if self.read > len(self._kept):
            arrays, ids = {key: x[self._kept] for key, x in arrays.items()}, [ids[i] for i in self._kept]
        if "branch" in arrays and not self.branches:
            raise DataError("a source puts several questions about a picture, and the config has no branches for them")
        arrays = align(arrays, self.alignment) if self.alignment else arrays
        arrays = spread(arrays, self.branches) if self.branches else arrays
        return HostBatch(arrays, tuple(ids))

    def get_state(self) -> list[dict]:
        """What the run has to remember of this process's shards, after the last batch."""
        return [iterator.get_state() for iterator in self._iterators]

    def set_state(self, states: Sequence[dict]) -> None:
        """states: of all shards of the run, whoever read them; another number of them is dealt out anew."""
        if len(states) != self.shards:
            states = reshard(states, self.shards)
        by_number = {state["shard"][0]: state for state in states}
        for number, iterator in zip(self.numbers, self._iterators):
            iterator.set_state(by_number[number])

    @property
    def skipped(self) -> int:
        return sum(sum(state["skips"]["skipped"].values()) for state in self.get_state())

    def close(self) -> None:
        for iterator in self._iterators:
            iterator.close()


class Synthetic:
    """The same interface over one made-up batch: what the device can do if input costs nothing."""

    skipped = 0

    def __init__(self, data: DataConfig, *, placement: Placement | None = None, branches: Branches | None = None):
        settings = data.settings
        rows = range(data.rows) if placement is None else placement.rows
        self._batches: Iterator[HostBatch] = synthetic_batches(
            settings.budget, rows, settings.geometry, branches
        )

    def __next__(self) -> HostBatch:
        return next(self._batches)

    def get_state(self) -> list[dict]:
        return []

    def set_state(self, states: Sequence[dict]) -> None:
        pass

    def close(self) -> None:
        pass
