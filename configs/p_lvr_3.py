"""P-LVR-3: P-LVR-2 with six free tokens between its stages, kept apart by a diversity loss.

Free tokens are ordinary embeddings without a target. Weighted as P-LVR-2. Cost: 5 to 12 hours of an
80 GB accelerator at 3b (the paper's figure), minutes at tiny.

    python tools/train.py --config configs/p_lvr_3.py:3b --workdir runs/p_lvr_3
    python tools/train.py --config configs/p_lvr_3.py:tiny --workdir runs/p_lvr_3_tiny
"""

from ml_collections import ConfigDict

from configs import p_lvr_2


def get_config(size: str = "3b") -> ConfigDict:
    c = p_lvr_2.get_config(size)
    c.name = "p_lvr_3"
    c.data.template = "p_lvr_3"
    if size == "tiny":
        c.data.tokens = 200
    c.objective.stage_weights = (1.0, 0.0, 1.0)
    c.objective.diversity = 0.01
    return c
