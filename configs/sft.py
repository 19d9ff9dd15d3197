"""Control: the same data and steps without latents or their markers.

Is there anything in the latents at all? Cost: less than the baseline, whose latents it leaves out.

    python tools/train.py --config configs/sft.py:3b --workdir runs/sft
    python tools/train.py --config configs/sft.py:tiny --workdir runs/sft_tiny
"""

from ml_collections import ConfigDict

from configs import common


def get_config(size: str = "3b") -> ConfigDict:
    c = common.get_config(size, "sft")
    c.data.template = "no_latents"
    return c
