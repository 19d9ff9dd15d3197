"""Shards parameters over a mesh by rules: (regex of a path, mesh axes).

Mesh axes: `data` replicates parameters, `fsdp` cuts them and gathers them layer by layer, `tensor` cuts heads, inner
widths and the vocabulary. Rows of a batch are spread over data and fsdp.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental.mesh_utils import create_device_mesh
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from lvr_jax.checkpoints.orbax_io import flat, nested
from lvr_jax.models.interface import Rules
from lvr_jax.multihost.cell import Cell
from lvr_jax.multihost.hosts import ALONE, Hosts

AXES = ("data", "fsdp", "tensor")
_AUTO = (AxisType.Auto,) * len(AXES)


class MeshError(ValueError):
    """A mesh that does not fit the devices, or rules that do not fit the parameters."""


def _slice_of(device: jax.Device) -> int:
    """GPUs number their hosts so; only TPU slices count here, and a single one has no number."""
    return (getattr(device, "slice_index", 0) or 0) if device.platform == "tpu" else 0


def make_mesh(
    shape: Mapping[str, int],
    devices: Sequence[jax.Device] | None = None,
    slice_of: Callable[[jax.Device], int] | None = None,
) -> Mesh:
    """A mesh of all three axes; one of them may be -1 and takes what is left. MeshError if it does not divide.

    Devices of several slices, which only a data-centre network joins: `data` runs across slices, and what `fsdp` and
    `tensor` move stays within one. slice_of: another way to tell a device's slice.
    """
    devices = jax.devices() if devices is None else devices
    sizes = [int(shape.get(axis, 1)) for axis in AXES]
    shown = ", ".join(f"{axis}={size}" for axis, size in zip(AXES, sizes))
    if unknown := set(shape) - set(AXES):
        raise MeshError(f"mesh axis {sorted(unknown)[0]!r} does not exist, expected {', '.join(AXES)}")
    if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
        raise MeshError(f"mesh {shown}: expected positive sizes, at most one of them -1 (what is left)")
    known = math.prod(size for size in sizes if size != -1)
    sizes = [len(devices) // known if size == -1 else size for size in sizes]
    if math.prod(sizes) != len(devices):
        raise MeshError(f"mesh {shown} does not divide {len(devices)} devices")
    slice_of = slice_of or _slice_of
    slices = [[d for d in devices if slice_of(d) == number] for number in sorted({slice_of(d) for d in devices})]
    if sizes[0] % len(slices):
        raise MeshError(f"mesh {shown}: expected data to be a multiple of the {len(slices)} slices of {len(devices)}")
    within = (sizes[0] // len(slices), *sizes[1:])
    # jax.make_mesh splits an axis of the torus on v5e alone and refuses `fsdp=8, tensor=2` on v6e 4x4 (jax 0.10.2).
    parts = [create_device_mesh(within, part, allow_split_physical_axes=True) for part in slices]
    return Mesh(np.concatenate(parts), AXES, axis_types=_AUTO)


def make_cell(
    shape: Mapping[str, int],
    hosts: Hosts = ALONE,
    devices: Sequence[jax.Device] | None = None,
) -> Cell:
    """The cell of this process under a mesh shape that holds the weights once: its own devices if they are enough,
    else the fewest whole processes next to each other. An axis of -1 takes what is left of them.

    devices: of all processes; hosts.index says which of them are this process's. MeshError if the shape does not fit a
    process's devices, nor a number of processes that divides theirs.
    """
    devices = jax.devices() if devices is None else devices
    owned: dict[int, list[jax.Device]] = {}
    for device in devices:
        owned.setdefault(device.process_index, []).append(device)
    own = owned[hosts.index]
    asked = math.prod(int(size) for size in shape.values() if size > 0)
    if asked <= len(own):
        mesh = make_mesh(shape, own) if len(own) > 1 or asked > 1 else _checked(shape, own)
        return Cell(mesh, hosts.index, hosts.count, True, hosts)
    width, rest = divmod(asked, len(own))
    if rest or len(owned) % width:
        shown = ", ".join(f"{axis}={size}" for axis, size in shape.items())
        raise MeshError(f"mesh {shown} does not divide {len(owned)} processes of {len(own)} devices, expected a cell of"
                        " whole processes")
    order = sorted(owned, key=lambda index: _place(owned[index]))
    number = order.index(hosts.index) // width
    members = order[number * width : (number + 1) * width]
    mesh = make_mesh({axis: max(int(size), 1) for axis, size in shape.items()}, [d for i in members for d in owned[i]])
    return Cell(mesh, number, len(owned) // width, hosts.index == members[0], hosts)


def _checked(shape: Mapping[str, int], own: Sequence[jax.Device]) -> Mesh | None:
    """Checks a mesh shape for a single device, which then needs no mesh."""
    make_mesh(shape, own)
    return None


def _place(own: Sequence[jax.Device]) -> tuple[int, ...]:
    """Where a process's devices lie, so that neighbours in this order fill a box of the torus."""
    corner = min(tuple(reversed(getattr(d, "coords", ()))) for d in own)
    return (_slice_of(own[0]), *corner, own[0].process_index)


def matching(rules: Rules, path: str) -> list[int]:
    """Numbers of the rules that match a parameter's path."""
    return [i for i, (pattern, _) in enumerate(rules) if re.fullmatch(pattern, path)]


def specs(params: dict, rules: Rules, mesh: Mesh) -> tuple[dict[str, PartitionSpec], list[str]]:
    """PartitionSpec of every parameter by path, and notes on axes that stay whole because they do not divide.

    The latter is grouped-query attention under a wide tensor axis: more devices than key/value heads, so each holds
    them all. MeshError if a path matches no rule, or several.
    """
    found, whole = {}, []
    for path, x in flat(params).items():
        rule = matching(rules, path)
        if len(rule) != 1:
            raise MeshError(f"parameter {path} matches {len(rule)} sharding rules, expected exactly one")
        axes = list(rules[rule[0]][1])
        if len(axes) > len(x.shape):
            raise MeshError(f"parameter {path} has {len(x.shape)} axes, its sharding rule names {len(axes)}")
        for i, axis in enumerate(axes):
            if axis is not None and x.shape[i] % mesh.shape[axis]:
                whole.append(f"{path}: axis {i} of {x.shape[i]} stays whole over {axis}={mesh.shape[axis]}")
                axes[i] = None
        found[path] = PartitionSpec(*axes)
    return found, whole


def shardings(params: dict, rules: Rules, mesh: Mesh) -> Any:
    """NamedShardings, nested like params (arrays or ShapeDtypeStructs)."""
    return nested({path: NamedSharding(mesh, spec) for path, spec in specs(params, rules, mesh)[0].items()})


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding that keeps an array whole on every device."""
    return NamedSharding(mesh, PartitionSpec())
