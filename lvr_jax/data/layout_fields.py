"""The fields of config.json that say how a checkpoint's latent blocks are laid out: written by exports, read by audits.

`plvr_mode`, `include_free_stage`, `num_free_tokens` and `free_id` are those of the released code of "Cosine Misleads"
(its trainer writes them, its model class decodes by them). What they cannot say (pooled latents, markers alone, no
latents) stands in a field of ours, which the released code does not read.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from lvr_jax.data.sample import DataError
from lvr_jax.data.templates import LVR, P_LVR_2, P_LVR_3, TEMPLATES, SequenceTemplate

OWN = "lvr_layout"
STAGED, FREE, FREE_TOKENS = "plvr_mode", "include_free_stage", "num_free_tokens"
FIELDS = (OWN, STAGED, FREE, FREE_TOKENS)
_FREE_STAGE = next(stage for stage in P_LVR_3.stages if stage.free_tokens)


class LayoutError(DataError):
    """A config.json that does not say, or says wrongly, how latent blocks are laid out."""


def layout_fields(template: SequenceTemplate) -> dict[str, Any]:
    """What config.json must hold so that `layout_of` gives this template again."""
    free = next((stage.free_tokens for stage in template.stages if stage.free_tokens), 0)
    if template.name in (P_LVR_2.name, P_LVR_3.name):
        return {STAGED: True, FREE: bool(free), FREE_TOKENS: free or _FREE_STAGE.free_tokens}
    # The released trainer writes these for its baselines.
    fields = {STAGED: False, FREE: False, "free_id": None}
    return fields if template == LVR else fields | {OWN: template.name}


def layout_of(fields: Mapping[str, Any], stages: int, where: str) -> SequenceTemplate | None:
    """The training layout that config.json states; None where its system has none that this project knows.

    stages: latent stages of the checkpoint's system; where: file name for errors. Raises LayoutError where a staged
    checkpoint does not say which stages it was trained with.
    """
    own = fields.get(OWN)
    if own is not None:
        if own not in TEMPLATES:
            raise LayoutError(f"{where}: {OWN} is {own!r}, expected one of {', '.join(TEMPLATES)}")
        return TEMPLATES[own]
    if not fields.get(STAGED) and stages < 2:
        return LVR if fields.get("lvr_id") is not None else None
    free = fields.get(FREE)
    if not fields.get(STAGED) or not isinstance(free, bool):
        lacking = f"{STAGED} is {fields.get(STAGED)!r}, {FREE} {free!r}"
        raise LayoutError(f"{where}: {lacking}; expected true, and whether free tokens stand between the stages")
    if not free:
        return P_LVR_2
    count = fields.get(FREE_TOKENS)
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise LayoutError(f"{where}: {FREE_TOKENS} is {count!r}, expected how many free tokens a block has")
    stages_of = tuple(dataclasses.replace(s, free_tokens=count) if s.free_tokens else s for s in P_LVR_3.stages)
    return dataclasses.replace(P_LVR_3, stages=stages_of)
