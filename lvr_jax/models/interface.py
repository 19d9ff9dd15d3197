"""What a model family is to the rooms above: its config, its network, and the record that registers it.

A family is a folder beside this file and an entry in models/families.py. Nothing outside `models/` names a family:
what the rooms above may use of one is written here.

Layout. The host lays pictures and tokens out with models/layout.py for every family: windows of `vision.window` merged
tokens a side, each of `vision.merge` patches a side, and M-RoPE position ids. A family without window attention may
attend over all windows of a frame; one without M-RoPE may use the first row of the ids. Patches are 14 pixels a side
(data/images.py), so a family of another patch size needs that number read from its config first.

Parameters are nested dicts. Three paths are fixed: `text/embed` [V, D], `text/head` [V, D] where the head is not the
embedding, and everything under `vision` for the tower, which is frozen by that name.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, ClassVar, Protocol

import jax
from flax import nnx

from lvr_jax.models.layers import Compute
from lvr_jax.models.records import Cache, Images, Override, Tokens
from lvr_jax.models.weight_table import Slot

# (regex of a parameter's path, mesh axis of each array axis); trailing axes are whole.
Rules = Sequence[tuple[str, tuple[str | None, ...]]]


class ConfigError(ValueError):
    """A config.json that lacks a field or holds a value that no network here implements."""


class VisionConfig(Protocol):
    """The vision tower as the input pipeline sees it; a frozen dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def merge(self) -> int:
        """Patches a side of a merged token."""

    @property
    def window(self) -> int:
        """Merged tokens a side of a window."""


class TextConfig(Protocol):
    """The decoder as caches, sweeps and memory estimates see it; a frozen dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def vocab(self) -> int:
        """V, rows of the embedding."""

    @property
    def hidden(self) -> int:
        """D."""

    @property
    def intermediate(self) -> int:
        """Width of the MLP."""

    @property
    def layers(self) -> int:
        """L."""

    @property
    def heads(self) -> int:
        """N."""

    @property
    def kv_heads(self) -> int:
        """K."""

    @property
    def head_width(self) -> int:
        """H."""

    @property
    def tied(self) -> bool:
        """Whether the head is the embedding."""


class Config(Protocol):
    """A network of some family; a frozen dataclass whose fields `vision` and `text` are dataclasses too."""

    __dataclass_fields__: ClassVar[dict[str, Any]]
    family: ClassVar[str]

    @property
    def vision(self) -> VisionConfig:
        """The tower."""

    @property
    def text(self) -> TextConfig:
        """The decoder."""

    @property
    def latent_head(self) -> str:
        """Kind of the head that makes latents of hidden states, or "none"."""

    @property
    def latent_end_embedding(self) -> bool:
        """Whether the checkpoint has an embedding whose distance ends a latent block."""

    def to_hf(self) -> dict[str, Any]:
        """A config.json for a network that has none of its own: the family's `read_config` reads it back equal."""


class Network(Protocol):
    """A network as latents, training and audits use it; `nnx.merge(graph, params)` makes one.

    latent_head: state [..., D] -> latent [..., D], or None where the state itself is fed back;
    latent_end: embedding [D] whose distance ends a latent block, or None
    """

    config: Any
    latent_head: Callable[[jax.Array], jax.Array] | None
    latent_end: nnx.Param | None

    def encode(
        self, images: Images, compute: Compute = ..., taps: Collection[str] = ()
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Merged vision tokens [B, M, D] in window order, and taps (`vision_states`)."""

    def embed(
        self, tokens: jax.Array, vision_slot: jax.Array | None = None, merged: jax.Array | None = None
    ) -> jax.Array:
        """Token ids [B, T] -> embeddings [B, T, D]; where vision_slot >= 0, the merged token of that index instead."""

    def decode(
        self,
        x: jax.Array,
        tokens: Tokens,
        *,
        past: Sequence[Cache] = (),
        compute: Compute = ...,
        taps: Collection[str] = (),
        keep_cache: bool = False,
        override: Override | None = None,
        read: jax.Array | None = None,
    ) -> tuple[jax.Array, Cache | None, dict[str, jax.Array]]:
        """Embeddings [B, T, D] -> (states after the final norm [B, T, D], own cache if kept, taps).

        read: [B, T] bool, the tokens whose states are read; a network may leave out what the others alone need.

        Must honour `tokens.segment`, `role` with `blocked`, `flow` and `branches`; keys and values of the cache are
        rotated.
        Taps: `states` [1 + L, B, T, D] and `attention` [L, B, N, T, past + T].
        """

    def logits(self, hidden: jax.Array) -> jax.Array:
        """States [..., D] -> logits [..., V], fp32 or wider."""

    @property
    def unembedding(self) -> jax.Array:
        """The rows [V, D] that states are compared with."""


@dataclasses.dataclass(frozen=True, eq=False)
class Family:
    """Everything that the rooms above need of a family.

    name:          `model_type` of its config.json, and `Config.family`
    read_config:   (parsed config.json, its name for errors) -> config; raises ConfigError
    sizes:         published networks by name, for shapes alone
    build:         (random keys, config) -> network, an nnx.Module that fulfils `Network`
    slots:         every tensor of a Hugging Face checkpoint of a config, by canonical name
    rules:         how parameters are spread over a mesh
    preprocessor:  fields of preprocessor_config.json that the network takes for granted, and their values
    decoder_flops: (config, tokens, pairs of query and key) -> FLOPs of a forward pass
    vision_flops:  (config, patches, pairs within windows, pairs within frames) -> FLOPs of a forward pass
    """

    name: str
    read_config: Callable[[Mapping[str, Any], str], Config]
    sizes: Mapping[str, Config]
    build: Callable[[nnx.Rngs, Any], nnx.Module]
    slots: Callable[[Any], dict[str, Slot]]
    rules: Rules
    preprocessor: Mapping[str, Any]
    decoder_flops: Callable[[Any, float, float], float]
    vision_flops: Callable[[Any, float, float, float], float]
