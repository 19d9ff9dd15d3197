"""Other prompts of an audit's items: the same question about a blank image, or about a scene with its target changed.

    blank            every pixel is mid-grey: latents and answers that saw nothing
    counterfactual   of generated scenes: the target has the attribute that a wrong option names, all else is equal
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from lvr_jax.data.sample import Example, Sample

GREY = 127
VARIANTS = ("blank", "counterfactual")


def blank(example: Example) -> Example:
    """The example with mid-grey images of the same size: layout, positions and question stay."""
    blanked = None if example.target_patches is None else np.full_like(example.target_patches, GREY)
    return dataclasses.replace(example, patches=np.full_like(example.patches, GREY), target_patches=blanked)


def available(benchmark) -> tuple[str, ...]:
    """The variants that items of a benchmark have."""
    changed = hasattr(benchmark, "counterfactual") and benchmark.counterfactual(0) is not None
    return VARIANTS if changed else VARIANTS[:1]


def examples(
    name: str, benchmark, indices: Sequence[int], encode: Callable[[Sample], Example], own: Sequence[Example]
) -> tuple[list[Example], np.ndarray]:
    """(examples of the variant, [B] which items have it); an item that lacks it keeps its own prompt."""
    if name == "blank":
        return [blank(example) for example in own], np.ones(len(own), bool)
    changed = [benchmark.counterfactual(i) for i in indices]
    there = np.array([sample is not None for sample in changed])
    return [example if sample is None else encode(sample) for sample, example in zip(changed, own)], there
