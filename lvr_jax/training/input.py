"""Which rows does this process feed into a step? Its shards of the data, side by side, in the layout of the step.

The data is cut into shards that have nothing to do with processes but their number: a process reads one or several.
With the same number of shards a run sees the same batches in the same order on any number of hosts.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence

import numpy as np

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


def sources_of(data: DataConfig, mask_boxes: bool) -> list[Source]:
    sources = make_sources(data)
    return [dataclasses.replace(s, data=MaskedBoxes(s.data)) for s in sources] if mask_boxes else sources


class Input:
    """Endless batches of this process's rows.

    data: the config's fields, `rows` those of the whole step; process: (index, count) among processes that read
    different rows (data.device.data_shard); shards: 0 for one a process.
    """

    def __init__(
        self,
        data: DataConfig,
        tokenizer: ChatTokenizer,
        *,
        process: tuple[int, int] = (0, 1),
        shards: int = 0,
        alignment: Alignment | None = None,
        mask_boxes: bool = False,
        skip_log: str | None = None,
    ):
        index, count = process
        self.shards = shards or count
        if self.shards % count or data.rows % self.shards:
            raise DataError(
                f"shards = {self.shards}: expected a multiple of the {count} processes that read, which divides the "
                f"{data.rows} rows of a step"
            )
        if alignment and data.max_per_row != 1:
            raise DataError(f"data.max_per_row = {data.max_per_row}: aligned rows hold one example, expected 1")
        own = self.shards // count
        self.numbers = range(index * own, (index + 1) * own)
        self.alignment = alignment
        data = dataclasses.replace(data, rows=data.rows // self.shards, workers=-(-data.workers // own))
        encode = make_encode(data, tokenizer)
        encode = functools.partial(_fitting, encode=encode, alignment=alignment) if alignment else encode
        sources = sources_of(data, mask_boxes)
        self._iterators = [
            iter(
                Pipeline(
                    sources, encode, data.settings, shard_index=number, shard_count=self.shards,
                    workers=data.workers, prefetch=data.prefetch,
                    skip_log=None if skip_log is None else f"{skip_log}.{number}.jsonl",
                )
            )
            for number in self.numbers
        ]  # fmt: skip

    def __next__(self) -> HostBatch:
        parts = [next(iterator) for iterator in self._iterators]
        arrays = {key: np.concatenate([part.arrays[key] for part in parts]) for key in parts[0].arrays}
        arrays = align(arrays, self.alignment) if self.alignment else arrays
        return HostBatch(arrays, tuple(ids for part in parts for ids in part.ids))

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

    def __init__(self, data: DataConfig, *, process: tuple[int, int] = (0, 1)):
        settings = data.settings
        self._batches: Iterator[HostBatch] = synthetic_batches(
            settings.budget, data.rows // process[1], settings.geometry, seed=process[0] * data.rows
        )

    def __next__(self) -> HostBatch:
        return next(self._batches)

    def get_state(self) -> list[dict]:
        return []

    def set_state(self, states: Sequence[dict]) -> None:
        pass

    def close(self) -> None:
        pass
