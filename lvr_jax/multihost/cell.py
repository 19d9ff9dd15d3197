"""A cell: a group of chips that holds the weights once and processes items independently of all other cells.

A run has `count` cells, which share nothing but a folder: each does every count-th of the batches that are missing.
Usually a cell is one process with its chips. Weights that do not fit there make a cell of several processes, whose
programs run on the cell's mesh alone (a mesh of some of a run's processes: only they may call them, all in one order).
`training.partitioning.make_cell` makes them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lvr_jax.multihost.hosts import ALONE, Hosts

ROWS = ("data", "fsdp")         # the mesh axes that rows are spread over


@dataclasses.dataclass(frozen=True)
class Cell:
    """This process's cell, `number` of `count`.

    mesh: of the cell's devices; None: the process's one device
    is_writer: whether this process writes what the cell makes; the others compute the same and keep nothing
    hosts: all processes of the run
    idle: it runs no batch, and one that is missing is an error: for a report of what others have finished
    """

    mesh: Mesh | None = None
    number: int = 0
    count: int = 1
    is_writer: bool = True
    hosts: Hosts = ALONE
    idle: bool = False

    @property
    def shards(self) -> int:
        """Parts that the rows of a batch are cut into."""
        return 1 if self.mesh is None else math.prod(self.mesh.shape[axis] for axis in self._axes)

    @property
    def _axes(self) -> tuple[str, ...]:
        return tuple(axis for axis in ROWS if axis in self.mesh.shape)

    @property
    def reports(self) -> bool:
        """Whether this process is the one that shows progress."""
        return self.hosts.first

    def filled(self, rows: int) -> int:
        """Rows of a batch that holds so many items: the next multiple of `shards`."""
        return rows + -rows % self.shards

    def active(self) -> contextlib.AbstractContextManager:
        """Sets the mesh as the current one, by which activations are placed (models.placement)."""
        return contextlib.nullcontext() if self.mesh is None else jax.set_mesh(self.mesh)

    def share(self, name: str, missing: Callable[[], Sequence[int]]) -> list[int]:
        """This cell's part of what is missing, as the first process lists it: an interrupted run's rest is dealt out
        evenly, to any number of cells. Every process calls it."""
        return self.hosts.broadcast(name, lambda: [int(n) for n in missing()])[self.number :: self.count]

    # Arrays ----------------------------------------------------------------------------------------------------------

    def rows(self, tree: Any, axis: int = 0) -> Any:
        """Host arrays with rows on `axis`, spread over the cell; every process of it has all the rows."""
        return tree if self.mesh is None else self._place(tree, PartitionSpec(*[None] * axis, self._axes))

    def whole(self, tree: Any) -> Any:
        """Arrays that every device of the cell holds; what is on the mesh already stays as it is."""
        if self.mesh is None:
            return tree
        devices = set(self.mesh.devices.flat)
        there = lambda x: isinstance(x, jax.Array) and x.sharding.device_set == devices  # noqa: E731
        return jax.tree.map(lambda x: x if there(x) else self._place(x, PartitionSpec()), tree)

    def _place(self, tree: Any, spec: PartitionSpec) -> Any:
        sharding = NamedSharding(self.mesh, spec)
        if sharding.is_fully_addressable:
            return jax.device_put(tree, sharding)
        # device_put would compare the values with those of all processes of the run, not of the cell alone.
        local = lambda x: jax.make_array_from_callback(x.shape, sharding, x.__getitem__)  # noqa: E731
        return jax.tree.map(lambda x: local(np.asarray(x)), tree)

    def fetch(self, tree: Any) -> Any:
        """Device arrays as NumPy arrays, whole, in every process of the cell."""
        leaves, structure = jax.tree.flatten(tree)
        apart = [n for n, x in enumerate(leaves) if isinstance(x, jax.Array) and not x.is_fully_addressable
                 and not x.is_fully_replicated]  # fmt: skip
        if apart:
            gathered = _gathering(NamedSharding(self.mesh, PartitionSpec()))([leaves[n] for n in apart])
            for n, x in zip(apart, gathered):
                leaves[n] = x
        for x in leaves:
            if isinstance(x, jax.Array):
                x.copy_to_host_async()
        return jax.tree.unflatten(structure, [np.asarray(x) for x in leaves])


@functools.cache
def _gathering(whole: NamedSharding) -> Callable:
    return jax.jit(lambda arrays: arrays, out_shardings=whole)
