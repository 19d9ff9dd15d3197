"""Cells of real slices: every chip in one cell, every cell a block of the torus with one writer, weights held once."""

import math

import pytest

from aot.slices import Slice
from lvr_jax.multihost.hosts import Hosts
from lvr_jax.training.partitioning import MeshError, make_cell

pytestmark = pytest.mark.tpu


def cells(topology: str, shape: dict, slices: int = 1) -> dict[int, list]:
    """Number of each cell -> what its processes see of it."""
    devices = Slice.parse(topology if slices == 1 else f"{topology}*{slices}").devices
    count = len({device.process_index for device in devices})
    found: dict[int, list] = {}
    for index in range(count):
        cell = make_cell(shape, Hosts(index, count), devices)
        found.setdefault(cell.number, []).append(cell)
    return found


@pytest.mark.parametrize("topology, shape, slices, count", [
    ("v5e:4x4", {"data": -1}, 1, 4), ("v5e:4x4", {"data": -1, "tensor": 4}, 1, 4),
    ("v5e:4x4", {"data": -1, "tensor": 8}, 1, 2), ("v5e:4x4", {"data": -1, "tensor": 8}, 2, 4),
    ("v5e:8x8", {"data": -1, "fsdp": 2, "tensor": 8}, 1, 4), ("v5p:2x2x4", {"data": -1, "tensor": 8}, 1, 2),
    ("v5p:4x4x4", {"data": 2, "tensor": 4}, 1, 8), ("v6e:4x8", {"tensor": 8}, 1, 4),
])
def test_every_chip_is_in_one_cell_which_is_a_block(topology, shape, slices, count):
    found = cells(topology, shape, slices)
    assert sorted(found) == list(range(count))
    everything = []
    for members in found.values():
        devices = list(members[0].mesh.devices.flat)
        assert all(list(member.mesh.devices.flat) == devices for member in members), "its processes see one mesh"
        assert [member.is_writer for member in members].count(True) == 1 and {m.count for m in members} == {count}
        assert {d.process_index for d in devices} == {member.hosts.index for member in members}
        assert len({getattr(d, "slice_index", 0) for d in devices}) == 1, "nothing within a cell crosses slices"
        sides = [len(set(axis)) for axis in zip(*(d.coords for d in devices))]
        assert len(devices) == sides[0] * sides[1] * sides[2], "its chips are neighbours"
        everything += devices
    assert len(everything) == len(set(everything)) == slices * math.prod(map(int, topology.split(":")[1].split("x")))


@pytest.mark.parametrize("shape", [{"tensor": 12}, {"data": 3}, {"tensor": 32}])
def test_a_cell_of_parts_of_processes_is_refused(shape):
    with pytest.raises(MeshError, match="does not divide"):
        cells("v5e:4x4", shape)
