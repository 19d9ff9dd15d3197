"""Control: latents are fed by force, but never regressed on anything (lambda 0 from the first step).

What does the reconstruction loss add? Cost: 5 to 12 hours of an 80 GB accelerator at 3b (the paper's figure), minutes
at tiny.

    python tools/train.py --config configs/lambda_zero.py:3b --workdir runs/lambda_zero
    python tools/train.py --config configs/lambda_zero.py:tiny --workdir runs/lambda_zero_tiny
"""

from ml_collections import ConfigDict

from configs import common


def get_config(size: str = "3b") -> ConfigDict:
    c = common.get_config(size, "lambda_zero")
    c.reconstruction.points = ((0.0, 0.0),)
    return c
