"""The shape of the network: frozen records, read from a Hugging Face config.json of either layout.

The hub's files are flat (text fields at the top level); files re-saved by transformers 5 are nested under
`text_config`. No default ever stands in for a missing field: the class defaults of transformers differ from the
published checkpoints (vision hidden size, tokens per second), so a silent default would be a silent error.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from lvr_jax.models.interface import ConfigError


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    """The vision tower: sizes, window and which layers attend over whole images."""

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
    """The decoder: sizes, rotary position embedding and whether its head is the embedding."""

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

    family: ClassVar[str] = "qwen2_5_vl"   # key of models.families.FAMILIES
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


@dataclasses.dataclass(frozen=True)
class _Number:
    """The range of a number in config.json; whole numbers may be written as 4.0, as some programs do."""

    low: float
    high: float
    whole: bool = True

    def read(self, value: Any) -> Any:
        """The number, or None where the value is none of this kind and range."""
        if isinstance(value, bool) or not isinstance(value, int | float) or not self.low <= value <= self.high:
            return None
        if self.whole and value != int(value):
            return None
        return int(value) if self.whole else float(value)

    def __str__(self) -> str:
        return f"a {'whole ' if self.whole else ''}number from {self.low:g} to {self.high:g}"


# Kind and range of every number that is read: (name, or the names that releases have given it) by field of ours. The
# upper ends are far above any network of this family; they keep a damaged file from asking for the memory of a planet.
_WIDTH, _COUNT, _ID = _Number(1, 2**20), _Number(1, 1024), _Number(0, 2**24)
_VISION = {
    "depth": (("depth",), _COUNT),
    "hidden": (("hidden_size",), _WIDTH),
    "intermediate": (("intermediate_size",), _WIDTH),
    "heads": (("num_heads",), _COUNT),
    "out_hidden": (("out_hidden_size",), _WIDTH),
    "window_pixels": (("window_size",), _Number(1, 2**14)),
    "patch": (("patch_size", "spatial_patch_size"), _COUNT),
    "merge": (("spatial_merge_size",), _COUNT),
    "temporal_patch": (("temporal_patch_size",), _COUNT),
    "channels": (("in_channels", "in_chans"), _COUNT),
    "tokens_per_second": (("tokens_per_second",), _Number(1e-6, 1e6, whole=False)),
}
_TEXT = {
    "vocab": (("vocab_size",), _Number(1, 2**24)),
    "hidden": (("hidden_size",), _WIDTH),
    "intermediate": (("intermediate_size",), _WIDTH),
    "layers": (("num_hidden_layers",), _COUNT),
    "heads": (("num_attention_heads",), _COUNT),
    "kv_heads": (("num_key_value_heads",), _COUNT),
    "norm_eps": (("rms_norm_eps",), _Number(0, 1, whole=False)),
}
_IDS = {name: ((name,), _ID) for name in ("image_token_id", "video_token_id", "vision_start_token_id")}
_THETA = _Number(1, 1e12, whole=False)


class _Reader:
    """Reads the fields of one config.json, each by its kind and range."""

    def __init__(self, fields: Mapping[str, Any], source: str):
        self.fields, self.source = fields, source
        nested = "text_config" in fields
        self.text = self.part("text_config") if nested else fields
        self.prefix = "text_config." if nested else ""

    def wrong(self, name: str, value: Any, expected: object) -> ConfigError:
        shown = repr(value)
        return ConfigError(f"{self.source}: {name} is {shown[:80]}{'...' * (len(shown) > 80)}, expected {expected}")

    def missing(self, name: str) -> ConfigError:
        return ConfigError(f"{self.source}: field {name} is missing; a Qwen2.5-VL config needs it")

    def part(self, name: str) -> Mapping[str, Any]:
        value = self.fields.get(name)
        if name not in self.fields:
            raise self.missing(name)
        if not isinstance(value, Mapping):
            raise self.wrong(name, value, "an object")
        return value

    def numbers(self, where: Mapping[str, Any], prefix: str, table: Mapping[str, tuple]) -> dict[str, Any]:
        found = {}
        for ours, (names, kind) in table.items():
            name = next((name for name in names if where.get(name) is not None), None)
            if name is None:
                raise self.missing(prefix + " or ".join(names))
            found[ours] = self.number(prefix + name, where[name], kind)
        return found

    def number(self, name: str, value: Any, kind: _Number) -> Any:
        number = kind.read(value)
        if number is None:
            raise self.wrong(name, value, kind)
        return number

    def whole_numbers(self, name: str, value: Any, kind: _Number) -> tuple[int, ...]:
        if value is None:
            raise self.missing(name)
        if not isinstance(value, list | tuple) or any(kind.read(x) is None for x in value):
            raise self.wrong(name, value, f"a list of whole numbers from {kind.low:g} to {kind.high:g}")
        return tuple(kind.read(x) for x in value)

    def expect(self, where: Mapping[str, Any], prefix: str, name: str, *allowed: Any) -> None:
        # `in` alone would take 1 for true
        if name in where and not any(where[name] is x or (where[name] == x and type(where[name]) is type(x))
                                     for x in allowed):  # fmt: skip
            raise self.wrong(prefix + name, where[name], f"one of {list(allowed)}")

    def flag(self, where: Mapping[str, Any], prefix: str, name: str) -> bool:
        value = where.get(name)
        if value is not None and not isinstance(value, bool):
            raise self.wrong(prefix + name, value, "true or false")
        return bool(value)

    def config(self) -> Config:
        self.expect(self.fields, "", "model_type", "qwen2_5_vl")
        self.refuse_quantised()
        head = self.fields.get("lvr_head_type", "simple") if self.flag(self.fields, "", "lvr_head") else "none"
        if head not in ("none", "simple", "glu"):
            raise self.wrong("lvr_head_type", head, "one of ['simple', 'glu']")
        config = Config(
            vision=self.vision(),
            text=self.language(),
            **self.numbers(self.fields, "", _IDS),
            latent_head=head,
            latent_end_embedding=self.flag(self.fields, "", "latent_end_token"),
        )
        if config.vision.out_hidden != config.text.hidden:
            raise self.wrong("vision_config.out_hidden_size", config.vision.out_hidden,
                             f"hidden_size {config.text.hidden}")  # fmt: skip
        return config

    def refuse_quantised(self) -> None:
        """Quantised weights have other shapes or types, or the right ones and other values: none of it is read here."""
        for where in (self.fields, self.text):
            method = where.get("quantization_config")
            if method:
                name = method.get("quant_method", "unknown") if isinstance(method, Mapping) else method
                raise ConfigError(f"{self.source}: quantization_config says that the checkpoint is quantised ({name}); "
                                  "expected plain weights in fp32, fp16 or bf16: take the release it was made from")

    def vision(self) -> VisionConfig:
        fields, prefix = self.part("vision_config"), "vision_config."
        self.expect(fields, prefix, "hidden_act", "silu")
        numbers = self.numbers(fields, prefix, _VISION)
        name = prefix + "fullatt_block_indexes"
        full = self.whole_numbers(name, fields.get("fullatt_block_indexes"), _Number(0, numbers["depth"] - 1))
        config = VisionConfig(full_attention_layers=full, **numbers)
        if config.hidden % config.heads or config.head_width % 4:
            raise self.wrong(prefix + "hidden_size", config.hidden, f"a multiple of 4 * num_heads ({config.heads})")
        side = config.patch * config.merge
        if config.window_pixels % side:
            raise self.wrong(prefix + "window_size", config.window_pixels,
                             f"a multiple of patch_size * spatial_merge_size ({side})")  # fmt: skip
        return config

    def language(self) -> TextConfig:
        fields, prefix = self.text, self.prefix
        self.expect(fields, prefix, "hidden_act", "silu")
        self.expect(fields, prefix, "use_sliding_window", False)
        numbers = self.numbers(fields, prefix, _TEXT)
        theta, section = self.rope(fields, prefix)
        heads, hidden = numbers["heads"], numbers["hidden"]
        given = fields.get("head_dim")
        head_width = hidden // heads if given is None else self.number(prefix + "head_dim", given, _WIDTH)
        if len(section) != 3 or sum(section) * 2 != head_width:
            raise self.wrong("mrope_section", list(section), f"three that add up to {head_width // 2}")
        if heads % numbers["kv_heads"]:
            raise self.wrong(prefix + "num_attention_heads", heads,
                             f"a multiple of num_key_value_heads ({numbers['kv_heads']})")  # fmt: skip
        # Nested files carry the flag on either level; true on one of them means tied, as in transformers 5.
        places = [(where, p) for where, p in ((self.fields, ""), (fields, prefix)) if "tie_word_embeddings" in where]
        if not places:
            raise self.missing("tie_word_embeddings")
        tied = any([self.flag(where, p, "tie_word_embeddings") for where, p in places])
        return TextConfig(head_width=head_width, mrope_section=section, rope_theta=theta, tied=tied, **numbers)

    def rope(self, fields: Mapping[str, Any], prefix: str) -> tuple[float, tuple[int, ...]]:
        """rope_theta and mrope_section: transformers 5 moves theta into rope_parameters and calls the type default."""
        name = next((n for n in ("rope_parameters", "rope_scaling") if fields.get(n) is not None), None)
        if name is None:
            raise self.missing(prefix + "rope_parameters or rope_scaling")
        rope = fields[name]
        if not isinstance(rope, Mapping):
            raise self.wrong(prefix + name, rope, "an object")
        theta = rope.get("rope_theta", fields.get("rope_theta"))
        if theta is None:
            raise self.missing(prefix + "rope_theta")
        for each in ("type", "rope_type"):
            self.expect(rope, f"{prefix}{name}.", each, "mrope", "default")
        section = self.whole_numbers(f"{prefix}{name}.mrope_section", rope.get("mrope_section"), _Number(0, 4096))
        return self.number(prefix + "rope_theta", theta, _THETA), section


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
