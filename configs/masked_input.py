"""Control: the box is black in what the model sees, while its latents come from the clean picture.

A positive control of the audit: oracle latents must help here, own ones cannot. Cost: 5 to 12 hours of an 80 GB
accelerator at 3b (the paper's figure), minutes at tiny.

    python tools/train.py --config configs/masked_input.py:3b --workdir runs/masked_input
    python tools/train.py --config configs/masked_input.py:tiny --workdir runs/masked_input_tiny
"""

from ml_collections import ConfigDict

from configs import common


def get_config(size: str = "3b") -> ConfigDict:
    c = common.get_config(size, "masked_input")
    if size == "tiny":      # the scene blacks out a square of one size, whose shape tells nothing
        c.data.sources.digits.mask_box = True
        c.held_out.sources.digits.mask_box = True
        c.data.windows = 4  # latents come from a second picture
    else:
        c.mask_boxes = True
    return c
