"""Lays activations on the mesh: rows over `data` and `fsdp`, heads over `tensor`, under `jax.set_mesh`.

Parameters are cut by rules (training.partitioning), and left alone the partitioner lets activations follow them: whole
batches were gathered to every chip and cut along D instead. Without a mesh nothing here does anything.
"""

import math

import jax
from jax.sharding import AbstractMesh, PartitionSpec

ROWS = ("data", "fsdp")
HEADS = "tensor"


def current_mesh() -> AbstractMesh:
    """The mesh that jax.set_mesh has set; an empty one without it."""
    return jax.sharding.get_abstract_mesh()


def on_one_device() -> bool:
    """Whether nothing is cut over devices."""
    mesh = current_mesh()
    return mesh.empty or mesh.size == 1


def row_axes(rows: int) -> tuple[str, ...]:
    """Mesh axes that a batch of `rows` rows is sharded over; none if the number of rows does not divide."""
    mesh = current_mesh()
    axes = tuple(axis for axis in ROWS if axis in mesh.axis_names)
    return () if rows % math.prod(mesh.shape[axis] for axis in axes) else axes


def over_rows(x: jax.Array) -> jax.Array:
    """Constrains x [B, ...] to be sharded over its rows alone."""
    axes = row_axes(x.shape[0])
    return jax.lax.with_sharding_constraint(x, PartitionSpec(axes)) if axes else x


def embedding_lookup(x: jax.Array) -> jax.Array:
    """Spreads gathered embedding rows [B, ..., D] over the chips of their batch rows, by way of their table's sharding.

    The table's D is cut over `fsdp`. Rows are first kept in that cut, within one part of `data`, and only then moved:
    so their gradients are added up before they travel. Without that, and with `data` of more than one, the gradient of
    every row of the batch is gathered to every chip before it is added to the table.
    """
    axes, mesh = row_axes(x.shape[0]), current_mesh()
    if "fsdp" not in axes or x.shape[-1] % mesh.shape["fsdp"]:
        return over_rows(x)
    rows = tuple(axis for axis in axes if axis != "fsdp")
    as_the_table = PartitionSpec(rows, *(None,) * (x.ndim - 2), "fsdp")
    return over_rows(jax.lax.with_sharding_constraint(x, as_the_table))
