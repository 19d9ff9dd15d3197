"""How long does a picture take from decoded pixels to patches, against Hugging Face's processor?

Sizes drawn from the metadata of Visual-CoT (sroie, vsr, dude), LVR's pixel limits, pixels of noise, one core. Both do
the same bicubic resize in Pillow, which is most of our time; ours then cuts uint8 patches and leaves rescaling,
normalisation and the second temporal frame to the device. The outputs are compared in the same run, ours normalised as
the device does it. CPU seconds, not wall-clock: both sides have one thread, and the machine may be shared.
"""

import time
from pathlib import Path

import numpy as np
from PIL import Image

from lvr_jax.data.images import LVR_PIXELS, patchify, prepare_image, smart_resize

GOAL = 3
SIZES = Path(__file__).parents[2] / "tests" / "golden" / "visual_cot_sizes.npz"


def run(images: int = 24, rounds: int = 5, seed: int = 0) -> dict:
    """Ratio of the summed medians of `rounds` interleaved runs over `images` pictures."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    processor = Qwen2VLImageProcessorPil(min_pixels=LVR_PIXELS[0], max_pixels=LVR_PIXELS[1])
    data, rng = np.load(SIZES), np.random.default_rng(seed)
    rows, sides = [], (data["height"], data["width"])
    for i in rng.choice(len(sides[0]), images, replace=False):
        height, width = (int(side[i]) for side in sides)
        pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
        picture = Image.fromarray(pixels)
        size = smart_resize(height, width, min_pixels=LVR_PIXELS[0], max_pixels=LVR_PIXELS[1])
        ways = {
            "hf": lambda picture=picture: processor(images=picture, return_tensors="np")["pixel_values"],
            "ours": lambda pixels=pixels: patchify(prepare_image(pixels, *LVR_PIXELS, protocol="processor"))[0],
            "resize": lambda picture=picture, size=size: picture.resize(size[::-1], Image.Resampling.BICUBIC),
        }
        if not np.array_equal(normalised(ways["ours"](), processor), ways["hf"]()):
            raise RuntimeError(f"preprocess: {height} x {width} pixels become other patches than Hugging Face's")
        taken = {name: [] for name in ways}
        for _ in range(rounds):
            for name, way in ways.items():
                start = time.process_time()
                way()
                taken[name].append(time.process_time() - start)
        rows.append({"height": height, "width": width, **{name: float(np.median(t)) for name, t in taken.items()}})
    total = {name: sum(row[name] for row in rows) for name in ways}
    return {
        "name": "preprocess", "ratio": total["hf"] / total["ours"], "goal": GOAL,
        "holds": bool(total["hf"] / total["ours"] >= GOAL),
        "seconds": total["ours"] / images, "baseline_seconds": total["hf"] / images,
        "details": {
            "images": images,
            "median_ratio_of_an_image": float(np.median([row["hf"] / row["ours"] for row in rows])),
            "equal_after_normalisation": True,
            "share_of_ours_in_pillows_resize": total["resize"] / total["ours"],
            "ratio_if_only_pillows_resize_were_left": total["hf"] / total["resize"],
            "by_image": rows,
        },
    }  # fmt: skip


def normalised(patches: np.ndarray, processor) -> np.ndarray:
    """uint8 [P, 588] -> float32 [P, 1176] as the processor emits it: rescaled, normalised, both frames."""
    mean, std = (np.asarray(v, np.float32)[:, None, None] for v in (processor.image_mean, processor.image_std))
    pixels = (patches.reshape(-1, 3, 1, 196).astype(np.float64) * processor.rescale_factor).astype(np.float32)
    return np.broadcast_to((pixels - mean) / std, (len(patches), 3, 2, 196)).reshape(len(patches), 1176)
