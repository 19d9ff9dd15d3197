"""Control: the model before any training, as a row of the same tables.

Takes no step; writes the checkpoint out. Cost: none.

    python tools/train.py --config configs/base.py:3b --workdir runs/base
    python tools/train.py --config configs/base.py:tiny --workdir runs/base_tiny
"""

from ml_collections import ConfigDict

from configs import common


def get_config(size: str = "3b") -> ConfigDict:
    c = common.get_config(size, "base")
    c.steps = 0
    return c
