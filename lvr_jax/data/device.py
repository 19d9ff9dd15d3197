"""Puts the rows that each process read on the mesh, wherever its devices lie in it.

The only module of `lvr_jax.data` that uses JAX. A process's rows are a set: on real slices the mesh follows the torus
and hosts are tiles of it, so that a host may hold rows 0-8, 24-28 and 60-64 of 64.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lvr_jax.data.packing import Batch
from lvr_jax.data.sample import DataError

BATCH_AXES = ("data", "fsdp")       # the mesh axes that rows are spread over


def batch_sharding(mesh: Mesh, axes: tuple[str, ...] = BATCH_AXES) -> NamedSharding:
    """Rows over `axes`, everything else of a batch replicated."""
    return NamedSharding(mesh, PartitionSpec(tuple(axis for axis in axes if axis in mesh.axis_names)))


@dataclasses.dataclass(frozen=True, eq=False)
class Placement:
    """Which rows of a batch each process holds.

    total: rows of the batch over all processes; of_process: ascending row numbers by process; process: this one.
    Sets of two processes may overlap, as where a tensor axis spans hosts: each reads all of its own.
    """

    total: int
    of_process: Mapping[int, np.ndarray]
    process: int = 0

    @classmethod
    def whole(cls, total: int) -> Placement:
        """One process that holds every row."""
        return cls(total, {0: np.arange(total)})

    @classmethod
    def of(cls, sharding: NamedSharding, total: int, process: int | None = None) -> Placement:
        """What the sharding's own devices say. process: another one than this.

        DataError if so many rows do not divide over the mesh.
        """
        try:
            indices = sharding.devices_indices_map((total,))
        except ValueError as error:
            raise DataError(f"{total} rows a batch do not divide over the mesh {dict(sharding.mesh.shape)}") from error
        held: dict[int, np.ndarray] = {}
        for device, (rows,) in indices.items():
            held.setdefault(device.process_index, np.zeros(total, bool))[rows] = True
        here = jax.process_index() if process is None else process
        return cls(total, {number: np.flatnonzero(held[number]) for number in sorted(held)}, here)

    @property
    def rows(self) -> np.ndarray:
        """Ascending numbers of this process's rows."""
        return self.of_process[self.process]

    @property
    def shards(self) -> int:
        """The fewest equal blocks of rows, so that every process holds whole ones."""
        ends = [np.flatnonzero(np.diff(np.isin(np.arange(self.total), rows))) + 1 for rows in self.of_process.values()]
        return self.total // int(np.gcd.reduce(np.concatenate([[self.total], *ends])))

    def local(self, rows: slice) -> slice:
        """Where a device's rows lie among this process's, which are ascending and hold all of them."""
        start, stop, _ = rows.indices(self.total)
        first = int(np.searchsorted(self.rows, start))
        return slice(first, first + stop - start)

    def first_of(self, start: int, stop: int) -> bool:
        """Whether this process is the first of those that hold a row from `start` up to `stop`."""
        holders = (n for n, rows in self.of_process.items() if np.any((rows >= start) & (rows < stop)))
        return next(holders, None) == self.process


def to_device(arrays: Batch, sharding: NamedSharding, placement: Placement | None = None) -> dict[str, jax.Array]:
    """This process's rows, in ascending order, -> global arrays [rows, ...]; every process calls it with its own.

    placement: None for one process, which holds all rows.
    """

    def on_mesh(x: np.ndarray, own: Placement) -> jax.Array:
        shape = (own.total, *x.shape[1:])
        return jax.make_array_from_callback(shape, sharding, lambda index: x[(own.local(index[0]), *index[1:])])

    return {key: on_mesh(x, placement or Placement.whole(len(x))) for key, x in arrays.items()}
