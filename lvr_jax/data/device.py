"""How do the rows that each process read become arrays sharded over the whole mesh?

The only module of `lvr_jax.data` that uses JAX.
"""

from __future__ import annotations

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lvr_jax.data.packing import Batch
from lvr_jax.data.sample import DataError

BATCH_AXES = ("data", "fsdp")       # the mesh axes that rows are spread over


def batch_sharding(mesh: Mesh, axes: tuple[str, ...] = BATCH_AXES) -> NamedSharding:
    """Rows over `axes`, everything else of a batch replicated."""
    return NamedSharding(mesh, PartitionSpec(tuple(axis for axis in axes if axis in mesh.axis_names)))


def data_shard(sharding: NamedSharding, rows: int) -> tuple[int, int]:
    """(shard_index, shard_count) of this process's input pipeline, for `rows` rows over all processes.

    Processes that hold the same rows, as when a tensor axis spans hosts, get the same index and so read the same data;
    each reads rows / shard_count of them. DataError if the rows do not divide, or a process's are not next to each
    other.
    """
    try:
        slices = {index[0].indices(rows)[:2] for index in sharding.addressable_devices_indices_map((rows,)).values()}
    except ValueError as error:
        raise DataError(f"{rows} rows a batch do not divide over the mesh {dict(sharding.mesh.shape)}") from error
    start, stop = min(a for a, _ in slices), max(b for _, b in slices)
    count, remainder = divmod(rows, stop - start)
    if remainder or start % (stop - start) or sum(b - a for a, b in slices) != stop - start:
        raise DataError(f"rows {sorted(slices)} of {rows} on this process: expected one block of rows a process")
    return start // (stop - start), count


def to_device(arrays: Batch, sharding: NamedSharding, rows: int | None = None) -> dict[str, jax.Array]:
    """One process's rows -> global arrays [rows, ...]; every process calls it with its own part of the same batch.

    rows: of the whole batch; None if each process's rows are its own (no axis but `sharding`'s spans hosts).
    """
    if rows is None:
        return {key: jax.make_array_from_process_local_data(sharding, np.asarray(x)) for key, x in arrays.items()}
    return {
        key: jax.make_array_from_process_local_data(sharding, np.asarray(x), (rows, *x.shape[1:]))
        for key, x in arrays.items()
    }
