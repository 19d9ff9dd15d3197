"""A source whose model input has every box blacked out: whether the answer can be read off without the boxes.

Latents, targets and teacher-forced inputs alike, still come from the clean image (`Sample.input_images`).
"""

import dataclasses

import numpy as np

from lvr_jax.data.encoding import SampleSource
from lvr_jax.data.images import load_image
from lvr_jax.data.sample import Sample, SampleError


@dataclasses.dataclass(frozen=True)
class MaskedBoxes:
    """`source` with masked input images. A mask covers every pixel that its box touches. SampleError for an item of
    several questions."""

    source: SampleSource

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Sample:
        sample = self.source[index]
        if sample.more:
            raise SampleError(f"sample {sample.id}: several questions about its images, each with its own boxes")
        if sample.input_images is not None or not sample.boxes:
            return sample
        images = tuple(load_image(image) for image in sample.images)
        masked = [image.copy() for image in images]
        for box, where in zip(sample.boxes, sample.box_images or (0,) * len(sample.boxes)):
            height, width = masked[where].shape[:2]
            left, top = np.floor(np.array(box[:2]) * (width, height)).astype(int)
            right, bottom = np.ceil(np.array(box[2:]) * (width, height)).astype(int)
            masked[where][max(top, 0) : bottom, max(left, 0) : right] = 0
        return dataclasses.replace(sample, images=images, input_images=tuple(masked))

    @property
    def path(self) -> str:
        """The file of records, for the list of skips."""
        return getattr(self.source, "path", "")
