"""Do checkpoints survive the way to Orbax and back, and does a bad one fail by name and leave nothing behind?"""

import dataclasses
import json
import os
import shutil
import socket
import subprocess
import sys
from collections import Counter
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from checkpoint_folders import DTYPES, GOLDEN, bits, files_of, newer, random_bits, tensors_of, tiny, write_folder
from safetensors.numpy import load_file

from lvr_jax import checkpoints
from lvr_jax.checkpoints import CheckpointError, conversion, errors, folder, orbax_io, safetensors_io
from lvr_jax.models.qwen2_5_vl.config import SIZES, Config, ConfigError
from lvr_jax.models.qwen2_5_vl.model import abstract_model
from lvr_jax.models.qwen2_5_vl.params import leaves, shapes, slots


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    """fsync is a promise about power loss, which no test here can see."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def hf(tmp_path):
    """An untied bf16 checkpoint in two shards."""
    config = tiny()
    return write_folder(tmp_path / "hf", config, tensors_of(config), shards=2)


def assert_survives(source: Path, place: Path) -> None:
    checkpoints.to_flax(source, place / "flax", verify=True)
    checkpoints.to_hf(place / "flax", place / "again", verify=True)
    assert files_of(source) == files_of(place / "again")


def assert_nothing_left(place: Path, *expected: str) -> None:
    assert sorted(path.name for path in place.iterdir()) == sorted(expected)


def mixed(name: str) -> str:
    return "float32" if "norm" in name else "bfloat16"


# --- Hugging Face -> Orbax -> Hugging Face ----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", mixed])
@pytest.mark.parametrize("shards", [1, 3])
def test_every_file_and_tensor_survives_bit_for_bit(tmp_path, dtype, shards):
    config, rename = tiny(tied=shards == 1), newer if shards == 3 else str
    write_folder(tmp_path / "hf", config, tensors_of(config, dtype), shards=shards, rename=rename)
    assert_survives(tmp_path / "hf", tmp_path)


@pytest.mark.parametrize("head", ["simple", "glu"])
def test_tensors_of_latent_reasoning_survive(tmp_path, head):
    config = tiny(latent_head=head, latent_end_embedding=True)
    tensors = tensors_of(config)
    assert any(name.startswith("lvr_head.") for name in tensors) and "lvr_latent_end_emb" in tensors
    assert_survives(write_folder(tmp_path / "hf", config, tensors), tmp_path)
    assert "latent_end" in checkpoints.load(tmp_path / "flax")[1]


@pytest.mark.parametrize("name", ["tiny_tied", "tiny_untied", "tiny_tied_trained_lvr", "tiny_tied_trained_plvr2"])
def test_golden_checkpoints_survive(tmp_path, name):
    assert_survives(GOLDEN / "checkpoints" / name, tmp_path)


def test_rows_of_the_embedding_come_from_the_tensor_not_from_the_config(tmp_path):
    config = tiny(vocab=37)
    write_folder(tmp_path / "hf", config, tensors_of(config), fields={"vocab_size": 40})
    assert_survives(tmp_path / "hf", tmp_path)
    for source in ("hf", "flax"):
        found, params, _ = checkpoints.load(tmp_path / source)
        assert found.text.vocab == 37 and params["text"]["embed"].shape[0] == params["text"]["head"].shape[0] == 37


def test_a_missing_head_means_tied(tmp_path):
    config = tiny(tied=True)
    write_folder(tmp_path / "hf", config, tensors_of(config), fields={"tie_word_embeddings": False})
    assert_survives(tmp_path / "hf", tmp_path)
    for source in ("hf", "flax"):
        found, params, _ = checkpoints.load(tmp_path / source)
        assert found.text.tied and "head" not in params["text"]


def test_a_redundant_head_is_dropped_and_written_again(tmp_path):
    config = tiny(tied=True)
    tensors = tensors_of(config)
    write_folder(tmp_path / "hf", config, {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"]}, shards=2)
    assert_survives(tmp_path / "hf", tmp_path)
    assert "head" not in checkpoints.load(tmp_path / "flax")[1]["text"]


def test_a_head_that_differs_in_a_tied_checkpoint_is_refused(tmp_path):
    config = tiny(tied=True)
    tensors = tensors_of(config)
    head = random_bits(tensors["model.embed_tokens.weight"].shape, DTYPES["bfloat16"], 99)
    write_folder(tmp_path / "hf", config, {**tensors, "lm_head.weight": head})
    with pytest.raises(CheckpointError, match="lm_head.weight differs from model.embed_tokens.weight.*tie_word_embed"):
        checkpoints.to_flax(tmp_path / "hf", tmp_path / "flax")
    assert_nothing_left(tmp_path, "hf")


def test_every_tensor_is_read_once_and_every_parameter_written_once(tmp_path, monkeypatch):
    config = tiny(latent_head="simple", latent_end_embedding=True, vocab=700)
    write_folder(tmp_path / "hf", config, tensors_of(config), rename=newer)
    monkeypatch.setattr(orbax_io, "CHUNK_BYTES", 4096)      # the embedding in several blocks
    read, written = Counter(), {}
    original = safetensors_io.Tensor.read

    def counting_read(tensor, start=0, stop=None):
        read.update((tensor.name, row) for row in range(start, tensor.shape[0] if stop is None else stop))
        return original(tensor, start, stop)

    def count_pieces(folder, arrays):
        for path, array in arrays.items():
            written[path] = np.zeros(array.shape, int)
            for index, piece in array.pieces():
                written[path][index] += 1
                assert piece.shape == written[path][index].shape

    monkeypatch.setattr(safetensors_io.Tensor, "read", counting_read)
    monkeypatch.setattr(conversion, "write_pieces", count_pieces)
    checkpoints.to_flax(tmp_path / "hf", tmp_path / "flax")
    rows = {newer(name): slot.hf_shape[0] for name, slot in slots(config).items()}
    assert read == {(name, row): 1 for name, count in rows.items() for row in range(count)}
    assert {path: counts.shape for path, counts in written.items()} == shapes(config)
    assert all((counts == 1).all() for counts in written.values())


@pytest.mark.parametrize("config", [tiny(), tiny(tied=True), tiny(latent_head="glu", latent_end_embedding=True)])
def test_the_name_table_covers_the_network_exactly(config):
    network = orbax_io.flat(abstract_model(config)[1])
    assert {path: leaf.shape for path, leaf in network.items()} == shapes(config)
    named = [name for members in leaves(config).values() for name, _ in members]
    assert sorted(named) == sorted(slots(config)) and len(set(named)) == len(named)


def test_data_that_begin_at_an_odd_byte_survive(tmp_path):
    config = tiny()
    write_folder(tmp_path / "hf", config, tensors_of(config, mixed))
    path = tmp_path / "hf" / "model.safetensors"
    length = int.from_bytes(path.read_bytes()[:8], "little")
    header, data = path.read_bytes()[8 : 8 + length], path.read_bytes()[8 + length :]
    header = header.rstrip() + b" " * (1 - len(header.rstrip()) % 2)
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)
    assert len(header) % 2
    assert_survives(tmp_path / "hf", tmp_path)
    expected = by_hand(config, tensors_of(config, mixed))
    for path, x in orbax_io.flat(checkpoints.load(tmp_path / "hf")[1]).items():
        np.testing.assert_array_equal(bits(x), bits(expected[path]), err_msg=path)


def test_a_type_changed_on_the_way_back_gives_new_shards(tmp_path, hf):
    checkpoints.to_flax(hf, tmp_path / "flax")
    checkpoints.to_hf(tmp_path / "flax", tmp_path / "again", dtype="float32", verify=True)
    assert not (tmp_path / "again" / "model.safetensors.index.json").exists()
    again = load_file(tmp_path / "again" / "model.safetensors")
    for name, x in tensors_of(tiny()).items():
        np.testing.assert_array_equal(again[name], x.astype(np.float32), err_msg=name)


def test_a_changed_type_is_what_numpy_makes_of_it(tmp_path, hf):
    rng = np.random.default_rng(0)
    config = tiny()
    tensors = tensors_of(config, "float32", lambda shape, dtype, seed: rng.standard_normal(shape).astype(dtype))
    write_folder(hf, config, tensors, shards=2, fields={"torch_dtype": "float32"})
    checkpoints.to_flax(hf, tmp_path / "flax", dtype="bfloat16", verify=True)
    checkpoints.to_hf(tmp_path / "flax", tmp_path / "again", verify=True)
    again = load_file(tmp_path / "again" / "model.safetensors")
    assert sorted(again) == sorted(tensors)
    for name, x in tensors.items():
        np.testing.assert_array_equal(bits(again[name]), bits(x.astype(DTYPES["bfloat16"])))
    assert json.loads((tmp_path / "again" / "config.json").read_text())["torch_dtype"] == "bfloat16"
    assert not (tmp_path / "again" / "model.safetensors.index.json").exists()


# --- Loading and saving -----------------------------------------------------------------------------------------------


def by_hand(config: Config, tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {
        path: np.stack([slot.from_hf(tensors[name]) for name, slot in members])
        if members[0][1].layer is not None
        else members[0][1].from_hf(tensors[members[0][0]])
        for path, members in leaves(config).items()
    }


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
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", MESH, str(hf), str(tmp_path / "flax")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.stdout.strip().endswith("same"), done.stderr[-3000:]


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
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"}
    arguments = [str(hf), str(tmp_path / "saved"), str(tmp_path / "plain.npz")]
    commands = [[sys.executable, "-c", PROCESS, port, rank, *arguments] for rank in "01"]
    processes = [subprocess.Popen(command, env=environment, stderr=subprocess.PIPE) for command in commands]
    for process in processes:
        _, stderr = process.communicate(timeout=300)
        assert process.returncode == 0, stderr.decode()[-3000:]
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


# --- Bad input: one line, and nothing left ----------------------------------------------------------------------------


def change(folder: Path, file: str, edit) -> None:
    """Edits the tensors of one file, or the fields of a JSON."""
    path = folder / file
    if file.endswith(".json"):
        path.write_text(json.dumps(edit(json.loads(path.read_text()))))
    else:
        from safetensors.numpy import save_file

        save_file(edit(load_file(path)), path, metadata={"format": "pt"})


def without(name):
    return lambda fields: {key: x for key, x in fields.items() if key != name}


def truncate(folder: Path, file: str, keep: float) -> None:
    data = (folder / file).read_bytes()
    (folder / file).write_bytes(data[: int(len(data) * keep)])


ONE = "model.safetensors"
BAD = {
    "missing tensor": (
        lambda f: change(f, ONE, without("model.norm.weight")),
        r"not those of its config.json: 1 missing \(model\.norm\.weight\)",
    ),
    "many missing tensors": (
        lambda f: change(f, ONE, lambda held: {name: x for name, x in held.items() if ".layers." not in name}),
        r"36 missing \(model\.layers\.0\.input_layernorm\.weight, .* and 32 more\)",
    ),
    "unknown tensor": (
        lambda f: change(f, ONE, lambda held: {**held, "lvr_head.other": held["model.norm.weight"].copy()}),
        r"1 unknown \(lvr_head\.other\)",
    ),
    "latent head that config.json does not declare": (
        lambda f: change(f, ONE, lambda held: {**held, "lvr_latent_end_emb": held["model.norm.weight"].copy()}),
        r"1 unknown \(lvr_latent_end_emb\)",
    ),
    "misshapen tensor": (
        lambda f: change(f, ONE, lambda held: {**held, "model.norm.weight": held["model.norm.weight"][:5].copy()}),
        r"1 of another shape \(model\.norm\.weight \[5\], expected \[24\]\)",
    ),
    "one tensor under both names": (
        lambda f: change(f, ONE, lambda h: {**h, "model.language_model.norm.weight": h["model.norm.weight"].copy()}),
        r"model\.language_model\.norm\.weight and model\.norm\.weight are the same tensor",
    ),
    "layers of different types": (
        lambda f: change(f, ONE, lambda h: {n: x.astype("f4") if "layers.1.mlp.up" in n else x for n, x in h.items()}),
        r"model\.layers\.1\.mlp\.up_proj\.weight is float32.*one type",
    ),
    "type that is none of ours": (
        lambda f: change(f, ONE, lambda held: {**held, "model.norm.weight": np.zeros(24)}),
        r"model\.safetensors: tensor model\.norm\.weight is F64, expected one of BF16, F16, F32",
    ),
    "truncated file": (lambda f: truncate(f, ONE, 0.7), r"model\.safetensors: \d+ bytes, its header promises \d+"),
    "truncated header": (lambda f: truncate(f, ONE, 0.01), r"model\.safetensors: \d+ bytes, its header alone promises"),
    "empty file": (lambda f: truncate(f, ONE, 0), r"model\.safetensors: 0 bytes"),
    "not safetensors": (
        lambda f: (f / ONE).write_bytes(b"\x20" + bytes(7) + b"x" * 100),
        r"model\.safetensors: the header is not that of a safetensors file",
    ),
    "no weights": (lambda f: (f / ONE).unlink(), r"no model\.safetensors and no model\.safetensors\.index\.json"),
    "no config": (lambda f: (f / "config.json").unlink(), r"config\.json is missing"),
    "config without a field": (
        lambda f: change(f, "config.json", without("rms_norm_eps")),
        r"config\.json: field rms_norm_eps is missing",
    ),
    "config that is not JSON": (lambda f: (f / "config.json").write_text("{"), r"config\.json: not JSON"),
    "config of another network": (
        lambda f: change(f, "config.json", lambda fields: {**fields, "num_hidden_layers": 2}),
        r"12 unknown \(model\.layers\.2\.",
    ),
    "single file and index": (
        lambda f: (f / "model.safetensors.index.json").write_text("{}"),
        r"holds model\.safetensors and model\.safetensors\.index\.json",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_hugging_face_folder_is_refused_by_name(tmp_path, case):
    spoil, message = BAD[case]
    config = tiny()
    write_folder(tmp_path / "hf", config, tensors_of(config))
    spoil(tmp_path / "hf")
    before = files_of(tmp_path / "hf")
    convert = lambda: checkpoints.to_flax(tmp_path / "hf", tmp_path / "flax")  # noqa: E731
    for refuse in (convert, lambda: checkpoints.load(tmp_path / "hf")):
        with pytest.raises((CheckpointError, ConfigError), match=message) as error:
            refuse()
        assert "\n" not in str(error.value) and str(tmp_path / "hf") in str(error.value)
    assert_nothing_left(tmp_path, "hf")
    assert files_of(tmp_path / "hf") == before


def test_a_missing_shard_is_named(tmp_path, hf):
    (hf / "model-00002-of-00002.safetensors").unlink()
    message = r"model-00002-of-00002\.safetensors is missing.*index\.json with 2 shards"
    with pytest.raises(CheckpointError, match=message):
        checkpoints.to_flax(hf, tmp_path / "flax")
    assert_nothing_left(tmp_path, "hf")


def test_an_index_that_disagrees_with_its_shards_is_refused(hf):
    def swap(index):
        return {"weight_map": {name: file.replace("1-of", "2-of") for name, file in index["weight_map"].items()}}

    change(hf, "model.safetensors.index.json", swap)
    with pytest.raises(CheckpointError, match=r"index\.json: .* is in .*, but the shards hold it in none"):
        checkpoints.load(hf)
    change(hf, "model.safetensors.index.json", lambda index: {"weight_map": {"a": "../../etc/passwd"}})
    with pytest.raises(CheckpointError, match="weight_map is missing or unsound"):
        checkpoints.load(hf)


@pytest.fixture
def flax(tmp_path, hf):
    checkpoints.to_flax(hf, tmp_path / "flax")
    return tmp_path / "flax"


def spoilt(name):
    def spoil(flax):
        chunk = next(path for path in sorted((flax / "params" / "text.blocks.q").iterdir()) if path.name != ".zarray")
        {"lose": chunk.unlink, "cut": lambda: chunk.write_bytes(chunk.read_bytes()[:-1])}[name]()

    return spoil


HALF = {
    "no marker": (lambda f: (f / "lvr_jax.json").unlink(), r"half-written checkpoint, lvr_jax\.json is missing"),
    "marker of a later format": (lambda f: (f / "lvr_jax.json").write_text('{"format": 2}'), "format is 2, expected 1"),
    "no Orbax metadata": (lambda f: (f / "params" / "_METADATA").unlink(), "no _METADATA"),
    "lost chunk": (spoilt("lose"), r"params/text\.blocks\.q/: damaged, text/blocks/q cannot be read"),
    "cut chunk": (spoilt("cut"), r"params/text\.blocks\.q/: damaged, text/blocks/q cannot be read"),
    "config of another network": (
        lambda f: change(f, "hf/config.json", lambda fields: {**fields, "intermediate_size": 10}),
        r"params: .* of another shape \(text/blocks/mlp/gate \[3, 24, 20\], expected \[3, 24, 10\]",
    ),
    "no config": (lambda f: (f / "hf" / "config.json").unlink(), r"hf/config\.json is missing"),
}


@pytest.mark.parametrize("case", HALF)
def test_a_bad_folder_of_ours_is_refused_by_name(tmp_path, flax, case):
    spoil, message = HALF[case]
    spoil(flax)
    refusals = (lambda: checkpoints.load(flax), lambda: checkpoints.to_hf(flax, tmp_path / "out"))
    for refuse in refusals:
        with pytest.raises(CheckpointError, match=message) as error:
            refuse()
        assert "\n" not in str(error.value)
    assert_nothing_left(tmp_path, "hf", "flax")


def test_a_checkpoint_of_another_config_is_refused(hf, flax):
    other = tiny(layers=4)
    for source in (hf, flax):
        with pytest.raises(CheckpointError, match=r"another config: text\.layers is 3, expected 4"):
            checkpoints.load(source, config=other)


def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"empty/config\.json is missing"):
        checkpoints.load(tmp_path / "empty")
    with pytest.raises(CheckpointError, match=r"no lvr_jax\.json"):
        checkpoints.to_hf(tmp_path / "empty", tmp_path / "out")
    with pytest.raises(CheckpointError, match="no such folder"):
        checkpoints.load(tmp_path / "nowhere")


# --- The output is there at once or not at all ------------------------------------------------------------------------


def test_an_existing_output_is_kept_unless_told_otherwise(tmp_path, hf, flax):
    before = files_of(flax)
    with pytest.raises(CheckpointError, match="exists"):
        checkpoints.to_flax(hf, flax)
    assert files_of(flax) == before
    checkpoints.to_flax(hf, flax, dtype="float32", overwrite=True)
    assert checkpoints.load(flax)[1]["text"]["norm"].dtype == np.float32
    assert_nothing_left(tmp_path, "hf", "flax")


def test_only_a_checkpoint_can_be_overwritten(tmp_path, hf):
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "a.txt").write_text("dear")
    with pytest.raises(CheckpointError, match="letters exists and is no checkpoint"):
        checkpoints.to_flax(hf, tmp_path / "letters", overwrite=True)
    assert (tmp_path / "letters" / "a.txt").read_text() == "dear"


@pytest.mark.parametrize("pieces", [0, 7, 60])
def test_an_error_on_the_way_leaves_nothing_and_keeps_the_old(tmp_path, hf, flax, pieces):
    before, left = files_of(flax), [pieces]

    def fail(count):
        left[0] -= 1
        if left[0] < 0:
            raise RuntimeError("a reason")

    for convert, source, target in (
        (checkpoints.to_flax, hf, flax),
        (checkpoints.to_flax, hf, tmp_path / "new" / "er"),
        (checkpoints.to_hf, flax, tmp_path / "out"),
    ):
        left[0] = pieces
        with pytest.raises(RuntimeError, match="a reason"):
            convert(source, target, overwrite=True, progress=fail)
    assert_nothing_left(tmp_path, "hf", "flax")
    assert files_of(flax) == before


def test_a_difference_found_by_verify_leaves_nothing(tmp_path, hf, flax, monkeypatch):
    monkeypatch.setattr(conversion, "same_bits", lambda a, b: False)
    with pytest.raises(CheckpointError, match="differs from what was written as"):
        checkpoints.to_flax(hf, tmp_path / "new", verify=True)
    with pytest.raises(CheckpointError, match="differs from what was written as"):
        checkpoints.to_hf(flax, tmp_path / "new", verify=True)
    assert_nothing_left(tmp_path, "hf", "flax")


def test_what_a_killed_run_left_is_removed_by_the_next(tmp_path, hf):
    code = (
        "import sys, os, signal; from lvr_jax import checkpoints\n"
        "checkpoints.to_flax(*sys.argv[1:], progress=lambda n, left=[9]: left.append(0) or "
        "len(left) > 9 and os.kill(os.getpid(), signal.SIGKILL))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(hf), str(tmp_path / "flax")], capture_output=True)
    assert done.returncode == -9
    assert_nothing_left(tmp_path, "hf", "flax.incomplete")
    with pytest.raises(CheckpointError, match="half-written"):
        checkpoints.load(tmp_path / "flax.incomplete")
    checkpoints.to_flax(hf, tmp_path / "flax", verify=True)
    assert_nothing_left(tmp_path, "hf", "flax")


def test_two_runs_cannot_write_the_same_checkpoint(tmp_path, hf):
    with folder.building(tmp_path / "flax") as place:
        (place / "x").write_text("mine")
        with pytest.raises(CheckpointError, match="another process is writing"):
            checkpoints.to_flax(hf, tmp_path / "flax")
        assert (place / "x").read_text() == "mine"


def test_too_little_space_is_refused_before_writing(tmp_path, hf, flax, monkeypatch):
    monkeypatch.setattr(conversion, "free_space", lambda _: 1000)
    for convert, source in ((checkpoints.to_flax, hf), (checkpoints.to_hf, flax)):
        with pytest.raises(checkpoints.DiskFullError, match=r"0\.00 MB free, the output needs 0\.0\d MB"):
            convert(source, tmp_path / "new")
    assert_nothing_left(tmp_path, "hf", "flax")


@pytest.fixture
def tiny_disk(tmp_path):
    """A file system of 48 kB: less than the checkpoint needs."""
    (tmp_path / "disk").mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=48k", "tmpfs", tmp_path / "disk"]
    mounted = subprocess.run(command, capture_output=True)
    if mounted.returncode:
        pytest.skip("cannot mount a tmpfs here")
    yield tmp_path / "disk"
    subprocess.run(["umount", tmp_path / "disk"], check=True)


def test_a_disk_that_fills_up_is_one_line_and_leaves_nothing(tiny_disk, hf, flax, monkeypatch):
    monkeypatch.setattr(conversion, "free_space", lambda _: 10**12)
    for convert, source in ((checkpoints.to_flax, hf), (checkpoints.to_hf, flax)):
        with pytest.raises(checkpoints.DiskFullError, match="disk: the disk is full .* nothing was kept") as error:
            convert(source, tiny_disk / "new")
        assert "\n" not in str(error.value)
    assert_nothing_left(tiny_disk)


def test_object_storage_is_written_in_place_and_complete_with_its_marker(tmp_path, hf, monkeypatch):
    monkeypatch.setattr(folder, "is_remote", lambda path: True)

    def check(count):
        with pytest.raises(CheckpointError, match="half-written"):
            folder.is_ours(folder.resolve(tmp_path / "flax"))

    checkpoints.to_flax(hf, tmp_path / "flax", progress=check)
    assert checkpoints.load(tmp_path / "flax")[0] == tiny()
    with pytest.raises(RuntimeError):
        with folder.building(tmp_path / "other"):
            raise RuntimeError
    assert_nothing_left(tmp_path, "hf", "flax")


def test_a_gs_path_of_a_hugging_face_folder_is_refused(tmp_path, flax):
    with pytest.raises(CheckpointError, match="gs://b/x: a Hugging Face folder must be on a local disk"):
        checkpoints.to_flax("gs://b/x", tmp_path / "new")
    with pytest.raises(CheckpointError, match="gs://b/x: a Hugging Face folder must be on a local disk"):
        checkpoints.to_hf(flax, "gs://b/x")


# --- The reference reads what we write --------------------------------------------------------------------------------


@pytest.mark.parity
@pytest.mark.parametrize("name", ["tiny_tied", "tiny_untied"])
@pytest.mark.parametrize("trained", [False, True])
def test_transformers_loads_what_to_hf_wrote(tmp_path, name, trained):
    torch = pytest.importorskip("torch")
    from transformers import Qwen2_5_VLForConditionalGeneration

    original = GOLDEN / "checkpoints" / name
    if trained:
        config, params, files = checkpoints.load(original)
        params = jax.tree.map(lambda x: np.asarray(x) + np.float32(1), params)
        checkpoints.save_params(tmp_path / "flax", params, config, files=files)
    else:
        checkpoints.to_flax(original, tmp_path / "flax")
    checkpoints.to_hf(tmp_path / "flax", tmp_path / "out", shard_bytes=300_000)
    model, info = Qwen2_5_VLForConditionalGeneration.from_pretrained(
        tmp_path / "out", output_loading_info=True, dtype=torch.float32
    )
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    held = {newer(key): x for key, x in load_file(original / "model.safetensors").items()}
    state = model.state_dict()
    assert set(held) <= set(state)
    for key, x in held.items():
        np.testing.assert_array_equal(state[key].numpy(), x + np.float32(trained), err_msg=key)


def test_errors_name_the_first_few(tmp_path):
    assert errors.some("abcdef", 2) == "a, b and 4 more"
    assert shutil.disk_usage(tmp_path).free == pytest.approx(errors.free_space(tmp_path), rel=0.1)
