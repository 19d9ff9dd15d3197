"""Time from a decoded picture to patches, against Hugging Face's processor.

Per image: the median, over LVR's training mix, of the ratio of one picture. Twelve sets by their number of questions;
sizes of three are in their published metadata, the others have one customary size each, and pixels are noise. Both
sides run the same bicubic resize in Pillow, which is most of our time, the more so the larger a picture: beside the
median stand the ratio of the summed seconds, which large documents decide, that of every set, and the ratio that would
be left if we did nothing but that resize. One core, and CPU seconds: both sides have one thread, and the machine may be
shared. The outputs are compared in the same run, ours normalised as the device does it.
"""

import time
from pathlib import Path

import numpy as np
from PIL import Image

from lvr_jax.data.images import LVR_PIXELS, patchify, prepare_image, smart_resize

GOAL = 3
# Questions of Visual-CoT's training sets, and a picture's customary (height, width); None: drawn from the metadata.
MIX = {
    "flickr30k": (135_735, (375, 500)), "gqa": (88_294, (375, 500)), "openimages": (43_053, (768, 1024)),
    "docvqa": (33_453, (2200, 1700)), "textcap": (32_152, (768, 1024)), "v7w": (30_491, (375, 500)),
    "textvqa": (18_524, (768, 1024)), "infographicsvqa": (15_055, (2400, 1000)), "dude": (11_735, None),
    "cub": (3_987, (375, 500)), "vsr": (3_376, None), "sroie": (2_486, None),
}  # fmt: skip
SIZES = Path(__file__).parents[2] / "tests" / "golden" / "visual_cot_sizes.npz"


def run(images: int = 40, rounds: int = 5) -> dict:
    """Medians of `rounds` interleaved runs over `images` pictures, spread evenly over the mix."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    processor = Qwen2VLImageProcessorPil(min_pixels=LVR_PIXELS[0], max_pixels=LVR_PIXELS[1])
    rows, rng = [], np.random.default_rng(0)
    for name, height, width in pictures(images, rng):
        picture = Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))
        size = smart_resize(height, width, min_pixels=LVR_PIXELS[0], max_pixels=LVR_PIXELS[1])
        ways = {
            "hf": lambda picture=picture: processor(images=picture, return_tensors="np")["pixel_values"],
            "ours": lambda picture=picture: patchify(prepare_image(picture, *LVR_PIXELS, protocol="processor"))[0],
            "resize": lambda picture=picture, size=size: picture.resize(size[::-1], Image.Resampling.BICUBIC),
        }
        if not np.array_equal(normalised(ways["ours"](), processor), ways["hf"]()):
            raise RuntimeError(f"preprocess: {height} x {width} pixels become other patches than Hugging Face's")
        taken = {way: [] for way in ways}
        for _ in range(rounds):
            for way, do in ways.items():
                start = time.process_time()
                do()
                taken[way].append(time.process_time() - start)
        medians = {way: float(np.median(t)) for way, t in taken.items()}
        rows.append({"set": name, "height": height, "width": width, **medians})
    total = {way: sum(row[way] for row in rows) for way in ways}
    ratio = lambda rows: float(np.median([row["hf"] / row["ours"] for row in rows]))  # noqa: E731
    return {
        "name": "preprocess", "ratio": ratio(rows), "goal": GOAL, "holds": bool(ratio(rows) >= GOAL),
        "seconds": total["ours"] / images, "baseline_seconds": total["hf"] / images,
        "details": {
            "images": images,
            "ratio_of_summed_seconds": total["hf"] / total["ours"],
            "ratio_by_set": {n: ratio(own) for n in MIX if (own := [row for row in rows if row["set"] == n])},
            "equal_after_normalisation": True,
            "share_of_ours_in_pillows_resize": total["resize"] / total["ours"],
            "ratio_of_sums_if_only_pillows_resize_were_left": total["hf"] / total["resize"],
            "by_image": rows,
        },
    }  # fmt: skip


def pictures(count: int, rng: np.random.Generator) -> list[tuple[str, int, int]]:
    """(set, height, width) at evenly spaced places of the whole mix."""
    data = np.load(SIZES)
    ends = np.cumsum([questions for questions, _ in MIX.values()])
    found = []
    for place in (np.arange(count) + 0.5) / count * ends[-1]:
        name = list(MIX)[int(np.searchsorted(ends, place))]
        size = MIX[name][1]
        if size is None:
            of_set = np.char.startswith(data["names"].astype(str), name)[data["source"]]
            row = rng.choice(np.flatnonzero(of_set))
            size = int(data["height"][row]), int(data["width"][row])
        found.append((name, *size))
    # In no order of size: how long a picture takes depends on the memory that those before it left to the process.
    return [found[n] for n in rng.permutation(count)]


def normalised(patches: np.ndarray, processor) -> np.ndarray:
    """uint8 [P, 588] -> float32 [P, 1176] as the processor emits it: rescaled, normalised, both frames."""
    mean, std = (np.asarray(v, np.float32)[:, None, None] for v in (processor.image_mean, processor.image_std))
    pixels = (patches.reshape(-1, 3, 1, 196).astype(np.float64) * processor.rescale_factor).astype(np.float32)
    return np.broadcast_to((pixels - mean) / std, (len(patches), 3, 2, 196)).reshape(len(patches), 1176)
