"""What a latent block looks like in each system, and which vision tokens each of its latents takes.

Sources: cosine-misleads `src/dataset/lvr_sft_dataset_packed.py`, `src/lvr_utils.py`.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from lvr_jax.data import boxes as box_rules
from lvr_jax.data.images import MERGE
from lvr_jax.data.sample import Sample, SampleError


@dataclasses.dataclass(frozen=True)
class Stage:
    """One span of a latent block: start marker, slots, end marker.

    box_scale: the slots hold the merged tokens of the box scaled by this (1.0 is the box as it is), by teacher
    forcing; None for a stage without visual targets, which has `free_tokens` slots (none: markers only).
    """

    name: str
    start: str
    slot: str
    end: str
    box_scale: float | None = 1.0
    free_tokens: int = 0


@dataclasses.dataclass(frozen=True)
class SequenceTemplate:
    """What a latent block looks like in one system.

    latent_end: the token between the last slot and the end marker of every stage. The papers do not mention it, the
    official code inserts it in all variants; None gives the layout that the papers describe.
    pool: average the targets of a visual stage, in raster order, to this many latents (a control).
    """

    name: str
    stages: tuple[Stage, ...]
    latent_end: str | None = "<|lvr_latent_end|>"
    pool: int | None = None

    @property
    def tokens(self) -> tuple[str, ...]:
        """Every token text that the template writes."""
        ends = (self.latent_end,) if self.latent_end and self.stages else ()
        return tuple(dict.fromkeys([t for s in self.stages for t in (s.start, s.slot, s.end)] + list(ends)))


_CONTEXT = Stage("context", "<|ctx_start|>", "<|lvr|>", "<|ctx_end|>", box_scale=1.5)
_FREE = Stage("free", "<|free_start|>", "<|free|>", "<|free_end|>", box_scale=None, free_tokens=6)
_TARGET = Stage("target", "<|tgt_start|>", "<|lvr|>", "<|tgt_end|>")
_LATENT = Stage("latent", "<|lvr_start|>", "<|lvr|>", "<|lvr_end|>")

LVR = SequenceTemplate("lvr", (_LATENT,))
LVR_POOLED = dataclasses.replace(LVR, name="lvr_pooled", pool=8)
P_LVR_2 = SequenceTemplate("p_lvr_2", (_CONTEXT, _TARGET))
P_LVR_3 = SequenceTemplate("p_lvr_3", (_CONTEXT, _FREE, _TARGET))
NO_LATENTS = SequenceTemplate("no_latents", (), latent_end=None)
MARKERS_ONLY = SequenceTemplate("markers_only", (dataclasses.replace(_LATENT, box_scale=None),))
TEMPLATES = {t.name: t for t in (LVR, LVR_POOLED, P_LVR_2, P_LVR_3, NO_LATENTS, MARKERS_ONLY)}


@dataclasses.dataclass(frozen=True, eq=False)
class LatentSlots:
    """The slots of one (box, stage): merged tokens that each slot averages, as raster indices into the example.

    A free slot has an empty array, an ordinary latent one index, a pooled latent several.
    """

    box: int
    stage: int                              # index in the template
    sources: tuple[np.ndarray, ...]


def latent_slots(
    sample: Sample,
    grids: np.ndarray,
    template: SequenceTemplate,
    *,
    box_rule: str = "packed",
    check_boxes: bool = True,
) -> list[LatentSlots]:
    """Which merged tokens each latent of each (box, stage) takes, in the order of the sequence.

    grids: [n, 3] of the sample's images. check_boxes=False accepts what the reference accepts, boxes without area or
    out of range included (they may cover no token at all). Raises SampleError or BoxError.
    """
    merged = np.asarray(grids, np.int64).reshape(-1, 3).prod(axis=1) // MERGE**2
    offsets = np.concatenate([[0], np.cumsum(merged)])
    where = sample.box_images or (0,) * len(sample.boxes)
    if len(where) != len(sample.boxes):
        raise SampleError(f"sample {sample.id}: {len(where)} box_images for {len(sample.boxes)} boxes")
    found = []
    for i, (box, image) in enumerate(zip(sample.boxes, where)):
        if not 0 <= image < len(merged):
            raise SampleError(f"sample {sample.id}: box {i} lies in image {image}, the sample has {len(merged)}")
        if check_boxes:
            try:
                box = box_rules.validate(box)
            except box_rules.BoxError as error:
                raise box_rules.BoxError(f"sample {sample.id}: {error}") from error
        for k, stage in enumerate(template.stages):
            if stage.box_scale is None:
                found.append(LatentSlots(i, k, (np.zeros(0, np.int32),) * stage.free_tokens))
                continue
            scaled = box if stage.box_scale == 1.0 else box_rules.expand(box, stage.box_scale)
            tokens = box_rules.box_to_tokens(scaled, grids[image], box_rule) + np.int32(offsets[image])
            found.append(LatentSlots(i, k, tuple(pool_groups(tokens, template.pool))))
    return found


def pool_groups(tokens: np.ndarray, pool: int | None) -> list[np.ndarray]:
    """Cuts S tokens in raster order into `pool` contiguous groups to be averaged; None: every token alone.

    Group k is floor(k S / pool) .. ceil((k + 1) S / pool), as adaptive average pooling does it: no group is empty, and
    fewer tokens than groups are repeated. No tokens give no groups.
    """
    S = len(tokens)
    if pool is None:
        return list(tokens[:, None])
    return [tokens[k * S // pool : -(-(k + 1) * S // pool)] for k in range(pool)] if S else []
