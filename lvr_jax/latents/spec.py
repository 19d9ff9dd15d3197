"""One record for each published latent-reasoning system; no code branches on a system's name.

A latent block opens at a start marker, feeds the model's own hidden state (after the final norm) back for a quota of
steps, and closes. The fields below are all that LVR, P-LVR, LanteRn, Monet, Mirage, ILVR, Laser and V-Reflection
differ in (facts read in their released code; see `SYSTEMS`).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np


class SpecError(ValueError):
    """A system that does not exist, or token ids that do not fit it."""


Array = Any     # a jax.Array, or a NumPy array or scalar of the same shape before it goes to the device
# The field of config.json that says where the head of a checkpoint was applied (LatentSpec.head_at), and its values.
HEAD_FIELD, PREDICTORS, OUTPUTS = "lvr_head_at", "predictors", "outputs"
# Latents a block that can be meant: no published system feeds a tenth of them.
MOST_LATENTS = 4096


@dataclasses.dataclass(frozen=True)
class LatentStage:
    """One kind of latent block: its markers, the id stored in its slots, and latents a unit of the caller's budget."""

    name: str
    start: str
    slot: str
    end: str
    quota: int = 1


@dataclasses.dataclass(frozen=True)
class LatentSpec:
    """One latent-reasoning system.

    stages:            kinds of block, told apart by their start markers
    added_tokens:      special tokens in the order of the released code (ids from 151665 on a stock vocabulary)
    config_ids:        config.json field -> token, checked against the tokenizer
    budget:            N that the system is evaluated with
    overwrite_start:   the hidden state that predicted the start marker replaces the marker's own embedding (Monet in
                       vLLM) and counts in the quota; otherwise the marker is fed and its output is the first latent
    after:             tokens forced once a block closes
    exit_on_end:       picking the end marker inside a block closes it
    end_distance:      a block closes when the mean squared distance of the vector just fed to the checkpoint's
                       `lvr_latent_end_emb` falls below this (LVR's "latent" strategy)
    store_slot:        the id stored in a latent slot is the stage's slot token, not the id that was picked there
    first_block_only:  the quota holds for the first block of an answer; later ones have none (Mirage)
    stop_inside:       an end-of-text id picked inside a block ends the answer
    first_token:       forced as the first token of the answer
    head_at:           where a checkpoint with a latent head applies it: `outputs` of latent steps (released
                       inference code: the first latent goes without, and the text after the last is picked through it)
                       or `predictors`, the steps whose output is fed back (training, the released one too)
    answer:            how the answer is marked: `tag` <answer> X </answer>, or `boxed`
    """

    name: str
    stages: tuple[LatentStage, ...]
    added_tokens: tuple[str, ...]
    config_ids: tuple[tuple[str, str], ...] = ()
    budget: int = 8
    overwrite_start: bool = False
    after: tuple[str, ...] = ()
    exit_on_end: bool = False
    end_distance: float | None = None
    store_slot: bool = False
    first_block_only: bool = False
    stop_inside: bool = False
    first_token: str | None = None
    head_at: str = OUTPUTS
    answer: str = "tag"


_LVR_TOKENS = ("<|lvr_start|>", "<|lvr|>", "<|lvr_latent_end|>", "<|lvr_end|>")
_PLVR_TOKENS = (
    *_LVR_TOKENS,
    "<|ctx_start|>", "<|ctx_end|>", "<|free_start|>", "<|free_end|>", "<|tgt_start|>", "<|tgt_end|>", "<|free|>",
)  # fmt: skip
_LVR_IDS = (
    ("lvr_start_id", "<|lvr_start|>"), ("lvr_id", "<|lvr|>"),
    ("lvr_latent_end_id", "<|lvr_latent_end|>"), ("lvr_end_id", "<|lvr_end|>"),
)  # fmt: skip
_LVR = LatentSpec(
    name="lvr",
    stages=(LatentStage("lvr", "<|lvr_start|>", "<|lvr|>", "<|lvr_end|>"),),
    added_tokens=_LVR_TOKENS,
    config_ids=_LVR_IDS,
)
# Context latents twice the budget, target latents once; the free stage of P-LVR-3 is ordinary text when decoding.
_P_LVR = dataclasses.replace(
    _LVR,
    name="p_lvr",
    stages=(
        LatentStage("context", "<|ctx_start|>", "<|lvr|>", "<|ctx_end|>", quota=2),
        LatentStage("target", "<|tgt_start|>", "<|lvr|>", "<|tgt_end|>"),
    ),
    added_tokens=_PLVR_TOKENS,
    config_ids=_LVR_IDS + tuple((token.strip("<|>") + "_id", token) for token in _PLVR_TOKENS[4:]),
    budget=16,
)
_MIRAGE = LatentSpec(
    name="mirage",
    stages=(LatentStage("latent", "<|latent_start|>", "<|latent_pad|>", "<|latent_end|>"),),
    added_tokens=("<|latent_pad|>", "<|latent_start|>", "<|latent_end|>"),
    config_ids=(
        ("latent_token_id", "<|latent_pad|>"),
        ("latent_start_id", "<|latent_start|>"),
        ("latent_end_id", "<|latent_end|>"),
    ),
    after=("<|latent_end|>",),
    exit_on_end=True,
    store_slot=True,
    first_block_only=True,
    answer="boxed",
)

