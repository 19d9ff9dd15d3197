"""Both kinds of folder load the same parameters, on one device, on eight and in two processes."""

import dataclasses
import json
import os
import socket
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import quick
from checkpoint_folders import (
    DTYPES,
    assert_nothing_left,
    bits,
    by_hand,
    files_of,
    tensors_of,
    tiny,
    write_folder,
)
from forked import Process
from safetensors.numpy import load_file

from lvr_jax import checkpoints
from lvr_jax.checkpoints import CheckpointError, orbax_io
from lvr_jax.models.families import shapes, slots
from lvr_jax.models.qwen2_5_vl.config import SIZES, Config


def test_both_kinds_of_folder_load_the_same_parameters(tmp_path, hf):
    config = tiny()
    expected = by_hand(config, tensors_of(config))
    checkpoints.to_flax(hf, tmp_path / "flax")
    for source, files in (("hf", "hf"), ("flax", "flax/hf")):
        found, params, around = checkpoints.load(tmp_path / source)
        assert found == checkpoints.read_config(tmp_path / source) == config
        assert os.path.samefile(around, tmp_path / files)
        params = orbax_io.flat(params)
        assert params.keys() == expected.keys()
        for path, x in params.items():
            assert isinstance(x, jax.Array)
            np.testing.assert_array_equal(bits(x), bits(expected[path]), err_msg=path)


def test_loading_can_change_the_type(tmp_path):
    config = tiny()
    tensors = tensors_of(config, "float32", lambda shape, dtype, seed: np.full(shape, seed + 1 / 3, dtype))
    write_folder(tmp_path / "hf", config, tensors)
    checkpoints.to_flax(tmp_path / "hf", tmp_path / "flax")
    for source in ("hf", "flax"):
        params = orbax_io.flat(checkpoints.load(tmp_path / source, dtype="bfloat16")[1])
        for path, x in by_hand(config, tensors).items():
            np.testing.assert_array_equal(bits(params[path]), bits(x.astype(DTYPES["bfloat16"])), err_msg=path)


def test_plain_orbax_reads_what_the_converter_wrote(tmp_path, hf):
    config = tiny()
    checkpoints.to_flax(hf, tmp_path / "flax")
    restored = orbax_io.flat(ocp.StandardCheckpointer().restore(tmp_path / "flax" / "params"))
    for path, x in by_hand(config, tensors_of(config)).items():
        np.testing.assert_array_equal(bits(restored[path]), bits(x), err_msg=path)


def test_a_slice_equals_the_slice_of_the_whole_and_touches_only_its_part():
    class Watched(np.ndarray):
        def __getitem__(self, index):
            taken = super().__getitem__(index)
            if isinstance(index, tuple) and len(index) == self.ndim and self.base is None:
                touched.append(taken.size)
            return taken

    rng = np.random.default_rng(0)
    for name, slot in slots(tiny(latent_head="glu")).items():
        x = np.arange(np.prod(slot.hf_shape)).reshape(slot.hf_shape)
        for _ in range(5):
            ends = [sorted(rng.choice(n + 1, 2, replace=False)) for n in slot.shape]
            index = tuple(slice(int(a), int(b)) for a, b in ends)
            touched = []
            got = slot.cut(x.copy().view(Watched), index)
            np.testing.assert_array_equal(got, slot.from_hf(x)[index], err_msg=name)
            led = [n if lead is None else b - a for (a, b), lead, n in zip(ends, slot.leads, slot.shape)]
            assert touched[:1] in ([], [np.prod(led)]), name


def test_saved_parameters_load_again_and_export_with_the_names_of_the_hub(tmp_path, hf):
    config, params, around = checkpoints.load(hf)
    params = jax.tree.map(lambda x: np.asarray(x).view(np.uint16).astype(np.float32), params)
    checkpoints.save_params(tmp_path / "mine", params, config, files=around, fields={"lvr_start_id": 5})
    again, loaded, files = checkpoints.load(tmp_path / "mine", config=config)
    assert again == config and json.loads(Path(files, "config.json").read_text())["lvr_start_id"] == 5
    jax.tree.map(np.testing.assert_array_equal, loaded, params)
    checkpoints.to_hf(tmp_path / "mine", tmp_path / "out", shard_bytes=80_000, verify=True)
    weight_map = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())["weight_map"]
    assert sorted(weight_map) == sorted(slots(config)) and len(set(weight_map.values())) > 1
    for name in set(weight_map.values()):
        assert sum(x.nbytes for x in load_file(tmp_path / "out" / name).values()) <= 80_000
    expected = files_of(hf)
    kept = {name: x for name, x in files_of(tmp_path / "out").items() if name in expected and "config.json" != name}
    assert all(x == expected[name] for name, x in kept.items() if "index" not in name) and "merges.txt" in kept
    jax.tree.map(np.testing.assert_array_equal, checkpoints.load(tmp_path / "out")[1], params)


def test_saving_without_files_writes_a_config_that_reads_back(tmp_path):
    config = tiny(tied=True)
    params = orbax_io.nested({path: np.ones(shape, np.float32) for path, shape in shapes(config).items()})
    checkpoints.save_params(tmp_path / "mine", params, config)
    assert checkpoints.load(tmp_path / "mine")[0] == config


@pytest.mark.parametrize("name", SIZES)
def test_a_config_written_for_hugging_face_reads_back_equal(name):
    assert Config.from_hf(json.loads(json.dumps(SIZES[name].to_hf()))) == SIZES[name]


