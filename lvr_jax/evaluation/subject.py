"""Opens a checkpoint folder for an evaluation: network, tokenizer, latent system, pixel limits, end of text."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

from flax import nnx

from lvr_jax.checkpoints import load, open_hf, open_ours
from lvr_jax.checkpoints.fingerprint import fingerprint
from lvr_jax.checkpoints.folder import is_ours, read_json, resolve
from lvr_jax.data.chat import render_prompt
from lvr_jax.data.tokenizers import IM_END, ChatTokenizer, check_config, load_tokenizer
from lvr_jax.evaluation.preprocessor import pixel_limits, preprocessor_fields
from lvr_jax.evaluation.prompts import HARNESSES
from lvr_jax.evaluation.protocol import Protocol
from lvr_jax.latents.routing import ATTENTION, FIELD
from lvr_jax.latents.spec import (
    MOST_LATENTS,
    SYSTEMS,
    LatentSpec,
    LatentStage,
    Plan,
    SpecError,
    check_ids,
    plan,
    with_head_at,
)
from lvr_jax.models.families import abstract_model, family_of
from lvr_jax.models.interface import Config

# Ordinary text, for a baseline that has no latent tokens: its one stage opens at an id that no token has.
NOWHERE = ""
TEXT_ONLY = LatentSpec(name="none", stages=(LatentStage("none", NOWHERE, NOWHERE, NOWHERE),), added_tokens=())
# What config.json may say of a checkpoint's training: the harness whose prompts it knows, latents a block.
PROMPTS, BUDGET = "lvr_prompts", "lvr_budget"
KNOWN = {**SYSTEMS, TEXT_ONLY.name: TEXT_ONLY}


@dataclasses.dataclass(frozen=True, eq=False)
class Subject:
    """A checkpoint as an evaluation sees it.

    stop: ids that end an answer; min_pixels, max_pixels: of its preprocessor; notes: what a person should know;
    weights: a number of the parameters, so that results of other weights under the same path are told apart.
    attention: who may see whom in it, a key of latents.routing.ATTENTION; fields: its config.json
    """

    name: str
    config: Config
    graph: nnx.GraphDef
    params: dict
    tokenizer: ChatTokenizer
    spec: LatentSpec
    stop: tuple[int, ...]
    min_pixels: int
    max_pixels: int
    weights: int
    notes: tuple[str, ...] = ()
    attention: str = "full"
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def has_latents(self) -> bool:
        return self.spec.name != TEXT_ONLY.name

    def budget(self, protocol: Protocol) -> int:
        """N, latents a block: a protocol has one for systems of one stage and one for those of several."""
        return (protocol.staged_steps if len(self.spec.stages) > 1 else protocol.steps).accuracy

    def plan(self, protocol: Protocol) -> Plan:
        """The latent loop under this protocol; `context_factor` is the quota of stages that get more than one share."""
        stages = tuple(dataclasses.replace(s, quota=protocol.context_factor) if s.quota > 1 else s
                       for s in self.spec.stages)
        return plan(dataclasses.replace(self.spec, stages=stages), token_ids(self.tokenizer), self.budget(protocol))


def open_subject(
    folder: str | os.PathLike, *, system: str | None = None, shardings: Any = None, dtype: Any = None
) -> Subject:
    """Reads a checkpoint folder, Orbax or Hugging Face. Everything small is checked before the weights are read.

    system: name of its latent system, "none" for ordinary text; None: what config.json and tokenizer say.
    shardings, dtype: of the parameters (checkpoints.load). Raises CheckpointError, ConfigError, TokenizerError,
    SampleError or SpecError, one line each.
    """
    ours = is_ours(resolve(folder))
    source = open_ours(folder) if ours else open_hf(folder)
    files: Any = source.files if ours else source.folder
    fields, config = source.fields, source.config
    where = os.fspath(files / "config.json")
    tokenizer = load_tokenizer(files)
    check_config(tokenizer, {**fields, "vocab_size": config.text.vocab}, where)
    spec = default_system(tokenizer, fields, config, where) if system is None else known_system(system)
    spec = with_head_at(spec, fields, where)
    check_ids(spec, token_ids(tokenizer), fields, f"tokenizer {tokenizer.source}")
    render_prompt(tokenizer, [{"type": "image"}, {"type": "text", "text": "Which?"}])       # its chat template works
    generation = _optional(files / "generation_config.json")
    low, high, notes = pixel_limits(*preprocessor_fields(files), family_of(config).preprocessor)
    if generation.get("repetition_penalty") is not None:
        notes = (*notes, f"generation_config.json: repetition_penalty {generation['repetition_penalty']}"
                         " (the protocol's own is used)")
    stop = stop_ids(generation, fields, tokenizer)
    attention = fields.get(FIELD, "full")
    if attention not in ATTENTION:
        raise SpecError(f"{where}: {FIELD} is {attention!r}, expected one of {', '.join(ATTENTION)}")
    _check_training(fields, where)
    if (budget := fields.get(BUDGET)) is not None:
        notes = (*notes, f"config.json: {BUDGET} {budget} (a protocol has its own, which --budget changes)")
    _, params, _ = load(folder, shardings, dtype)
    return Subject(os.fspath(folder), config, abstract_model(config)[0], params, tokenizer, spec, stop, low, high,
                   fingerprint(params), notes, attention, fields)


def _check_training(fields: Mapping[str, Any], where: str) -> None:
    budget, harness = fields.get(BUDGET), fields.get(PROMPTS)
    whole = isinstance(budget, int) and not isinstance(budget, bool)
    if budget is not None and not (whole and 1 <= budget <= MOST_LATENTS):
        raise SpecError(f"{where}: {BUDGET} is {budget!r}, expected latents a block, 1 to {MOST_LATENTS}")
    if harness is not None and harness not in HARNESSES:
        raise SpecError(f"{where}: {PROMPTS} is {harness!r}, expected one of {', '.join(HARNESSES)}")


class _Ids(dict):
    """Token -> id, looked up in the tokenizer when asked for; NOWHERE is -1, which equals no id."""

    def __init__(self, tokenizer: ChatTokenizer):
        super().__init__({NOWHERE: -1})
        self.tokenizer = tokenizer

    def __contains__(self, token) -> bool:
        return super().__contains__(token) or self.tokenizer.backend.token_to_id(token) is not None

    def __missing__(self, token) -> int:
        return self.tokenizer.id(token)


def token_ids(tokenizer: ChatTokenizer) -> Mapping[str, int]:
    """Token -> id of a tokenizer, looked up when asked for; NOWHERE is -1."""
    return _Ids(tokenizer)


def known_system(name: str) -> LatentSpec:
    """The latent system of this name. Raises SpecError if there is none."""
    if name not in KNOWN:
        raise SpecError(f"latent system {name!r} does not exist, expected one of {', '.join(KNOWN)}")
    return KNOWN[name]


def default_system(tokenizer: ChatTokenizer, fields: Mapping[str, Any], config: Config, where: str) -> LatentSpec:
    """The system whose markers config.json names and the tokenizer confirms; the one with the most named tokens.

    Systems that act the same on this checkpoint count as one: LVR's distance to the end embedding means nothing
    without such an embedding. SpecError if there is none, or if systems that act differently fit equally well.
    """
    named: dict[str, int] = {}
    for name, spec in SYSTEMS.items():
        ids = {token: fields.get(field) for field, token in spec.config_ids}
        markers = {token for s in spec.stages for token in (s.start, s.slot, s.end)}
        if all(ids.get(token) is not None and tokenizer.backend.token_to_id(token) == ids[token] for token in markers):
            named[name] = sum(each is not None for each in ids.values())
    best = [name for name, count in named.items() if count == max(named.values())]
    if not best:
        raise SpecError(f"{where}: names no latent system's tokens, expected --system: one of {', '.join(KNOWN)}")
    acts = {name: _acts(SYSTEMS[name], config) for name in best}
    if len(set(acts.values())) > 1:
        raise SpecError(f"{where}: fits the latent systems {', '.join(best)}, expected --system to say which")
    return SYSTEMS[best[0]]


def _acts(spec: LatentSpec, config: Config) -> LatentSpec:
    distance = spec.end_distance if config.latent_end_embedding else None
    return dataclasses.replace(spec, name="", end_distance=distance)


def _optional(path) -> dict:
    return read_json(path) if path.exists() else {}


def stop_ids(generation: Mapping[str, Any], fields: Mapping[str, Any], tokenizer: ChatTokenizer) -> tuple[int, ...]:
    """eos_token_id of generation_config.json, else of config.json, else the end of a chat turn."""
    nested = fields.get("text_config") or {}
    for found in (generation.get("eos_token_id"), fields.get("eos_token_id"), nested.get("eos_token_id")):
        if found is None:
            continue
        ids = found if isinstance(found, list) else [found]
        if not ids or not all(isinstance(x, int) and not isinstance(x, bool) and x >= 0 for x in ids):
            raise SpecError(f"{tokenizer.source}: eos_token_id is {found!r}, expected a token id or a list of them")
        return tuple(ids)
    return (tokenizer.id(IM_END),)
