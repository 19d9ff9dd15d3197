"""The tiny checkpoint's last stage: the same questions with 0 to 32 tokens of filler before the reply.

So that the base of the experiments answers wherever its reply stands, behind the longest latent block too (P-LVR-3's
has up to 28 tokens), and a variant's accuracy says something of the variant. `python tools/make_tiny.py` runs it last,
in two rounds, the second longer; alone it goes on from the checkpoint that ships beside the base:

    python tools/train.py --config configs/tiny_base_filler.py --workdir runs/tiny_base_filler
"""

from ml_collections import ConfigDict

from configs import tiny_base


def get_config(size: str = "tiny") -> ConfigDict:
    c = tiny_base.get_config(size)
    c.name = "tiny_base_filler"
    c.init.checkpoint = "lvr_jax/assets/tiny_one_offset"
    c.data.filler = 32
    # Three or four questions a row, 58 a step; scenes that no stage before has seen.
    c.data.tokens = 336
    c.data.sources.digits.seed = 2
    c.steps = 600
    c.held_out.every = 200
    c.checkpoint.every = 100
    return c
