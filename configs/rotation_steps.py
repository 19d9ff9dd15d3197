"""The two steps of rotation analogies as questions of their own, the second stage of the rotation base.

By how many degrees is shape 2 turned, and which option is turned by so many: analogies alone leave a decoder of this
size at chance, and among others these questions are not learnt either. `python tools/make_rotation.py` runs it, after
the warm-up of the tower; `configs/rotation_base.py` goes on from there. It is no experiment of the paper. Cost: 2
minutes of one core.
"""

from ml_collections import ConfigDict

from configs import tiny_base


def get_config(size: str = "tiny") -> ConfigDict:
    c = tiny_base.get_config(size)
    c.name = "rotation_steps"
    # Three questions a row, 33 a step.
    c.data.tokens, c.data.windows, c.data.max_per_row = 256, 3, 3
    c.rows = 11
    of = lambda **options: {"kind": "rotation_analogies", "size": 1_000_000, "mask_box": False, **options}  # noqa: E731
    c.data.sources = {"turn": of(asks="turn", seed=4, weight=1.0), "place": of(asks="place", seed=5, weight=2.0)}
    c.steps = 300
    c.optimizer.betas = (0.9, 0.99)
    c.held_out.every = 0
    c.held_out.sources = {}
    c.checkpoint.every = 100
    return c
