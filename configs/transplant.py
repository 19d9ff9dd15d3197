"""What checkpoints of one base share: latents of one read by another, weights of one put into another.

    python tools/transplant.py --config configs/transplant.py --config.checkpoint=markers,lambda_0,lvr \\
        --config.base=qwen_3b --config.benchmark=vstar --config.folder=data/vstar --workdir runs/shared

The argument `study` asks what the studies ask, of checkpoints that tools/reproduce.py trained from the tiny base:

    python tools/transplant.py --config configs/transplant.py:study --config.names=sft_markers,lambda_zero,lvr \\
        --config.checkpoint=RUN/sft_markers/train/export,RUN/controls-lambda_zero/train/export,RUN/lvr/train/export \\
        --workdir runs/shared

Cost: a sweep of eight conditions a network, and with three checkpoints, six pairs of some ten parts each: ten minutes
of one core with `study`.
"""

import ml_collections

from configs import prism

# The answer without the latents' content, with none at all, with another item's, and with visual targets.
CONDITIONS = "answer_blind_to_latents,markers_only,donor_directed,oracle"


def get_config(which: str = "") -> ml_collections.ConfigDict:
    if which not in ("", "study"):
        raise ValueError(f"configs/transplant.py:{which}: expected no argument, or `study`")
    config = prism.get_config("light")
    config.conditions.names = CONDITIONS
    config.base = ""            # the checkpoint that all were trained from; none: no spectra
    config.groups = 4           # runs of neighbouring text blocks that are transplanted one at a time
    config.alignment.template = "lvr"
    if which == "study":
        config.base, config.benchmark = "lvr_jax/assets/tiny", "digit_search"
        config.options, config.switches, config.budget = "size=200, split='test'", "max_new_tokens=48", 4
        config.rows, config.programs = 50, 1
    return config
