"""Control: latents are regressed on noise with their target's norm, drawn anew each step.

Does it matter what the reconstruction loss asks for? Cost: 5 to 12 hours of an 80 GB accelerator at 3b (the paper's
figure), minutes at tiny.

    python tools/train.py --config configs/random_target.py:3b --workdir runs/random_target
    python tools/train.py --config configs/random_target.py:tiny --workdir runs/random_target_tiny
"""

from ml_collections import ConfigDict

from configs import common


def get_config(size: str = "3b") -> ConfigDict:
    c = common.get_config(size, "random_target")
    c.objective.target = "random"
    return c
