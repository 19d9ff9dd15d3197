"""Where do activations lie on the mesh? Rows over `data` and `fsdp`, heads over `tensor`, under `jax.set_mesh`.

Parameters are cut by rules (training.partitioning), and left alone the partitioner lets activations follow them: whole
batches were gathered to every chip and cut along D instead. Without a mesh nothing here does anything.
"""

import math

import jax
from jax.sharding import AbstractMesh, PartitionSpec

ROWS = ("data", "fsdp")
HEADS = "tensor"


def ambient() -> AbstractMesh:
    return jax.sharding.get_abstract_mesh()


def row_axes(rows: int) -> tuple[str, ...]:
    """The axes of the ambient mesh that so many rows are spread over: none if they do not divide."""
    mesh = ambient()
    axes = tuple(axis for axis in ROWS if axis in mesh.axis_names)
    return () if rows % math.prod(mesh.shape[axis] for axis in axes) else axes


def over_rows(x: jax.Array) -> jax.Array:
    """Keeps rows [B, ...] where the batch has them, all else of them whole."""
    axes = row_axes(x.shape[0])
    return jax.lax.with_sharding_constraint(x, PartitionSpec(axes)) if axes else x
