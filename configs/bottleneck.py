"""Control: only the start marker and the latents see the image, so the answer has to go through them.

A positive control of the audit: own latents must be load-bearing. Cost: 5 to 12 hours of an 80 GB accelerator at 3b
(the paper's figure), minutes at tiny.

    python tools/train.py --config configs/bottleneck.py:3b --workdir runs/bottleneck
    python tools/train.py --config configs/bottleneck.py:tiny --workdir runs/bottleneck_tiny
"""

from ml_collections import ConfigDict

from configs import common


def get_config(size: str = "3b") -> ConfigDict:
    c = common.get_config(size, "bottleneck")
    c.objective.attention = "bottleneck"
    return c
