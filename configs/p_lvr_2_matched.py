"""Control: P-LVR-2 with the baseline's weight: one mean over all latents of a batch.

Does the stage or the weight make P-LVR differ? Cost: as `p_lvr_2.py`.

    python tools/train.py --config configs/p_lvr_2_matched.py:3b --workdir runs/p_lvr_2_matched
    python tools/train.py --config configs/p_lvr_2_matched.py:tiny --workdir runs/p_lvr_2_matched_tiny
"""

from ml_collections import ConfigDict

from configs import p_lvr_2


def get_config(size: str = "3b") -> ConfigDict:
    c = p_lvr_2.get_config(size)
    c.name = "p_lvr_2_matched"
    c.objective.normalisation = "per_token"
    return c
