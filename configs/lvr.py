"""LVR, the baseline: one latent block, each latent regressed on its own vision token.

Sec. 4.1 of "Cosine Misleads", sec. 1.1 of its code's scripts. Cost: 5 to 12 hours of an 80 GB accelerator at 3b (the
paper's figure), minutes at tiny.

    python tools/train.py --config configs/lvr.py:3b --workdir runs/lvr
    python tools/train.py --config configs/lvr.py:tiny --workdir runs/lvr_tiny
"""

from ml_collections import ConfigDict

from configs import common


def get_config(size: str = "3b") -> ConfigDict:
    return common.get_config(size, "lvr")
