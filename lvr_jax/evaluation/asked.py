"""Digests of what is asked: question, options, answer, boxes and pictures of an item, as its benchmark has them now.

Results carry them, so that they are never taken for those of another question under the same id.
"""

from __future__ import annotations

import hashlib
import json
import os
from typing import Any

import numpy as np
from etils import epath

from lvr_jax.data.sample import ImageSource, Sample, SampleError


def asked(sample: Sample, **how: Any) -> str:
    """64 bits of the sample's texts, boxes and pictures (files as they are, not decoded).

    how: JSON-able settings that decide what the network is shown of it. Raises SampleError for a missing picture.
    """
    boxes = [list(map(float, box)) for box in sample.boxes], list(map(int, sample.box_images))
    texts = [sample.question, sample.answer, sample.letter, list(sample.options), boxes, sample.category, how]
    digest = hashlib.sha256(json.dumps(texts, sort_keys=True).encode())
    for kind, sources in (("images", sample.images), ("inputs", sample.input_images or ())):
        for source in sources:
            digest.update(kind.encode() + hashlib.sha256(_content(source, sample.id)).digest())
    return digest.hexdigest()[:16]


def _content(source: ImageSource, name: str) -> bytes:
    if isinstance(source, bytes):
        return source
    if isinstance(source, np.ndarray):
        return str(source.shape).encode() + source.tobytes()
    try:
        return epath.Path(os.fspath(source)).read_bytes()
    except OSError as error:
        raise SampleError(f"sample {name}: image {source} cannot be read ({error.strerror or error})") from error
