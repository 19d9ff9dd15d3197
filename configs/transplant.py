"""What checkpoints of one base share: latents of one read by another, weights of one put into another.

    python tools/transplant.py --config configs/transplant.py --config.checkpoint=sft_markers,lambda_zero,lvr \\
        --config.base=tiny --config.benchmark=digit_search --config.options="size=200" --workdir runs/shared

Cost: a sweep of eight conditions a network, and with three checkpoints, six pairs of some ten parts each: ten minutes
of one core with tiny networks and 200 items.
"""

import ml_collections

from configs import prism

# The answer without the latents' content, with none at all, with another item's, and with visual targets.
CONDITIONS = "answer_blind_to_latents,markers_only,donor_directed,oracle"


def get_config() -> ml_collections.ConfigDict:
    config = prism.get_config("light")
    config.conditions.names = CONDITIONS
    config.base = ""            # the checkpoint that all were trained from; none: no spectra
    config.groups = 4           # runs of neighbouring text blocks that are transplanted one at a time
    config.alignment.template = "lvr"
    return config
