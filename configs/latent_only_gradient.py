"""Control: the reconstruction loss trains only through activations at latent positions.

Keys, values and residuals of all other positions are stopped for it; cross-entropy is untouched. Cost: the decoder
runs twice a step, so about 1.7 times the baseline.

    python tools/train.py --config configs/latent_only_gradient.py:3b --workdir runs/latent_only_gradient
    python tools/train.py --config configs/latent_only_gradient.py:tiny --workdir runs/latent_only_gradient_tiny
"""

from ml_collections import ConfigDict

from configs import common


def get_config(size: str = "3b") -> ConfigDict:
    c = common.get_config(size, "latent_only_gradient")
    c.objective.route = "latent_only"
    return c
