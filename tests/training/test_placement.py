"""Wherever a mesh puts a process's devices, the process reads their rows and no shard's order changes."""

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import runs

from aot.slices import ENVIRONMENT, Slice
from lvr_jax.data.device import Placement, batch_sharding
from lvr_jax.data.from_config import DataConfig, make_tokenizer
from lvr_jax.data.sample import DataError
from lvr_jax.training.input import Input, Synthetic
from lvr_jax.training.partitioning import make_mesh

ROOT = Path(__file__).parents[2]
# What libtpu 0.0.42 takes, up to 256 chips a slice (chips, and two devices a chip on v7), on hosts of four chips.
FLAT = ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
TORUS = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8")
TOPOLOGIES = {"v5e": FLAT, "v6e": FLAT, "v5p": TORUS, "tpu7x": TORUS}
SHAPES = [{"data": data, "fsdp": -1, "tensor": tensor} for data in (1, 2, 4) for tensor in (1, 2, 4, 8)]


@pytest.fixture(scope="module")
def libtpu():
    """Set before libtpu is loaded."""
    before = dict(os.environ)
    os.environ.update(ENVIRONMENT)
    yield
    os.environ.clear()
    os.environ.update(before)


def check_placement(devices, shape: dict, total: int | None = None) -> Placement:
    """Asserts what training relies on, through the functions that it calls. total: 4 rows a device by default."""
    mesh = make_mesh(shape, devices)
    sharding = batch_sharding(mesh)
    total = total or 4 * mesh.shape["data"] * mesh.shape["fsdp"]
    every = Placement.of(sharding, total, process=devices[0].process_index)
    assert set(every.of_process) == {d.process_index for d in devices}
    size = total // every.shards
    for rows in every.of_process.values():
        assert (np.unique(rows // size)[:, None] * size + np.arange(size)).ravel().tolist() == rows.tolist()
    places = {n: Placement(total, every.of_process, n) for n in every.of_process}
    for device, (rows,) in sharding.devices_indices_map((total,)).items():
        place = places[device.process_index]
        assert place.rows[place.local(rows)].tolist() == list(range(*rows.indices(total)))
    return every


@pytest.mark.tpu
@pytest.mark.parametrize("generation", TOPOLOGIES)
def test_every_mesh_on_every_slice_has_a_placement(libtpu, generation):
    """No refusal, one to four slices; each process holds whole shards and finds each device's rows among its own."""
    placed = 0
    for name in TOPOLOGIES[generation]:
        large = np.prod([int(side) for side in name.split("x")]) > 64
        for count in (1,) if large else (1, 2, 3, 4):
            devices = Slice.parse(f"{generation}:{name}*{count}").devices
            for shape in SHAPES:
                if len(devices) // count % (shape["data"] * shape["tensor"]) == 0:
                    check_placement(devices, shape | {"data": shape["data"] * count})
                    placed += 1
    assert placed > 200


@pytest.mark.tpu
def test_every_compiled_row_has_a_placement(libtpu):
    """The meshes of the README's table, with the rows that are trained (or swept) on them."""
    rows = json.loads((ROOT / "tools/aot/compiled.json").read_text())
    for mesh, topology, total in sorted({(row["mesh"], row["topology"], row["rows"]) for row in rows}):
        shape = {axis: int(size) for axis, size in re.findall(r"(\w+) (\d+)", mesh)}
        check_placement(Slice.parse(topology).devices, shape, total)


@pytest.mark.tpu
def test_a_host_of_a_real_slice_holds_rows_that_are_not_in_one_block(libtpu):
    """v5e 4x4: the mesh is a ring through the chips, hosts are tiles of 2x2."""
    found = check_placement(Slice.parse("v5e:4x4").devices, {"fsdp": -1}, 64)
    assert found.of_process[0].tolist() == [*range(8), *range(24, 28), *range(60, 64)]
    assert found.shards == 16


# Two processes that hold rows 0-1, 4 and 2-3, 5; two that share rows 2-3; one that holds all.
HELD = {
    "interleaved": ({0: [0, 1, 4], 1: [2, 3, 5]}, 6),
    "overlapping": ({0: [0, 1, 2, 3], 1: [2, 3, 4, 5]}, 3),
    "alone": ({0: [0, 1, 2, 3, 4, 5]}, 1),
}


def six_rows() -> DataConfig:
    return DataConfig.read({**runs.small().data.to_dict(), "rows": 6})


def placements(name: str) -> list[Placement]:
    held = {n: np.array(rows) for n, rows in HELD[name][0].items()}
    return [Placement(6, held, n) for n in held]


@pytest.mark.parametrize("name", HELD)
def test_shards_are_as_few_as_every_process_can_hold_whole(name):
    assert {p.shards for p in placements(name)} == {HELD[name][1]}


@pytest.mark.parametrize("shards", [1, 2, 3, 6])
@pytest.mark.parametrize("name", HELD)
def test_rows_of_a_step_are_the_same_on_any_placement(name, shards):
    """Whatever the shards, row for row those of one process: ids, arrays, and the state that a checkpoint keeps."""
    data = six_rows()
    tokenizer = make_tokenizer(data)
    whole = Input(data, tokenizer, shards=shards)
    parts = [(p, Input(data, tokenizer, placement=p, shards=shards)) for p in placements(name)]
    for _ in range(2):
        expected = next(whole)
        for placement, part in parts:
            found = next(part)
            assert found.ids == tuple(expected.ids[row] for row in placement.rows)
            for key, value in expected.arrays.items():
                np.testing.assert_array_equal(found.arrays[key], value[placement.rows])
    states = {state["shard"][0]: state for state in whole.get_state()}
    for _, part in parts:
        assert all(state == states[state["shard"][0]] for state in part.get_state())
    assert {n for _, part in parts for n in part.numbers} == set(states)


def test_a_skip_is_listed_by_one_of_the_processes_that_read_its_shard():
    first, second = placements("overlapping")
    assert [first.first_of(2 * n, 2 * n + 2) for n in range(3)] == [True, True, False]
    assert [second.first_of(2 * n, 2 * n + 2) for n in range(3)] == [False, False, True]


def test_synthetic_rows_do_not_depend_on_the_placement():
    data = six_rows()
    whole = next(Synthetic(data)).arrays["tokens"]
    for placement in placements("interleaved"):
        found = next(Synthetic(data, placement=placement)).arrays["tokens"]
        np.testing.assert_array_equal(found, whole[placement.rows])


def test_rows_that_no_placement_can_cut_are_one_line():
    data = six_rows()
    with pytest.raises(DataError, match="shards = 4: expected a number that divides the 6 rows of a step"):
        Input(data, make_tokenizer(data), shards=4)


@pytest.mark.tpu
def test_rows_that_do_not_divide_over_a_slice_are_one_line(libtpu):
    sharding = batch_sharding(make_mesh({"fsdp": 8, "tensor": 2}, Slice.parse("v6e:4x4").devices))
    with pytest.raises(DataError, match="12 rows a batch do not divide over the mesh {'data': 1, 'fsdp': 8, ") as error:
        Placement.of(sharding, 12)
    assert "\n" not in str(error.value)
