"""Control: latents are the model's own in training as in inference, with gradients through time.

One example with one box a row, eight pooled latents, as many examples a step as packs hold. Cost: latents are made
one after the other, each a pass over the cache.

    python tools/train.py --config configs/rollout.py:3b --workdir runs/rollout
    python tools/train.py --config configs/rollout.py:tiny --workdir runs/rollout_tiny
"""

from ml_collections import ConfigDict

from configs import common, lvr_pooled


def get_config(size: str = "3b") -> ConfigDict:
    c = lvr_pooled.get_config(size)
    c.name = "rollout"
    c.objective.feedback = "rollout"
    return common.align(c, size)
