"""Digit search scenes as training sequences: what a small run trains on, to be looked at beforehand.

Nothing to download; a tokenizer has to be named:

    python tools/inspect_data.py --config configs/data/digit_search.py \\
        --config.data.tokenizer=tests/golden/tokenizer.json --index 0,1 --output inspected

The argument is the template: `digit_search.py:p_lvr_3`.
"""

import ml_collections


def get_config(template: str = "lvr") -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.data = {
        "tokenizer": "",
        "sources": {
            "digits": {"kind": "digit_search", "size": 100_000, "split": "train", "seed": 0, "mask_box": False},
        },
        "template": template or "lvr",
        "answer_format": "word_then_letter",
        "min_pixels": 784,
        "max_pixels": 112 * 112,
        "tokens": 1024,
        "windows": 16,
        "rows": 8,
    }
    return config
