"""Control: every box averaged, in raster groups, to eight latents, as in LanteRn.

Training then feeds as many latents as inference does. Cost: 5 to 12 hours of an 80 GB accelerator at 3b (the paper's
figure), minutes at tiny.

    python tools/train.py --config configs/lvr_pooled.py:3b --workdir runs/lvr_pooled
    python tools/train.py --config configs/lvr_pooled.py:tiny --workdir runs/lvr_pooled_tiny
"""

from ml_collections import ConfigDict

from configs import common


def get_config(size: str = "3b") -> ConfigDict:
    c = common.get_config(size, "lvr_pooled")
    c.data.template = "lvr_pooled"
    c.data.pooled = 64 if size == "tiny" else 8192
    c.system.budget = 8
    return c
