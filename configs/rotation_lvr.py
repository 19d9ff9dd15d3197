"""LVR on rotation analogies: the latent's target is the panel of the solution, which the model's input does not show.

A block of one latent, as the panel is one merged token. `lvr_jax/assets/tiny_rotation` is a base that reads shapes. The
full study runs it (configs/full_study.py). It is no experiment of the paper. Cost: minutes.

    python tools/train.py --config configs/rotation_lvr.py:tiny --workdir runs/rotation_lvr
"""

from ml_collections import ConfigDict

from configs import common


def get_config(size: str = "tiny") -> ConfigDict:
    if size != "tiny":
        raise ValueError(f"config argument {size!r}: rotation analogies are of one size, tiny")
    c = common.get_config(size, "rotation_lvr")
    c.init.checkpoint = "lvr_jax/assets/tiny_rotation"
    hidden = {"kind": "rotation_analogies", "mask_box": True, "mask_query": False}
    c.data.sources = {"rotation": {**hidden, "size": 100_000, "split": "train"}}
    c.held_out.sources = {"rotation": {**hidden, "size": 64, "split": "test"}}
    # Two questions a row, of two pictures each: latents come from a second one.
    c.data.tokens, c.data.windows = 192, 4
    c.system.budget = 1
    return c
