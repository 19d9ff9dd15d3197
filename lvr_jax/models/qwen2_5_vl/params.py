"""Rules that map the Hugging Face tensors of Qwen2.5-VL to our parameters (models/weight_table.py reads them).

Axis letters: D width, N heads, K key/value heads, H head width, F inner width, V vocabulary, E merged width.
"""

from lvr_jax.models.qwen2_5_vl.config import Config
from lvr_jax.models.weight_table import Slot, expand

# Hugging Face name, our path, axes there -> axes here.
VISION = (
    ("visual.patch_embed.proj.weight", "vision/patch_embed", "D C frames row col -> C frames (row col) D"),
    ("visual.blocks.{}.norm1.weight", "vision/blocks/attention_norm", "D -> D"),
    ("visual.blocks.{}.attn.qkv.weight", "vision/blocks/qkv", "(qkv N H) D -> D qkv N H"),
    ("visual.blocks.{}.attn.qkv.bias", "vision/blocks/qkv_bias", "(qkv N H) -> qkv N H"),
    ("visual.blocks.{}.attn.proj.weight", "vision/blocks/out", "D (N H) -> N H D"),
    ("visual.blocks.{}.attn.proj.bias", "vision/blocks/out_bias", "D -> D"),
    ("visual.blocks.{}.norm2.weight", "vision/blocks/mlp_norm", "D -> D"),
    ("visual.blocks.{}.mlp.gate_proj.weight", "vision/blocks/mlp/gate", "F D -> D F"),
    ("visual.blocks.{}.mlp.gate_proj.bias", "vision/blocks/mlp/gate_bias", "F -> F"),
    ("visual.blocks.{}.mlp.up_proj.weight", "vision/blocks/mlp/up", "F D -> D F"),
    ("visual.blocks.{}.mlp.up_proj.bias", "vision/blocks/mlp/up_bias", "F -> F"),
    ("visual.blocks.{}.mlp.down_proj.weight", "vision/blocks/mlp/down", "D F -> F D"),
    ("visual.blocks.{}.mlp.down_proj.bias", "vision/blocks/mlp/down_bias", "D -> D"),
    ("visual.merger.ln_q.weight", "vision/merger/norm", "D -> D"),
    ("visual.merger.mlp.0.weight", "vision/merger/inner", "E2 E -> E E2"),
    ("visual.merger.mlp.0.bias", "vision/merger/inner_bias", "E2 -> E2"),
    ("visual.merger.mlp.2.weight", "vision/merger/out", "out E -> E out"),
    ("visual.merger.mlp.2.bias", "vision/merger/out_bias", "out -> out"),
)
TEXT = (
    ("model.embed_tokens.weight", "text/embed", "V D -> V D"),
    ("model.layers.{}.input_layernorm.weight", "text/blocks/attention_norm", "D -> D"),
    ("model.layers.{}.self_attn.q_proj.weight", "text/blocks/q", "(N H) D -> D N H"),
    ("model.layers.{}.self_attn.q_proj.bias", "text/blocks/q_bias", "(N H) -> N H"),
    ("model.layers.{}.self_attn.k_proj.weight", "text/blocks/k", "(K H) D -> D K H"),
    ("model.layers.{}.self_attn.k_proj.bias", "text/blocks/k_bias", "(K H) -> K H"),
    ("model.layers.{}.self_attn.v_proj.weight", "text/blocks/v", "(K H) D -> D K H"),
    ("model.layers.{}.self_attn.v_proj.bias", "text/blocks/v_bias", "(K H) -> K H"),
    ("model.layers.{}.self_attn.o_proj.weight", "text/blocks/out", "D (N H) -> N H D"),
    ("model.layers.{}.post_attention_layernorm.weight", "text/blocks/mlp_norm", "D -> D"),
    ("model.layers.{}.mlp.gate_proj.weight", "text/blocks/mlp/gate", "F D -> D F"),
    ("model.layers.{}.mlp.up_proj.weight", "text/blocks/mlp/up", "F D -> D F"),
    ("model.layers.{}.mlp.down_proj.weight", "text/blocks/mlp/down", "D F -> F D"),
    ("model.norm.weight", "text/norm", "D -> D"),
)
UNTIED = (("lm_head.weight", "text/head", "V D -> V D"),)
LATENT_HEAD = {
    "none": (),
    "simple": (
        ("lvr_head.ln_q.weight", "latent_head/norm", "D -> D"),
        ("lvr_head.ln_q.bias", "latent_head/norm_bias", "D -> D"),
        ("lvr_head.mlp.0.weight", "latent_head/inner", "D2 D -> D D2"),
        ("lvr_head.mlp.0.bias", "latent_head/inner_bias", "D2 -> D2"),
        ("lvr_head.mlp.2.weight", "latent_head/out", "D2 D -> D D2"),
        ("lvr_head.mlp.2.bias", "latent_head/out_bias", "D2 -> D2"),
    ),
    "glu": (
        ("lvr_head.gate_proj.weight", "latent_head/gate", "F D -> D F"),
        ("lvr_head.gate_proj.bias", "latent_head/gate_bias", "F -> F"),
        ("lvr_head.up_proj.weight", "latent_head/up", "F D -> D F"),
        ("lvr_head.up_proj.bias", "latent_head/up_bias", "F -> F"),
        ("lvr_head.down_proj.weight", "latent_head/down", "D F -> F D"),
        ("lvr_head.down_proj.bias", "latent_head/down_bias", "D -> D"),
    ),
}
LATENT_END = (("lvr_latent_end_emb", "latent_end", "D -> D"),)


def slots(config: Config) -> dict[str, Slot]:
    """Every tensor that a checkpoint of this config holds, by canonical Hugging Face name."""
    v, t = config.vision, config.text
    merged = v.hidden * v.merge**2
    vision = {
        "D": v.hidden, "C": v.channels, "frames": v.temporal_patch, "row": v.patch, "col": v.patch, "qkv": 3,
        "N": v.heads, "H": v.head_width, "F": v.intermediate, "E": merged, "E2": merged, "out": v.out_hidden,
    }  # fmt: skip
    text = {
        "V": t.vocab, "D": t.hidden, "D2": t.hidden, "N": t.heads, "K": t.kv_heads, "H": t.head_width,
        "F": t.intermediate,
    }  # fmt: skip
    rules = TEXT + (() if t.tied else UNTIED) + LATENT_HEAD[config.latent_head]
    rules += LATENT_END if config.latent_end_embedding else ()
    return dict([*expand(VISION, v.depth, vision), *expand(rules, t.layers, text)])
