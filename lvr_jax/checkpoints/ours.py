"""Opens a folder of ours and checks that it is the checkpoint that its config.json describes."""

import dataclasses
import math
import os
from pathlib import Path
from typing import Any

import tensorstore as ts
from etils import epath

from lvr_jax.checkpoints.errors import CheckpointError, some
from lvr_jax.checkpoints.folder import FILES, HEADERS, PARAMS, is_ours, read_json, resolve
from lvr_jax.checkpoints.hugging_face import EMBED, HEAD, fitted, refuse_differences
from lvr_jax.checkpoints.orbax_io import open_arrays, stored
from lvr_jax.checkpoints.safetensors_io import parse_header
from lvr_jax.models.families import read_config, shapes, slots
from lvr_jax.models.interface import Config
from lvr_jax.models.weight_table import Slot, canonical


@dataclasses.dataclass(frozen=True)
class Ours:
    """A complete folder; arrays are open and not read."""

    folder: epath.Path
    fields: dict[str, Any]                  # config.json
    config: Config
    arrays: dict[str, ts.TensorStore]       # by path
    headers: dict[str, bytes]               # of the original shards, if the arrays are still theirs

    @property
    def files(self) -> epath.Path:
        """The folder of config.json, tokenizer and the like."""
        return self.folder / FILES

    @property
    def tensors(self) -> dict[str, Slot]:
        """The tensors that a Hugging Face folder of it holds, by canonical name."""
        return slots(self.config)

    @property
    def nbytes(self) -> int:
        return sum(math.prod(x.shape) * x.dtype.numpy_dtype.itemsize for x in self.arrays.values())


def described(folder: str | os.PathLike) -> tuple[epath.Path, Config, dict]:
    """Folder, config and the stored arrays' shapes and types by path, all checked against each other."""
    place = resolve(folder)
    if not is_ours(place):
        raise CheckpointError(f"{place}: no lvr_jax.json; expected a checkpoint of tools/convert.py or training")
    fields = read_json(place / FILES / "config.json")
    held = stored(place / PARAMS)
    found = {path: leaf.shape for path, leaf in held.items()}
    config = fitted(read_config(fields, str(place / FILES / "config.json")), found, "text/embed", "text/head")
    refuse_differences(place / PARAMS, found, shapes(config))
    return place, config, held


def open_ours(folder: str | os.PathLike) -> Ours:
    """Raises CheckpointError if the folder is half-written, damaged or of another network than its config.json."""
    place, config, _ = described(folder)
    fields = read_json(place / FILES / "config.json")
    headers = place / HEADERS
    names = sorted(headers.iterdir()) if headers.exists() else []
    kept = {path.name.removesuffix(".header"): path.read_bytes() for path in names}
    arrays = open_arrays(place / PARAMS)
    if kept:
        _refuse_other_headers(headers, kept, slots(config), arrays)
    return Ours(place, fields, config, arrays, kept)


def _refuse_other_headers(
    where: epath.Path, headers: dict[str, bytes], table: dict[str, Slot], arrays: dict[str, ts.TensorStore]
) -> None:
    """The kept headers must describe exactly the stored arrays, or writing the shards again would lose some of them."""
    held: dict[str, tuple] = {}
    for name, header in headers.items():
        for tensor in parse_header(header, Path(where) / f"{name}.header"):
            held[canonical(tensor.name)] = (tensor.shape, tensor.dtype)
    # A tied checkpoint may hold its embedding once more, as a head.
    expected = {name: (slot.hf_shape, arrays[slot.path].dtype.numpy_dtype) for name, slot in table.items()}
    redundant = {HEAD: expected[EMBED]} if HEAD in held and HEAD not in expected else {}
    wrong = sorted(name for name in {**expected, **held} if held.get(name) != {**expected, **redundant}.get(name))
    if wrong:
        raise CheckpointError(f"{where}: the headers of the original shards are not those of the stored arrays "
                              f"({some(wrong)}); remove this folder to have new shards written")
