"""Merges a LoRA adapter in PEFT's folder layout into the checkpoint that it was trained on, tensor by tensor.

    adapter_config.json          r, lora_alpha, use_rslora, rank_pattern, alpha_pattern, ...
    adapter_model.safetensors    base_model.model.<module>.lora_A.weight [r, in], .lora_B.weight [out, r];
                                 lora_embedding_A [r, V], lora_embedding_B [D, r]; whole tensors of trained modules

W' = W + (B A) * scale with scale = alpha / r, or alpha / sqrt(r) where rank-stabilised. Product and sum in fp32, the
product rounded to the adapter's type and the sum to W's: so PEFT's `merge_and_unload` does it (peft 0.21). What cannot
be merged exactly is refused by name.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lvr_jax.checkpoints.errors import CheckpointError, some
from lvr_jax.checkpoints.finite import finite
from lvr_jax.checkpoints.folder import read_json
from lvr_jax.checkpoints.hugging_face import EMBED, HuggingFace
from lvr_jax.checkpoints.safetensors_io import Tensor, parse_header, read_header
from lvr_jax.models.weight_table import canonical

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_FACTOR = re.compile(r"\.lora_(embedding_)?([AB])(\.weight)?$")
# Fields that change what a merge means, with the values that leave it as it is above.
_PLAIN: dict[str, tuple] = {
    **dict.fromkeys(("use_dora", "fan_in_fan_out", "use_qalora", "lora_bias"), (False, None)),
    # PiSSA, OLoRA, CorDA and LoftQ change the base itself before they train.
    "init_lora_weights": (True, False, None, "gaussian", "eva", "orthogonal"),
    **dict.fromkeys(("layer_replication", "alora_invocation_tokens", "trainable_token_indices"), (None, [])),
}


_KIND = {"r": "whole number", "lora_alpha": "number"}


@dataclasses.dataclass(frozen=True)
class MergedTensor:
    """A tensor of the base with its adapter's change, read like any other."""

    base: Tensor
    a: Tensor
    b: Tensor
    scale: float
    embedding: bool = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.base, name)         # file, name, dtype, shape, nbytes

    def read(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        stop = self.shape[0] if stop is None else stop
        a, b = (np.asarray(factor.read(), np.float32) for factor in (self.a, self.b))
        delta = (b @ a[:, start:stop]).T if self.embedding else b[start:stop] @ a
        with np.errstate(over="ignore", invalid="ignore"):      # what leaves the type is named
            delta *= np.float32(self.scale)
            delta = delta.astype(self.b.dtype, copy=False).astype(np.float32, copy=False)
            merged = self.base.read(start, stop).astype(np.float32, copy=False) + delta
            return finite(merged.astype(self.dtype, copy=False), f"{self.a.file}: {self.name}, merged,", [start, 0])


def merged(source: HuggingFace, adapter: str | Path) -> HuggingFace:
    """The base checkpoint with the adapter in it; nothing has been read yet, and shards are no longer the base's own.

    Raises CheckpointError naming what is not an adapter of this base: a module that it has not, another shape, a kind
    of adapter whose merge is another sum.
    """
    folder = Path(adapter).absolute()
    settings = read_json(folder / CONFIG)
    _refuse_other_kinds(settings, folder / CONFIG)
    path = folder / WEIGHTS
    if not path.is_file():
        raise CheckpointError(f"{path} is missing, expected the adapter's weights")
    found = parse_header(read_header(path), path, path.stat().st_size)
    if not found:
        raise CheckpointError(f"{path}: holds no tensors, expected those of an adapter")
    factors: dict[str, dict[str, Tensor]] = {}
    tensors: dict[str, Any] = dict(source.tensors)
    for tensor in found:
        match = _FACTOR.search(tensor.name)
        if match:
            module = tensor.name[: match.start()]
            factors.setdefault(f"{module} embedding" if match[1] else module, {})[match[2]] = tensor
            continue
        name = canonical(tensor.name)
        if name not in tensors or tensors[name].shape != tensor.shape:
            raise CheckpointError(f"{path}: tensor {tensor.name} {list(tensor.shape)} is not in {source.folder}, or of"
                                  " another shape there; is this the adapter's base?")  # fmt: skip
        tensors[name] = _Cast(tensor, tensors[name].dtype)
    unknown = [module for module in factors if _target(module) not in tensors]
    if unknown:
        raise CheckpointError(f"{path}: changes {some(unknown)}, not in {source.folder}; is this the adapter's base?")
    for module, parts in factors.items():
        name = _target(module)
        tensors[name] = _merge(module, parts, source.tensors[name], settings, path)
    if source.config.text.tied and any(_target(module) == "lm_head.weight" for module in factors):
        raise CheckpointError(f"{path}: changes lm_head, which is the embedding in {source.folder} (tied)")
    return dataclasses.replace(source, tensors=tensors, headers={})


@dataclasses.dataclass(frozen=True)
class _Cast:
    tensor: Tensor
    dtype: np.dtype

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tensor, name)

    @property
    def nbytes(self) -> int:
        return math.prod(self.tensor.shape) * self.dtype.itemsize

    def read(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        with np.errstate(over="ignore"):
            x = self.tensor.read(start, stop).astype(self.dtype, copy=False)
        return finite(x, f"{self.tensor.file}: {self.tensor.name}", [start] + [0] * (x.ndim - 1))


@functools.cache
def _target(module: str) -> str:
    return canonical(module.removesuffix(" embedding") + ".weight")


def _refuse_other_kinds(settings: Mapping[str, Any], path: Path) -> None:
    kind = settings.get("peft_type")
    if kind != "LORA":
        raise CheckpointError(f"{path}: peft_type is {kind!r}, expected 'LORA'")
    for name, plain in _PLAIN.items():
        if settings.get(name) not in plain:
            raise CheckpointError(f"{path}: {name} is {settings[name]!r}; only plain LoRA can be merged here, merge it "
                                  "with PEFT (merge_and_unload)")
    for name in ("r", "lora_alpha"):
        value = settings.get(name)
        if not _sound(name, value):
            raise CheckpointError(f"{path}: {name} is {value!r}, expected a {_KIND[name]} above zero")
    for name, number in (("rank_pattern", "r"), ("alpha_pattern", "lora_alpha")):
        if not isinstance(settings.get(name) or {}, Mapping):
            raise CheckpointError(f"{path}: {name} is {settings[name]!r}, expected an object of numbers by module")
        for key, value in (settings.get(name) or {}).items():
            if not _sound(number, value):
                raise CheckpointError(f"{path}: {name} has {value!r} for {key!r:.80}, expected a {_KIND[number]} above "
                                      "zero")
            if not _is_simple(key):
                raise CheckpointError(f"{path}: {name} has {key!r:.80}, expected a module's name or a simple regular "
                                      "expression of it")


def _sound(name: str, value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e6:
        return False
    return name != "r" or value == int(value)


def _is_simple(key: str) -> bool:
    """Whether it is a regular expression, and one that is matched in no time: no repetition of a group, two of
    anything else. Nested ones would take longer than the universe lasts on a name of fifty letters."""
    try:
        re.compile(key)
    except (re.error, RecursionError, OverflowError):
        return False
    return len(key) <= 1000 and len(re.findall(r"(?<!\\)[*+{]", key)) <= 2 and not re.search(r"\)[*+{]", key)


def _of_module(module: str, pattern: Mapping[str, Any] | None, default: float) -> float:
    """A module's own number: the first key that names the module, or the end of its path, as a regular expression."""
    for key, value in (pattern or {}).items():
        if re.match(rf"(.*\.)?({key})$", module):
            return value
    return default


def _merge(module: str, parts: Mapping[str, Tensor], base: Tensor, settings: Mapping[str, Any], path: Path):
    name, embedding = module.removesuffix(" embedding"), module.endswith(" embedding")
    inner = name.removeprefix("base_model.model.")
    rank = int(_of_module(inner, settings.get("rank_pattern"), settings["r"]))
    alpha = _of_module(inner, settings.get("alpha_pattern"), settings["lora_alpha"])
    if set(parts) != {"A", "B"}:
        raise CheckpointError(f"{path}: {name} has only lora_{min(parts)}, expected lora_A and lora_B")
    a, b = parts["A"], parts["B"]
    rows, *rest = base.shape
    columns = math.prod(rest)
    expected = ((rank, rows), (columns, rank)) if embedding else ((rank, columns), (rows, rank))
    if (a.shape, b.shape) != expected:
        raise CheckpointError(f"{path}: {name} has lora_A {list(a.shape)} and lora_B {list(b.shape)}, expected "
                              f"{list(expected[0])} and {list(expected[1])}")
    if len(rest) != 1 or (embedding and canonical(name + ".weight") != EMBED):
        raise CheckpointError(f"{path}: {name} is no linear layer and no token embedding; merge it with PEFT")
    scale = alpha / math.sqrt(rank) if settings.get("use_rslora") else alpha / rank
    return MergedTensor(base, a, b, scale, embedding)
