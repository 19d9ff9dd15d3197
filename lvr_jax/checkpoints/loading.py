"""Reads parameters of either kind of folder onto devices, and writes them back to disk after training."""

import json
import os
import tempfile
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from lvr_jax.checkpoints.errors import CheckpointError, some
from lvr_jax.checkpoints.finite import finite
from lvr_jax.checkpoints.folder import (
    FILES,
    INDEX,
    PARAMS,
    building,
    copy_files,
    is_ours,
    is_remote,
    list_files,
    mark_complete,
    read_json,
    refuse_existing,
    resolve,
    workplace,
)
from lvr_jax.checkpoints.hugging_face import HuggingFace, fitted, open_hf, refuse_differences, travelling_files
from lvr_jax.checkpoints.orbax_io import flat, nested, read_arrays, write_arrays
from lvr_jax.checkpoints.ours import described
from lvr_jax.models import families
from lvr_jax.models.families import leaves, shapes
from lvr_jax.models.interface import Config


def read_config(folder: str | os.PathLike) -> Config:
    """The config of a folder of either kind, with the embedding's real rows; reads no parameters."""
    return described(folder)[1] if is_ours(resolve(folder)) else open_hf(folder).config


def load(
    folder: str | os.PathLike, shardings: Any = None, dtype: Any = None, config: Config | None = None
) -> tuple[Config, dict, str]:
    """A folder of either kind, Hugging Face or ours -> (config, params, folder of the tokenizer files).

    shardings: a Sharding for everything, or a nested dict of them like params; each process then reads only the slices
    that its devices hold. None: all on the first device. dtype: None keeps what is stored. config: refuse a checkpoint
    of any other network. Files of a gs:// folder are copied to a temporary folder, for tokenizers read local files.
    Raises CheckpointError, also for NaN and infinity among the weights, or ConfigError.
    """
    if not is_ours(resolve(folder)):
        found, params = load_hf(folder, shardings, dtype, config)
        return found, params, os.fspath(folder)
    found, params = load_params(folder, shardings, dtype, config)
    files = resolve(folder) / FILES
    if is_remote(files):
        local = tempfile.mkdtemp(prefix="lvr_jax_")
        copy_files(list_files(files), files, local)
        return found, params, local
    return found, params, os.fspath(files)


def load_hf(
    folder: str | os.PathLike, shardings: Any = None, dtype: Any = None, config: Config | None = None
) -> tuple[Config, dict]:
    """`load` for a Hugging Face folder, without converting it first."""
    source = open_hf(folder)
    refuse_other(source.folder, source.config, config)
    table = leaves(source.config)
    held = {
        path: jax.ShapeDtypeStruct(shape, source.tensors[table[path][0][0]].dtype)
        for path, shape in shapes(source.config).items()
    }
    return source.config, nested(
        {
            path: jax.make_array_from_callback(
                target.shape, target.sharding, _reader(source, path, target.dtype), dtype=target.dtype
            )
            for path, target in _targets(held, shardings, dtype).items()
        }
    )


def _reader(source: HuggingFace, path: str, dtype: np.dtype):
    members = leaves(source.config)[path]

    def read(index: tuple[slice, ...]) -> np.ndarray:
        slot = members[0][1]
        full = slot.shape if slot.layer is None else (len(members), *slot.shape)
        index = tuple(slice(*cut.indices(n)[:2]) for cut, n in zip(index, full))
        out = np.empty([cut.stop - cut.start for cut in index], dtype)
        layers, inner = ([None], index) if slot.layer is None else (range(index[0].start, index[0].stop), index[1:])
        for row, layer in enumerate(layers):
            name, slot = members[layer or 0]
            tensor = source.tensors[name]
            place = out[... if layer is None else row]
            place[...] = slot.cut(tensor.read(), inner)
            finite(place, f"{tensor.file}: {tensor.name}", [cut.start for cut in inner])
        return out

    return read