SYSTEMS: dict[str, LatentSpec] = {
    "lvr": _LVR,
    "lvr_latent_end": dataclasses.replace(_LVR, name="lvr_latent_end", end_distance=0.02),
    "p_lvr": _P_LVR,
    "lantern": LatentSpec(
        name="lantern",
        stages=(LatentStage("latent", "<|lvr_start|>", "<|lvr_sep|>", "<|lvr_end|>"),),
        added_tokens=("<|lvr_start|>", "<|lvr_sep|>", "<|lvr_end|>"),
        config_ids=(
            ("lvr_start_id", "<|lvr_start|>"),
            ("lvr_sep_id", "<|lvr_sep|>"),
            ("lvr_end_id", "<|lvr_end|>"),
        ),
        after=("<|lvr_end|>",),
        store_slot=True,
    ),
    "monet": LatentSpec(
        name="monet",
        stages=(LatentStage("latent", "<abs_vis_token>", "<abs_vis_token_pad>", "</abs_vis_token>"),),
        added_tokens=(
            "<abs_vis_token_pad>", "<abs_vis_token>", "</abs_vis_token>", "<observation>", "</observation>"
        ),
        config_ids=(
            ("latent_token_id", "<abs_vis_token_pad>"),
            ("latent_start_id", "<abs_vis_token>"),
            ("latent_end_id", "</abs_vis_token>"),
        ),
        budget=10,
        overwrite_start=True,
        after=("</abs_vis_token>",),
        exit_on_end=True,
        stop_inside=True,
        answer="boxed",
    ),
    "mirage": _MIRAGE,
    "ilvr": dataclasses.replace(_MIRAGE, name="ilvr", first_block_only=False, answer="tag"),
    "laser": LatentSpec(
        name="laser",
        stages=(LatentStage("latent", "<|laser_start|>", "<|laser|>", "<|laser_end|>"),),
        added_tokens=("<|laser_start|>", "<|laser|>", "<|laser_end|>"),
        budget=16,
        after=("<|laser_end|>",),
        exit_on_end=True,
        first_token="<|laser_start|>",
    ),
    "v_reflection": dataclasses.replace(_LVR, name="v_reflection"),
}  # fmt: skip


def system(name: str) -> LatentSpec:
    """The record of a system. Raises SpecError if there is none of that name."""
    if name not in SYSTEMS:
        raise SpecError(f"latent system {name!r} does not exist, expected one of {sorted(SYSTEMS)}")
    return SYSTEMS[name]


def with_head_at(spec: LatentSpec, fields: Mapping[str, Any], where: str) -> LatentSpec:
    """The system as a checkpoint whose config.json has these fields runs its latent head. SpecError for neither way."""
    said = fields.get(HEAD_FIELD)
    if said is None:            # null, too, as others write what they do not say
        return spec
    if said not in (OUTPUTS, PREDICTORS):
        raise SpecError(f"{where}: {HEAD_FIELD} is {said!r}, expected one of {OUTPUTS}, {PREDICTORS}")
    return dataclasses.replace(spec, head_at=said)


def check_ids(spec: LatentSpec, ids: Mapping[str, int], config: Mapping[str, Any], where: str = "tokenizer") -> None:
    """Raises SpecError if the tokenizer lacks a token of the system or config.json names another id for it."""
    for token in {t for s in spec.stages for t in (s.start, s.slot, s.end)} | {t for _, t in spec.config_ids}:
        if token not in ids:
            raise SpecError(f"{where}: token {token} of system {spec.name!r} is missing")
    for field, token in spec.config_ids:
        if field in config and config[field] not in (None, ids[token]):
            raise SpecError(f"config.json: {field} is {config[field]}, but {where} gives {token} the id {ids[token]}")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Plan:
    """A LatentSpec with its tokens resolved: what the jitted loop reads. G stages, F forced tokens.

    start, slot, end, quota: [G] int32; after: [F]; first: the forced first token or -1. Quotas are data, so a sweep
    over budgets is not a new program.
    """

    start: Array
    slot: Array
    end: Array
    quota: Array
    after: Array
    first: Array
    spec: LatentSpec = dataclasses.field(metadata={"static": True})


def plan(spec: LatentSpec, ids: Mapping[str, int], budget: int | None = None) -> Plan:
    """Resolves a spec with a tokenizer's ids and a budget N of latents (the spec's own by default)."""
    check_ids(spec, ids, {})
    N = spec.budget if budget is None else budget
    column = lambda values: np.array(values, np.int32)  # noqa: E731
    return Plan(
        start=column([ids[s.start] for s in spec.stages]),
        slot=column([ids[s.slot] for s in spec.stages]),
        end=column([ids[s.end] for s in spec.stages]),
        quota=column([N * s.quota for s in spec.stages]),
        after=column([ids[t] for t in spec.after]),
        first=column(-1 if spec.first_token is None else ids[spec.first_token]),
        spec=spec,
    )
