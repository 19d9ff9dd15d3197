"""Rotation analogies without latents, the last stage of the rotation base: both steps in one, anywhere.

`python tools/make_rotation.py` runs it, after `configs/rotation_steps.py`. Beside analogies the same with the turn
said, and the steps alone. Filler before the reply as in `configs/tiny_base_filler.py`, so that the base answers behind
a latent block too. It is no experiment of the paper. Cost: 2 minutes of one core.
"""

from ml_collections import ConfigDict

from configs import rotation_steps


def get_config(size: str = "tiny") -> ConfigDict:
    c = rotation_steps.get_config(size)
    c.name = "rotation_base"
    # Three questions a row, many with a second picture; a filler as long as a block of one latent.
    c.data.tokens, c.data.windows = 320, 6
    c.data.filler = 4
    of = lambda **options: {"kind": "rotation_analogies", "size": 1_000_000, **options}  # noqa: E731
    c.data.sources = {
        "analogy": of(seed=1, weight=3.0), "shown": of(seed=2, mask_box=False, weight=1.0),
        "stated": of(seed=3, state_rotation=True, mask_box=False, weight=2.0),
        "turn": of(seed=6, asks="turn", mask_box=False, weight=1.0),
        "place": of(seed=7, asks="place", mask_box=False, weight=1.0),
    }  # fmt: skip
    c.steps = 200
    return c
