"""Control: the markers of a latent block with nothing between them.

Does the format alone change the model? Cost: as `sft`.

    python tools/train.py --config configs/sft_markers.py:3b --workdir runs/sft_markers
    python tools/train.py --config configs/sft_markers.py:tiny --workdir runs/sft_markers_tiny
"""

from ml_collections import ConfigDict

from configs import common


def get_config(size: str = "3b") -> ConfigDict:
    c = common.get_config(size, "sft_markers")
    c.data.template = "markers_only"
    c.system.budget = 0
    return c
