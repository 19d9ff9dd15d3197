"""Lists the tensors of a Hugging Face folder and checks that they are exactly those of its config.

Either naming of the tensors, one file or many shards, tied or untied head, any number of embedding rows. Whatever is
missing, unknown or of another shape is named and refused: a network with a silently random layer is worse than none.
"""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lvr_jax.checkpoints.errors import CheckpointError, some
from lvr_jax.checkpoints.folder import INDEX, TEMPLATES, is_remote, list_files, read_json, resolve
from lvr_jax.checkpoints.safetensors_io import Tensor, parse_header, read_header
from lvr_jax.models.families import leaves, read_config, slots
from lvr_jax.models.interface import Config
from lvr_jax.models.weight_table import canonical

EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"
# Weights in other formats do not travel.
OTHER_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".h5", ".msgpack", ".onnx")


@dataclasses.dataclass(frozen=True)
class HuggingFace:
    """A folder whose tensors are known and fit; nothing of them has been read yet."""

    folder: Path
    fields: dict[str, Any]          # config.json
    config: Config                  # with the embedding's real rows, tied if there is no head
    tensors: dict[str, Tensor]      # by canonical name, one for each of slots(config)
    headers: dict[str, bytes]       # of each shard
    files: list[Path]               # that travel along, relative to the folder
    left_behind: list[str]          # names that do not: subfolders, hidden files, weights of other formats

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors.values())


def open_hf(folder: str | os.PathLike) -> HuggingFace:
    """Raises CheckpointError or ConfigError naming file or tensor, value and expectation."""
    if is_remote(resolve(folder)):
        raise CheckpointError(f"{os.fspath(folder)}: a Hugging Face folder must be on a local disk")
    folder = Path(resolve(folder))
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder")
    if not (folder / "config.json").exists() and (folder / "adapter_config.json").exists():
        base = read_json(folder / "adapter_config.json").get("base_model_name_or_path")
        raise CheckpointError(f"{folder}: is a LoRA adapter of {base!r}, not a checkpoint; merge it while converting "
                              "its base: convert.py to-flax BASE OUT --adapter THIS_FOLDER")
    fields = read_json(folder / "config.json")
    config = read_config(fields, str(folder / "config.json"))
    headers = {name: read_header(folder / name) for name in _shards(folder)}
    found = [
        tensor
        for name, header in headers.items()
        for tensor in parse_header(header, folder / name, (folder / name).stat().st_size)
    ]
    _check_index(folder, found)
    tensors: dict[str, Tensor] = {}
    for tensor in found:
        name = canonical(tensor.name)
        if name in tensors:
            raise CheckpointError(f"{folder}: {tensors[name].name} and {tensor.name} are the same tensor; expected one")
        tensors[name] = tensor
    config = fitted(config, {name: tensor.shape for name, tensor in tensors.items()}, EMBED, HEAD)
    if config.text.tied and HEAD in tensors:
        _check_redundant_head(tensors[EMBED], tensors.pop(HEAD))
    expected = {name: slot.hf_shape for name, slot in slots(config).items()}
    refuse_differences(folder, {name: tensor.shape for name, tensor in tensors.items()}, expected)
    for members in leaves(config).values():
        dtypes = {tensors[name].dtype.name: name for name, _ in members}
        if len(dtypes) > 1:
            each = ", ".join(f"{name} is {dtype}" for dtype, name in dtypes.items())
            raise CheckpointError(f"{folder}: {each}; expected one type for all layers")
    files = travelling_files(folder)
    known = {str(path) for path in files} | set(headers) | {TEMPLATES}
    left = sorted(path.name for path in folder.iterdir() if path.name not in known)
    return HuggingFace(folder, fields, config, tensors, headers, files, left)


def fitted(config: Config, shapes: Mapping[str, tuple[int, ...]], embed: str, head: str) -> Config:
    """The config with what only the tensors know: rows of the embedding, and whether there is a head of its own."""
    if embed not in shapes:
        return config           # reported as missing by name
    text = dataclasses.replace(config.text, vocab=shapes[embed][0], tied=config.text.tied or head not in shapes)
    return dataclasses.replace(config, text=text)


def refuse_differences(where, found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]) -> None:
    """Raises CheckpointError that names the first few missing, unknown and misshapen tensors, on one line."""
    missing = [name for name in expected if name not in found]
    unknown = [name for name in found if name not in expected]
    misshapen = [
        f"{name} {list(found[name])}, expected {list(shape)}"
        for name, shape in expected.items()
        if name in found and tuple(found[name]) != tuple(shape)
    ]
    kinds = (("missing", missing), ("unknown", unknown), ("of another shape", misshapen))
    faults = [f"{len(names)} {kind} ({some(names)})" for kind, names in kinds if names]
    if faults:
        raise CheckpointError(f"{where}: the tensors are not those of its config.json: {'; '.join(faults)}")


def _shards(folder: Path) -> list[str]:
    single, index = folder / "model.safetensors", folder / INDEX
    if single.exists() and index.exists():
        raise CheckpointError(f"{folder}: holds model.safetensors and {INDEX}; expected one of them")
    if single.exists():
        return [single.name]
    if not index.exists():
        raise CheckpointError(f"{folder}: no model.safetensors and no {INDEX}; expected one of them")
    names = sorted(set(_weight_map(index).values()))
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(f"{folder}: shard {some(missing)} is missing, named by {INDEX} with {len(names)} shards")
    return names


def _weight_map(index: Path) -> dict[str, str]:
    weight_map: Any = read_json(index).get("weight_map")
    sound = isinstance(weight_map, dict) and weight_map
    if not sound or not all(isinstance(name, str) and name == os.path.basename(name) for name in weight_map.values()):
        raise CheckpointError(f"{index}: field weight_map is missing or unsound, expected tensor name -> file name")
    return weight_map


def _check_index(folder: Path, found: list[Tensor]) -> None:
    if not (folder / INDEX).exists():
        return
    promised = _weight_map(folder / INDEX)
    held = {tensor.name: tensor.file.name for tensor in found}
    wrong = [name for name in {**promised, **held} if promised.get(name) != held.get(name)]
    if wrong:
        name = wrong[0]
        raise CheckpointError(
            f"{folder / INDEX}: {name} is in {promised.get(name, 'no shard')}, but the shards hold it in "
            f"{held.get(name, 'none')}" + (f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else "")
        )


def _check_redundant_head(embed: Tensor, head: Tensor) -> None:
    same = embed.shape == head.shape and embed.dtype == head.dtype
    for start in range(0, embed.shape[0] if same else 0, 4096):
        rows = [tensor.read(start, min(start + 4096, embed.shape[0])).view(np.uint8) for tensor in (embed, head)]
        same = same and np.array_equal(rows[0], rows[1])
    if not same:
        raise CheckpointError(
            f"{head.file}: {head.name} differs from {embed.name}, but config.json says tie_word_embeddings true"
        )


def travelling_files(folder) -> list[Path]:
    """The files around the weights, relative to the folder: everything but weights, subfolders and hidden files."""

    def travels(path: Path) -> bool:
        place = path.parent in (Path("."), Path(TEMPLATES)) and not path.name.startswith(".")
        return place and (path.suffix not in OTHER_WEIGHTS or path.name == "training_args.bin")

    return [path for path in list_files(folder) if travels(path)]
