"""Maps Hugging Face tensors to parameters: one table, read in both directions.

A rule reads like a specification: the Hugging Face name (`{}` is a layer number), our path, and how the axes of the
one become the axes of the other. Parameters of all layers are stacked along a leading L axis. Axis letters are those
of DESIGN: D width, N heads, K key/value heads, H head width, F inner width, V vocabulary, E merged width; parentheses
join axes that Hugging Face keeps as one.
"""

import dataclasses
import math
import re
from collections.abc import Iterator

import numpy as np

from lvr_jax.models.qwen2_5_vl.config import Config

# Hugging Face name, our path, axes there -> axes here.
VISION = (
    ("visual.patch_embed.proj.weight", "vision/patch_embed", "D C frames row col -> C frames (row col) D"),
    ("visual.blocks.{}.norm1.weight", "vision/blocks/attention_norm", "D -> D"),
    ("visual.blocks.{}.attn.qkv.weight", "vision/blocks/qkv", "(qkv N H) D -> D qkv N H"),
    ("visual.blocks.{}.attn.qkv.bias", "vision/blocks/qkv_bias", "(qkv N H) -> qkv N H"),
    ("visual.blocks.{}.attn.proj.weight", "vision/blocks/out", "D (N H) -> N H D"),
    ("visual.blocks.{}.attn.proj.bias", "vision/blocks/out_bias", "D -> D"),
    ("visual.blocks.{}.norm2.weight", "vision/blocks/mlp_norm", "D -> D"),
    ("visual.blocks.{}.mlp.gate_proj.weight", "vision/blocks/mlp/gate", "F D -> D F"),
    ("visual.blocks.{}.mlp.gate_proj.bias", "vision/blocks/mlp/gate_bias", "F -> F"),
    ("visual.blocks.{}.mlp.up_proj.weight", "vision/blocks/mlp/up", "F D -> D F"),
    ("visual.blocks.{}.mlp.up_proj.bias", "vision/blocks/mlp/up_bias", "F -> F"),
    ("visual.blocks.{}.mlp.down_proj.weight", "vision/blocks/mlp/down", "D F -> F D"),
    ("visual.blocks.{}.mlp.down_proj.bias", "vision/blocks/mlp/down_bias", "D -> D"),
    ("visual.merger.ln_q.weight", "vision/merger/norm", "D -> D"),
    ("visual.merger.mlp.0.weight", "vision/merger/inner", "E2 E -> E E2"),
    ("visual.merger.mlp.0.bias", "vision/merger/inner_bias", "E2 -> E2"),
    ("visual.merger.mlp.2.weight", "vision/merger/out", "out E -> E out"),
    ("visual.merger.mlp.2.bias", "vision/merger/out_bias", "out -> out"),
)
TEXT = (
    ("model.embed_tokens.weight", "text/embed", "V D -> V D"),
    ("model.layers.{}.input_layernorm.weight", "text/blocks/attention_norm", "D -> D"),
    ("model.layers.{}.self_attn.q_proj.weight", "text/blocks/q", "(N H) D -> D N H"),
    ("model.layers.{}.self_attn.q_proj.bias", "text/blocks/q_bias", "(N H) -> N H"),
    ("model.layers.{}.self_attn.k_proj.weight", "text/blocks/k", "(K H) D -> D K H"),
    ("model.layers.{}.self_attn.k_proj.bias", "text/blocks/k_bias", "(K H) -> K H"),
    ("model.layers.{}.self_attn.v_proj.weight", "text/blocks/v", "(K H) D -> D K H"),
    ("model.layers.{}.self_attn.v_proj.bias", "text/blocks/v_bias", "(K H) -> K H"),
    ("model.layers.{}.self_attn.o_proj.weight", "text/blocks/out", "D (N H) -> N H D"),
    ("model.layers.{}.post_attention_layernorm.weight", "text/blocks/mlp_norm", "D -> D"),
    ("model.layers.{}.mlp.gate_proj.weight", "text/blocks/mlp/gate", "F D -> D F"),
    ("model.layers.{}.mlp.up_proj.weight", "text/blocks/mlp/up", "F D -> D F"),
    ("model.layers.{}.mlp.down_proj.weight", "text/blocks/mlp/down", "D F -> F D"),
    ("model.norm.weight", "text/norm", "D -> D"),
)
UNTIED = (("lm_head.weight", "text/head", "V D -> V D"),)
LATENT_HEAD = {
    "none": (),
    "simple": (
        ("lvr_head.ln_q.weight", "latent_head/norm", "D -> D"),
        ("lvr_head.ln_q.bias", "latent_head/norm_bias", "D -> D"),
        ("lvr_head.mlp.0.weight", "latent_head/inner", "D2 D -> D D2"),
        ("lvr_head.mlp.0.bias", "latent_head/inner_bias", "D2 -> D2"),
        ("lvr_head.mlp.2.weight", "latent_head/out", "D2 D -> D D2"),
        ("lvr_head.mlp.2.bias", "latent_head/out_bias", "D2 -> D2"),
    ),
    "glu": (
        ("lvr_head.gate_proj.weight", "latent_head/gate", "F D -> D F"),
        ("lvr_head.gate_proj.bias", "latent_head/gate_bias", "F -> F"),
        ("lvr_head.up_proj.weight", "latent_head/up", "F D -> D F"),
        ("lvr_head.up_proj.bias", "latent_head/up_bias", "F -> F"),
        ("lvr_head.down_proj.weight", "latent_head/down", "D F -> F D"),
        ("lvr_head.down_proj.bias", "latent_head/down_bias", "D -> D"),
    ),
}
LATENT_END = (("lvr_latent_end_emb", "latent_end", "D -> D"),)

