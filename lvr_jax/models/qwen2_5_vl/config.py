"""What shape is the network? Frozen records, read from a Hugging Face config.json of either layout.

The hub's files are flat (text fields at the top level); files re-saved by transformers 5 are nested under
`text_config`. No default ever stands in for a missing field: the class defaults of transformers differ from the
published checkpoints (vision hidden size, tokens per second), so a silent default would be a silent error.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any


class ConfigError(ValueError):
    """A config.json that lacks a field or holds a value that this network does not implement."""


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    depth: int
    hidden: int                            # D of the tower
    intermediate: int
    heads: int
    out_hidden: int                        # D of the language model
    full_attention_layers: tuple[int, ...]
    window_pixels: int = 112
    patch: int = 14
    merge: int = 2
    temporal_patch: int = 2
    channels: int = 3
    tokens_per_second: float = 2

    @property
    def head_width(self) -> int:
        return self.hidden // self.heads

    @property
    def window(self) -> int:
        """Side of a window in merged tokens."""
        return self.window_pixels // self.patch // self.merge

    @property
    def slots(self) -> int:
        """S: patches of one window."""
        return (self.window * self.merge) ** 2

    @property
    def frame_width(self) -> int:
        """Numbers in one frame of a patch."""
        return self.channels * self.patch**2


@dataclasses.dataclass(frozen=True)
class TextConfig:
    vocab: int                             # V, rows of the embedding
    hidden: int                            # D
    intermediate: int
    layers: int                            # L
    heads: int                             # N
    kv_heads: int                          # K
    head_width: int                        # H
    mrope_section: tuple[int, int, int]    # frequencies for time, height, width; sum H / 2
    rope_theta: float = 1e6
    norm_eps: float = 1e-6
    tied: bool = False                     # the head is the embedding


@dataclasses.dataclass(frozen=True)
class Config:
    """A Qwen2.5-VL network and the ids of its placeholders."""

    vision: VisionConfig
    text: TextConfig
    image_token_id: int = 151655
    video_token_id: int = 151656
    vision_start_token_id: int = 151652
    latent_head: str = "none"              # extra tensors of latent-reasoning checkpoints: none | simple | glu
    latent_end_embedding: bool = False

    @classmethod
    def from_hf(cls, fields: Mapping[str, Any], source: str = "config.json") -> "Config":
        """Reads a parsed config.json, flat or nested. Raises ConfigError naming `source`, the field and its value."""
        return _Reader(fields, source).config()

    def to_hf(self) -> dict[str, Any]:
        """The flat config.json of the hub for a network that has none of its own: `from_hf` reads it back equal."""
        v, t = self.vision, self.text
        fields = {
            "architectures": ["Qwen2_5_VLForConditionalGeneration"],
            "model_type": "qwen2_5_vl",
            "vocab_size": t.vocab,
            "hidden_size": t.hidden,
            "intermediate_size": t.intermediate,
            "num_hidden_layers": t.layers,
            "num_attention_heads": t.heads,
            "num_key_value_heads": t.kv_heads,
            "hidden_act": "silu",
            "rms_norm_eps": t.norm_eps,
            "rope_theta": t.rope_theta,
            "rope_scaling": {"type": "mrope", "mrope_section": list(t.mrope_section)},
            "max_position_embeddings": 128000,
            "use_sliding_window": False,
            "tie_word_embeddings": t.tied,
            "image_token_id": self.image_token_id,
            "video_token_id": self.video_token_id,
            "vision_start_token_id": self.vision_start_token_id,
            "lvr_head": self.latent_head != "none",
            "lvr_head_type": "simple" if self.latent_head == "none" else self.latent_head,
            "latent_end_token": self.latent_end_embedding,
            "vision_config": {
                "model_type": "qwen2_5_vl",
                "depth": v.depth,
                "hidden_size": v.hidden,
                "intermediate_size": v.intermediate,
                "num_heads": v.heads,
                "hidden_act": "silu",
                "out_hidden_size": v.out_hidden,
                "fullatt_block_indexes": list(v.full_attention_layers),
                "window_size": v.window_pixels,
                "patch_size": v.patch,
                "spatial_merge_size": v.merge,
                "temporal_patch_size": v.temporal_patch,
                "in_channels": v.channels,
                "tokens_per_second": v.tokens_per_second,
            },
        }
        # Only a head width that does not follow from the width needs saying.
        return fields if t.head_width * t.heads == t.hidden else {**fields, "head_dim": t.head_width}


class _Reader:
    def __init__(self, fields: Mapping[str, Any], source: str):
        self.fields, self.source = fields, source
        self.text = fields.get("text_config", fields)

    def need(self, where: Mapping[str, Any], prefix: str, *names: str) -> Any:
        for name in names:
            value = where.get(name)
            if isinstance(value, str) or (isinstance(value, int | float) and value <= 0):
                raise ConfigError(f"{self.source}: {prefix}{name} is {value!r}, expected a number above zero")
            if value is not None:
                return value
        raise ConfigError(f"{self.source}: field {prefix}{' or '.join(names)} is missing; a Qwen2.5-VL config needs it")

    def expect(self, where: Mapping[str, Any], prefix: str, name: str, *allowed: Any) -> None:
        if name in where and where[name] not in allowed:
            raise ConfigError(f"{self.source}: {prefix}{name} is {where[name]!r}, expected one of {list(allowed)}")

    def config(self) -> Config:
        self.expect(self.fields, "", "model_type", "qwen2_5_vl")
        head = self.fields.get("lvr_head_type", "simple") if self.fields.get("lvr_head") else "none"
        if head not in ("none", "simple", "glu"):
            raise ConfigError(f"{self.source}: lvr_head_type is {head!r}, expected one of ['simple', 'glu']")
        config = Config(
            vision=self.vision(),
            text=self.language(),
            image_token_id=self.need(self.fields, "", "image_token_id"),
            video_token_id=self.need(self.fields, "", "video_token_id"),
            vision_start_token_id=self.need(self.fields, "", "vision_start_token_id"),
            latent_head=head,
            latent_end_embedding=bool(self.fields.get("latent_end_token", False)),
        )
        if config.vision.out_hidden != config.text.hidden:
            raise ConfigError(
                f"{self.source}: vision_config.out_hidden_size is {config.vision.out_hidden}, expected hidden_size "
                f"{config.text.hidden}"
            )
        return config

    def vision(self) -> VisionConfig:
        fields = self.need(self.fields, "", "vision_config")
        prefix = "vision_config."
        need = lambda *names: self.need(fields, prefix, *names)  # noqa: E731
        self.expect(fields, prefix, "hidden_act", "silu")
        config = VisionConfig(
            depth=need("depth"),
            hidden=need("hidden_size"),
            intermediate=need("intermediate_size"),
            heads=need("num_heads"),
            out_hidden=need("out_hidden_size"),
            full_attention_layers=tuple(need("fullatt_block_indexes")),
            window_pixels=need("window_size"),
            patch=need("patch_size", "spatial_patch_size"),
            merge=need("spatial_merge_size"),
            temporal_patch=need("temporal_patch_size"),
            channels=need("in_channels", "in_chans"),
            tokens_per_second=need("tokens_per_second"),
        )
        if config.hidden % config.heads or config.head_width % 4:
            raise ConfigError(
                f"{self.source}: vision_config.hidden_size is {config.hidden}, expected a multiple of 4 * num_heads "
                f"({config.heads})"
            )
        return config

    def language(self) -> TextConfig:
        fields, prefix = self.text, "text_config." if self.text is not self.fields else ""
        need = lambda *names: self.need(fields, prefix, *names)  # noqa: E731
        self.expect(fields, prefix, "hidden_act", "silu")
        self.expect(fields, prefix, "use_sliding_window", False)
        rope = need("rope_parameters", "rope_scaling")
        # transformers 5 moves theta into rope_parameters and rewrites type "mrope" to "default".
        theta = rope.get("rope_theta", fields.get("rope_theta"))
        if theta is None:
            raise ConfigError(f"{self.source}: field {prefix}rope_theta is missing; a Qwen2.5-VL config needs it")
        for name in ("type", "rope_type"):
            self.expect(rope, prefix + "rope_scaling.", name, "mrope", "default")
        section = tuple(self.need(rope, prefix + "rope_scaling.", "mrope_section"))
        heads, hidden = need("num_attention_heads"), need("hidden_size")
        head_width = fields.get("head_dim") or hidden // heads
        if len(section) != 3 or sum(section) * 2 != head_width:
            raise ConfigError(
                f"{self.source}: mrope_section is {list(section)}, expected three that add up to {head_width // 2}"
            )
        if heads % need("num_key_value_heads"):
            raise ConfigError(f"{self.source}: num_attention_heads {heads} is not a multiple of num_key_value_heads")
        # Nested files carry the flag on either level; true on one of them means tied, as in transformers 5.
        tied = [where["tie_word_embeddings"] for where in (self.fields, fields) if "tie_word_embeddings" in where]
        if not tied:
            raise ConfigError(f"{self.source}: field tie_word_embeddings is missing; a Qwen2.5-VL config needs it")
        return TextConfig(
            vocab=need("vocab_size"),
            hidden=hidden,
            intermediate=need("intermediate_size"),
            layers=need("num_hidden_layers"),
            heads=heads,
            kv_heads=need("num_key_value_heads"),
            head_width=head_width,
            mrope_section=section,
            rope_theta=float(theta),
            norm_eps=need("rms_norm_eps"),
            tied=any(tied),
        )


def _published(hidden, layers, heads, kv_heads, intermediate, vocab=152064, tied=False, vision_mlp=3420) -> Config:
    return Config(
        vision=VisionConfig(
            depth=32, hidden=1280, intermediate=vision_mlp, heads=16, out_hidden=hidden,
            full_attention_layers=(7, 15, 23, 31),
        ),
        text=TextConfig(
            vocab=vocab, hidden=hidden, intermediate=intermediate, layers=layers, heads=heads, kv_heads=kv_heads,
            head_width=128, mrope_section=(16, 24, 24), tied=tied,
        ),
    )  # fmt: skip


# The published sizes, for shapes alone (compile checks, random checkpoints); weights bring their own config.json.
SIZES = {
    "3b": _published(2048, 36, 16, 2, 11008, vocab=151936, tied=True),
    "7b": _published(3584, 28, 28, 4, 18944),
    "32b": _published(5120, 64, 40, 8, 27648, vision_mlp=3456),
    "72b": _published(8192, 80, 64, 8, 29568, vision_mlp=3456),
    # The network of the miniature study: every part of the real one, about a million parameters.
    "tiny": Config(
        vision=VisionConfig(
            depth=4, hidden=64, intermediate=192, heads=4, out_hidden=128, full_attention_layers=(1, 3)
        ),
        text=TextConfig(
            vocab=512, hidden=128, intermediate=384, layers=4, heads=4, kv_heads=2, head_width=32,
            mrope_section=(4, 6, 6), rope_theta=100.0, tied=True,
        ),
        image_token_id=392, video_token_id=393, vision_start_token_id=389,
    ),
}  # fmt: skip
