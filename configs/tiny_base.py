"""Digit search without latents, the second stage of the tiny checkpoint: the reply always follows the prompt.

`python tools/make_tiny.py` runs it, after the warm-up of the tower. What comes out can answer at that one offset only;
`configs/tiny_base_filler.py` goes on from there. It is no experiment of the paper. Cost: 15 minutes on 2 cores.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(size: str = "tiny") -> ConfigDict:
    if size != "tiny":
        raise ValueError(f"config argument {size!r}: the tiny checkpoint has one size, tiny")
    c = common.get_config(size, "tiny_base")
    c.data.template = "no_latents"
    # Three questions a row, 45 a step.
    c.data.tokens, c.data.windows, c.data.max_per_row = 272, 4, 4
    c.rows = 15
    c.data.sources.digits.update({"size": 1_000_000, "seed": 1})      # the experiments draw theirs with seed 0
    c.steps = 2000
    c.optimizer.peak, c.optimizer.betas = 1e-3, (0.9, 0.999)
    c.optimizer.weight_decay = 0.01
    c.held_out.every = 250
    c.checkpoint.every = 500
    return c
