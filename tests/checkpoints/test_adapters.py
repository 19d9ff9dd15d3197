"""A LoRA adapter becomes part of its base while the base is converted; what is no adapter of it is refused by name."""

import json

import numpy as np
import pytest
from checkpoint_folders import arrays_of, assert_nothing_left, small, tensors_of, tiny, write_folder
from safetensors.numpy import load_file, save_file

from lvr_jax import checkpoints
from lvr_jax.checkpoints import CheckpointError
from lvr_jax.models.families import slots

Q, UP, EMBED = "model.layers.1.self_attn.q_proj", "model.layers.0.mlp.up_proj", "model.embed_tokens"
RANK = 3


def adapter_of(folder, config, modules, settings=None, extra=None):
    """An adapter of random factors for these modules {module: rank}, as PEFT lays it out."""
    held, shapes = {}, {name: slot.hf_shape for name, slot in slots(config).items()}
    for seed, (module, rank) in enumerate(modules.items()):
        rows, columns = shapes[f"{module}.weight"]
        embedding = module == EMBED
        a, b = ((rank, rows), (columns, rank)) if embedding else ((rank, columns), (rows, rank))
        form = "base_model.model.{}.lora_embedding_{}" if embedding else "base_model.model.{}.lora_{}.weight"
        held[form.format(module, "A")] = small(a, np.float32, seed)
        held[form.format(module, "B")] = small(b, np.float32, 100 + seed)
    held |= extra or {}
    folder.mkdir(exist_ok=True)
    save_file(held, folder / "adapter_model.safetensors")
    given = {"peft_type": "LORA", "base_model_name_or_path": "some/base", "r": RANK, "lora_alpha": 6}
    (folder / "adapter_config.json").write_text(json.dumps(given | (settings or {})))
    return held


@pytest.fixture
def base(tmp_path):
    config = tiny()
    tensors = tensors_of(config, "float32", small)
    return config, tensors, write_folder(tmp_path / "base", config, tensors)


@pytest.mark.parametrize("settings, scales", [
    ({}, (2.0, 2.0, 2.0)),
    ({"use_rslora": True}, (6 / 3**0.5, 6 / 3**0.5, 6 / 3**0.5)),
    ({"rank_pattern": {"up_proj": 5}, "alpha_pattern": {r"layers.1.self_attn.q_proj": 9}}, (3.0, 6 / 5, 2.0)),
])  # fmt: skip
def test_a_merged_adapter_adds_its_scaled_product_and_changes_nothing_else(tmp_path, base, settings, scales):
    config, tensors, folder = base
    modules = {Q: RANK, UP: 5 if "rank_pattern" in settings else RANK, EMBED: RANK}
    norm = small(tensors["model.norm.weight"].shape, np.float32, 7)
    held = adapter_of(tmp_path / "lora", config, modules, settings, {"base_model.model.model.norm.weight": norm})
    checkpoints.to_flax(folder, tmp_path / "flax", adapter=tmp_path / "lora", verify=True)
    checkpoints.to_hf(tmp_path / "flax", tmp_path / "out", verify=True)
    found = load_file(tmp_path / "out" / "model.safetensors")
    expected = dict(tensors) | {"model.norm.weight": norm}
    for (module, _), scale in zip(modules.items(), scales):
        form = "base_model.model.{}.lora_embedding_{}" if module == EMBED else "base_model.model.{}.lora_{}.weight"
        a, b = (held[form.format(module, part)].astype(np.float64) for part in "AB")
        delta = (b @ a).T if module == EMBED else b @ a
        expected[f"{module}.weight"] = tensors[f"{module}.weight"] + scale * delta
    assert set(found) == set(expected)
    for name, x in expected.items():
        # a product of rank 3 to 5 in fp32, against fp64
        np.testing.assert_allclose(found[name], x, rtol=0, atol=2e-7 if x.dtype == np.float64 else 0, err_msg=name)


