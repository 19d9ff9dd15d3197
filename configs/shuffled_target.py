"""Control: latents are regressed on another vision token of the same row.

Does it matter which vision token the reconstruction loss asks for? Cost: 5 to 12 hours of an 80 GB accelerator at 3b
(the paper's figure), minutes at tiny.

    python tools/train.py --config configs/shuffled_target.py:3b --workdir runs/shuffled_target
    python tools/train.py --config configs/shuffled_target.py:tiny --workdir runs/shuffled_target_tiny
"""

from ml_collections import ConfigDict

from configs import common


def get_config(size: str = "3b") -> ConfigDict:
    c = common.get_config(size, "shuffled_target")
    c.objective.target = "shuffled"
    return c
