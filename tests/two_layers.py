"""The tiny network with two layers where it has four, in decoder and tower: half of what there is to compile.

For tests of how programs run, and not of what the network has learnt.
"""

import dataclasses
import json
import re
import shutil
from pathlib import Path

from safetensors.numpy import load_file, save_file

from lvr_jax.models.qwen2_5_vl.config import SIZES

SHIPPED = Path(__file__).parents[1] / "lvr_jax/assets/tiny"
KEPT = (0, 3)       # the second of them attends over whole images
NAME = "two_layers"
_TINY = SIZES["tiny"]
SIZES[NAME] = dataclasses.replace(
    _TINY, text=dataclasses.replace(_TINY.text, layers=2),
    vision=dataclasses.replace(_TINY.vision, depth=2, full_attention_layers=(1,)),
)  # fmt: skip


def checkpoint(folder: Path) -> Path:
    """A copy of the shipped checkpoint without its middle layers, which answers nothing."""
    shutil.copytree(SHIPPED, folder)
    fields = json.loads((folder / "config.json").read_text())
    fields["num_hidden_layers"] = fields["vision_config"]["depth"] = len(KEPT)
    fields["vision_config"]["fullatt_block_indexes"] = [1]
    (folder / "config.json").write_text(json.dumps(fields))
    cut = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        if found := re.search(r"(?<=\.(layers|blocks)\.)\d+", name):
            if int(found[0]) not in KEPT:
                continue
            name = f"{name[: found.start()]}{KEPT.index(int(found[0]))}{name[found.end() :]}"
        cut[name] = tensor
    save_file(cut, folder / "model.safetensors", {"format": "pt"})
    return folder
