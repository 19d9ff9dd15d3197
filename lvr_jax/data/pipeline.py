"""Turns sources of samples into an endless, exactly resumable stream of host batches.

    shuffle by seed and epoch -> shard -> encode (in worker processes) -> pack -> batch

    pipeline = Pipeline([Source(data, "sroie")], encode, Settings(Budget(4096, 288), rows=8), workers=8)
    batches = iter(pipeline)
    batch = next(batches)                       # HostBatch; lvr_jax.data.device puts its arrays on the mesh
    state = batches.get_state()                 # a JSON-able dict of a few hundred integers

Grain brings the shuffle, the mixture, the worker processes and the prefetch. The packing is ours: grain's packers give
rows of examples in a row's own layout and keep as their state where the current bins began, which cannot say which
examples have been emitted, and so cannot go on with another number of hosts.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence

import grain
import numpy as np
from absl import flags

from lvr_jax.data.encoding import EncodedSource, SampleSource, Skipped
from lvr_jax.data.filling import fill_row
from lvr_jax.data.packing import Batch, Budget, Geometry, collate
from lvr_jax.data.progress import VERSION, Progress
from lvr_jax.data.sample import DataError, Example, Sample
from lvr_jax.data.skips import SkipLog


@dataclasses.dataclass(frozen=True)
class Source:
    """One source of a mixture. Weights are set on all sources or on none; their scale does not matter."""

    data: SampleSource
    name: str
    weight: float | None = None


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the stream looks like.

    budget, rows, geometry: the static shape of a batch; `rows` are those of one shard.
    epochs: None repeats for ever, each time in another order. Without weights an epoch is every example of every
        source once; with weights it is as many draws as there are examples, and each source goes round on its own,
        every example once a round.
    lookahead: how many encoded examples wait to be packed; all of them are in memory, 3 MB for each megapixel.
    max_per_row: examples a row at most; 0 or None as many as fit; 1 means no packing (one example a row, in order),
        for evaluation.
    max_skip_share: how much of the data may be damaged before the run stops; see `SkipLog` for `patience`.
    """

    budget: Budget
    rows: int
    geometry: Geometry = Geometry()
    seed: int = 0
    shuffle: bool = True
    epochs: int | None = None
    lookahead: int = 32
    max_per_row: int | None = None
    max_skip_share: float = 0.05
    patience: int = 200

    def __post_init__(self):
        for field, least in (("rows", 1), ("lookahead", 1), ("max_per_row", 0), ("epochs", 1), ("seed", 0)):
            value = getattr(self, field)
            if value is not None and (not isinstance(value, int) or value < least):
                raise DataError(f"data setting {field} = {value!r}: expected a whole number, at least {least}")


@dataclasses.dataclass(frozen=True, eq=False)
class HostBatch:
    """One shard's batch: `arrays` as `packing.collate` makes them, and the ids of the examples of each row.

    At the end of a finite stream the last batch is filled up with empty rows (segment 0, no ids).
    """

    arrays: Batch
    ids: tuple[tuple[str, ...], ...]


