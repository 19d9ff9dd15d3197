"""Control: the reconstruction loss trains only through activations outside the latent positions.

The complement of `latent_only_gradient.py`. A route cuts what enters a block, by position: all positions share the same
matrices, and the last block's queries, output projection and MLP, where latents are predicted, take the whole gradient
by either route (`objective.route=head_only` cuts by matrices). Cost: the decoder runs twice a step, so about 1.7 times
the baseline.

    python tools/train.py --config configs/outside_only_gradient.py:3b --workdir runs/outside_only_gradient
    python tools/train.py --config configs/outside_only_gradient.py:tiny --workdir runs/outside_only_gradient_tiny
"""

from ml_collections import ConfigDict

from configs import common


def get_config(size: str = "3b") -> ConfigDict:
    c = common.get_config(size, "outside_only_gradient")
    c.objective.route = "outside_only"
    return c