# transformers writes these names from 4.52 on; ours are those of the hub's files.
RENAMED = ((r"^model\.language_model\.", "model."), (r"^model\.visual\.", "visual."))


@dataclasses.dataclass(frozen=True)
class Slot:
    """Where one Hugging Face tensor goes: path "text/blocks/q", layer (None if not stacked), and its axes."""

    path: str
    layer: int | None
    hf_shape: tuple[int, ...]
    split: tuple[int, ...]        # the Hugging Face tensor with every axis apart
    order: tuple[int, ...]        # transposition of `split`
    shape: tuple[int, ...]        # our shape of one layer
    leads: tuple[tuple[int, int] | None, ...]   # for each of our axes that is the first part of a Hugging Face axis:
                                                # (its place in `split`, that axis)

    @property
    def same(self) -> bool:
        """Whether both sides hold the same array, so that rows of the one are rows of the other."""
        return self.hf_shape == self.shape and self.order == tuple(range(len(self.split)))

    def from_hf(self, x: np.ndarray) -> np.ndarray:
        return x.reshape(self.split).transpose(self.order).reshape(self.shape)

    def cut(self, x: np.ndarray, index: tuple[slice, ...]) -> np.ndarray:
        """from_hf(x)[index], which touches no more of x (a view of a file) than those slices of its own axes.

        Slices have a start and a stop. An axis that is not the first of its Hugging Face axis (H of "(N H)") is cut
        only afterwards.
        """
        window, split, shape = [slice(None)] * x.ndim, list(self.split), list(self.shape)
        rest = list(index)
        for axis, (mine, lead) in enumerate(zip(index, self.leads)):
            if lead is None:
                continue
            part, there = lead
            inner = self.hf_shape[there] // self.split[part]
            window[there] = slice(mine.start * inner, mine.stop * inner)
            split[part] = shape[axis] = mine.stop - mine.start
            rest[axis] = slice(None)
        return x[tuple(window)].reshape(split).transpose(self.order).reshape(shape)[tuple(rest)]

    def to_hf(self, x: np.ndarray) -> np.ndarray:
        apart = x.reshape([self.split[i] for i in self.order])
        return apart.transpose(np.argsort(self.order)).reshape(self.hf_shape)


def canonical(name: str) -> str:
    """A tensor name in either Hugging Face naming -> the naming of the table."""
    # Training with PEFT saves the whole network under its wrapper's name.
    name = name.removeprefix("base_model.model.")
    for pattern, replacement in RENAMED:
        name = re.sub(pattern, replacement, name)
    return name


def _axes(text: str) -> list[list[str]]:
    """"(N H) D" -> [["N", "H"], ["D"]]"""
    return [part.strip("()").split() for part in re.findall(r"\([^)]*\)|\S+", text)]


def _slots(rules, layers: int, sizes: dict[str, int]) -> Iterator[tuple[str, Slot]]:
    for hf, path, spec in rules:
        there, here = (_axes(side) for side in spec.split("->"))
        split, target = sum(there, []), sum(here, [])
        group = lambda axes: tuple(math.prod(sizes[a] for a in part) for part in axes)  # noqa: E731
        first = {part[0]: (split.index(part[0]), axis) for axis, part in enumerate(there)}
        leads = tuple(first.get(part[0]) if len(part) == 1 else None for part in here)
        shape = tuple(sizes[a] for a in split), tuple(split.index(a) for a in target), group(here), leads
        for layer in range(layers) if "{}" in hf else [None]:
            yield hf.format(layer), Slot(path, layer, group(there), *shape)


def slots(config: Config) -> dict[str, Slot]:
    """Every tensor that a checkpoint of this config holds, by canonical Hugging Face name."""
    v, t = config.vision, config.text
    merged = v.hidden * v.merge**2
    vision = {
        "D": v.hidden, "C": v.channels, "frames": v.temporal_patch, "row": v.patch, "col": v.patch, "qkv": 3,
        "N": v.heads, "H": v.head_width, "F": v.intermediate, "E": merged, "E2": merged, "out": v.out_hidden,
    }  # fmt: skip
    text = {
        "V": t.vocab, "D": t.hidden, "D2": t.hidden, "N": t.heads, "K": t.kv_heads, "H": t.head_width,
        "F": t.intermediate,
    }  # fmt: skip
    rules = TEXT + (() if t.tied else UNTIED) + LATENT_HEAD[config.latent_head]
    rules += LATENT_END if config.latent_end_embedding else ()
    return dict([*_slots(VISION, v.depth, vision), *_slots(rules, t.layers, text)])


def leaves(config: Config) -> dict[str, list[tuple[str, Slot]]]:
    """Our parameters by path: the Hugging Face tensors (name, slot) that make each, in the order of layers."""
    found: dict[str, list[tuple[str, Slot]]] = {}
    for name, slot in slots(config).items():
        found.setdefault(slot.path, []).append((name, slot))
    return found


def shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter by path: that of one layer, with a leading L where layers are stacked."""
    return {
        path: slot.shape if slot.layer is None else (len(members), *slot.shape)
        for path, members in leaves(config).items()
        for slot in [members[0][1]]
    }