def test_parameters_of_another_config_are_not_saved(tmp_path, hf):
    config, params, around = checkpoints.load(hf)
    other = dataclasses.replace(config, text=dataclasses.replace(config.text, rope_theta=5.0))
    with pytest.raises(CheckpointError, match=r"text\.rope_theta is 1000000\.0, expected 5\.0"):
        checkpoints.save_params(tmp_path / "mine", params, other, files=around)
    with pytest.raises(CheckpointError, match=r"1 missing \(text/norm\)"):
        checkpoints.save_params(tmp_path / "mine", {**params, "text": {**params["text"]} | {"norm": {}}}, config)
    assert_nothing_left(tmp_path, "hf")


MESH = """
import sys, numpy as np, jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from lvr_jax import checkpoints
from lvr_jax.checkpoints import orbax_io, safetensors_io
assert len(jax.devices()) == 8
mesh = jax.make_mesh((2, 4), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
def spec(shape):                     # b on the last axis that it divides, a on the first; layers are not cut
    axes = [None] * len(shape)
    for name, size, order in (("b", 4, range(len(shape) - 1, -1, -1)), ("a", 2, range(len(shape)))):
        for i in order:
            if axes[i] is None and shape[i] % size == 0 and shape[i] > 3:
                axes[i] = name
                break
    return P(*axes)
for folder in sys.argv[1:]:
    config, plain, _ = checkpoints.load(folder)
    shardings = jax.tree.map(lambda x: NamedSharding(mesh, spec(x.shape)), plain)
    _, params, _ = checkpoints.load(folder, shardings)
    assert sum(len(x.sharding.device_set) == 8 and not x.is_fully_replicated for x in jax.tree.leaves(params)) > 20
    def check(x, y, sharding):
        assert x.sharding == sharding
        np.testing.assert_array_equal(np.asarray(x).view(np.uint8), np.asarray(y).view(np.uint8))
    jax.tree.map(check, params, plain, shardings)
    checkpoints.save_params(folder + "_saved", params, config)
    _, again, _ = checkpoints.load(folder + "_saved")
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x).view(np.uint8), np.asarray(y).view(np.uint8)),
                 again, plain)
print("same")
"""


def test_eight_devices_hold_the_same_arrays_as_one(tmp_path, hf):
    checkpoints.to_flax(hf, tmp_path / "flax")
    environment = {**os.environ, "XLA_FLAGS": quick.flags(8), "JAX_PLATFORMS": "cpu"}
    out, error = Process(["-c", MESH, hf, tmp_path / "flax"], environment).communicate()
    assert out.strip().endswith("same"), error[-3000:]


PROCESS = """
import sys, numpy as np, jax
port, rank, source, target, plain = sys.argv[1:]
jax.distributed.initialize(f"localhost:{port}", 2, int(rank))
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from lvr_jax import checkpoints
from lvr_jax.checkpoints import orbax_io, safetensors_io
assert len(jax.devices()) == 8 and len(jax.local_devices()) == 4
mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
expected = dict(np.load(plain))
def spec(shape):
    return P(None, "x") if len(shape) > 1 and shape[1] % 8 == 0 else P()
shardings = orbax_io.nested({path: NamedSharding(mesh, spec(x.shape)) for path, x in expected.items()})
def same(params):
    for path, x in orbax_io.flat(params).items():
        for shard in x.addressable_shards:
            part = expected[path][shard.index].copy()
            np.testing.assert_array_equal(np.asarray(shard.data).view(np.uint8), part.view(np.uint8))
config, params, _ = checkpoints.load(source, shardings)
assert any(not x.is_fully_addressable for x in jax.tree.leaves(params))
same(params)
checkpoints.save_params(target, params, config, files=source)
same(checkpoints.load(target, shardings)[1])
"""


@pytest.mark.slow
def test_two_processes_load_their_slices_and_save_one_checkpoint(tmp_path, hf):
    config = tiny()
    expected = by_hand(config, tensors_of(config))
    np.savez(tmp_path / "plain.npz", **{path: x.view(np.uint16) for path, x in expected.items()})
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    environment = {**os.environ, "XLA_FLAGS": quick.flags(4), "JAX_PLATFORMS": "cpu"}
    arguments = [hf, tmp_path / "saved", tmp_path / "plain.npz"]
    processes = [Process(["-c", PROCESS, port, rank, *arguments], environment) for rank in "01"]
    for process in processes:
        _, error = process.communicate(timeout=300)
        assert process.returncode == 0, error[-3000:]
    assert_nothing_left(tmp_path, "hf", "saved", "plain.npz")
    checkpoints.to_hf(tmp_path / "saved", tmp_path / "again", verify=True)
    again = load_file(tmp_path / "again" / "model.safetensors")
    for name, x in tensors_of(config).items():
        np.testing.assert_array_equal(bits(again[name]), bits(x), err_msg=name)


@pytest.mark.parametrize("wrong", [{"text": {}}, {"extra": 1}])
def test_shardings_that_do_not_fit_are_named(hf, wrong):
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shardings = jax.tree.map(lambda _: device, {**checkpoints.load(hf)[1], **wrong})
    with pytest.raises(CheckpointError, match="shardings: .* in only one of"):
        checkpoints.load(hf, shardings)
