"""Every bad checkpoint is refused in one line that names the fault."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from checkpoint_folders import assert_nothing_left, files_of, tensors_of, tiny, write_folder
from safetensors.numpy import load_file

from lvr_jax import checkpoints
from lvr_jax.checkpoints import CheckpointError, errors
from lvr_jax.models.interface import ConfigError


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
    "pointer of Git LFS": (
        lambda f: (f / ONE).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 4349321\n"),
        r"model\.safetensors: is a Git LFS pointer, not the weights; fetch them \(git lfs pull\)",
    ),
    "config as a pointer": (
        lambda f: (f / "config.json").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
        r"config\.json: is a Git LFS pointer",
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


def test_many_names_are_cut_to_the_first_few():
    assert errors.some("abcdef", 2) == "a, b and 4 more" and errors.some("ab") == "a, b"


@pytest.mark.parametrize("lost", [1, 2])
def test_a_lost_header_of_a_shard_is_no_half_a_checkpoint(tmp_path, flax, lost):
    (flax / "safetensors" / f"model-0000{lost}-of-00002.safetensors.header").unlink()
    with pytest.raises(CheckpointError, match="safetensors: the headers of the original shards are not those"):
        checkpoints.to_hf(flax, tmp_path / "out")
    assert_nothing_left(tmp_path, "hf", "flax")
    shutil.rmtree(flax / "safetensors")
    checkpoints.to_hf(flax, tmp_path / "out", verify=True)      # as the message says