@pytest.mark.parametrize("change, says", [
    (dict(settings={"peft_type": "IA3"}), "peft_type is 'IA3', expected 'LORA'"),
    (dict(settings={"use_dora": True}), "use_dora is True; only plain LoRA"),
    (dict(settings={"init_lora_weights": "pissa"}), "init_lora_weights is 'pissa'; only plain LoRA"),
    (dict(settings={"r": 0}), "r is 0, expected a whole number above zero"),
    (dict(settings={"r": 2.5}), "r is 2.5, expected a whole number above zero"),
    (dict(settings={"lora_alpha": float("nan")}), "lora_alpha is nan, expected a number above zero"),
    (dict(settings={"alpha_pattern": {"q_proj": float("nan")}}), "alpha_pattern has nan for 'q_proj', expected a numb"),
    (dict(settings={"rank_pattern": {"q_proj": "x"}}), "rank_pattern has 'x' for 'q_proj', expected a whole number"),
    (dict(settings={"rank_pattern": {"[": 3}}), "rank_pattern has '\\[', expected a module's name"),
    (dict(settings={"rank_pattern": {"(a+)+": 3}}), "rank_pattern has .*, expected a module's name"),
    (dict(settings={"rank_pattern": {".*.*.*x": 3}}), "rank_pattern has .*, expected a module's name"),
    (dict(settings={"lora_alpha": 9e5}, extra={f"base_model.model.{Q}.lora_A.weight": np.full((3, 24), 3e38, "f4")}),
     "q_proj.weight, merged, holds (-?inf|nan) at .*, expected finite"),
    (dict(extra={"base_model.model.model.norm.weight": np.full(24, np.nan, np.float32)}), "norm.weight holds nan at"),
    (dict(settings={"rank_pattern": [1]}), r"rank_pattern is \[1\], expected an object"),
    (dict(settings={"r": 4}), r"has lora_A \[3, 24\] and lora_B \[24, 3\], expected \[4, 24\] and \[24, 4\]"),
    (dict(extra={"base_model.model.model.layers.9.mlp.up_proj.lora_A.weight": np.zeros((3, 24), np.float32)}),
     "changes .*layers.9.mlp.up_proj, not in .*is this the adapter's base"),
    (dict(extra={"base_model.model.model.layers.0.mlp.gate_proj.lora_A.weight": np.zeros((3, 24), np.float32)}),
     "gate_proj has only lora_A"),
    (dict(extra={"base_model.model.other.weight": np.zeros(3, np.float32)}), "other.weight .* is not in"),
])  # fmt: skip
def test_what_is_no_adapter_of_this_base_is_refused_by_name(tmp_path, base, change, says):
    config, _, folder = base
    adapter_of(tmp_path / "lora", config, {Q: RANK}, **change)
    with pytest.raises(CheckpointError, match=says) as error:
        checkpoints.to_flax(folder, tmp_path / "flax", adapter=tmp_path / "lora")
    assert "\n" not in str(error.value)
    assert_nothing_left(tmp_path, "base", "lora")


def test_an_adapter_is_not_written_over(tmp_path, base):
    adapter_of(tmp_path / "lora", base[0], {Q: RANK})
    (tmp_path / "lora" / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="lora: is the source itself"):
        checkpoints.to_flax(base[2], tmp_path / "lora", adapter=tmp_path / "lora", overwrite=True)
    assert (tmp_path / "lora" / "adapter_config.json").exists()


def test_an_adapter_without_tensors_is_refused(tmp_path, base):
    adapter_of(tmp_path / "lora", base[0], {})
    with pytest.raises(CheckpointError, match="holds no tensors"):
        checkpoints.to_flax(base[2], tmp_path / "flax", adapter=tmp_path / "lora")


def test_an_adapter_alone_says_what_to_do(tmp_path, base):
    adapter_of(tmp_path / "lora", base[0], {Q: RANK})
    with pytest.raises(CheckpointError, match="is a LoRA adapter of 'some/base', .* --adapter"):
        checkpoints.to_flax(tmp_path / "lora", tmp_path / "flax")


def test_a_network_saved_under_its_wrapper_is_the_network(tmp_path):
    config = tiny()
    tensors = tensors_of(config)
    write_folder(tmp_path / "plain", config, tensors)
    write_folder(tmp_path / "wrapped", config, tensors, rename=lambda name: f"base_model.model.{name}")
    for name in ("plain", "wrapped"):
        checkpoints.to_flax(tmp_path / name, tmp_path / f"{name}_flax")
    assert arrays_of(tmp_path / "plain_flax") == arrays_of(tmp_path / "wrapped_flax")
