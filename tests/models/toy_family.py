"""A second model family in about a hundred lines: mean-pooled pictures, a decoder without rotations, no latent head."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from lvr_jax.models.attention import Keys, Queries, attention
from lvr_jax.models.interface import ConfigError, Family
from lvr_jax.models.layers import Compute, SwiGLU, ones, rms_norm, scan_blocks, stack, weight
from lvr_jax.models.precision import at_least_fp32
from lvr_jax.models.records import Cache
from lvr_jax.models.weight_table import expand


@dataclasses.dataclass(frozen=True)
class Tower:
    merge: int = 2
    window: int = 4
    pixels: int = 588               # numbers in a patch


@dataclasses.dataclass(frozen=True)
class Text:
    vocab: int = 512
    hidden: int = 32
    intermediate: int = 64
    layers: int = 2
    heads: int = 4
    kv_heads: int = 2
    head_width: int = 8
    tied: bool = True


@dataclasses.dataclass(frozen=True)
class Config:
    family: ClassVar[str] = "toy"
    vision: Tower = Tower()
    text: Text = Text()
    image_token_id: int = 392
    video_token_id: int = 393
    vision_start_token_id: int = 389
    latent_head: str = "none"
    latent_end_embedding: bool = False

    def to_hf(self) -> dict[str, Any]:
        ids = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name.endswith("_id")}
        return {"model_type": "toy", "text": dataclasses.asdict(self.text), **ids}


def read_config(fields, source) -> Config:
    try:
        return Config(text=Text(**fields["text"]))
    except (KeyError, TypeError) as error:
        raise ConfigError(f"{source}: {error}") from error


class Block(nnx.Module):
    def __init__(self, rngs: nnx.Rngs, c: Text):
        self.norm, self.mlp_norm = ones(c.hidden), ones(c.hidden)
        self.q = weight(rngs, c.hidden, c.heads, c.head_width)
        self.k, self.v = (weight(rngs, c.hidden, c.kv_heads, c.head_width) for _ in range(2))
        self.out = weight(rngs, c.heads, c.head_width, c.hidden)
        self.mlp = SwiGLU(rngs, c.hidden, c.intermediate, bias=False)


class Toy(nnx.Module):
    def __init__(self, rngs: nnx.Rngs, config: Config):
        self.config, c = config, config.text
        self.latent_head = self.latent_end = None
        self.vision = nnx.Dict(patch=weight(rngs, config.vision.pixels, c.hidden))
        blocks = stack(lambda rngs: Block(rngs, c), c.layers, rngs)
        self.text = nnx.Dict(embed=weight(rngs, c.vocab, c.hidden), norm=ones(c.hidden), blocks=blocks)

    def encode(self, images, compute=Compute(), taps=()):  # noqa: B008
        merged = images.patches.reshape(len(images.patches), -1, self.config.vision.merge**2, self.config.vision.pixels)
        return (merged.mean(2) / 255) @ self.vision.patch[...], {}                       # [B, M, D]

    def embed(self, tokens, vision_slot=None, merged=None):
        x = self.text.embed[...][tokens]
        if merged is None:
            return x
        seen = jnp.take_along_axis(merged, jnp.maximum(vision_slot, 0)[..., None], axis=1)
        return jnp.where((vision_slot >= 0)[..., None], seen, x)

    def decode(self, x, tokens, *, past=(), compute=Compute(), taps=(), keep_cache=False, override=None, read=None):  # noqa: B008
        time = jnp.sin(tokens.positions[:, 0, :, None] / 100 ** jnp.linspace(0, 1, x.shape[-1]))
        x = x.astype(compute.dtype) + time.astype(compute.dtype)

        def step(block, x, layer):
            y = tokens.only_flow(rms_norm(x, block.norm))
            q, k, v = (jnp.einsum("BTD,DNH->BTNH", y, w[...]) for w in (block.q, block.k, block.v))
            keys = [Keys(*kv, cache.segment, cache.role) for kv, cache in zip(layer, past)]
            own = Keys(k, v, tokens.segment, tokens.role, causal=True, branches=tokens.branches)
            y, _ = attention(Queries(q, tokens.segment, tokens.role, tokens.blocked), *keys, own)
            x = x + jnp.einsum("BTNH,NHD->BTD", y, block.out[...])
            return x + block.mlp(rms_norm(x, block.mlp_norm)), (k, v)

        x, own = scan_blocks(self.text.blocks, step, x, [(cache.k, cache.v) for cache in past], compute)
        role = jnp.zeros_like(tokens.segment) if tokens.role is None else tokens.role
        return rms_norm(x, self.text.norm), Cache(*own, tokens.segment, role) if keep_cache else None, {}

    def logits(self, hidden):
        return jnp.einsum("...D,VD->...V", hidden, self.unembedding, preferred_element_type=at_least_fp32(hidden.dtype))

    @property
    def unembedding(self) -> jax.Array:
        return self.text.embed[...]


TABLE = (
    ("visual.patch.weight", "vision/patch", "D P -> P D"),
    ("model.embed_tokens.weight", "text/embed", "V D -> V D"),
    ("model.norm.weight", "text/norm", "D -> D"),
    ("model.layers.{}.norm.weight", "text/blocks/norm", "D -> D"),
    ("model.layers.{}.mlp_norm.weight", "text/blocks/mlp_norm", "D -> D"),
    ("model.layers.{}.q.weight", "text/blocks/q", "(N H) D -> D N H"),
    ("model.layers.{}.k.weight", "text/blocks/k", "(K H) D -> D K H"),
    ("model.layers.{}.v.weight", "text/blocks/v", "(K H) D -> D K H"),
    ("model.layers.{}.out.weight", "text/blocks/out", "D (N H) -> N H D"),
    ("model.layers.{}.mlp.gate.weight", "text/blocks/mlp/gate", "F D -> D F"),
    ("model.layers.{}.mlp.up.weight", "text/blocks/mlp/up", "F D -> D F"),
    ("model.layers.{}.mlp.down.weight", "text/blocks/mlp/down", "D F -> F D"),
)


def slots(config: Config):
    c = config.text
    sizes = {"P": config.vision.pixels, "D": c.hidden, "V": c.vocab, "N": c.heads, "K": c.kv_heads, "H": c.head_width}
    return dict(expand(TABLE, c.layers, sizes | {"F": c.intermediate}))


FAMILY = Family(
    name="toy", read_config=read_config, sizes={"toy": Config()}, build=Toy, slots=slots,
    rules=((r"text/embed", ("tensor", "fsdp")), (r"vision/.*|text/(norm|blocks/.*)", ())), preprocessor={},
    decoder_flops=lambda config, tokens, pairs: 0.0, vision_flops=lambda config, patches, windows, frames: 0.0,
)  # fmt: skip
