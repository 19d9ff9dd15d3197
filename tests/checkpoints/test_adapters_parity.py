"""An adapter merged here is the one that PEFT merges."""

import peft
import pytest
import torch
from checkpoint_folders import small, tensors_of, tiny, write_folder
from safetensors.torch import load_file
from transformers import Qwen2_5_VLForConditionalGeneration

from lvr_jax import checkpoints
from lvr_jax.models.weight_table import canonical

pytestmark = pytest.mark.parity


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_merge_equals_that_of_peft(tmp_path, dtype):
    config = tiny()
    write_folder(tmp_path / "base", config, tensors_of(config, dtype, small))
    network = Qwen2_5_VLForConditionalGeneration.from_pretrained(tmp_path / "base", dtype=getattr(torch, dtype))
    settings = peft.LoraConfig(
        r=4, lora_alpha=6, use_rslora=True, target_modules=["q_proj", "up_proj", "qkv"], rank_pattern={"up_proj": 2},
        alpha_pattern={"q_proj": 3}, init_lora_weights=False,
    )  # fmt: skip
    tuned = peft.get_peft_model(network, settings)
    tuned.save_pretrained(tmp_path / "lora")
    tuned.merge_and_unload().save_pretrained(tmp_path / "theirs")
    checkpoints.to_flax(tmp_path / "base", tmp_path / "flax", adapter=tmp_path / "lora")
    checkpoints.to_hf(tmp_path / "flax", tmp_path / "ours")
    theirs = {canonical(name): x for name, x in load_file(tmp_path / "theirs" / "model.safetensors").items()}
    ours = load_file(tmp_path / "ours" / "model.safetensors")
    assert set(ours) == set(theirs)
    before = load_file(tmp_path / "base" / "model.safetensors")
    changed = [name for name in ours if not torch.equal(ours[name], before[name])]
    assert len(changed) == (config.text.layers + config.vision.depth) * 2
    for name, x in ours.items():
        assert x.dtype == theirs[name].dtype and torch.equal(x, theirs[name]), name
