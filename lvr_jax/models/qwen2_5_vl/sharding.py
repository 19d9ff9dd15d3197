"""Rules that spread the parameters of Qwen2.5-VL over the mesh axes `fsdp` and `tensor` (training/partitioning.py)."""

from lvr_jax.models.interface import Rules

# Path -> mesh axis of each array axis; trailing ones are whole. A path matches exactly one rule. Layers are stacked
# on axis 0 of everything in `blocks`.
RULES: Rules = (
    (r"text/(embed|head)", ("tensor", "fsdp")),                                 # V D
    (r"text/blocks/[qkv]", (None, "fsdp", "tensor")),                           # L D N H
    (r"text/blocks/[qkv]_bias", (None, "tensor")),                              # L N H
    (r"text/blocks/out", (None, "tensor", None, "fsdp")),                       # L N H D
    (r"text/blocks/mlp/(gate|up)", (None, "fsdp", "tensor")),                   # L D F
    (r"text/blocks/mlp/down", (None, "tensor", "fsdp")),                        # L F D
    (r"(text|vision)/(blocks/(attention|mlp)_norm|norm)", ()),                  # L D
    (r"vision/patch_embed", (None, None, None, "fsdp")),                        # C frames E D
    (r"vision/blocks/qkv", (None, "fsdp", None, "tensor")),                     # L D 3 N H
    (r"vision/blocks/qkv_bias", (None, None, "tensor")),                        # L 3 N H
    (r"vision/blocks/out", (None, "tensor", None, "fsdp")),                     # L N H D
    (r"vision/blocks/mlp/(gate|up)", (None, "fsdp", "tensor")),                 # L D F
    (r"vision/blocks/mlp/(gate|up)_bias", (None, "tensor")),                    # L F
    (r"vision/blocks/mlp/down", (None, "tensor", "fsdp")),                      # L F D
    (r"vision/blocks/(out|mlp/down)_bias", ()),                                 # L D
    (r"vision/merger/inner", ("fsdp", "tensor")),                               # E E
    (r"vision/merger/inner_bias", ("tensor",)),                                 # E
    (r"vision/merger/out", ("tensor", "fsdp")),                                 # E D
    (r"vision/merger/(out_bias|norm)", ()),                                     # D
    (r"latent_head/(gate|up|inner)", ("fsdp", "tensor")),                       # D F
    (r"latent_head/(gate|up|inner)_bias", ("tensor",)),                         # F
    (r"latent_head/(down|out)", ("tensor", "fsdp")),                            # F D
    (r"latent_head/((down|out|norm)_bias|norm)|latent_end", ()),                # D
)
