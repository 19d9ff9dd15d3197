"""N-LVR: noise on the teacher-forced latents, targets clean.

Standard deviation 0.3 in raw activation units, in training only (appendix C.3, and the released code). Cost: 5 to 12
hours of an 80 GB accelerator at 3b (the paper's figure), minutes at tiny.

    python tools/train.py --config configs/n_lvr.py:3b --workdir runs/n_lvr
    python tools/train.py --config configs/n_lvr.py:tiny --workdir runs/n_lvr_tiny
"""

from ml_collections import ConfigDict

from configs import common


def get_config(size: str = "3b") -> ConfigDict:
    c = common.get_config(size, "n_lvr")
    c.objective.noise = 0.3
    return c
