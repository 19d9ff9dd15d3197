"""D-LVR: the baseline's first 1,500 of 2,500 steps, then no reconstruction loss; latents are still fed by force.

With init.fork_from=runs/lvr it goes on from the baseline's step 1,500, optimizer, schedule and place in the data
included; without, it trains the first phase itself, with the same result. Cost: 5 to 12 hours of an 80 GB accelerator
at 3b (the paper's figure), minutes at tiny.

    python tools/train.py --config configs/d_lvr.py:3b --workdir runs/d_lvr \\
        --config.init.fork_from=runs/lvr
    python tools/train.py --config configs/d_lvr.py:tiny --workdir runs/d_lvr_tiny
"""

from ml_collections import ConfigDict

from configs import common


def get_config(size: str = "3b") -> ConfigDict:
    c = common.get_config(size, "d_lvr")
    c.reconstruction.points = ((0.0, 0.1), (0.6, 0.0))
    c.init.fork_at = 0.6
    return c