class Pipeline(grain.IterDataset):
    """The stream as a grain `IterDataset` of `HostBatch`; what it yields does not depend on `workers` or `prefetch`.

    encode: Sample -> Example; must pickle if there are workers (functools.partial of `encode_example` does).
    shard_index, shard_count: a part of the data; training.input says who reads which.
    workers: processes that read and encode; 0 encodes in the caller's own.
    prefetch: batches that a thread prepares ahead, collation included.
    skip_log: JSON-lines file for what had to be skipped, see `SkipLog`; one for each shard.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        encode: Callable[[Sample], Example],
        settings: Settings,
        *,
        shard_index: int = 0,
        shard_count: int = 1,
        workers: int = 0,
        prefetch: int = 0,
        skip_log: str | os.PathLike | None = None,
    ):
        super().__init__()
        if not 0 <= shard_index < shard_count:
            raise DataError(f"shard_index {shard_index}: expected 0 to {shard_count - 1} of {shard_count} shards")
        self.sources, self.encode, self.settings = tuple(sources), encode, settings
        self.shard = (shard_index, shard_count)
        self.workers, self.prefetch, self.skip_log = workers, prefetch, skip_log
        self.order = _order(self.sources, encode, settings)
        count = sum(len(source.data) for source in self.sources)
        self.stop = None if settings.epochs is None else count * settings.epochs

    def __iter__(self) -> grain.DatasetIterator[HostBatch]:
        if self.prefetch:
            own = grain.experimental.ThreadPrefetchIterDataset(_Batches(self), prefetch_buffer_size=self.prefetch)
            return own.__iter__()
        return _BatchIterator(self)

    def fingerprint(self) -> dict:
        """What a saved state must agree with for its positions to mean the same examples."""
        settings = self.settings
        return {
            "sources": [[s.name, len(s.data), s.weight] for s in self.sources],
            "seed": settings.seed,
            "shuffle": settings.shuffle,
            "stop": self.stop,
        }


def _order(sources: Sequence[Source], encode: Callable, settings: Settings) -> grain.MapDataset:
    """Position in the run -> `Encoded` or `Skipped`, by random access."""
    weights = [source.weight for source in sources]
    if not sources or any(len(source.data) == 0 for source in sources):
        raise DataError(f"data sources {[(s.name, len(s.data)) for s in sources]}: expected one or more, none empty")
    if len({source.name for source in sources}) != len(sources):
        raise DataError(f"data sources {[s.name for s in sources]}: expected a different name for each")
    weighted = weights[0] is not None
    if any((weight is not None) != weighted or (weight is not None and not weight > 0) for weight in weights):
        raise DataError(f"weights of the data sources are {weights}: expected positive numbers, or none at all")
    parts = [
        grain.MapDataset.source(EncodedSource(s.data, s.name, encode, settings.budget, settings.geometry))
        for s in sources
    ]

    def endless(dataset: grain.MapDataset, number: int) -> grain.MapDataset:
        if settings.shuffle:
            seed = np.random.SeedSequence([settings.seed, number]).generate_state(1)[0]
            dataset = dataset.shuffle(seed=int(seed))           # a new order each epoch
        return dataset.repeat()

    if weighted:
        return grain.MapDataset.mix([endless(part, i) for i, part in enumerate(parts)], weights)
    return endless(grain.MapDataset.concatenate(parts), 0)


class _Left(grain.MapDataset):
    """The rest of the run for one shard, in order, as (position, `Encoded` or `Skipped`)."""

    def __init__(self, order: grain.MapDataset, progress: Progress, stop: int | None):
        super().__init__(order)
        self._progress, self._length = progress, progress.left(stop)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index):
        if isinstance(index, slice):
            return self.slice(index)
        position = self._progress.position(int(index))
        return position, self._parent[position]


class _Batches(grain.IterDataset):
    """The same stream without the prefetching thread, which wraps it."""

    def __init__(self, pipeline: Pipeline):
        super().__init__()
        self._pipeline = pipeline

    def __iter__(self) -> grain.DatasetIterator[HostBatch]:
        return _BatchIterator(self._pipeline)


class _BatchIterator(grain.DatasetIterator):
    """Packs one shard. Its state are positions only: a restored iterator encodes the waiting examples once more."""

    def __init__(self, pipeline: Pipeline):
        super().__init__()
        self._pipeline = pipeline
        settings = pipeline.settings
        self._skips = SkipLog(pipeline.skip_log, settings.max_skip_share, settings.patience)
        self._stream: grain.DatasetIterator | None = None
        self._begin(Progress(*pipeline.shard))
        self._state = self._current_state()

    def _begin(self, progress: Progress) -> None:
        """Positions are counted from here: `_read` of them so far, `_waiting` of those not emitted yet."""
        self.close()
        self._closed = False
        self._progress, self._read = progress, 0
        self._waiting: list[tuple[int, Example, Budget]] = []
        self._exhausted = progress.left(self._pipeline.stop) == 0

    def _open(self) -> grain.DatasetIterator:
        pipeline = self._pipeline
        left = _Left(pipeline.order, self._progress, pipeline.stop)
        # Threads of grain's own would encode in parallel under one interpreter lock: processes, or nothing.
        stream = left.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
        if pipeline.workers:
            if not flags.FLAGS.is_parsed():     # grain 0.2.18 asks an absl flag, also outside an absl program
                flags.FLAGS.mark_as_parsed()
            options = grain.MultiprocessingOptions(num_workers=pipeline.workers, per_worker_buffer_size=2)
            stream = stream.mp_prefetch(options)
        return stream.__iter__()

    def _fill(self) -> None:
        """Reads until `lookahead` examples wait, or nothing is left."""
        while len(self._waiting) < self._pipeline.settings.lookahead and not self._exhausted:
            if self._stream is None:
                self._stream = self._open()
            try:
                position, item = next(self._stream)
            except StopIteration:
                self._exhausted = True
                return
            self._read += 1
            if isinstance(item, Skipped):
                self._skips.add(position, item)
                self._skips.check()
            else:
                self._waiting.append((position, item.example, item.size))

    def _row(self) -> list[Example]:
        self._fill()
        if not self._waiting:
            return []
        settings = self._pipeline.settings
        chosen = fill_row([size for _, _, size in self._waiting], settings.budget, settings.max_per_row)
        row = [self._waiting[i][1] for i in chosen]
        self._waiting = [item for i, item in enumerate(self._waiting) if i not in set(chosen)]
        self._skips.seen += len(row)
        return row

    def __next__(self) -> HostBatch:
        self._assert_not_closed()
        settings = self._pipeline.settings
        try:
            rows = [self._row() for _ in range(settings.rows)]
            self._skips.flush()
            if not rows[0]:
                self._skips.check(at_end=True)
            batch = collate(rows, settings.budget, settings.geometry)
        except BaseException:
            self.set_state(self._state)     # the rows taken so far were not emitted
            raise
        self._state = self._current_state()
        if not rows[0]:
            raise StopIteration
        return HostBatch(batch, tuple(tuple(example.id for example in row) for row in rows))

    def get_state(self) -> dict:
        """JSON-able; right after a batch it says that this batch is done and the next one is not."""
        return self._state

    def _current_state(self) -> dict:
        progress = self._progress.after(self._read, [position for position, _, _ in self._waiting])
        return {
            "version": VERSION,
            "run": self._pipeline.fingerprint(),
            "shard": list(self._pipeline.shard),
            "cursor": progress.cursor,
            "step": progress.step,
            "waiting": list(progress.waiting),
            "skips": self._skips.state(),
        }

    def set_state(self, state: dict) -> None:
        """Goes on after the batch at which `state` was taken. DataError if it is the state of another run."""
        for field, own in (("version", VERSION), ("run", self._pipeline.fingerprint())):
            if state.get(field) != own:
                raise DataError(f"iterator state: {field} is {state.get(field)!r}, this pipeline has {own!r}")
        if tuple(state["shard"]) != self._pipeline.shard:
            raise DataError(
                f"iterator state: of shard {state['shard'][0]} of {state['shard'][1]}, this is shard "
                f"{self._pipeline.shard[0]} of {self._pipeline.shard[1]} (lvr_jax.data.progress.reshard converts)"
            )
        self._skips.restore(state["skips"])
        self._begin(Progress(state["cursor"], state["step"], tuple(state["waiting"])))
        self._state = self._current_state()

    def close(self) -> None:
        """Ends the worker processes."""
        self._closed = True
        if self._stream is not None:
            self._stream.close()
            self._stream = None
