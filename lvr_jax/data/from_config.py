"""Makes the pipeline that the `data` fields of a config describe.

    config.data.tokenizer = "Qwen2.5-VL-3B-Instruct"
    config.data.sources = {"sroie": {"kind": "records", "path": "sroie_cot_train.jsonl", "format": "visual_cot"}}
    config.data.tokens, config.data.windows, config.data.rows = 4096, 288, 8

    data = DataConfig.read(config.data)
    pipeline = make_pipeline(data, shard_index=0, shard_count=1)
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping

from lvr_jax.data.chat import ANSWER_FORMATS, DEFAULT_SYSTEM, encode_example
from lvr_jax.data.digit_scenes import DigitSearch
from lvr_jax.data.images import LVR_PIXELS, PROTOCOLS
from lvr_jax.data.packing import Budget, Geometry
from lvr_jax.data.pipeline import Pipeline, Settings, Source
from lvr_jax.data.records import RecordSource, lvr_meta, plain_folder
from lvr_jax.data.rotation_scenes import RotationAnalogies
from lvr_jax.data.sample import DataError, Example, Sample
from lvr_jax.data.templates import TEMPLATES
from lvr_jax.data.tokenizers import ChatTokenizer, add_latent_tokens, load_tokenizer

# What `kind` of a source may be; its other fields go to the constructor, which documents them. A meta file is several.
KINDS: dict[str, Callable] = {
    "digit_search": DigitSearch,
    "rotation_analogies": RotationAnalogies,
    "records": RecordSource,
    "plain_folder": plain_folder,
    "lvr_meta": lvr_meta,
}
NAMED = ("records", "plain_folder")      # those whose samples' ids begin with a name: that of the source


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Every `data` field that a config may have. Paths are relative to where the program runs, or gs://.

    tokenizer: checkpoint folder or tokenizer.json; latent tokens that it lacks are added in the official order.
    sources: name -> {"kind": one of KINDS, "weight": optional, the constructor's fields}.
    tokens, windows, pooled: the budget of a row; rows: of one process's batch; merge, window: the network's geometry.
    template .. filler: as `encode_example`. seed .. patience: as `Settings` (max_per_row = 0: full packing).
    workers, prefetch: as `Pipeline`.
    """

    tokenizer: str
    sources: Mapping[str, Mapping]
    tokens: int
    windows: int
    rows: int
    pooled: int = 0
    merge: int = 2
    window: int = 4
    template: str = "lvr"
    answer_format: str = "tagged"
    system: str = DEFAULT_SYSTEM
    protocol: str = "train"
    min_pixels: int = LVR_PIXELS[0]
    max_pixels: int = LVR_PIXELS[1]
    box_rule: str = "packed"
    check_boxes: bool = True
    filler: int = 0
    seed: int = 0
    shuffle: bool = True
    epochs: int | None = None
    lookahead: int = 32
    max_per_row: int | None = None
    max_skip_share: float = 0.05
    patience: int = 200
    workers: int = 0
    prefetch: int = 2

    @classmethod
    def read(cls, fields: Mapping) -> DataConfig:
        """From a ConfigDict or dict; DataError for a field that is unknown, missing or not one of its choices."""
        fields = dict(fields.items())
        known = {field.name: field for field in dataclasses.fields(cls)}
        for name in fields:
            if name not in known:
                raise DataError(f"data.{name}: no such field, expected some of {', '.join(known)}")
        for name, field in known.items():
            if field.default is dataclasses.MISSING and fields.get(name) in (None, "", {}):
                raise DataError(f"data.{name}: missing from the config")
        for name, choices in (("template", TEMPLATES), ("answer_format", ANSWER_FORMATS), ("protocol", PROTOCOLS)):
            if fields.get(name, known[name].default) not in choices:
                raise DataError(f"data.{name} = {fields[name]!r}: expected one of {', '.join(choices)}")
        if not isinstance(filler := fields.get("filler", 0), int) or filler < 0:
            raise DataError(f"data.filler = {filler!r}: expected a whole number, at least 0")
        return cls(**fields)

    @property
    def settings(self) -> Settings:
        shared = {field.name for field in dataclasses.fields(Settings)} & {f.name for f in dataclasses.fields(self)}
        return Settings(
            budget=Budget(self.tokens, self.windows, self.pooled),
            geometry=Geometry(self.merge, self.window),
            **{name: getattr(self, name) for name in shared},
        )


def make_sources(data: DataConfig) -> list[Source]:
    """The sources in the order of their names, so that it does not depend on how the config was put together."""
    found = []
    for name, fields in sorted(data.sources.items()):
        fields = dict(fields.items())
        kind, weight = fields.pop("kind", None), fields.pop("weight", None)
        if kind not in KINDS:
            raise DataError(f"data.sources.{name}.kind = {kind!r}: expected one of {', '.join(KINDS)}")
        if kind in NAMED:
            fields.setdefault("name", name)
        try:
            source = KINDS[kind](**fields)
        except DataError:
            raise
        except (TypeError, ValueError) as error:        # a field that the constructor lacks, or refuses
            raise DataError(f"data.sources.{name}: {error}") from error
        if isinstance(source, tuple):
            if weight is not None:
                raise DataError(f"data.sources.{name}.weight = {weight}: a meta file's sources have no weights")
            found += [Source(part, part.name) for part in source]
        else:
            found.append(Source(source, name, weight))
    return found


def make_tokenizer(data: DataConfig) -> ChatTokenizer:
    """The tokenizer of a data config with the latent tokens added."""
    return add_latent_tokens(load_tokenizer(data.tokenizer))


def make_encode(data: DataConfig, tokenizer: ChatTokenizer | None = None) -> Callable[[Sample], Example]:
    """Sample -> training Example, as the config says; pickles."""
    names = ("min_pixels", "max_pixels", "answer_format", "system", "protocol", "box_rule", "check_boxes", "filler")
    return functools.partial(
        encode_example,
        tokenizer=tokenizer or make_tokenizer(data),
        template=TEMPLATES[data.template],
        **{name: getattr(data, name) for name in names},
    )


def make_pipeline(
    data: DataConfig,
    shard_index: int = 0,
    shard_count: int = 1,
    *,
    tokenizer: ChatTokenizer | None = None,
    skip_log: str | os.PathLike | None = None,
) -> Pipeline:
    """The training stream of a config, for one shard."""
    return Pipeline(
        make_sources(data),
        make_encode(data, tokenizer),
        data.settings,
        shard_index=shard_index,
        shard_count=shard_count,
        workers=data.workers,
        prefetch=data.prefetch,
        skip_log=skip_log,
    )