def load_params(
    folder: str | os.PathLike, shardings: Any = None, dtype: Any = None, config: Config | None = None
) -> tuple[Config, dict]:
    """`load` for a folder of ours."""
    place, found, held = described(folder)
    refuse_other(place, found, config)
    return found, read_arrays(place / PARAMS, _targets(held, shardings, dtype))


def _targets(held: Mapping[str, jax.ShapeDtypeStruct], shardings: Any, dtype: Any) -> dict[str, jax.ShapeDtypeStruct]:
    if shardings is None:
        shardings = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    if isinstance(shardings, jax.sharding.Sharding):
        shardings = nested({path: shardings for path in held})
    by_path = flat(shardings, is_leaf=lambda x: isinstance(x, jax.sharding.Sharding))
    wrong = sorted(set(by_path) ^ set(held))
    if wrong:
        raise CheckpointError(f"shardings: {some(wrong)} in only one of shardings and checkpoint")
    return {
        path: jax.ShapeDtypeStruct(leaf.shape, np.dtype(dtype or leaf.dtype), sharding=by_path[path])
        for path, leaf in held.items()
    }


def refuse_other(where, found: Config, expected: Config | None) -> None:
    """Raises CheckpointError naming the fields in which the checkpoint's config is not the expected one."""
    if expected is None or found == expected:
        return
    ours, theirs = (
        {f"{part}.{name}": x for part in ("vision", "text") for name, x in vars(getattr(config, part)).items()}
        | {name: x for name, x in vars(config).items() if name not in ("vision", "text")}
        for config in (found, expected)
    )
    differ = [f"{name} is {x}, expected {theirs[name]}" for name, x in ours.items() if x != theirs[name]]
    raise CheckpointError(f"{where}: checkpoint of another config: {some(differ)}")


def save_params(
    folder: str | os.PathLike,
    params: dict,
    config: Config,
    *,
    files: str | os.PathLike | None = None,
    fields: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> None:
    """Saves params (arrays, sharded or not) as a folder of ours that `load` and `tools/convert.py to-hf` read.

    files: folder whose tokenizer, preprocessor and config.json travel along (the third value of `load`); without it
    config.json is written from `config`. fields: what config.json should say besides (lvr_start_id, ...). In a
    multi-process run every process calls this; the first one makes the folder.
    Raises CheckpointError if params or `files` belong to another config.
    """
    refuse_differences("params", {path: x.shape for path, x in flat(params).items()}, shapes(config))
    described_by = config.to_hf() if files is None else read_json(resolve(files) / "config.json")
    described_by = {**described_by, **(fields or {})}
    source = "config" if files is None else os.path.join(os.fspath(files), "config.json")
    held = {path: x.shape for path, x in flat(params).items()}
    refuse_other(source, fitted(families.read_config(described_by, source), held, "text/embed", "text/head"), config)
    # The first process decides whether the folder may be written; the others would wait for it inside Orbax.
    first, refusal = jax.process_index() == 0, None
    if first:
        try:
            refuse_existing(resolve(folder), overwrite)
        except CheckpointError as error:
            refusal = error
    if jax.process_count() > 1 and multihost_utils.broadcast_one_to_all(np.array(refusal is not None)):
        refusal = refusal or CheckpointError(f"{os.fspath(folder)}: refused by the first process")
    if refusal is not None:
        raise refusal
    if first:
        with building(folder, overwrite) as place:
            if files is not None:
                travelling = [name for name in travelling_files(resolve(files)) if name.name != INDEX]
                copy_files(travelling, files, place / FILES)
            if files is None or fields:
                (place / FILES).mkdir(parents=True, exist_ok=True)
                (place / FILES / "config.json").write_text(json.dumps(described_by, indent=2) + "\n")
            write_arrays(place / PARAMS, params)
            mark_complete(place)
    else:
        write_arrays(workplace(folder) / PARAMS, params)
    multihost_utils.sync_global_devices(f"save_params {os.fspath(folder)}")
