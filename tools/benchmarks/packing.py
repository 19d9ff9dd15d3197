"""The share of a row's tokens that is not padding, on the real sizes, boxes and texts of Visual-CoT.

All sroie, vsr and dude rows, shuffled, as LVR training sequences of Qwen2.5-VL, through the packer of the pipeline
(`fill_row` over the default lookahead). An image may take 5/16 of a row at most: LVR's own proportion (5,120 vision
tokens in 16,384), which for 4,096 gives Qwen's 1,280 and for 8,192 gives 2,560. The ratio is that of the worst budget,
packed full (`data.max_per_row = 0`). The baseline is Grain's first-fit packer with as many open bins as our packer has
waiting examples. `as_shipped` is configs/common.py as it is, at most four examples a row as in the paper's code: its
`most` is what any packer could reach with so many, four examples of mean size.
"""

import time
from pathlib import Path

import numpy as np

from lvr_jax.data import boxes
from lvr_jax.data.filling import fill_row
from lvr_jax.data.images import FACTOR, LVR_PIXELS, PATCH, smart_resize
from lvr_jax.data.packing import Budget
from lvr_jax.data.pipeline import Settings
from lvr_jax.models.layout import window_count

GOAL = 0.95
SIZES = Path(__file__).parents[2] / "tests" / "golden" / "visual_cot_sizes.npz"
BUDGETS = (4096, 8192, 16384)
WINDOW_TOKENS = 16
SLACK = 9 / 8           # windows a row beside those that T merged tokens need: windows at an image's edge are not full
MARKERS = 3             # lvr_start, lvr_latent_end, lvr_end


def run(seed: int = 0) -> dict:
    """Seconds are those of choosing the rows of all three budgets, without reading or copying anything."""
    details = {"lookahead": Settings(Budget(1, 1), 1).lookahead, "budgets": {}}
    seconds = baseline = 0.0
    for tokens in BUDGETS:
        budget = Budget(tokens, int(tokens / WINDOW_TOKENS * SLACK))
        sizes, refused = example_sizes(tokens * 5 // 16)
        sizes = [sizes[i] for i in np.random.default_rng(seed).permutation(len(sizes))]
        fitting = [size for size in sizes if budget.holds(size)]
        start = time.perf_counter()
        rows = pack(fitting, budget, details["lookahead"], 0)
        middle = time.perf_counter()
        grain_rows = first_fit(fitting, budget, details["lookahead"])
        seconds, baseline = seconds + middle - start, baseline + time.perf_counter() - middle
        used = sum(size.tokens for size in fitting)
        details["budgets"][str(tokens)] = {
            "share": used / rows / tokens,
            "share_windows": sum(size.windows for size in fitting) / rows / budget.windows,
            "share_grain_first_fit": used / grain_rows / tokens,
            "share_one_a_row": used / len(fitting) / tokens,
            "rows": rows,
            "windows_a_row": budget.windows,
            "image_tokens_at_most": tokens * 5 // 16,
            "examples": len(fitting),
            "larger_than_the_row": len(sizes) - len(fitting),
            "unsound_boxes": refused,
        }
    details["as_shipped"] = as_shipped(seed)
    ratio = min(found["share"] for found in details["budgets"].values())
    return {
        "name": "packing", "ratio": ratio, "goal": GOAL, "holds": bool(ratio >= GOAL),
        "seconds": seconds, "baseline_seconds": baseline, "details": details,
    }  # fmt: skip


def example_sizes(image_tokens: int) -> tuple[list[Budget], int]:
    """Tokens and windows of every row as an LVR example, and how many rows were refused for their box."""
    data = np.load(SIZES)
    columns = (data[name].tolist() for name in ("width", "height", "box", "prompt_tokens", "answer_tokens"))
    found, refused = [], 0
    for width, height, box, prompt, answer in zip(*columns):
        try:
            box = boxes.normalise(box, "pixel_xyxy", width=width, height=height, clip=True)
        except boxes.BoxError:
            refused += 1
            continue
        limits = {"min_pixels": LVR_PIXELS[0], "max_pixels": image_tokens * FACTOR**2}
        grid = (1, *(side // PATCH for side in smart_resize(height, width, rule="fetch", **limits)))
        slots = len(boxes.box_to_tokens(box, grid))
        found.append(Budget(grid[1] * grid[2] // 4 + prompt + MARKERS + slots + answer, window_count(grid)))
    return found, refused


def as_shipped(seed: int) -> dict:
    """The same data under the base config's own budget, limit of examples and pixels, beside full packing."""
    from configs import common

    data = common.get_config("3b").data
    budget, limit = Budget(data.tokens, data.windows, data.pooled), data.max_per_row
    sizes, _ = example_sizes(data.max_pixels // FACTOR**2)
    sizes = [sizes[i] for i in np.random.default_rng(seed).permutation(len(sizes)) if budget.holds(sizes[i])]
    used = Budget(sum(size.tokens for size in sizes), sum(size.windows for size in sizes))
    found = {"max_per_row": limit, "most": min(limit * used.tokens / len(sizes) / budget.tokens, 1.0)}
    for name, at_most in (("limited", limit), ("full", 0)):
        rows = pack(sizes, budget, data.lookahead, at_most)
        found[name] = {
            "share": used.tokens / rows / budget.tokens, "share_windows": used.windows / rows / budget.windows,
            "rows": rows,
        }  # fmt: skip
    return found | {"rows_more": found["limited"]["rows"] / found["full"]["rows"] - 1}


def pack(sizes: list[Budget], budget: Budget, lookahead: int, max_per_row: int) -> int:
    """Rows that the pipeline's packer needs; max_per_row: 0 for as many as fit."""
    waiting, rows, upcoming = [], 0, iter(sizes)
    while True:
        waiting += [size for _, size in zip(range(lookahead - len(waiting)), upcoming)]
        if not waiting:
            return rows
        chosen = set(fill_row(waiting, budget, max_per_row))
        waiting = [size for i, size in enumerate(waiting) if i not in chosen]
        rows += 1


def first_fit(sizes: list[Budget], budget: Budget, bins: int) -> int:
    """Rows that Grain's packer needs, given both budgets."""
    import grain

    items = grain.MapDataset.source(sizes).map(
        lambda size: {"tokens": np.ones(size.tokens, np.uint8), "windows": np.ones(size.windows, np.uint8)}
    )
    packed = grain.experimental.FirstFitPackIterDataset(
        items.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)),
        length_struct={"tokens": budget.tokens, "windows": budget.windows},
        num_packing_bins=bins,
        shuffle_bins=False,
    )
    return sum(1 for _ in packed)
