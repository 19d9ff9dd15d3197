"""Tensors and files survive the way from Hugging Face to Orbax and back, bit for bit."""

import json
from collections import Counter

import jax
import numpy as np
import pytest
from checkpoint_folders import (
    DTYPES,
    GOLDEN,
    assert_nothing_left,
    assert_survives,
    bits,
    by_hand,
    mixed,
    newer,
    random_bits,
    tensors_of,
    tiny,
    write_folder,
)
from safetensors.numpy import load_file

from lvr_jax import checkpoints
from lvr_jax.checkpoints import CheckpointError, conversion, orbax_io, safetensors_io
from lvr_jax.models.families import abstract_model, leaves, shapes, slots


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", mixed])
@pytest.mark.parametrize("shards", [1, 3])
def test_every_file_and_tensor_survives_bit_for_bit(tmp_path, dtype, shards):
    config, rename = tiny(tied=shards == 1), newer if shards == 3 else str
    write_folder(tmp_path / "hf", config, tensors_of(config, dtype, random_bits), shards=shards, rename=rename)
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
