"""Qwen2.5-VL as an entry of the registry (models/families.py)."""

from lvr_jax.models.interface import Family
from lvr_jax.models.qwen2_5_vl.config import SIZES, Config
from lvr_jax.models.qwen2_5_vl.flops import decoder_flops, vision_flops
from lvr_jax.models.qwen2_5_vl.model import Qwen2_5_VL
from lvr_jax.models.qwen2_5_vl.params import slots
from lvr_jax.models.qwen2_5_vl.sharding import RULES
from lvr_jax.models.qwen2_5_vl.vision import IMAGE_MEAN, IMAGE_STD

FAMILY = Family(
    name=Config.family,
    read_config=Config.from_hf,
    sizes=SIZES,
    build=Qwen2_5_VL,
    slots=slots,
    rules=RULES,
    preprocessor={
        "patch_size": 14,
        "merge_size": 2,
        "temporal_patch_size": 2,
        "image_mean": IMAGE_MEAN,
        "image_std": IMAGE_STD,
        "rescale_factor": 1 / 255,
    },
    decoder_flops=decoder_flops,
    vision_flops=vision_flops,
)
