"""Visual-CoT's own metadata (sroie, vsr, dude, cub) as LVR training sequences: real documents and photographs.

The argument is a folder with `<name>_cot_train.jsonl` and an `images/<name>` folder beside each; tokenizer and the
names of the sets are overrides:

    python tools/inspect_data.py --config configs/data/visual_cot.py:FOLDER,sroie,vsr \\
        --config.data.tokenizer=Qwen2.5-VL-3B-Instruct --index 0,7 --output inspected

Rows of 16,384 tokens with LVR's pixel limits, as LVR was trained: 98 % of the tokens are not padding. Where rows are
shorter, let an image take 5/16 of a row, as here (max_pixels = 784 x 5/16 x tokens); windows are tokens / 16 x 9/8.
"""

import ml_collections

from lvr_jax.data.images import LVR_PIXELS
from lvr_jax.data.records import SHORT_ANSWER


def get_config(argument: str = "data/visual_cot,sroie,vsr,dude") -> ml_collections.ConfigDict:
    folder, *names = argument.split(",")
    config = ml_collections.ConfigDict()
    config.data = {
        "tokenizer": "",
        "sources": {
            name: {
                "kind": "records",
                "path": f"{folder}/{name}_cot_train.jsonl",
                "format": "visual_cot",
                "image_folder": f"{folder}/images/{name}",
                "instruction": SHORT_ANSWER,
                "box_policy": "clip",
            }
            for name in names
        },
        "template": "lvr",
        "answer_format": "tagged",
        "min_pixels": LVR_PIXELS[0],
        "max_pixels": LVR_PIXELS[1],
        "tokens": 16384,
        "windows": 1152,
        "rows": 1,
        "workers": 8,
        "max_skip_share": 0.05,
    }
    return config
